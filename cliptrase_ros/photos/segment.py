"""Photos, videos and webcams through the engine, and what comes of it into a folder."""

import tempfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from cliptrase_ros.photos.output_folder import REPORT, remove_earlier_results
from cliptrase_ros.photos.output_names import output_files
from cliptrase_ros.photos.reading import UnreadableError, read_photo
from cliptrase_ros.photos.results import (
    OverlayVideo,
    describe_segmentation,
    describe_vocabulary,
    write_json,
    write_label,
    write_overlay,
)
from cliptrase_ros.photos.sources import Source
from cliptrase_ros.photos.videos import read_video, read_webcam
from cliptrase_ros.segmentation.instances import Instance, find_instances
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.streams.ahead import submit_ahead
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.tracking import InstanceTracker

# Photos are read and results are written beside the engine; of each so many at a time.
_THREADS = 4
_AHEAD = 8


@dataclass(frozen=True)
class Picture:
    """A photo, or a frame of a video or webcam.

    Attributes:
        pixels: uint8 (H, W, 3) RGB, upright.
        number: Its place in a video, from 0; None for a photo.
        time_s: Seconds since the beginning of a video; None for a photo.
    """

    source: Source
    pixels: np.ndarray
    number: int | None = None
    time_s: float | None = None

    def __str__(self) -> str:
        return str(self.source) if self.number is None else f'{self.source}, frame {self.number}'


