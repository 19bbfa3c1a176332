"""The inference thread: which images are labelled, when, and in which batch."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.clock import ROSClock
from rclpy.impl.rcutils_logger import RcutilsLogger

from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.ros.camera import Camera, CameraImage, node_time_ns
from cliptrase_ros.ros.reconfiguration import Configuration, Reconfiguration
from cliptrase_ros.ros.requests import Requests
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.unused_memory import UnusedMemory


@dataclass(frozen=True)
class _LabelledBatch:
    """Images that the engine took in one call, and what it made of them.

    Attributes:
        results: What was raised, for an image that failed.
        begin: When they were taken, by the monotonic clock, seconds.
        engine_s: How long the engine took.
    """

    images: Sequence[CameraImage]
    pixels: Sequence[np.ndarray]
    results: Sequence[Segmentation | Exception]
    begin: float
    engine_s: float


class Worker:
    """Everything that touches the engine, in one thread beside the executor's.

    While images wait, two more threads work beside the engine. One publishes the batch before the
    one that is being labelled. Nothing is published or announced after it before it is out. The
    other decodes compressed images that will be labelled next, unless a newer one of their camera
    is to be expected before.

    Args:
        clock: The node's.
        announce: See `Reconfiguration`.
        is_shutting_down: Whether errors only mean that the middleware is going away.
        **arguments: See `Reconfiguration`, which takes requests for other words and settings.
    """

    def __init__(
        self,
        engine: FaultTolerantEngine,
        *,
        clock: ROSClock,
        announce: Callable[[Vocabulary, SegmentationSettings], None],
        is_shutting_down: Callable[[], bool],
        logger: RcutilsLogger,
        **arguments: Any,
    ):
        self._engine = engine
        self._clock = clock
        self._is_shutting_down = is_shutting_down
        self._logger = logger
        self.reconfiguration = Reconfiguration(
            engine,
            announce=self._after_publication(announce),
            wake=self.wake,
            is_stopping=lambda: self._is_stopping,
            is_shutting_down=is_shutting_down,
            logger=logger,
            **arguments,
        )
        self._cameras: Sequence[Camera] = ()
        self._histories = CameraHistories()
        self._unused_memory = UnusedMemory()
        self.requests = Requests(
            engine,
            self.reconfiguration,
            unused_memory=self._unused_memory,
            wake=self.wake,
            is_stopping=lambda: self._is_stopping,
        )
        # Held while images are taken and labelled, and published or given to the other thread.
        self._serving = threading.Lock()
        self._publishing = ThreadPoolExecutor(1, 'publishing')
        self._publication: Future | None = None
        self._decoding = ThreadPoolExecutor(1, 'decoding')
        # By camera, the image decoded ahead or about to be, and its pixels.
        self._ahead: dict[str, tuple[CameraImage, Future]] = {}
        self._engine_s = 0.0
        # While the engine is at work: when it will be done, if it takes as long as the last time.
        self._engine_ends_ns: int | None = None
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name='inference', daemon=True)

    def start(self) -> None:
        """Begin to encode vocabularies."""
        self._thread.start()

    def serve(self, cameras: Sequence[Camera]) -> None:
        """Label images of these cameras, the one that has waited longest first; take requests."""
        self._cameras = tuple(cameras)
        self.requests.open()
        self._wake.set()

    def pause(self) -> None:
        """Serve no camera and end requests; returns when nothing more will be published."""
        self.requests.close()
        self._cameras = ()
        with self._serving:
            self._finish_publication()
            self._ahead.clear()

    def stop(self, timeout_s: float | None = None) -> bool:
        """End after the image, phrase or call being computed; returns whether the thread has ended.

        Args:
            timeout_s: How long to wait for that, seconds; None for as long as it takes.
        """
        self._is_stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        has_ended = not self._thread.is_alive()
        for pool in (self._publishing, self._decoding):
            pool.shutdown(wait=has_ended)
        return has_ended

    def offer(self, image: CameraImage) -> None:
        """Look for something to do: a camera has an image that waits."""
        ends_ns = self._engine_ends_ns
        if (
            ends_ns is not None
            and image.is_compressed
            and image.next_ns > ends_ns
            and image.camera.wait_ns(image.received_ns) == 0
        ):
            _, older = self._ahead.get(image.camera.name, (None, None))
            if older is not None:
                older.cancel()
            self._ahead[image.camera.name] = image, self._decoding.submit(image.decode)
        self._wake.set()

    def wake(self) -> None:
        """Look for something to do: depth has come or a setting has changed."""
        self._wake.set()

    def _run(self) -> None:
        others, first = (self.reconfiguration.take_step, self.requests.take_step), 0
        while not self._is_stopping:
            self._wake.clear()
            try:
                # In turn: a large vocabulary, getting ready for a change or a search does not stop
                # labelling as before, and images that never cease keep none of them waiting. One
                # step of one of them: an image does not wait for more.
                has_worked = others[first]() or others[1 - first]()
                first = 1 - first
                has_worked = self._label_pending_images() or has_worked
                has_worked = self._publish_pending_points() or has_worked
                if not has_worked and not self._is_stopping:
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
        """Return how long to wait for the next image that the rate allows, None for a wake-up."""
        if self.reconfiguration.in_force is None:
            return None
        now_ns = node_time_ns(self._clock)
        waits = [camera.wait_ns(now_ns) for camera in self._cameras]
        waits = [wait for wait in waits if wait is not None]
        if not waits:
            return None
        # Simulated time may run at any speed, or jump.
        return min(min(waits) * 1e-9, 0.01 if self._clock.ros_time_is_active else 1.0)

    def _label_pending_images(self) -> bool:
        if not self.reconfiguration.is_ready:
            return False
        now_ns = node_time_ns(self._clock)
        most = self._engine.largest_batch
        with self._serving:
            images = []
            for camera in sorted(self._cameras, key=lambda c: c.last_taken_ns):
                image = camera.take(now_ns) if len(images) < most else None
                if image is not None:
                    # Of a clock that only runs forwards: this decides whose turn it is.
                    camera.last_taken_ns = time.monotonic_ns()
                    images.append(image)
            if images:
                batch = self._label(images, self.reconfiguration.in_force)
                self._finish_publication()
                if any(camera.wait_ns(now_ns) == 0 for camera in self._cameras):
                    self._publication = self._publishing.submit(self._publish, batch)
                else:
                    # Nothing waits for the engine: in another thread it would only be later.
                    self._publish(batch)
        return bool(images)

    def _publish_pending_points(self) -> bool:
        with self._serving:
            return any(camera.publish_pending_points() for camera in self._cameras)

    def _label(self, images: list[CameraImage], configuration: Configuration) -> _LabelledBatch:
        begin = time.monotonic()
        readable, pixels = [], []
        for image in images:
            try:
                pixels.append(self._decode(image))
                readable.append(image)
            except ImageError as error:
                image.camera.refuse(error)
            except Exception as error:
                image.camera.fail(error)
        histories = [self._histories.before(i.camera.name, i.time_ns) for i in readable]
        settings = configuration.settings
        engine_begin = time.monotonic()
        self._engine_ends_ns = round(1e9 * (engine_begin + self._engine_s))
        try:
            results = self._engine.segment_each(
                pixels, configuration.vocabulary, settings, histories
            )
        finally:
            self._engine_ends_ns = None
        self._engine_s = engine_s = time.monotonic() - engine_begin
        for image, result in zip(readable, results, strict=True):
            if not isinstance(result, Exception):
                self._histories.keep(image.camera.name, image.time_ns, result.history)
        shapes = tuple(sorted(image.shape for image in pixels))
        phrases = len(configuration.vocabulary.table.features)
        self._unused_memory.give_back_after((shapes, phrases, settings))
        return _LabelledBatch(readable, pixels, results, begin, engine_s)

    def _decode(self, image: CameraImage) -> np.ndarray:
        ahead, pixels = self._ahead.pop(image.camera.name, (None, None))
        if ahead is None or ahead.message is not image.message or pixels.cancel():
            return image.decode()
        return pixels.result()

    def _publish(self, batch: _LabelledBatch) -> None:
        for image, pixels, result in zip(batch.images, batch.pixels, batch.results, strict=True):
            if isinstance(result, Exception):
                image.camera.fail(result)
                continue
            try:
                self._publish_image(image, pixels, result, batch)
            except Exception as error:
                if self._is_shutting_down():
                    return
                image.camera.fail(error)

    def _publish_image(
        self,
        image: CameraImage,
        pixels: np.ndarray,
        result: Segmentation,
        batch: _LabelledBatch,
    ) -> None:
        image.camera.trace(image.header, f'labelled in {batch.engine_s * 1e3:.0f} ms')
        image.camera.publish(image, pixels, result)
        # Unknown for an image without a stamp, and before simulated time has begun.
        now_ns, stamp_ns = self._clock.now().nanoseconds, header_stamp_ns(image.header)
        latency_s = (now_ns - stamp_ns) * 1e-9 if now_ns and stamp_ns else None
        taken_s = time.monotonic() - batch.begin
        image.camera.statistics.count_label(latency_s, taken_s, batch.engine_s)

    def _finish_publication(self) -> None:
        """Wait until everything that was labelled so far is published."""
        publication = self._publication
        if publication is None:
            return
        wait([publication])
        if (error := publication.exception()) is not None and not self._is_shutting_down():
            self._logger.error(
                f'publishing thread: {type(error).__name__}: {error}', throttle_duration_sec=5.0
            )

    def _after_publication(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            self._finish_publication()
            function(*arguments)

        return call
