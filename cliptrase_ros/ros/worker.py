"""The inference thread: which frames, when, in which batch, by which vocabulary."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rclpy.impl.rcutils_logger import RcutilsLogger

from cliptrase_ros.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.frame_memories import FrameMemories
from cliptrase_ros.image_messages import header_stamp_ns
from cliptrase_ros.ros.camera import Camera, Frame
from cliptrase_ros.ros.conversions import ImageError
from cliptrase_ros.ros.node_time import NodeTime
from cliptrase_ros.segmentation.segmenter import (
    EncodedVocabulary,
    SegmentationSettings,
    Segmenter,
)
from cliptrase_ros.segmentation.vocabulary import Vocabulary, VocabularyClass
from cliptrase_ros.unused_memory import UnusedMemory

#: Encoding gives way to a frame after this long, or one phrase if that takes longer: about as
#: much time for the new words as for labelling by the old ones.
_ENCODING_TURN_S = 0.1


@dataclass(frozen=True)
class VocabularyState:
    """What diagnostics say about vocabularies.

    in_force: version labels are made with, 0 before the first. pending: version being encoded,
    or None. failure: why the last one that was requested could not be encoded, or ''.
    """

    in_force: int
    pending: int | None
    failure: str


class Worker:
    """Everything that touches the engine, in one thread beside the executor's.

    warm_up_sizes: (height, width) of images to be ready for before the first one, pixels;
    up to warm_up_batch of them at a time.
    on_vocabulary: called in the inference thread when a vocabulary comes into force, before the
    first label made with it, and again if it raises.
    clock: () -> now, of the node. is_shutting_down: whether errors are only the middleware going
    away.
    """

    def __init__(
        self,
        engine: FaultTolerantEngine,
        *,
        settings: SegmentationSettings,
        clock: Callable[[], NodeTime],
        on_vocabulary: Callable[[Vocabulary], None],
        is_shutting_down: Callable[[], bool],
        logger: RcutilsLogger,
        warm_up_sizes: Sequence[tuple[int, int]] = (),
        warm_up_batch: int = 1,
    ):
        self.settings = settings
        self._engine = engine
        self._sizes_to_warm_up = list(warm_up_sizes)
        self._warm_up_batch = warm_up_batch
        self._memories = FrameMemories()
        self._unused_memory = UnusedMemory()
        self._clock = clock
        self._on_vocabulary = on_vocabulary
        self._is_shutting_down = is_shutting_down
        self._logger = logger
        self._cameras: Sequence[Camera] = ()
        self._lock = threading.Lock()
        # Held while frames are taken, labelled and published.
        self._serving = threading.Lock()
        self._requested: Vocabulary | None = None
        self._in_force: EncodedVocabulary | None = None
        self._failure = ''
        self._encoding: tuple[Vocabulary, Iterator[Vocabulary]] | None = None
        self._announce_again = False
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
        """End after the frame or phrase being computed, or be left to that after some time.

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
        """Call `on_vocabulary` once more for the vocabulary in force."""
        self._announce_again = True
        self._wake.set()

    def request_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Encode a vocabulary and put it in force; of several that wait, the last one counts.

        With the one that is in force, nothing is wanted any more but that: an earlier failure
        is forgotten.
        """
        with self._lock:
            if self._in_force is not None and self._in_force.vocabulary is vocabulary:
                self._requested, self._failure = None, ''
            else:
                self._requested = vocabulary
        self._wake.set()

    @property
    def latest_vocabulary(self) -> Vocabulary | None:
        """The vocabulary requested last, unless it failed; otherwise the one in force."""
        with self._lock:
            if self._requested is not None:
                return self._requested
            return None if self._in_force is None else self._in_force.vocabulary

    @property
    def vocabulary_state(self) -> VocabularyState:
        """Where vocabularies stand."""
        with self._lock:
            return VocabularyState(
                0 if self._in_force is None else self._in_force.vocabulary.version,
                None if self._requested is None else self._requested.version,
                self._failure,
            )

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                # Turn by turn: a large vocabulary does not stop labelling by the old one, and
                # frames that never cease do not keep a new one waiting.
                worked = self._encode_some()
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
        with self._lock:
            wanted = self._requested
        if wanted is None:
            if self._announce_again and self._in_force is not None:
                self._announce_again = False
                self._announce(self._in_force.vocabulary)
            return False
        if self._encoding is None or self._encoding[0] is not wanted:
            self._encoding = (wanted, _slices(wanted, self._engine.segmenter))
        until = time.monotonic() + _ENCODING_TURN_S
        try:
            for part in self._encoding[1]:
                encoded = self._engine.encode_vocabulary(part)
                if part is wanted:
                    # Announced first: no label may come out whose names nobody has been told.
                    self._announce(wanted)
                    self._finish_encoding(wanted, encoded, '')
                if self._stopping or time.monotonic() > until:
                    break
        except Exception as error:
            self._finish_encoding(wanted, None, f'{type(error).__name__}: {error}')
            self._logger.error(
                f'vocabulary {wanted.version} could not be encoded, the old one stays in force: '
                f'{type(error).__name__}: {error}'
            )
        return True

    def _announce(self, vocabulary: Vocabulary) -> None:
        try:
            self._on_vocabulary(vocabulary)
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

    def _finish_encoding(
        self, wanted: Vocabulary, encoded: EncodedVocabulary | None, failure: str
    ) -> None:
        self._encoding = None
        with self._lock:
            if self._requested is wanted:
                self._requested = None
            if encoded is not None:
                self._in_force = encoded
            self._failure = failure

    def _warm_up_some(self) -> bool:
        if self._in_force is None or not self._sizes_to_warm_up:
            return False
        begin = time.monotonic()
        height, width = size = self._sizes_to_warm_up.pop(0)
        try:
            self._engine.warm_up(size, self._warm_up_batch, self._in_force, self.settings)
        except Exception as error:
            self._logger.warning(
                f'not ready for images of {width} x {height} beforehand: '
                f'{type(error).__name__}: {error}'
            )
        else:
            self._logger.info(
                f'ready for images of {width} x {height}, in {time.monotonic() - begin:.1f} s'
            )
        return True

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
                self._label(frames, self._in_force, self.settings)
        return bool(frames)

    def _publish_waiting(self) -> bool:
        with self._serving:
            return any(camera.publish_waiting() for camera in self._cameras)

    def _label(
        self,
        frames: list[Frame],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
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
        before = [self._memories.before(f.camera.name, f.time_ns) for f in readable]
        engine_begin = time.monotonic()
        results = self._engine.segment_each(pictures, vocabulary, settings, before)
        engine_s = time.monotonic() - engine_begin
        for frame, picture, result in zip(readable, pictures, results, strict=True):
            if isinstance(result, Exception):
                frame.camera.fail(result)
                continue
            self._memories.keep(frame.camera.name, frame.time_ns, result.memory)
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
        self._unused_memory.give_back_after((p.shape, settings.resolution) for p in pictures)


def _slices(vocabulary: Vocabulary, segmenter: Segmenter) -> Iterator[Vocabulary]:
    """Parts that are encoded one at a time, the whole last; the encoder remembers phrases."""
    missing = segmenter.missing_phrases(vocabulary)
    size = segmenter.phrases_at_once
    for first in range(0, len(missing), size):
        phrases = enumerate(missing[first : first + size])
        yield Vocabulary(tuple(VocabularyClass(i, phrase) for i, phrase in phrases))
    yield vocabulary
