"""The images of an input, as files of a dataset."""

from collections.abc import Hashable, Iterator, Sequence
from io import BytesIO
from pathlib import Path

from cliptrase_ros.exports.results import ExportError, Result, find_photos
from cliptrase_ros.messages.images import (
    compress_picture,
    decompress_to_rgb,
    header_stamp_ns,
    to_rgb,
)
from cliptrase_ros.messages.type_names import COMPRESSED_IMAGE, IMAGE
from cliptrase_ros.photos.reading import UnreadableError, photo_format, read_photo
from cliptrase_ros.photos.videos import read_video

#: File names of the dataset by `LabelledImage.origin`; images of one origin in their order.
Wanted = dict[Hashable, list[str]]


def write_pictures(result: Result, wanted: Wanted, folders: Sequence[Path]) -> None:
    """Write the images of a result's input to each of some folders.

    JPEG and PNG that any program shows as it was labelled stay as they are; all others become JPEG.

    Args:
        wanted: What to write; it is empty in the end.

    Raises:
        ExportError: An image is not there, or cannot be read.
    """
    read = {'recording': _read_recording, 'video': _read_video, 'photos': _read_photos}
    for origin, data in read[result.kind](result, wanted):
        name, *others = wanted.pop(origin)
        if others:
            wanted[origin] = others
        for folder in folders:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    if wanted:
        first = next(iter(wanted.values()))[0]
        count = sum(map(len, wanted.values()))
        raise ExportError(f'{count} labelled images are not in {result.inputs}, the first {first}')


def _read_photos(result: Result, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    for name, path in find_photos(result.inputs, list(wanted)).items():
        try:
            kept = photo_format(path)
            yield name, path.read_bytes() if kept else compress_picture(read_photo(path))
        except (OSError, UnreadableError) as error:
            raise ExportError(f'{path} cannot be read: {error}') from error


def _read_video(result: Result, wanted: Wanted) -> Iterator[tuple[int, bytes]]:
    try:
        for frame in read_video(result.inputs):
            if frame.number in wanted:
                yield frame.number, compress_picture(frame.picture)
    except UnreadableError:
        # Of a damaged video there are labels up to the damage; frames that lack are found missing.
        pass


def _read_recording(result: Result, wanted: Wanted) -> Iterator[tuple[tuple, bytes]]:
    from cliptrase_ros.bag.folder import BagError
    from cliptrase_ros.bag.reader import BagReader
    from cliptrase_ros.messages.typestore import make_typestore

    cameras = set(result.cameras.values())
    try:
        with BagReader(result.inputs, make_typestore()) as reader:
            topics = [
                topic
                for topic in reader.topics.values()
                if topic.name in cameras and topic.type in (IMAGE, COMPRESSED_IMAGE)
            ]
            for message in reader.messages(topics):
                try:
                    image = reader.typestore.deserialize_cdr(message.data, message.topic.type)
                    stamp_ns = header_stamp_ns(image.header)
                except Exception:
                    continue  # it has no labels either
                origin = (message.topic.name, message.stamp_ns, stamp_ns)
                if origin in wanted:
                    yield origin, _jpeg(image, message.topic.type)
    except BagError as error:
        raise ExportError(str(error)) from error


def _jpeg(image, message_type: str) -> bytes:
    if message_type == IMAGE:
        return compress_picture(to_rgb(image))
    data = bytes(image.data)
    # A mosaic of colours in a JPEG is not what was labelled.
    if not image.format.startswith('bayer_') and photo_format(BytesIO(data)) == 'JPEG':
        return data
    return compress_picture(decompress_to_rgb(image))
