"""Photos, videos and webcams through the engine, and what comes of it into a folder."""

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from cliptrase_ros.photos.reading import UnreadableError, read_photo
from cliptrase_ros.photos.results import (
    OverlayVideo,
    describe_segmentation,
    describe_vocabulary,
    write_json,
    write_label,
    write_overlay,
)
from cliptrase_ros.photos.sources import REPORT, Source, output_files, remove_earlier_results
from cliptrase_ros.photos.videos import read_video, read_webcam
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories

# Photos are read and results are written beside the engine; of each so many at a time.
_THREADS = 4
_AHEAD = 8


@dataclass(frozen=True)
class Frame:
    """One picture.

    picture: uint8 (H, W, 3) RGB, upright. number: its place in a video, from 0; None for a photo.
    time_s: seconds from the beginning of a video; None for a photo.
    """

    source: Source
    picture: np.ndarray
    number: int | None = None
    time_s: float | None = None

    def __str__(self) -> str:
        return str(self.source) if self.number is None else f'{self.source}, frame {self.number}'


@dataclass(frozen=True)
class OutputSettings:
    """What is written, and how.

    folder: where to. batch: pictures of equal size that go through the engine together.
    rate: most frames a second of a video or webcam, by its own time, 0 = all.
    coco: whether the report has masks as COCO run lengths.
    """

    folder: Path
    batch: int = 1
    rate: float = 0.0
    coco: bool = False


@dataclass
class Outcome:
    """What came of it.

    labelled: pictures. unreadable: (input, why) of those that could not be read or labelled, or
    whose results could not be written. areas: pixels by class id; total_area: of all pictures.
    """

    labelled: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    areas: Counter = field(default_factory=Counter)
    total_area: int = 0

    def count(self, entry: dict) -> None:
        """Take in the description of a labelled picture."""
        self.labelled += 1
        self.total_area += entry['height'] * entry['width']
        for present in entry['classes']:
            self.areas[present['id']] += present['area']


