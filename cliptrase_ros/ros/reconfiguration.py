"""How new words and settings come into force: in small steps, between images being labelled."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rclpy.impl.rcutils_logger import RcutilsLogger

from cliptrase_ros.ros.diagnostics import VocabularyState
from cliptrase_ros.ros.encoding import Encoding
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

#: A call of the engine that can be made ready for: ((height, width) of its images, how many).
Call = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class Configuration:
    """The words and settings that labels are made with."""

    vocabulary: EncodedVocabulary
    settings: SegmentationSettings


class Reconfiguration:
    """Brings the words and settings that are requested into force.

    A new vocabulary is encoded first, some phrases at a time. Then the engine is made ready for it
    and the settings (CUDA graphs are captured), one call at a time. Then both are announced, and
    only then labels are made with them: no label may come out whose names nobody has been told.

    `take_step` and `in_force` belong to the inference thread, the rest to any.

    Args:
        announce: Tells others of the words and settings that come into force; called in the
            inference thread, and again if it raises.
        wake: Wakes the inference thread for its next step.
        is_stopping: Whether a step should end early.
        is_shutting_down: Whether errors only mean that the middleware is going away.
        warm_up_sizes: (height, width) of images, pixels, to be made ready for before the first
            image and before changes; `warm_up_batch` of them in one call.

    Attributes:
        in_force: What labels are made with, None before the first vocabulary is encoded.
    """

    def __init__(
        self,
        engine: FaultTolerantEngine,
        *,
        settings: SegmentationSettings,
        announce: Callable[[Vocabulary, SegmentationSettings], None],
        wake: Callable[[], None],
        is_stopping: Callable[[], bool],
        is_shutting_down: Callable[[], bool],
        logger: RcutilsLogger,
        warm_up_sizes: Sequence[tuple[int, int]] = (),
        warm_up_batch: int = 1,
    ):
        self.in_force: Configuration | None = None
        self._engine = engine
        self._announce_to_others = announce
        self._wake = wake
        self._is_stopping = is_stopping
        self._is_shutting_down = is_shutting_down
        self._logger = logger
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._warm_up_batch = warm_up_batch
        self._sizes_to_warm_up = list(warm_up_sizes)
        self._must_announce_again = False
        # Of what is requested, and of `in_force` when it changes.
        self._lock = threading.Lock()
        # A vocabulary that could not be encoded is not requested any more.
        self._requested_vocabulary: Vocabulary | None = None
        self._requested_settings = settings
        self._failure = ''
        # A vocabulary that is being encoded, then the encoded one.
        self._encoding: Encoding | None = None
        self._encoded: EncodedVocabulary | None = None
        # What the engine is being made ready for, and the calls that were tried so far.
        self._preparing: Configuration | None = None
        self._tried: set[Call] = set()

    def request(
        self,
        vocabulary: Vocabulary | None = None,
        settings: SegmentationSettings | None = None,
    ) -> None:
        """Request other words or settings; None leaves what was requested before.

        Of several that wait, the last one counts. With the vocabulary that is in force, an earlier
        failure is forgotten.
        """
        with self._lock:
            if settings is not None:
                self._requested_settings = settings
            if vocabulary is not None:
                self._requested_vocabulary = vocabulary
                if vocabulary is self._vocabulary_in_force:
                    self._failure = ''
        self._wake()

    def repeat_announcement(self) -> None:
        """Announce what is in force once more, in the next step."""
        self._must_announce_again = True
        self._wake()

    @property
    def latest_vocabulary(self) -> Vocabulary | None:
        """The vocabulary requested last, unless it failed; otherwise the one in force."""
        return self._requested_vocabulary

    @property
    def vocabulary_state(self) -> VocabularyState:
        """Where vocabularies stand."""
        with self._lock:
            requested, in_force = self._requested_vocabulary, self._vocabulary_in_force
            return VocabularyState(
                0 if in_force is None else in_force.version,
                None if requested is None or requested is in_force else requested.version,
                self._failure,
            )

    @property
    def is_ready(self) -> bool:
        """Whether images can be labelled: something is in force, and warmed up for."""
        return self.in_force is not None and not self._sizes_to_warm_up

    def take_step(self) -> bool:
        """Do a little of what is to be done; returns whether there may be more."""
        if self._must_announce_again and self.in_force is not None:
            self._must_announce_again = False
            self._announce(self.in_force)
        has_worked = self._encode()
        before = self.in_force
        has_worked = self._prepare_or_put_in_force() or has_worked
        if self.in_force is not before:
            # What was requested while that was announced holds for the next image as well.
            self._prepare_or_put_in_force()
        return self._warm_up() or has_worked

    @property
    def _vocabulary_in_force(self) -> Vocabulary | None:
        return None if self.in_force is None else self.in_force.vocabulary.vocabulary

    def _encode(self) -> bool:
        """Encode some phrases of the requested vocabulary, unless it is encoded already."""
        requested = self._requested_vocabulary
        if requested is None or self._find_encoded(requested) is not None:
            return False
        if self._encoding is None or self._encoding.vocabulary is not requested:
            self._encoding = Encoding(self._engine, requested)
        try:
            encoded = self._encoding.take_step(self._is_stopping)
            if encoded is not None:
                self._encoding, self._encoded = None, encoded
        except Exception as error:
            self._encoding = None
            failure = f'{type(error).__name__}: {error}'
            with self._lock:
                # Another one may be requested by now, which has not failed.
                if self._requested_vocabulary is requested:
                    self._requested_vocabulary = self._vocabulary_in_force
                    self._failure = failure
            self._logger.error(
                f'vocabulary {requested.version} could not be encoded, the old one stays in '
                f'force: {failure}'
            )
        return True

    def _find_encoded(self, vocabulary: Vocabulary | None) -> EncodedVocabulary | None:
        """Return the vocabulary with its features, None while it is not encoded."""
        in_force = None if self.in_force is None else self.in_force.vocabulary
        for encoded in (self._encoded, in_force):
            if encoded is not None and encoded.vocabulary is vocabulary:
                return encoded
        return None

    def _prepare_or_put_in_force(self) -> bool:
        """Make one call ready for what is requested, or put that in force if none is left."""
        with self._lock:
            vocabulary, settings = self._requested_vocabulary, self._requested_settings
        encoded = self._find_encoded(vocabulary)
        if self.in_force is None:
            # The first words are announced as soon as they can be; `_warm_up` makes ready for
            # them before the first label.
            if encoded is None:
                return False
            self._put_in_force(Configuration(encoded, settings))
            return True
        # While new words are being encoded, settings that change come into force with the old ones.
        is_encoding = encoded is None
        wanted = Configuration(self.in_force.vocabulary if is_encoding else encoded, settings)
        if wanted == self.in_force:
            self._preparing = None
            return False
        calls = self._calls_to_prepare(wanted)
        if not calls:
            self._put_in_force(wanted)
        elif is_encoding:
            # Unless something has to be made ready: then they wait for the new words, so that it is
            # made ready once and not for the old words as well.
            return False
        else:
            self._prepare(wanted, calls)
        return True

    def _calls_to_prepare(self, wanted: Configuration) -> list[Call]:
        """Return the calls to make ready before a change, less those that were tried."""
        if wanted != self._preparing:
            self._preparing, self._tried = wanted, set()
        try:
            calls = self._engine.missing_calls(
                self._warm_up_sizes, self._warm_up_batch, wanted.vocabulary, wanted.settings
            )
        except Exception as error:
            self._warn_not_ready('a change', error)
            return []
        return [call for call in calls if call not in self._tried]

    def _prepare(self, wanted: Configuration, calls: list[Call]) -> None:
        size, count = calls[0]
        self._tried.add(calls[0])
        try:
            self._engine.make_ready(size, count, wanted.vocabulary, wanted.settings)
        except Exception as error:
            self._warn_not_ready('a change', error)
            # Lack of memory would meet the others as well.
            self._tried.update(calls)

    def _put_in_force(self, wanted: Configuration) -> None:
        self._announce(wanted)
        with self._lock:
            if wanted.vocabulary.vocabulary is not self._vocabulary_in_force:
                self._failure = ''
            self.in_force = wanted

    def _announce(self, configuration: Configuration) -> None:
        vocabulary = configuration.vocabulary.vocabulary
        try:
            self._announce_to_others(vocabulary, configuration.settings)
        except Exception as error:
            if self._is_shutting_down():
                return
            # A message that could not be sent must not cost the labels, and masks name their
            # classes themselves.
            self._must_announce_again = True
            self._logger.error(
                f'vocabulary {vocabulary.version} could not be announced, to be tried again: '
                f'{type(error).__name__}: {error}',
                throttle_duration_sec=5.0,
            )

    def _warm_up(self) -> bool:
        """Make ready for images of the next size, before the first of all."""
        if self.in_force is None or not self._sizes_to_warm_up:
            return False
        begin, configuration = time.monotonic(), self.in_force
        height, width = size = self._sizes_to_warm_up.pop(0)
        try:
            self._engine.warm_up(
                size, self._warm_up_batch, configuration.vocabulary, configuration.settings
            )
        except Exception as error:
            self._warn_not_ready(f'images of {width} x {height}', error)
        else:
            self._logger.info(
                f'ready for images of {width} x {height}, in {time.monotonic() - begin:.1f} s'
            )
        return True

    def _warn_not_ready(self, what: str, error: Exception) -> None:
        self._logger.warning(f'not ready for {what} beforehand: {type(error).__name__}: {error}')
