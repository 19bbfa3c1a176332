"""The video of one camera, decoded in a thread beside those of reception and inference."""

import threading
from collections import deque
from collections.abc import Callable

from rclpy.impl.rcutils_logger import RcutilsLogger

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.video import VideoDecoder, VideoPacket, VideoPicture

# Packets that wait, two seconds of a camera: with more of them, labels would come too late.
_MAX_WAITING = 60


class VideoThread:
    """Decodes all packets of a camera in order, for each needs those before it.

    Where that takes longer than they come, it goes on at the next key frame.

    Args:
        name: Of the camera.
        max_pixels: Of the largest picture that is decoded.
        on_settled: Called in the thread with each packet, and its picture or why there is none.
        on_lost: Called in the thread with the number of frames that have not come.
        on_dropped: Called with the name of a count, and how many packets were not decoded.
    """

    def __init__(
        self,
        name: str,
        max_pixels: int,
        *,
        on_settled: Callable[[VideoPacket, VideoPicture | ImageError], None],
        on_lost: Callable[[int], None],
        on_dropped: Callable[[str, int], None],
        logger: RcutilsLogger,
    ):
        self._decoder = VideoDecoder(max_pixels)
        self._on_settled = on_settled
        self._on_lost = on_lost
        self._on_dropped = on_dropped
        self._logger = logger
        self._waiting: deque[VideoPacket] = deque()
        self._has_dropped = self._is_ending = False
        # Of these three.
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f'video {name}', daemon=True)
        self._thread.start()

    def put(self, packet: VideoPacket) -> None:
        """Have a packet decoded; returns at once."""
        dropped = 0
        with self._changed:
            is_ending = self._is_ending
            if not is_ending:
                if len(self._waiting) >= _MAX_WAITING:
                    dropped = len(self._waiting)
                    self._waiting.clear()
                    self._has_dropped = True
                self._waiting.append(packet)
                self._changed.notify()
        if dropped:
            self._on_dropped('dropped_busy', dropped)
        if is_ending:
            # On its way when the last listener left.
            self._on_dropped('dropped_unwanted', 1)

    def stop(self) -> None:
        """End after the packet that is being decoded; what waits and what is inside is dropped."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()
        self._thread.join()
        unwanted = len(self._waiting) + len(self._decoder.finish())
        self._on_dropped('dropped_unwanted', unwanted)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ending)
                if self._is_ending:
                    return
                packet = self._waiting.popleft()
                has_dropped, self._has_dropped = self._has_dropped, False
            try:
                self._decode(packet, has_dropped)
            except Exception as error:
                # Nothing may end this thread: the camera would look alive and give no pictures.
                self._logger.error(
                    f'{self._thread.name} thread: {type(error).__name__}: {error}',
                    throttle_duration_sec=5.0,
                )

    def _decode(self, packet: VideoPacket, has_dropped: bool) -> None:
        decoder, lost = self._decoder, self._decoder.lost
        settled = decoder.skip('decoding was too slow') if has_dropped else []
        settled += decoder.decode(packet)
        if decoder.lost > lost:
            self._on_lost(decoder.lost - lost)
        for settled_packet, outcome in settled:
            self._on_settled(settled_packet, outcome)
