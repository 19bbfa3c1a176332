"""The inference thread: which frames, when, in which batch, by which vocabulary."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rclpy.impl.rcutils_logger import RcutilsLogger

from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.ros.camera import Camera, Frame
from cliptrase_ros.ros.node_time import NodeTime
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary, VocabularyClass
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.unused_memory import UnusedMemory

#: Encoding gives way to a frame after this long, or one phrase if that takes longer: about as
#: much time for the new words as for labelling by the old ones.
_ENCODING_TURN_S = 0.1


@dataclass(frozen=True)
class VocabularyState:
    """What diagnostics say about vocabularies.

    in_force: version labels are made with, 0 before the first. pending: version being encoded or
    made ready for, or None. failure: why the one requested last could not be encoded, or ''.
    """

    in_force: int
    pending: int | None
    failure: str


@dataclass(frozen=True)
class Choice:
    """Words and settings that labels are made with."""

    vocabulary: EncodedVocabulary
    settings: SegmentationSettings


class Worker:
    """Everything that touches the engine, in one thread beside the executor's.

    settings: the first, until `request` tells others. warm_up_sizes: (height, width) of images to
    be ready for before the first one and before changes, pixels; up to warm_up_batch of them at a
    time.
    on_change: called in the inference thread with the words and settings that come into force,
    before the first label made with them, and again if it raises.
    clock: () -> now, of the node. is_shutting_down: whether errors are only the middleware going
    away.
    """

    def __init__(
        self,
        engine: FaultTolerantEngine,
        *,
        settings: SegmentationSettings,
        clock: Callable[[], NodeTime],
        on_change: Callable[[Vocabulary, SegmentationSettings], None],
        is_shutting_down: Callable[[], bool],
        logger: RcutilsLogger,
        warm_up_sizes: Sequence[tuple[int, int]] = (),
        warm_up_batch: int = 1,
    ):
        self._engine = engine
        self._warm_up_sizes = tuple(warm_up_sizes)
        self._warm_up_batch = warm_up_batch
        self._histories = CameraHistories()
        self._unused_memory = UnusedMemory()
        self._clock = clock
        self._on_change = on_change
        self._is_shutting_down = is_shutting_down
        self._logger = logger
        self._cameras: Sequence[Camera] = ()
        self._lock = threading.Lock()
        # Held while frames are taken, labelled and published.
        self._serving = threading.Lock()
        # What is wanted: requested last; words that could not be encoded are not wanted any more.
        self._vocabulary: Vocabulary | None = None
        self._settings = settings
        self._failure = ''
        # On the way there: the parts of a vocabulary that are left to encode; the last one that
        # was encoded; what is made ready for, with the calls tried so far.
        self._encoding: tuple[Vocabulary, Iterator[Vocabulary]] | None = None
        self._encoded: EncodedVocabulary | None = None
        self._preparing: Choice | None = None
        self._tried: set[tuple[tuple[int, int], int]] = set()
        # What labels are made with.
        self._in_force: Choice | None = None
        self._announce_again = False
        self._sizes_to_warm_up = list(warm_up_sizes)
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)

    def start(self) -> None:
        """Begin to encode vocabularies."""
        self._thread.start()

    def serve(self, cameras: Sequence[Camera]) -> None:
        """Label images of these cameras, the one that has waited longest first."""
        self._cameras = tuple(cameras)
        self._wake.set()

    def pause(self) -> None:
        """Serve no camera; returns when nothing more will be published."""
        self._cameras = ()
        with self._serving:
            pass

    def stop(self, timeout_s: float | None = None) -> bool:
        """End after the frame, phrase or call being computed, or be left to that after some time.

        Returns whether the thread has ended.
        """
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wake(self) -> None:
        """Look for something to do: an image has come or a setting has changed."""
        self._wake.set()

    def announce_again(self) -> None:
        """Call `on_change` once more with what is in force."""
        self._announce_again = True
        self._wake.set()

    def request(
        self,
        vocabulary: Vocabulary | None = None,
        settings: SegmentationSettings | None = None,
    ) -> None:
        """Encode a vocabulary, make ready for it and the settings, and put both in force.

        None leaves what was wanted before. Of several that wait, the last one counts. With the
        vocabulary that is in force, an earlier failure is forgotten.
        """
        with self._lock:
            if settings is not None:
                self._settings = settings
            if vocabulary is not None:
                self._vocabulary = vocabulary
                if vocabulary is self._vocabulary_in_force:
                    self._failure = ''
        self._wake.set()

    @property
    def latest_vocabulary(self) -> Vocabulary | None:
        """The vocabulary requested last, unless it failed; otherwise the one in force."""
        return self._vocabulary

    @property
    def vocabulary_state(self) -> VocabularyState:
        """Where vocabularies stand."""
        with self._lock:
            wanted, in_force = self._vocabulary, self._vocabulary_in_force
            return VocabularyState(
                0 if in_force is None else in_force.version,
                None if wanted is None or wanted is in_force else wanted.version,
                self._failure,
            )

    @property
    def _vocabulary_in_force(self) -> Vocabulary | None:
        return None if self._in_force is None else self._in_force.vocabulary.vocabulary

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                # Turn by turn: a large vocabulary, or getting ready for a change, does not stop
                # labelling as before, and frames that never cease do not keep a change waiting.
                self._repeat_announcement()
                worked = self._encode_some()
                worked = self._change_some() or worked
                worked = self._warm_up_some() or worked
                worked = self._serve_some() or worked
                worked = self._publish_waiting() or worked
                if not worked and not self._stopping:
                    self._wake.wait(self._idle_s())
            except Exception as error:
                if self._is_shutting_down():
                    return
                # Nothing may end this thread: a node that looks alive and labels nothing is the
                # worst of states.
                self._logger.error(
                    f'inference thread: {type(error).__name__}: {error}', throttle_duration_sec=5.0
                )
                time.sleep(0.01)

    def _idle_s(self) -> float | None:
        if self._in_force is None:
            return None
        now = self._clock()
        waits = [w for w in (camera.wait_ns(now.ns) for camera in self._cameras) if w is not None]
        if not waits:
            return None
        # Simulated time may run at any speed, or jump.
        return min(min(waits) * 1e-9, 0.01 if now.is_simulated else 1.0)

    def _encode_some(self) -> bool:
        wanted = self._vocabulary
        if wanted is None or self._encoded_of(wanted) is not None:
            return False
        if self._encoding is None or self._encoding[0] is not wanted:
            self._encoding = (wanted, _slices(wanted, self._engine.segmenter))
        until = time.monotonic() + _ENCODING_TURN_S
        try:
            for part in self._encoding[1]:
                encoded = self._engine.encode_vocabulary(part)
                if part is wanted:
                    self._encoding, self._encoded = None, encoded
                if self._stopping or time.monotonic() > until:
                    break
        except Exception as error:
            self._encoding = None
            failure = f'{type(error).__name__}: {error}'
            with self._lock:
                # Unless another one is wanted by now.
                if self._vocabulary is wanted:
                    self._vocabulary, self._failure = self._vocabulary_in_force, failure
            self._logger.error(
                f'vocabulary {wanted.version} could not be encoded, the old one stays in force: '
                f'{failure}'
            )
        return True

    def _encoded_of(self, vocabulary: Vocabulary | None) -> EncodedVocabulary | None:
        """The vocabulary with its features, None as long as it is not encoded."""
        in_force = None if self._in_force is None else self._in_force.vocabulary
        for encoded in (self._encoded, in_force):
            if encoded is not None and encoded.vocabulary is vocabulary:
                return encoded
        return None

    def _change_some(self) -> bool:
        """Make one call ready for what is wanted, or put it in force if none is left."""
        with self._lock:
            vocabulary, settings = self._vocabulary, self._settings
        before, encoded = self._in_force, self._encoded_of(vocabulary)
        if before is None and encoded is None:
            return False
        wanted = Choice(before.vocabulary if encoded is None else encoded, settings)
        if wanted == before:
            self._preparing = None
            return False
        # The first words are announced as soon as they can be; `_warm_up_some` comes before labels.
        calls = [] if before is None else self._unready(wanted)
        if calls and encoded is None:
            # The words to come take these settings with them: made ready for once.
            return False
        if calls:
            self._make_ready(wanted, calls)
        else:
            self._put_in_force(wanted)
        return True

    def _unready(self, wanted: Choice) -> list[tuple[tuple[int, int], int]]:
        """Calls to make ready before a choice comes into force, each at most once."""
        if wanted != self._preparing:
            self._preparing, self._tried = wanted, set()
        try:
            calls = self._engine.missing_calls(
                self._warm_up_sizes, self._warm_up_batch, wanted.vocabulary, wanted.settings
            )
        except Exception as error:
            self._warn_of_unready('a change', error)
            return []
        return [call for call in calls if call not in self._tried]

    def _make_ready(self, wanted: Choice, calls: list[tuple[tuple[int, int], int]]) -> None:
        size, count = calls[0]
        self._tried.add(calls[0])
        try:
            self._engine.make_ready(size, count, wanted.vocabulary, wanted.settings)
        except Exception as error:
            self._warn_of_unready('a change', error)
            # Lack of memory would meet the others as well.
            self._tried.update(calls)

    def _put_in_force(self, wanted: Choice) -> None:
        # Announced first: no label may come out whose names nobody has been told.
        self._announce(wanted)
        with self._lock:
            if wanted.vocabulary.vocabulary is not self._vocabulary_in_force:
                self._failure = ''
            self._in_force = wanted

    def _warm_up_some(self) -> bool:
        if self._in_force is None or not self._sizes_to_warm_up:
            return False
        begin, choice = time.monotonic(), self._in_force
        height, width = size = self._sizes_to_warm_up.pop(0)
        try:
            self._engine.warm_up(size, self._warm_up_batch, choice.vocabulary, choice.settings)
        except Exception as error:
            self._warn_of_unready(f'images of {width} x {height}', error)
        else:
            self._logger.info(
                f'ready for images of {width} x {height}, in {time.monotonic() - begin:.1f} s'
            )
        return True

    def _warn_of_unready(self, what: str, error: Exception) -> None:
        self._logger.warning(f'not ready for {what} beforehand: {type(error).__name__}: {error}')

    def _repeat_announcement(self) -> None:
        if self._announce_again and self._in_force is not None:
            self._announce_again = False
            self._announce(self._in_force)

    def _announce(self, choice: Choice) -> None:
        vocabulary = choice.vocabulary.vocabulary
        try:
            self._on_change(vocabulary, choice.settings)
        except Exception as error:
            if self._is_shutting_down():
                return
            # A message that could not be sent must not cost the labels, and masks name their
            # classes themselves.
            self._announce_again = True
            self._logger.error(
                f'vocabulary {vocabulary.version} could not be announced, to be tried again: '
                f'{type(error).__name__}: {error}',
                throttle_duration_sec=5.0,
            )

    def _serve_some(self) -> bool:
        if self._in_force is None or self._sizes_to_warm_up:
            return False
        now_ns = self._clock().ns
        batch = self._engine.largest_batch
        with self._serving:
            frames = []
            for camera in sorted(self._cameras, key=lambda c: c.last_taken_ns):
                frame = camera.take(now_ns) if len(frames) < batch else None
                if frame is not None:
                    # Of a clock that only runs forwards: this decides whose turn it is.
                    camera.last_taken_ns = time.monotonic_ns()
                    frames.append(frame)
            if frames:
                self._label(frames, self._in_force)
        return bool(frames)

    def _publish_waiting(self) -> bool:
        with self._serving:
            return any(camera.publish_waiting() for camera in self._cameras)

    def _label(self, frames: list[Frame], choice: Choice) -> None:
        begin = time.monotonic()
        pictures, readable = [], []
        for frame in frames:
            try:
                pictures.append(frame.picture())
                readable.append(frame)
            except ImageError as error:
                frame.camera.refuse(error)
            except Exception as error:
                frame.camera.fail(error)
        before = [self._histories.before(f.camera.name, f.time_ns) for f in readable]
        engine_begin = time.monotonic()
        results = self._engine.segment_each(pictures, choice.vocabulary, choice.settings, before)
        engine_s = time.monotonic() - engine_begin
        for frame, picture, result in zip(readable, pictures, results, strict=True):
            if isinstance(result, Exception):
                frame.camera.fail(result)
                continue
            self._histories.keep(frame.camera.name, frame.time_ns, result.history)
            frame.camera.trace(frame.image.header, f'labelled in {engine_s * 1e3:.0f} ms')
            try:
                frame.camera.publish(frame, picture, result)
            except Exception as error:
                if self._is_shutting_down():
                    return
                frame.camera.fail(error)
                continue
            now, stamp_ns = self._clock(), header_stamp_ns(frame.image.header)
            latency_s = (now.ns - stamp_ns) * 1e-9 if stamp_ns and now.is_known else None
            frame.camera.statistics.count_label(latency_s, time.monotonic() - begin, engine_s)
        self._unused_memory.give_back_after((p.shape, choice.settings.resolution) for p in pictures)


def _slices(vocabulary: Vocabulary, segmenter: Segmenter) -> Iterator[Vocabulary]:
    """Parts that are encoded one at a time, the whole last; the encoder remembers phrases."""
    missing = segmenter.missing_phrases(vocabulary)
    size = segmenter.phrases_at_once
    for first in range(0, len(missing), size):
        phrases = enumerate(missing[first : first + size])
        yield Vocabulary(tuple(VocabularyClass(i, phrase) for i, phrase in phrases))
    yield vocabulary