@dataclass(frozen=True)
class OutputSettings:
    """What is written, and how.

    Attributes:
        rate: Most frames a second of a video or webcam, by its own time; 0 for all.
        coco: Whether the report has masks and instances as COCO run lengths.
        overlay: Whether to draw pictures for people.
        overlay_boxes: Whether instances are drawn on them.
    """

    folder: Path
    rate: float = 0.0
    coco: bool = False
    overlay: bool = True
    overlay_boxes: bool = False


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        labelled: Number of pictures.
        unreadable: (input, why) of those that could not be read or labelled, or whose results
            could not be written.
        areas: Pixels by class id.
        total_area: Pixels of all pictures.
        write_fault: The first error that kept results from being written, None while none did.
    """

    labelled: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    areas: Counter[int] = field(default_factory=Counter)
    total_area: int = 0
    write_fault: Exception | None = None

    def count(self, entry: dict) -> None:
        """Take in the description of a labelled picture."""
        self.labelled += 1
        self.total_area += entry['height'] * entry['width']
        for present in entry['classes']:
            self.areas[present['id']] += present['area']


def segment_sources(
    sources: Sequence[Source],
    engine: FaultTolerantEngine,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    output: OutputSettings,
    on_image: Callable[[], object] = lambda: None,
    on_result: Callable[[Picture, Segmentation], object] = lambda picture, segmentation: None,
) -> Outcome:
    """Label every source and write the results.

    What an earlier report in the folder lists is deleted first. What cannot be read, labelled or
    written is noted and the rest is done. The report is written at the end, also after an
    interruption.

    Args:
        engine: What labels; its `gave_up` says whether a picture without labels is the device's
            fault rather than the picture's.
        on_image: Called for every picture that is done with.
        on_result: Called for every picture that was labelled.

    Raises:
        OSError: Nothing can be written to the folder.
    """
    outcome = Outcome()
    entries: list[tuple[Source, dict]] = []
    output.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.folder):
        pass  # before hours of work
    outcome.unreadable += remove_earlier_results(output.folder)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            labelling = _Labelling(
                *(engine, vocabulary, settings, output, on_image, on_result),
                *(threads, outcome, entries),
            )
            try:
                labelling.label_photos([source for source in sources if source.kind == 'photo'])
            finally:
                labelling.finish_writes()
            for source in sources:
                if source.kind != 'photo':
                    labelling.label_video(source)
    finally:
        places = {source: place for place, source in enumerate(sources)}
        entries.sort(key=lambda item: (places[item[0]], item[1].get('frame', 0)))
        report = {
            'model': engine.segmenter.name,
            **asdict(settings),
            'vocabulary': describe_vocabulary(vocabulary.vocabulary),
            'images': [entry for _, entry in entries],
            'unreadable': [{'file': file, 'reason': reason} for file, reason in outcome.unreadable],
        }
        try:
            write_json(output.folder / REPORT, report)
        except OSError as error:
            outcome.unreadable.append((REPORT, str(error)))
    return outcome


@dataclass
class _Labelling:
    """Labels sources one after the other, while threads read photos and write results."""

    engine: FaultTolerantEngine
    vocabulary: EncodedVocabulary
    settings: SegmentationSettings
    output: OutputSettings
    on_image: Callable[[], object]
    on_result: Callable[[Picture, Segmentation], object]
    threads: ThreadPoolExecutor
    outcome: Outcome
    #: The report's entries of what is labelled and written.
    entries: list[tuple[Source, dict]]

    histories: CameraHistories = field(default_factory=CameraHistories)
    #: Of the videos, by source.
    trackers: dict[Source, InstanceTracker] = field(
        default_factory=partial(defaultdict, InstanceTracker)
    )
    #: Results that threads are writing, in the order of the pictures.
    writes: deque[tuple[Picture, Future]] = field(default_factory=deque)
    #: Overlays of the video or webcam that is being labelled.
    video: OverlayVideo | None = None
    #: Sources that are not done, or not to their end.
    given_up: set[Source] = field(default_factory=set)

    def label_photos(self, photos: Sequence[Source]) -> None:
        by_size: dict[tuple[int, int], list[Picture]] = {}
        reads = submit_ahead(self.threads, lambda photo: read_photo(photo.location), photos, _AHEAD)
        for source, read in zip(photos, reads, strict=True):
            try:
                picture = Picture(source, read.result())
            except UnreadableError as error:
                self._give_up(source, error)
                continue
            size = picture.pixels.shape[:2]
            batch = by_size.setdefault(size, [])
            batch.append(picture)
            if len(batch) >= self.engine.largest_batch:
                self._label(by_size.pop(size))
            elif sum(map(len, by_size.values())) >= 4 * self.engine.largest_batch:
                # Sizes that hardly ever occur must not pile up.
                self._label(by_size.pop(next(iter(by_size))))
        for batch in by_size.values():
            self._label(batch)

    def label_video(self, source: Source) -> None:
        # With smoothing, a frame needs the labels of the one before.
        one_by_one = self.settings.smoothing > 0
        batch: list[Picture] = []
        overlay = self.output.folder / output_files(source.name, source.kind)[1]
        try:
            for frame in self._read_frames(source, overlay):
                batch.append(frame)
                if one_by_one or len(batch) >= self.engine.largest_batch:
                    self._label(batch)
                    batch = []
                if source in self.given_up:
                    break
            self._label(batch)
        finally:
            try:
                self.finish_writes()
            finally:
                self._close_video(source)
                if not overlay.is_file():
                    for labelled, entry in self.entries:
                        if labelled == source:
                            entry.pop('overlay', None)

    def _read_frames(self, source: Source, overlay: Path) -> Iterator[Picture]:
        """Frames of a video or webcam, up to what goes wrong with it, which is noted."""
        read = read_webcam if source.kind == 'webcam' else read_video
        size = None
        try:
            for frame in read(source.location, self.output.rate):
                if size is None:
                    size = frame.picture.shape[:2]
                    if self.output.overlay:
                        self.video = OverlayVideo(overlay, *size)
                elif frame.picture.shape[:2] != size:
                    raise UnreadableError(f'frame {frame.number} is of another size')
                yield Picture(source, frame.picture, frame.number, frame.time_s)
        except Exception as error:
            # Encoders, too, raise nearly anything.
            self._give_up(source, error)

    def _close_video(self, source: Source) -> None:
        video, self.video = self.video, None
        if video is not None:
            try:
                video.close()
            except Exception as error:
                self._give_up_writing(source, error)

    def _label(self, batch: Sequence[Picture]) -> None:
        """Label photos of one size, or frames of one video, and have the results written."""
        if not batch:
            return
        is_video = batch[0].number is not None
        if is_video:
            settings = self.settings
            histories = [self.histories.before(str(p.source), _stamp_ns(p)) for p in batch]
        else:
            settings, histories = replace(self.settings, smoothing=0.0), ()
        pixels = [picture.pixels for picture in batch]
        results = self.engine.segment_each(pixels, self.vocabulary, settings, histories)
        for picture, result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                self._note(picture, result)
                continue
            if is_video:
                self.histories.keep(str(picture.source), _stamp_ns(picture), result.history)
            self.on_result(picture, result)
            found = self._find_instances(picture, result)
            self.writes.append((picture, self.threads.submit(self._write, picture, result, *found)))
        self.finish_writes(_AHEAD)

    def _find_instances(
        self, picture: Picture, segmentation: Segmentation
    ) -> tuple[Sequence[Instance], Sequence[int]]:
        """Instances and their ids, as far as they are written: those of a video are tracked."""
        if not (self.output.coco or (self.output.overlay and self.output.overlay_boxes)):
            return (), ()
        instances = find_instances(segmentation, self.settings.min_instance_area)
        if picture.number is None:
            return instances, range(1, len(instances) + 1)
        return instances, self.trackers[picture.source].track(instances, _stamp_ns(picture))

    def _write(
        self,
        picture: Picture,
        segmentation: Segmentation,
        instances: Sequence[Instance],
        ids: Sequence[int],
    ) -> tuple[dict, np.ndarray | None]:
        """Write the results of a picture; returns its entry in the report, and the overlay."""
        label, overlay = output_files(picture.source.name, picture.source.kind)
        drawn = None
        if self.output.overlay:
            drawn = draw_overlay(
                picture.pixels,
                segmentation.label,
                segmentation.vocabulary,
                **({'instances': instances, 'ids': ids} if self.output.overlay_boxes else {}),
            )
        entry = {'file': str(picture.source)}
        if picture.number is not None:
            label = f'{label}/{picture.number:06d}.png'
            entry |= {'frame': picture.number, 'time_s': round(picture.time_s, 3)}
        label_path = self.output.folder / label
        write_label(label_path, segmentation)
        if picture.number is None and drawn is not None:
            try:
                write_overlay(self.output.folder / overlay, drawn)
            except BaseException:
                label_path.unlink(missing_ok=True)  # of what is not in the report nothing stays
                raise
        entry['label'] = label
        if drawn is not None:
            entry['overlay'] = overlay
        described = describe_segmentation(segmentation, self.output.coco, instances, ids)
        return entry | described, drawn

    def finish_writes(self, most_left: int = 0) -> None:
        """Wait until no more than so many results are still being written."""
        while len(self.writes) > most_left:
            # It leaves the queue when it is in the report, in case of an interruption.
            picture, write = self.writes[0]
            try:
                entry, drawn = write.result()
            except Exception as error:
                self.writes.popleft()
                self._give_up_writing(picture.source, error)
                continue
            self.entries.append((picture.source, entry))
            self.outcome.count(entry)
            self.writes.popleft()
            self.on_image()
            if self.video is not None:
                try:
                    self.video.write(drawn, picture.time_s)
                except Exception as error:
                    self._give_up_writing(picture.source, error)
                    self._close_video(picture.source)

    def _give_up_writing(self, source: Source, error: Exception) -> None:
        self.outcome.write_fault = self.outcome.write_fault or error
        self._give_up(source, error)

    def _give_up(self, source: Source, error: Exception) -> None:
        """Note why a source is not done, or not to its end; the first reason counts."""
        if source not in self.given_up:
            self.given_up.add(source)
            self._note(source, error)

    def _note(self, what: Source | Picture, error: Exception) -> None:
        reason = ' '.join(str(error).split()) or type(error).__name__
        source = what.source if isinstance(what, Picture) else what
        if source.shown:
            # Decoders name the file that they were given.
            reason = reason.replace(str(source.location), source.shown)
        self.outcome.unreadable.append((str(what), reason))
        self.on_image()


def _stamp_ns(frame: Picture) -> int:
    return round(frame.time_s * 1e9)
