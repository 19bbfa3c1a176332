"""What is asked of the engine beside labelling: one image, or the search for a phrase.

The inference thread works requests off between batches, in steps that each take about as long as
labelling an image: some phrases are encoded, or one image is segmented. With several requests every
one has its turn.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros.camera import Camera, CameraImage
from cliptrase_ros.ros.encoding import Encoding
from cliptrase_ros.ros.reconfiguration import Reconfiguration
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.statistics import score_column
from cliptrase_ros.segmentation.vocabulary import Vocabulary, VocabularyClass, with_phrase
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.unused_memory import UnusedMemory

#: Most images that wait to be segmented for callers of the service: each may take tens of
#: megabytes.
MAX_WAITING = 4


class RequestError(ValueError):
    """A request that cannot be answered; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """An image to be segmented.

    Attributes:
        decode: Returns it as uint8 (H, W, 3) RGB; raises ImageError.
        vocabulary: None for the words in force.
        answer: Its segmentation, with scores, or what was raised.
    """

    decode: Callable[[], np.ndarray]
    vocabulary: Vocabulary | None
    answer: Future[Segmentation] = field(default_factory=Future)


@dataclass(frozen=True, eq=False)
class Sighting:
    """An image that was searched.

    Attributes:
        result: By the words in force and the phrase.
        entry: The class that the phrase is in it.
        is_in_force: Whether it is a class of the words in force.
        score: Highest probability of a patch, 0.0 to 1.0.
        has_pixels: Whether pixels are labelled as the phrase.
    """

    camera: str
    header: Message
    result: Segmentation
    entry: VocabularyClass
    is_in_force: bool
    score: float
    has_pixels: bool


@dataclass(eq=False)
class Search:
    """A phrase to be looked for in the images of cameras, until its answer is set.

    Attributes:
        cameras: Which are told by `Camera.search` that they are searched.
        min_score: Ends the search where an image scores it, 0.0 to 1.0; 0 for never.
        on_progress: Called in the inference thread after each image that was searched.
        answer: Set to True where `min_score` was reached, by others to what they like.
        best: The best image so far: one with pixels of the phrase goes before others.
        images: How many were searched.
        failure: Why the latest of those that could not be searched could not, '' for none.
    """

    phrase: str
    cameras: Sequence[Camera]
    min_score: float
    on_progress: Callable[['Search'], None]
    answer: Future = field(default_factory=Future)
    best: Sighting | None = None
    images: int = 0
    failure: str = ''

    @property
    def has_found(self) -> bool:
        """Whether the best image shows the phrase, and scores enough."""
        best = self.best
        return best is not None and best.has_pixels and best.score >= self.min_score

    def add(self, sighting: Sighting) -> None:
        """Take an image into account."""
        self.images += 1
        best = self.best
        if best is None or (sighting.has_pixels, sighting.score) > (best.has_pixels, best.score):
            self.best = sighting
        if not self.answer.done():
            self.on_progress(self)
        if self.min_score and self.has_found:
            settle(self.answer, True)


