"""Depth of one camera: its subscriptions while wanted, and the depth that belongs to a picture."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from cliptrase_ros.depth_points import check_depth
from cliptrase_ros.image_messages import MAX_PIXELS, ImageError, header_stamp_ns
from cliptrase_ros.ros.subscribing import subscribe_to_sensor

#: Depth and colour belong together if their stamps differ by no more, seconds: half a period at
#: 25 Hz. Registered depth mostly has the very stamp of the colour image.
STAMP_TOLERANCE_S = 0.02

#: Depth images kept for colour images that come later.
_KEPT = 8
#: Pictures on their way whose depth may still come: one that waits for it, and those in work.
_FOLLOWED = 4


@dataclass
class DepthMatch:
    """The depth image that belongs to a picture, as far as it has come.

    depth: the nearest in time, None while there is none within the tolerance.
    """

    stamp_ns: int
    depth: Image | None = None
    distance_ns: int = round(STAMP_TOLERANCE_S * 1e9)

    def offer(self, depth: Image, stamp_ns: int) -> None:
        """Take a depth image if it is nearer than the one before."""
        distance = abs(stamp_ns - self.stamp_ns)
        if distance < self.distance_ns or (self.depth is None and distance == self.distance_ns):
            self.depth, self.distance_ns = depth, distance


class DepthStream:
    """Aligned depth images and the camera_info of one camera.

    on_depth: called, in the executor's thread, when a depth image has come. on_refused: with the
    reason, when one cannot be used. `match` belongs to the inference thread.
    Raises ParameterError: a QoS override that cannot be used.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        *,
        on_depth: Callable[[], None],
        on_refused: Callable[[ImageError], None],
        max_pixels: int = MAX_PIXELS,
    ):
        self.topic = node.resolve_topic_name(f'{name}/depth/image_raw')
        self.info_topic = node.resolve_topic_name(f'{name}/camera_info')
        self.info: CameraInfo | None = None
        self._node = node
        self._name = name
        self._on_depth = on_depth
        self._on_refused = on_refused
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, Image]] = deque(maxlen=_KEPT)
        self._followed: deque[DepthMatch] = deque(maxlen=_FOLLOWED)
        self.subscriptions: list[Subscription] = []
        # At first in any case: this declares the QoS overrides and finds mistakes in them.
        try:
            self.subscribe()
        finally:
            self.unsubscribe()

    def subscribe(self) -> None:
        """Begin to receive."""
        if self.subscriptions:
            return
        for message_type, topic, callback in (
            (Image, 'depth/image_raw', self._receive),
            (CameraInfo, 'camera_info', self._receive_info),
        ):
            self.subscriptions.append(
                subscribe_to_sensor(self._node, message_type, f'{self._name}/{topic}', callback)
            )

    def unsubscribe(self) -> None:
        """Receive no more, and forget what came."""
        for subscription in self.subscriptions:
            self._node.destroy_subscription(subscription)
        self.subscriptions = []
        with self._lock:
            self._recent.clear()
            self._followed.clear()
        self.info = None

    def match(self, header: Header) -> DepthMatch:
        """Find the depth of a picture, now and as it comes."""
        match = DepthMatch(header_stamp_ns(header))
        with self._lock:
            for stamp_ns, depth in self._recent:
                match.offer(depth, stamp_ns)
            self._followed.append(match)
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
            for match in self._followed:
                match.offer(depth, stamp_ns)
        self._on_depth()

    def _receive_info(self, info: CameraInfo) -> None:
        self.info = info
        # A picture may wait for nothing else.
        self._on_depth()