def segment_sources(
    sources: Sequence[Source],
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    output: OutputSettings,
    on_image: Callable[[], None] = lambda: None,
    on_result: Callable[[Frame, Segmentation], None] | None = None,
) -> Outcome:
    """Label every source and write the results.

    What an earlier report in the folder lists is deleted first. What cannot be read, labelled or
    written is noted and the rest is done. The report is written at the end, also after an
    interruption. on_image: called for every picture done with; on_result: for every one that was
    labelled. Raises OSError if nothing can be written to the folder.
    """
    outcome = Outcome()
    entries: list[tuple[Source, dict]] = []
    output.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output.folder):
        pass  # before hours of work
    for file, reason in remove_earlier_results(output.folder):
        outcome.unreadable.append((file, reason))
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            photos = [source for source in sources if source.kind == 'photo']
            job = _Job(
                *(segmenter, vocabulary, settings, output, outcome, entries, threads),
                on_image,
                on_result,
            )
            job.label_photos(photos)
            for source in sources:
                if source.kind != 'photo':
                    job.label_video(source)
    finally:
        places = {source: place for place, source in enumerate(sources)}
        entries.sort(key=lambda item: (places[item[0]], item[1].get('frame', 0)))
        report = {
            'model': segmenter.name,
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


def _ahead(threads: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator[Future]:
    """Futures of `function` over the items in order, a few of them at work already."""
    futures: deque[Future] = deque()
    for item in items:
        futures.append(threads.submit(function, item))
        if len(futures) > _AHEAD:
            yield futures.popleft()
    yield from futures


class _Job:
    def __init__(
        self,
        segmenter: Segmenter,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
        output: OutputSettings,
        outcome: Outcome,
        entries: list[tuple[Source, dict]],
        threads: ThreadPoolExecutor,
        on_image: Callable[[], None],
        on_result: Callable[[Frame, Segmentation], None] | None,
    ):
        self._engine = FaultTolerantEngine(segmenter, batch=output.batch)
        self._vocabulary = vocabulary
        self._settings = settings
        self._output = output
        self._outcome = outcome
        self._entries = entries
        self._threads = threads
        self._on_image = on_image
        self._on_result = on_result
        self._histories = CameraHistories()
        self._writes: deque[tuple[Frame, Future]] = deque()
        self._video: OverlayVideo | None = None
        self._given_up: set[Source] = set()

    def label_photos(self, photos: Sequence[Source]) -> None:
        try:
            self._label_photos(photos)
        finally:
            self._finish_writes(0)

    def _label_photos(self, photos: Sequence[Source]) -> None:
        waiting: dict[tuple[int, int], list[Frame]] = {}
        reads = _ahead(self._threads, lambda source: read_photo(source.location), photos)
        for source, read in zip(photos, reads, strict=True):
            try:
                frame = Frame(source, read.result())
            except UnreadableError as error:
                self._give_up(source, error)
                continue
            group = waiting.setdefault(frame.picture.shape[:2], [])
            group.append(frame)
            if len(group) >= self._output.batch:
                self._label(waiting.pop(frame.picture.shape[:2]))
            elif sum(map(len, waiting.values())) >= 4 * self._output.batch:
                # Sizes that hardly ever occur must not pile up.
                self._label(waiting.pop(next(iter(waiting))))
        for group in waiting.values():
            self._label(group)

    def label_video(self, source: Source) -> None:
        # With smoothing, a frame needs the labels of the one before.
        batch = 1 if self._settings.smoothing else self._output.batch
        frames: list[Frame] = []
        try:
            for frame in self._frames(source):
                frames.append(frame)
                if len(frames) >= batch:
                    self._label(frames)
                    frames = []
                if source in self._given_up:
                    break
            self._label(frames)
        finally:
            try:
                self._finish_writes(0)
            finally:
                self._close_video(source)
                self._note_missing_overlay(source)

    def _frames(self, source: Source) -> Iterator[Frame]:
        """Frames of a video or webcam, up to what goes wrong with it, which is noted."""
        path = self._output.folder / output_files(source.name, source.kind)[1]
        read = read_webcam if source.kind == 'webcam' else read_video
        size = None
        try:
            for read_frame in read(source.location, self._output.rate):
                frame = Frame(source, **vars(read_frame))
                if size is None:
                    size = frame.picture.shape[:2]
                    self._video = OverlayVideo(path, *size)
                elif frame.picture.shape[:2] != size:
                    raise UnreadableError(f'frame {frame.number} is of another size')
                yield frame
        except Exception as error:
            # Encoders, too, raise nearly anything.
            self._give_up(source, error)

    def _close_video(self, source: Source) -> None:
        video, self._video = self._video, None
        if video is not None:
            try:
                video.close()
            except Exception as error:
                self._give_up(source, error)

    def _note_missing_overlay(self, source: Source) -> None:
        if not (self._output.folder / output_files(source.name, source.kind)[1]).is_file():
            for labelled, entry in self._entries:
                if labelled == source:
                    del entry['overlay']

    def _label(self, frames: Sequence[Frame]) -> None:
        if not frames:
            return
        pictures = [frame.picture for frame in frames]
        of_video = frames[0].number is not None
        if of_video:
            settings = self._settings
            before = [self._histories.before(str(f.source), _stamp_ns(f)) for f in frames]
        else:
            settings, before = replace(self._settings, smoothing=0.0), ()
        results = self._engine.segment_each(pictures, self._vocabulary, settings, before)
        for frame, result in zip(frames, results, strict=True):
            if isinstance(result, Exception):
                self._note(str(frame), result)
            else:
                if of_video:
                    self._histories.keep(str(frame.source), _stamp_ns(frame), result.history)
                if self._on_result is not None:
                    self._on_result(frame, result)
                self._writes.append((frame, self._threads.submit(self._write, frame, result)))
        self._finish_writes(_AHEAD)

    def _write(self, frame: Frame, segmentation: Segmentation) -> tuple[dict, np.ndarray]:
        label, overlay = output_files(frame.source.name, frame.source.kind)
        drawn = draw_overlay(frame.picture, segmentation.label, segmentation.vocabulary)
        entry = {'file': str(frame.source)}
        if frame.number is not None:
            label = f'{label}/{frame.number:06d}.png'
            entry |= {'frame': frame.number, 'time_s': round(frame.time_s, 3)}
        label_path = self._output.folder / label
        write_label(label_path, segmentation)
        if frame.number is None:
            try:
                write_overlay(self._output.folder / overlay, drawn)
            except BaseException:
                label_path.unlink(missing_ok=True)  # of what is not in the report nothing stays
                raise
        entry |= {'label': label, 'overlay': overlay}
        return entry | describe_segmentation(segmentation, self._output.coco), drawn

    def _finish_writes(self, most_left: int) -> None:
        while len(self._writes) > most_left:
            # Off the list when it is in the report, in case of an interruption.
            frame, write = self._writes[0]
            try:
                entry, drawn = write.result()
            except Exception as error:
                self._writes.popleft()
                self._give_up(frame.source, error)
                continue
            self._entries.append((frame.source, entry))
            self._outcome.count(entry)
            self._writes.popleft()
            self._on_image()
            if self._video is not None:
                try:
                    self._video.write(drawn, frame.time_s)
                except Exception as error:
                    self._give_up(frame.source, error)
                    self._close_video(frame.source)

    def _give_up(self, source: Source, error: Exception) -> None:
        """Note why a source is not done, or not to its end; the first reason counts."""
        if source not in self._given_up:
            self._given_up.add(source)
            self._note(str(source), error)

    def _note(self, what: str, error: Exception) -> None:
        reason = ' '.join(str(error).split()) or type(error).__name__
        self._outcome.unreadable.append((what, reason))
        self._on_image()


def _stamp_ns(frame: Frame) -> int:
    return round(frame.time_s * 1e9)