def settle(answer: Future, outcome: object) -> None:
    """Set the answer of a request, or let an exception be raised by it; the first one counts."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)


#: Steps of a request; each yields whether there was anything to do.
_Steps = Generator[bool, None, None]


class Requests:
    """The requests that wait, and the working off of them.

    `take_step` belongs to the inference thread, the rest to any.

    Args:
        wake: Wakes the inference thread for its next step.
        is_stopping: Whether a step should end early.
    """

    def __init__(
        self,
        engine: FaultTolerantEngine,
        reconfiguration: Reconfiguration,
        *,
        unused_memory: UnusedMemory,
        wake: Callable[[], None],
        is_stopping: Callable[[], bool],
    ):
        self._engine = engine
        self._reconfiguration = reconfiguration
        self._unused_memory = unused_memory
        self._wake = wake
        self._is_stopping = is_stopping
        self._lock = threading.Lock()
        self._is_open = False
        # The one whose turn it is first.
        self._waiting: list[tuple[ImageRequest | Search, _Steps]] = []

    def open(self) -> None:
        """Take requests from now on."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Take no more requests, and end those there are."""
        with self._lock:
            self._is_open = False
            ended, self._waiting = self._waiting, []
        for request, _ in ended:
            settle(request.answer, RequestError('the node was deactivated meanwhile'))

    def submit(self, request: ImageRequest | Search) -> None:
        """Let a request be worked off.

        Raises:
            RequestError: It cannot be now.
        """
        with self._lock:
            if not self._is_open:
                raise RequestError('the node is not active; activate it first')
            if isinstance(request, Search):
                steps = self._search(request)
            else:
                waiting = sum(isinstance(other, ImageRequest) for other in self._living())
                if waiting >= MAX_WAITING:
                    raise RequestError(
                        f'{waiting} images of other calls wait already, the most there can be; '
                        'call again later'
                    )
                steps = self._segment_one(request)
            self._waiting.append((request, steps))
        self._wake()

    def take_step(self) -> bool:
        """Do a little of one request; returns whether there was anything to do."""
        if not self._waiting:
            return False
        if not self._reconfiguration.is_ready:
            self._refuse_without_words()
            return False
        with self._lock:
            self._waiting = [entry for entry in self._waiting if not entry[0].answer.done()]
            waiting = list(self._waiting)
        for request, steps in waiting:
            try:
                has_worked = next(steps)
            except Exception as error:
                settle(request.answer, error)
                has_worked = True
            if has_worked:
                with self._lock:
                    # The others come first in the next turn; the request may have been ended.
                    self._waiting.sort(key=lambda entry: entry[0] is request)
                return True
        return False

    def _refuse_without_words(self) -> None:
        """End what would wait for ever: the first words could not be encoded."""
        failure = self._reconfiguration.vocabulary_state.failure
        if self._reconfiguration.in_force is None and failure:
            for request in self._living():
                settle(request.answer, RequestError(f'no words are in force: {failure}'))

    def _living(self) -> list[ImageRequest | Search]:
        # Copied: others are added meanwhile.
        return [request for request, _ in list(self._waiting) if not request.answer.done()]

    def _segment_one(self, request: ImageRequest) -> _Steps:
        encoded = None
        if request.vocabulary is not None:
            encoded = yield from self._encode(request.vocabulary)
        in_force = self._reconfiguration.in_force
        result = self._segment(request.decode(), encoded or in_force.vocabulary, in_force.settings)
        settle(request.answer, result)
        yield True

    def _search(self, search: Search) -> _Steps:
        base = words = None
        while True:
            if base is not self._reconfiguration.in_force.vocabulary:
                base = words = self._reconfiguration.in_force.vocabulary
                vocabulary = with_phrase(base.vocabulary, search.phrase)
                if vocabulary is not base.vocabulary:
                    words = yield from self._encode(vocabulary)
                # What is in force may have changed.
                continue
            image = _next_image(search.cameras)
            if image is not None:
                self._look(search, image, words)
            yield image is not None

    def _look(self, search: Search, image: CameraImage, words: EncodedVocabulary) -> None:
        camera, in_force = image.camera, self._reconfiguration.in_force
        try:
            result = self._segment(image.decode(), words, in_force.settings)
        except Exception as error:
            search.failure = f'{type(error).__name__}: {error}'
            if image.is_only_searched:
                (camera.refuse if isinstance(error, ImageError) else camera.fail)(error)
            return
        if image.is_only_searched:
            camera.statistics.count('searched')
        column = score_column(result.vocabulary, search.phrase)
        entry = result.vocabulary.classes[column]
        search.add(
            Sighting(
                camera.name,
                image.header,
                result,
                entry,
                words is in_force.vocabulary,
                float(result.scores[column].max()),
                bool((result.label == entry.id).any()),
            )
        )

    def _encode(self, vocabulary: Vocabulary) -> Generator[bool, None, EncodedVocabulary]:
        encoding = Encoding(self._engine, vocabulary)
        encoded = None
        while encoded is None:
            encoded = encoding.take_step(self._is_stopping)
            yield True
        return encoded

    def _segment(
        self, pixels: np.ndarray, words: EncodedVocabulary, settings: SegmentationSettings
    ) -> Segmentation:
        # By itself: the image before, of another time or place, says nothing about it.
        settings = replace(settings, scores=True, smoothing=0.0)
        # A graph would hold up labelling for longer than an image takes.
        with self._engine.no_captures():
            (result,) = self._engine.segment_each([pixels], words, settings)
        kind = (pixels.shape,), len(words.table.features), settings
        self._unused_memory.give_back_after(kind)
        if isinstance(result, Exception):
            raise result
        return result


def _next_image(cameras: Sequence[Camera]) -> CameraImage | None:
    """Take the image to be searched next: of the camera whose turn is longest ago."""
    for camera in sorted(cameras, key=lambda camera: camera.last_searched_ns):
        image = camera.take_to_search()
        if image is not None:
            return image
    return None
