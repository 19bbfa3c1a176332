"""Finished labels of one input, image after image."""

import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from cliptrase_ros.exports.names import distinct_names, portable_path
from cliptrase_ros.exports.regions import Mask, Region, class_masks, find_regions
from cliptrase_ros.messages.images import header_stamp_ns
from cliptrase_ros.messages.masks import decode_mask
from cliptrase_ros.messages.type_names import CLASS_MASKS
from cliptrase_ros.photos.output_folder import REPORT
from cliptrase_ros.photos.reading import photo_format
from cliptrase_ros.segmentation.vocabulary import UNLABELLED


class ExportError(Exception):
    """An export that cannot be written; the message says why and what to do."""


@dataclass(frozen=True)
class Result:
    """Finished labels of one input.

    Attributes:
        key: Unique, of letters and digits.
        kind: 'recording', 'video' or 'photos'.
        name: Path in the dataset: of a recording or video as `drives/monday`, of photos that of
            their folder. Unique, but that parts of a folder share one. Photos whose names differ in
            their suffix alone must be in one part, as labels are called by the stem.
        source: Path or URL of the input; of photos, of their folder.
        folder: What was written: `segmentation.json` with label images, or a recording with masks.
        inputs: The recording, the video or the folder of the photos, where the dataset is to
            have the images too.
        cameras: Image topic by camera name; of recordings alone.
    """

    key: str
    kind: str
    name: str
    source: str
    folder: Path
    inputs: Path | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledImage:
    """An image of a dataset.

    Attributes:
        name: Path of its labels in the dataset, without suffix; unique.
        file_name: Path of the image in the dataset; where the dataset has no images, of a photo
            its own.
        kind: Of the result.
        origin: Which of the input it is: file name, frame number, or topic, log time and stamp.
        source: Path or URL of the photo, video or recording.
        topic: Image topic, of recordings.
        stamp_ns: When it was taken, or since a video's beginning, nanoseconds; None for photos.
        label: uint8 (H, W), class ids, 255 = unlabelled.
        names: Of the classes present, by id.
        confidence: Mean over the pixels of each class present, 0..1, by id.
    """

    name: str
    file_name: str
    kind: str
    origin: Hashable
    source: str
    topic: str | None
    stamp_ns: int | None
    label: np.ndarray
    names: Mapping[int, str]
    confidence: Mapping[int, float]

    @cached_property
    def masks(self) -> dict[int, Mask]:
        """Mask of every class present, by ascending id."""
        return class_masks(self.label)

    @cached_property
    def regions(self) -> list[Region]:
        """Connected regions of the classes that are not too small."""
        return find_regions(self.label)


def read_result(result: Result) -> Iterator[LabelledImage]:
    """Read the images of a result, one at a time.

    Raises:
        ExportError: It is not there, or damaged.
    """
    read = {'recording': _read_recording, 'video': _read_video, 'photos': _read_photos}
    if result.kind not in read:
        raise ExportError(f'the kind is {result.kind!r}; it must be one of {", ".join(read)}')
    return read[result.kind](result)


def text_of(name: str | Path) -> str:
    r"""A name as results have it: bytes that are not text are shown as \udc80 to \udcff."""
    return str(name).encode('utf-8', 'backslashreplace').decode('utf-8')


def _read_photos(result: Result) -> Iterator[LabelledImage]:
    entries = _read_report(result.folder)
    files = [PurePosixPath(entry['file']).name for entry in entries]
    for file, count in Counter(files).items():
        if count > 1:
            raise ExportError(f'two photos are called {file}; a result must be of one folder')
    names = distinct_names(files, [PurePosixPath(file).stem for file in files])
    stored = {} if result.inputs is None else find_photos(result.inputs, files)
    folder = portable_path(result.name)
    for entry, file, name in zip(entries, files, names, strict=True):
        name = _join(folder, name)
        if result.inputs is None:
            file_name = _join(text_of(result.name), file)
        elif file in stored:
            file_name = name + _suffix(stored[file])
        else:
            raise ExportError(f'{file} was labelled, and is not in {result.inputs}')
        source = _join(text_of(result.source), file)
        yield _of_report(result, entry, name, file_name, file, source)


