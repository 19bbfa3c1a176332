"""The labelled point cloud of one camera: a picture's labels on the depth that belongs to it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from cliptrase_ros.messages.depth import (
    STAMP_TOLERANCE_NS,
    labelled_points,
    read_registered_depth,
)
from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.ros.conversions import points_message
from cliptrase_ros.ros.depth import DepthMatch, DepthStream
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.subscribing import SensorTopic
from cliptrase_ros.segmentation.segmenter import Segmentation


@dataclass(frozen=True)
class _LabelledPicture:
    """A labelled picture whose depth may still be on its way."""

    header: Header
    match: DepthMatch
    picture: np.ndarray
    result: Segmentation


class PointsOutput:
    """Points with colour, label and confidence, published when labels and depth are both there.

    Everything but `subscribe`, `unsubscribe` and `explain` belongs to the inference thread.

    Args:
        depth_topic: Where depth registered to the camera's images comes from.
        wake: Called in the executor's thread when depth has come that a labelled picture waits
            for.
        on_refused: See `DepthStream`, as for `max_pixels`.
    """

    def __init__(
        self,
        publisher: Publisher,
        depth_topic: SensorTopic,
        info_topic: SensorTopic,
        *,
        statistics: CameraStatistics,
        wake: Callable[[], None],
        on_refused: Callable[[ImageError], None],
        max_pixels: int,
    ):
        self.publisher = publisher
        self._statistics = statistics
        self._wake = wake
        self._max_pixels = max_pixels
        self._waiting: _LabelledPicture | None = None
        self._depth = DepthStream(
            depth_topic,
            info_topic,
            on_depth=self._on_depth,
            on_refused=on_refused,
            max_pixels=max_pixels,
        )

    @property
    def is_wanted(self) -> bool:
        """Whether somebody listens."""
        return self.publisher.get_subscription_count() > 0

    def subscribe(self) -> None:
        """Begin to receive depth."""
        self._depth.subscribe()

    def unsubscribe(self) -> None:
        """Receive no more depth, and forget what waits for some."""
        self._depth.unsubscribe()
        self._waiting = None

    def match(self, header: Header) -> DepthMatch:
        """Begin to look for the depth of a picture."""
        return self._depth.match(header)

    def publish(
        self, header: Header, match: DepthMatch, picture: np.ndarray, result: Segmentation
    ) -> None:
        """Publish the points of a picture, or keep it until its depth comes or the next one."""
        if self._waiting is not None:
            self._statistics.count('points_missed', self._explain_missing(self._waiting.match))
        self._waiting = _LabelledPicture(header, match, picture, result)
        self.publish_waiting()

    def publish_waiting(self) -> bool:
        """Publish the points of the picture that waits, if its depth has come meanwhile."""
        waiting, info = self._waiting, self._depth.info
        if waiting is None or waiting.match.depth is None or info is None:
            return False
        self._waiting = None
        try:
            points = self._make_points(waiting, waiting.match.depth, info)
        except ImageError as error:
            self._statistics.count('points_missed', str(error))
        else:
            self.publisher.publish(points_message(points, waiting.header))
            self._statistics.count('points')
        return True

    def explain(self) -> str:
        """Say who publishes depth and camera_info."""
        return '; '.join(
            f'{topic.name}: {topic.describe_publishers()}'
            for topic in (self._depth.depth_topic, self._depth.info_topic)
            if topic.is_subscribed
        )

    def _make_points(
        self, labelled: _LabelledPicture, depth: Image, info: CameraInfo
    ) -> np.ndarray:
        height, width = labelled.result.label.shape
        frames = labelled.header.frame_id, depth.header.frame_id
        # tf's own names begin without a slash; drivers that came from ROS 1 write one.
        if all(frames) and frames[0].lstrip('/') != frames[1].lstrip('/'):
            raise ImageError(
                f'depth is in frame {frames[1]!r}, the image in {frames[0]!r}; depth has to be '
                'registered to the image'
            )
        metres, camera = read_registered_depth(depth, info, width, height, self._max_pixels)
        return labelled_points(
            metres, camera, labelled.picture, labelled.result.label, labelled.result.confidence
        )

    def _explain_missing(self, match: DepthMatch) -> str:
        if match.depth is None:
            missing = (
                f'no depth image within {1e-6 * STAMP_TOLERANCE_NS:.0f} ms of the image on '
                f'{self._depth.depth_topic.name}'
            )
            return '; '.join(filter(None, (missing, match.explain())))
        return f'no camera_info on {self._depth.info_topic.name}'

    def _on_depth(self) -> None:
        if self._waiting is not None:
            self._wake()
