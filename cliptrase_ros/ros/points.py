"""The labelled point cloud of one camera: a picture's labels on the depth that belongs to it."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.publisher import Publisher

from cliptrase_ros.messages.depth import (
    STAMP_TOLERANCE_NS,
    check_depth,
    labelled_points,
    read_registered_depth,
)
from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.rays import pixel_rays
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros.conversions import points_message, rclpy_header
from cliptrase_ros.ros.diagnostics import CameraStatistics
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
    """Points with colour, label and confidence, published when labels and depth are both there.

    `match`, `publish` and `publish_waiting` are called by the threads that label and publish.
    Messages come in the reception thread, in which `wake` and `on_refused` are called.

    Args:
        depth_topic: Where depth registered to the camera's images comes from.
        wake: Called when depth or camera_info has come and a labelled picture waits.
        on_refused: Called with the reason why a depth image or camera_info cannot be used.
        max_pixels: Width x height of the largest image that is believed.
    """

    def __init__(
        self,
        publisher: Publisher,
        depth_topic: SensorTopic,
        info_topic: SensorTopic,
        *,
        statistics: CameraStatistics,
        wake: Callable[[], None],
        on_refused: Callable[[ValueError], None],
        max_pixels: int,
    ):
        self.publisher = publisher
        self._depth_topic = depth_topic
        self._info_topic = info_topic
        self._statistics = statistics
        self._wake = wake
        self._on_refused = on_refused
        self._max_pixels = max_pixels
        # A picture whose depth may still be on its way.
        self._waiting: tuple[LabelledPicture, DepthMatch] | None = None
        # The latest camera_info.
        self._info: Message | None = None
        # Of the depth images, the matches and the picture that waits.
        self._lock = threading.Lock()
        # Held from when a picture is taken until its points are published: none overtakes another.
        self._publishing = threading.Lock()
        self._recent: deque[tuple[int, Message]] = deque(maxlen=_KEPT_DEPTH_IMAGES)
        self._matches: deque[DepthMatch] = deque(maxlen=_KEPT_MATCHES)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return self.publisher.get_subscription_count() > 0

    def subscribe(self) -> None:
        """Begin to receive depth and camera_info."""
        for topic, callback in (
            (self._depth_topic, self._receive_depth),
            (self._info_topic, self._receive_info),
        ):
            if not topic.is_subscribed:
                topic.subscribe(callback, self._on_refused)

    def unsubscribe(self) -> None:
        """Receive no more, and forget what came and what waits for it."""
        self._depth_topic.unsubscribe()
        self._info_topic.unsubscribe()
        with self._lock:
            self._recent.clear()
            self._matches.clear()
            self._info = self._waiting = None

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
        """Publish the points of a picture, or keep it until its depth comes or the next one."""
        with self._lock:
            missed, self._waiting = self._waiting, (picture, match)
        if missed is not None:
            self._statistics.count('points_missed', self._explain_missing(missed[1]))
        self.publish_waiting()

    def publish_waiting(self) -> bool:
        """Publish the points of the picture that waits, if its depth has come meanwhile."""
        with self._publishing:
            with self._lock:
                waiting, info = self._waiting, self._info
                if waiting is None or info is None:
                    return False
                picture, match = waiting
                if match.depth is None:
                    return False
                self._waiting = None
            try:
                points = self._make_points(picture, match.depth, info)
            except ImageError as error:
                self._statistics.count('points_missed', str(error))
            else:
                self.publisher.publish(points_message(points, rclpy_header(picture.header)))
                self._statistics.count('points')
            return True

    def explain(self) -> str:
        """Say who publishes depth and camera_info."""
        return '; '.join(
            f'{topic.name}: {topic.describe_publishers()}'
            for topic in (self._depth_topic, self._info_topic)
            if topic.is_subscribed
        )

    def _make_points(self, picture: LabelledPicture, depth: Message, info: Message) -> np.ndarray:
        height, width = picture.result.label.shape
        frames = picture.header.frame_id, depth.header.frame_id
        # tf's own names begin without a slash; drivers that came from ROS 1 write one.
        if all(frames) and frames[0].lstrip('/') != frames[1].lstrip('/'):
            raise ImageError(
                f'depth is in frame {frames[1]!r}, the image in {frames[0]!r}; depth has to be '
                'registered to the image'
            )
        rays = pixel_rays(info, width, height)
        metres = read_registered_depth(depth, width, height, self._max_pixels)
        result = picture.result
        return labelled_points(metres, rays, picture.pixels, result.label, result.confidence)

    def _explain_missing(self, match: DepthMatch) -> str:
        if match.depth is None:
            missing = (
                f'no depth image within {1e-6 * STAMP_TOLERANCE_NS:.0f} ms of the image on '
                f'{self._depth_topic.name}'
            )
            return '; '.join(filter(None, (missing, match.explain())))
        return f'no camera_info on {self._info_topic.name}'

    def _receive_depth(self, depth: Message) -> None:
        try:
            check_depth(depth, self._max_pixels)
        except ImageError as error:
            self._on_refused(error)
            return
        stamp_ns = header_stamp_ns(depth.header)
        with self._lock:
            if not self._depth_topic.is_subscribed:
                return  # on its way when the last listener left
            self._recent.append((stamp_ns, depth))
            for match in self._matches:
                match.offer(depth, stamp_ns)
        self._wake_if_waiting()

    def _receive_info(self, info: Message) -> None:
        with self._lock:
            if self._info_topic.is_subscribed:
                self._info = info
        # A picture may wait for nothing else.
        self._wake_if_waiting()

    def _wake_if_waiting(self) -> None:
        if self._waiting is not None:
            self._wake()