def find_photos(folder: Path, names: Collection[str]) -> dict[str, Path]:
    """The photos of a folder that are called so in results; the folder may have many others."""
    found = {name: folder / name for name in names if (folder / name).is_file()}
    if len(found) < len(names):
        # Results have another name than the folder where that is no text.
        others = {text_of(path.name): path for path in folder.iterdir()}
        found |= {name: others[name] for name in names if name in others}
    return found


def _suffix(photo: Path) -> str:
    """Of a photo in the dataset: its own, where it tells how it will be stored there."""
    usual = {'JPEG': ('.jpg', '.jpeg'), 'PNG': ('.png',)}[photo_format(photo) or 'JPEG']
    return photo.suffix if photo.suffix.lower() in usual else usual[0]


def _read_video(result: Result) -> Iterator[LabelledImage]:
    folder = portable_path(result.name)
    for entry in _read_report(result.folder):
        name = _join(folder, f'{entry["frame"]:06d}')
        source = text_of(result.source)
        yield _of_report(result, entry, name, f'{name}.jpg', entry['frame'], source)


def _read_report(folder: Path) -> list[dict]:
    try:
        return json.loads((folder / REPORT).read_text(encoding='utf-8'))['images']
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ExportError(f'{folder / REPORT} cannot be read: {error}') from error


def _of_report(
    result: Result, entry: dict, name: str, file_name: str, origin: Hashable, source: str
) -> LabelledImage:
    path = result.folder / entry['label']
    try:
        with Image.open(path) as image:
            label = np.asarray(image)
    except OSError as error:
        raise ExportError(f'{path} cannot be read: {error}') from error
    return LabelledImage(
        name,
        file_name,
        result.kind,
        origin,
        source,
        topic=None,
        stamp_ns=round(entry['time_s'] * 1e9) if 'time_s' in entry else None,
        label=label,
        names={present['id']: present['name'] for present in entry['classes']},
        confidence={present['id']: present['confidence'] for present in entry['classes']},
    )


def _read_recording(result: Result) -> Iterator[LabelledImage]:
    from cliptrase_ros.bag.folder import BagError
    from cliptrase_ros.bag.reader import BagReader
    from cliptrase_ros.messages.typestore import make_typestore

    folder = portable_path(result.name)
    try:
        with BagReader(result.folder, make_typestore()) as reader:
            # Masks say all that label images do, and confidence besides.
            topics = [topic for topic in reader.topics.values() if topic.type == CLASS_MASKS]
            cameras = [topic.name.split('/')[-2] for topic in topics]
            names = dict(zip(cameras, distinct_names(cameras), strict=True))
            stamps: Counter[tuple[str, int]] = Counter()
            for message in reader.messages(topics):
                camera = message.topic.name.split('/')[-2]
                masks = reader.typestore.deserialize_cdr(message.data, CLASS_MASKS)
                header_ns = header_stamp_ns(masks.header)
                stamp_ns = header_ns or message.stamp_ns
                stamps[camera, stamp_ns] += 1
                count = stamps[camera, stamp_ns]
                # Drivers that have no clock stamp all images alike.
                number = f'{stamp_ns}_{count}' if count > 1 else f'{stamp_ns}'
                name = _join(folder, f'{names[camera]}/{number}')
                topic = result.cameras.get(camera)
                yield LabelledImage(
                    name,
                    f'{name}.jpg',
                    result.kind,
                    (topic, message.stamp_ns, header_ns),
                    text_of(result.source),
                    topic,
                    stamp_ns,
                    _decode_label(masks),
                    {mask.class_id: mask.class_name for mask in masks.masks},
                    {mask.class_id: round(float(mask.confidence), 4) for mask in masks.masks},
                )
            if reader.damage:
                raise ExportError(f'{result.folder} is damaged: {"; ".join(reader.damage)}')
    except BagError as error:
        raise ExportError(str(error)) from error


def _decode_label(masks) -> np.ndarray:
    label = np.full((masks.height, masks.width), UNLABELLED, np.uint8)
    for mask in masks.masks:
        label[decode_mask(mask, masks.height, masks.width)] = mask.class_id
    return label


def _join(folder: str, name: str) -> str:
    return f'{folder.rstrip("/")}/{name}' if folder else name
