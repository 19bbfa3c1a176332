"""Depth of one camera: its subscriptions while wanted, and the depth that belongs to a picture."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from cliptrase_ros.messages.depth import STAMP_TOLERANCE_NS, check_depth
from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.ros.subscribing import SensorTopic

#: Depth images kept for pictures that come later.
_KEPT_DEPTH_IMAGES = 8
#: Pictures whose depth may still come: one that waits for it, and those being labelled.
_KEPT_MATCHES = 4


@dataclass
class DepthMatch:
    """The depth image that belongs to a picture, as far as it has come.

    Attributes:
        stamp_ns: Of the picture.
        nearest_ns: Stamp of the depth image nearest in time, None before the first.
        depth: That image, None while none is within `STAMP_TOLERANCE_NS`.
    """

    stamp_ns: int
    nearest_ns: int | None = None
    depth: Image | None = None

    def offer(self, depth: Image, stamp_ns: int) -> None:
        """Take a depth image if it is nearer than those before."""
        distance = abs(stamp_ns - self.stamp_ns)
        if self.nearest_ns is not None and distance >= abs(self.nearest_ns - self.stamp_ns):
            return
        self.nearest_ns = stamp_ns
        if distance <= STAMP_TOLERANCE_NS:
            self.depth = depth

    def explain(self) -> str:
        """Say why there is no depth image within the tolerance, '' before the first of all."""
        if self.nearest_ns is None:
            return ''
        if self.stamp_ns == 0:
            return 'the image has no stamp, depth has'
        if self.nearest_ns == 0:
            return 'depth has no stamp, the image has'
        return f'the nearest differs by {1e-6 * abs(self.nearest_ns - self.stamp_ns):.0f} ms'


class DepthStream:
    """Registered depth images and the camera_info of one camera.

    `match` is called in the inference thread, messages come in the executor's.

    Args:
        on_depth: Called in the executor's thread when a depth image or camera_info has come.
        on_refused: Called in the executor's thread with the reason why a depth image cannot be
            used.
        max_pixels: Width x height of the largest image that is believed.

    Attributes:
        info: The latest camera_info, None before the first.
    """

    def __init__(
        self,
        depth_topic: SensorTopic,
        info_topic: SensorTopic,
        *,
        on_depth: Callable[[], None],
        on_refused: Callable[[ImageError], None],
        max_pixels: int,
    ):
        self.depth_topic = depth_topic
        self.info_topic = info_topic
        self.info: CameraInfo | None = None
        self._on_depth = on_depth
        self._on_refused = on_refused
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, Image]] = deque(maxlen=_KEPT_DEPTH_IMAGES)
        self._matches: deque[DepthMatch] = deque(maxlen=_KEPT_MATCHES)

    def subscribe(self) -> None:
        """Begin to receive."""
        for topic, callback in (
            (self.depth_topic, self._receive),
            (self.info_topic, self._receive_info),
        ):
            if not topic.is_subscribed:
                topic.subscribe(callback)

    def unsubscribe(self) -> None:
        """Receive no more, and forget what came."""
        self.depth_topic.unsubscribe()
        self.info_topic.unsubscribe()
        with self._lock:
            self._recent.clear()
            self._matches.clear()
        self.info = None

    def match(self, header: Header) -> DepthMatch:
        """Begin to look for the depth of a picture; the result is updated as depth comes."""
        match = DepthMatch(header_stamp_ns(header))
        with self._lock:
            # The newest first, which wins over equal stamps, as of cameras that set none.
            for stamp_ns, depth in reversed(self._recent):
                match.offer(depth, stamp_ns)
            self._matches.append(match)
        return match

    def _receive(self, depth: Image) -> None:
        try:
            check_depth(depth, self._max_pixels)
        except ImageError as error:
            self._on_refused(error)
            return
        stamp_ns = header_stamp_ns(depth.header)
        with self._lock:
            self._recent.append((stamp_ns, depth))
            for match in self._matches:
                match.offer(depth, stamp_ns)
        self._on_depth()

    def _receive_info(self, info: CameraInfo) -> None:
        self.info = info
        # A picture may wait for nothing else.
        self._on_depth()
