"""Photos, videos and webcams through the engine, and what comes of it into a folder."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from cliptrase_ros.batches import segment_each
from cliptrase_ros.frame_memories import FrameMemories
from cliptrase_ros.photos.reading import (
    Frame,
    UnreadableError,
    frames_per_second,
    read_photo,
    read_video,
)
from cliptrase_ros.photos.results import (
    OverlayVideo,
    describe_segmentation,
    describe_vocabulary,
    write_json,
    write_label,
    write_overlay,
)
from cliptrase_ros.photos.sources import REPORT, Source, output_files, remove_earlier_results
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import (
    EncodedVocabulary,
    Segmentation,
    SegmentationSettings,
    Segmenter,
)

# Photos are read and results are written beside the engine; of each so many at a time.
_THREADS = 4
_AHEAD = 8
# A webcam gives frames as fast as they are labelled, which is not known beforehand.
_WEBCAM_RATE = 10.0


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

    labelled: pictures. unreadable: (input, why) of those that could not be read or labelled.
    areas: pixels by class id; total_area: of all pictures.
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

    What an earlier report in the folder lists is deleted first. What cannot be read or labelled is
    noted and the rest is done. The report is written at the end, also after an interruption.
    on_image: called for every picture done with; on_result: for every one that was labelled.
    Raises OSError if the results cannot be written.
    """
    outcome = Outcome()
    entries: list[dict] = []
    output.folder.mkdir(parents=True, exist_ok=True)
    remove_earlier_results(output.folder)
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
        order = {str(source): place for place, source in enumerate(sources)}
        entries.sort(key=lambda entry: (order[entry['file']], entry.get('frame', 0)))
        write_json(
            output.folder / REPORT,
            {
                'model': segmenter.name,
                **asdict(settings),
                'vocabulary': describe_vocabulary(vocabulary.vocabulary),
                'images': entries,
                'unreadable': [
                    {'file': file, 'reason': reason} for file, reason in outcome.unreadable
                ],
            },
        )
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
        entries: list[dict],
        threads: ThreadPoolExecutor,
        on_image: Callable[[], None],
        on_result: Callable[[Frame, Segmentation], None] | None,
    ):
        self._segmenter = segmenter
        self._vocabulary = vocabulary
        self._settings = settings
        self._output = output
        self._outcome = outcome
        self._entries = entries
        self._threads = threads
        self._on_image = on_image
        self._on_result = on_result
        self._memories = FrameMemories()
        self._writes: deque[tuple[Future, OverlayVideo | None]] = deque()

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
                self._give_up(str(source), error)
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
        path = self._output.folder / output_files(source.name, source.kind)[1]
        video: OverlayVideo | None = None
        # With smoothing, a frame needs the labels of the one before.
        batch = 1 if self._settings.smoothing else self._output.batch
        frames: list[Frame] = []
        try:
            try:
                for frame in read_video(source, self._output.rate):
                    if video is None:
                        size = frame.picture.shape[:2]
                        video = OverlayVideo(path, self._overlay_rate(source), *size)
                    elif frame.picture.shape[:2] != size:
                        raise UnreadableError(f'frame {frame.number} is of another size')
                    frames.append(frame)
                    if len(frames) >= batch:
                        self._label(frames, video)
                        frames = []
            except UnreadableError as error:
                self._give_up(str(source), error)
            self._label(frames, video)
        finally:
            try:
                self._finish_writes(0)
            finally:
                if video is not None:
                    video.close()

    def _overlay_rate(self, source: Source) -> float:
        if source.kind == 'webcam':
            return self._output.rate or _WEBCAM_RATE
        per_second = frames_per_second(source)
        return min(per_second, self._output.rate or per_second)

    def _label(self, frames: Sequence[Frame], video: OverlayVideo | None = None) -> None:
        if not frames:
            return
        pictures = [frame.picture for frame in frames]
        if video is None:
            settings, before = replace(self._settings, smoothing=0.0), ()
        else:
            settings = self._settings
            before = [self._memories.before(str(f.source), _stamp_ns(f)) for f in frames]
        results = segment_each(self._segmenter, pictures, self._vocabulary, settings, before)
        for frame, result in zip(frames, results, strict=True):
            if isinstance(result, Exception):
                where = '' if frame.number is None else f', frame {frame.number}'
                self._give_up(f'{frame.source}{where}', result)
            else:
                if video is not None:
                    self._memories.keep(str(frame.source), _stamp_ns(frame), result.memory)
                if self._on_result is not None:
                    self._on_result(frame, result)
                self._writes.append((self._threads.submit(self._write, frame, result), video))
        self._finish_writes(_AHEAD)

    def _write(self, frame: Frame, segmentation: Segmentation) -> tuple[dict, np.ndarray]:
        label, overlay = output_files(frame.source.name, frame.source.kind)
        drawn = draw_overlay(frame.picture, segmentation.label, segmentation.vocabulary)
        entry = {'file': str(frame.source)}
        if frame.number is None:
            write_overlay(self._output.folder / overlay, drawn)
        else:
            label = f'{label}/{frame.number:06d}.png'
            entry |= {'frame': frame.number, 'time_s': round(frame.time_s, 3)}
        write_label(self._output.folder / label, segmentation)
        entry |= {'label': label, 'overlay': overlay}
        return entry | describe_segmentation(segmentation, self._output.coco), drawn

    def _finish_writes(self, most_left: int) -> None:
        while len(self._writes) > most_left:
            write, video = self._writes.popleft()
            entry, drawn = write.result()
            if video is not None:
                video.write(drawn)
            self._entries.append(entry)
            self._outcome.count(entry)
            self._on_image()

    def _give_up(self, what: str, error: Exception) -> None:
        self._outcome.unreadable.append((what, ' '.join(str(error).split())))
        self._on_image()


def _stamp_ns(frame: Frame) -> int:
    return round(frame.time_s * 1e9)
