"""Points and boxes in space of one camera: a picture's labels on the depth that belongs to it."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo

from cliptrase_ros.messages.compressed_depth import DEPTH_READERS
from cliptrase_ros.messages.depth import STAMP_TOLERANCE_NS, labelled_points
from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.rays import is_rectified_topic
from cliptrase_ros.messages.registration import Calibration, depth_and_rays
from cliptrase_ros.messages.transports import DEPTH_TRANSPORTS, camera_info_topic
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import message_class, points_message, rclpy_header
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.subscribing import (
    LATCHED_SENSOR_QOS,
    SensorTopic,
    is_remapped,
    transport_topic,
)

#: Depth images kept for pictures that come later.
_KEPT_DEPTH_IMAGES = 8
#: Pictures whose depth may still come: one that waits for it, and those being labelled.
_KEPT_MATCHES = 4


class DepthTopics:
    """What the points of one camera are made of, besides its images.

    Attributes:
        depth: Depth images.
        info: camera_info of the images.
        depth_info: camera_info of the depth images, None where it could only be that of the images.
        check: Raises ImageError for a message of depth that `read` could not read.
        read: Makes float32 (H, W), metres, of such a message.
    """

    def __init__(self, node: Node, name: str, transport: str, reception: OwnThread):
        sensor_topic = partial(SensorTopic, node, reception=reception)
        raw, own_info = f'{name}/depth/image_raw', f'{name}/depth/camera_info'
        message_type = DEPTH_TRANSPORTS[transport]
        self.check, self.read = DEPTH_READERS[message_type]
        topic = transport_topic(node, raw, transport)
        self.depth = sensor_topic(message_class(message_type), topic)
        self.info = sensor_topic(CameraInfo, f'{name}/camera_info', LATCHED_SENSOR_QOS)
        if not is_remapped(node, own_info):
            # Beside the images, wherever they are remapped to.
            own_info = camera_info_topic(self.depth.name)
        self.depth_info: SensorTopic | None = None
        if node.resolve_topic_name(own_info) != self.info.name:
            self.depth_info = sensor_topic(CameraInfo, own_info, LATCHED_SENSOR_QOS)

    @property
    def topics(self) -> tuple[SensorTopic, ...]:
        """All of them."""
        return tuple(filter(None, (self.depth, self.info, self.depth_info)))


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
    depth: Message | None = None

    def offer(self, depth: Message, stamp_ns: int) -> None:
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


class PointsOutput:
    """What is made of labels and depth, published when both are there.

    These are points with colour, label and confidence, and boxes of instances in space.

    `match`, `publish` and `publish_waiting` are called by the threads that label and publish.
    Messages come in the reception thread, in which `wake` and `on_refused` are called.

    Args:
        publisher: Of the points.
        detections_publisher: Of the boxes; None for none.
        always_on: Whether to publish even while nobody listens.
        topics: Where depth of what the camera's images show comes from.
        is_rectified: Whether those images are.
        wake: Called when depth or camera_info has come and a labelled picture waits.
        on_refused: Called with the reason why a depth image or camera_info cannot be used.
        max_pixels: Width x height of the largest image that is believed.
    """

    def __init__(
        self,
        publisher: Publisher,
        topics: DepthTopics,
        *,
        detections_publisher: Publisher | None = None,
        always_on: bool = False,
        is_rectified: bool,
        statistics: CameraStatistics,
        wake: Callable[[], None],
        on_refused: Callable[[ValueError], None],
        max_pixels: int,
    ):
        self.publisher = publisher
        self.detections_publisher = detections_publisher
        self._always_on = always_on
        self._topics = topics
        self._is_rectified = is_rectified
        self._depth_is_rectified = is_rectified_topic(topics.depth.name)
        self._statistics = statistics
        self._wake = wake
        self._on_refused = on_refused
        self._max_pixels = max_pixels
        # A picture whose depth may still be on its way.
        self._waiting: tuple[LabelledPicture, DepthMatch] | None = None
        # The latest camera_info of the images, and of depth.
        self._info: Message | None = None
        self._depth_info: Message | None = None
        # Of the depth images, the matches and the picture that waits.
        self._lock = threading.Lock()
        # Held from when a picture is taken until its points are published: none overtakes another.
        self._publishing = threading.Lock()
        self._recent: deque[tuple[int, Message]] = deque(maxlen=_KEPT_DEPTH_IMAGES)
        self._matches: deque[DepthMatch] = deque(maxlen=_KEPT_MATCHES)

    @property
    def is_wanted(self) -> bool:
        """Whether anything is to be published."""
        return self._is_wanted(self.publisher) or self.are_detections_wanted

    @property
    def are_detections_wanted(self) -> bool:
        """Whether boxes are to be published."""
        return self._is_wanted(self.detections_publisher)

    def subscribe(self) -> None:
        """Begin to receive depth and camera_info."""
        callbacks = self._receive_depth, self._receive_info, self._receive_depth_info
        for topic, callback in zip(self._topics.topics, callbacks, strict=False):
            if not topic.is_subscribed:
                topic.subscribe(callback, self._on_refused)

    def unsubscribe(self) -> None:
        """Receive no more, and forget what came and what waits for it."""
        for topic in self._topics.topics:
            topic.unsubscribe()
        with self._lock:
            self._recent.clear()
            self._matches.clear()
            self._info = self._depth_info = self._waiting = None

    def match(self, header: Message) -> DepthMatch:
        """Begin to look for the depth of a picture; the result is updated as depth comes."""
        match = DepthMatch(header_stamp_ns(header))
        with self._lock:
            # The newest first, which wins over equal stamps, as of cameras that set none.
            for stamp_ns, depth in reversed(self._recent):
                match.offer(depth, stamp_ns)
            self._matches.append(match)
        return match

    def publish(self, picture: LabelledPicture, match: DepthMatch) -> None:
        """Publish what is wanted of a picture, or keep it until its depth comes or the next one."""
        with self._lock:
            missed, self._waiting = self._waiting, (picture, match)
        if missed is not None:
            self._statistics.count('points_missed', self._explain_missing(missed[1]))
        self.publish_waiting()

    def publish_waiting(self) -> bool:
        """Publish what is wanted of the picture that waits, if its depth has come meanwhile."""
        with self._publishing:
            with self._lock:
                waiting, info, depth_info = self._waiting, self._info, self._depth_info
                if waiting is None or info is None or self._awaits_depth_info():
                    return False
                picture, match = waiting
                if match.depth is None:
                    return False
                self._waiting = None
            try:
                self._publish_placed(picture, match.depth, info, depth_info)
            except ImageError as error:
                self._statistics.count('points_missed', str(error))
            else:
                self._statistics.count('points')
            return True

    def explain(self) -> str:
        """Say who publishes depth and camera_info."""
        return '; '.join(
            f'{topic.name}: {topic.describe_publishers()}'
            for topic in self._topics.topics
            if topic.is_subscribed
        )

    def _awaits_depth_info(self) -> bool:
        """Whether to wait for the camera_info of depth, which somebody publishes, and not long."""
        topic = self._topics.depth_info
        is_missing = topic is not None and self._depth_info is None
        return is_missing and len(self._recent) < _KEPT_DEPTH_IMAGES and topic.has_publishers

    def _is_wanted(self, publisher: Publisher | None) -> bool:
        return publisher is not None and (self._always_on or publisher.get_subscription_count() > 0)

    def _publish_placed(
        self, picture: LabelledPicture, depth: Message, info: Message, depth_info: Message | None
    ) -> None:
        """Publish what is wanted; raises ImageError for depth that cannot be used."""
        result = picture.result
        metres, rays = depth_and_rays(
            self._topics.read(depth, self._max_pixels),
            depth.header,
            picture.header,
            result.label.shape,
            Calibration(info, depth_info, self._is_rectified, self._depth_is_rectified),
        )
        if self._is_wanted(self.publisher):
            points = labelled_points(metres, rays, picture.pixels, result.label, result.confidence)
            self.publisher.publish(points_message(points, rclpy_header(picture.header)))
        if self.are_detections_wanted:
            detections = serialized.MAKER.make_detections_3d(picture, metres, rays)
            self.detections_publisher.publish(serialized.serialize(detections))

    def _explain_missing(self, match: DepthMatch) -> str:
        if match.depth is None:
            missing = (
                f'no depth image within {1e-6 * STAMP_TOLERANCE_NS:.0f} ms of the image on '
                f'{self._topics.depth.name}'
            )
            return '; '.join(filter(None, (missing, match.explain())))
        info, depth_info = self._topics.info, self._topics.depth_info
        awaited = info if self._info is None or depth_info is None else depth_info
        return f'no camera_info on {awaited.name}'

    def _receive_depth(self, depth: Message) -> None:
        try:
            self._topics.check(depth, self._max_pixels)
        except ImageError as error:
            self._on_refused(error)
            return
        stamp_ns = header_stamp_ns(depth.header)
        with self._lock:
            if not self._topics.depth.is_subscribed:
                return  # on its way when the last listener left
            self._recent.append((stamp_ns, depth))
            for match in self._matches:
                match.offer(depth, stamp_ns)
        self._wake_if_waiting()

    def _receive_info(self, info: Message) -> None:
        with self._lock:
            if self._topics.info.is_subscribed:
                self._info = info
        # A picture may wait for nothing else.
        self._wake_if_waiting()

    def _receive_depth_info(self, info: Message) -> None:
        with self._lock:
            if self._topics.depth_info.is_subscribed:
                self._depth_info = info
        self._wake_if_waiting()

    def _wake_if_waiting(self) -> None:
        if self._waiting is not None:
            self._wake()
