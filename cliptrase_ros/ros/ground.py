"""The ground before one camera: costs of its cells, and points, from labels without depth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rclpy.publisher import Publisher
from sensor_msgs.msg import PointCloud2

from cliptrase_ros.messages.depth import labelled_points
from cliptrase_ros.messages.ground import (
    CameraPose,
    GroundView,
    cost_table,
    ground_costs,
    ground_depth,
    pose_of_transform,
    view_ground,
)
from cliptrase_ros.messages.images import ImageError, header_stamp_ns
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.rays import CameraModel, camera_model, model_rays
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import points_message, rclpy_header
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.subscribing import SensorTopic
from cliptrase_ros.ros.transforms import Transforms


@dataclass(frozen=True)
class GroundPlane:
    """Where the ground is, and where a camera is above it.

    Attributes:
        frame: Whose plane z = 0 it is.
        range_m: How far from the camera it is looked at, metres.
        cell_m: Side of a cell, metres.
        pose: Of the camera; None where `transforms` say it.
        transforms: None where `pose` is given.
    """

    frame: str
    range_m: float
    cell_m: float
    pose: CameraPose | None
    transforms: Transforms | None


class GroundOutput:
    """Publishes the ground that labels show, with the calibration and pose there are by then.

    `publish` is called by the threads that label and publish, one at a time.

    Args:
        grid_publisher: Of nav_msgs/OccupancyGrid.
        points_publisher: Of sensor_msgs/PointCloud2; None where points are not made of the ground.
        is_rectified: Whether the camera's images are.
        always_on: Publish even while nobody listens.
        on_refused: Called with the reason why a camera_info cannot be read.

    Attributes:
        costs: By name of a class that lies on the ground.
    """

    def __init__(
        self,
        grid_publisher: Publisher,
        points_publisher: Publisher | None,
        info_topic: SensorTopic,
        ground: GroundPlane,
        *,
        is_rectified: bool,
        always_on: bool,
        statistics: CameraStatistics,
        on_refused: Callable[[ValueError], None],
    ):
        self.costs: Mapping[str, int] = {}
        # By topic, which is how they are counted as well.
        self._outputs = {'ground': (grid_publisher, self._make_grid)}
        if points_publisher is not None:
            self._outputs['points'] = points_publisher, self._make_points
        self._info_topic = info_topic
        self._ground = ground
        self._is_rectified = is_rectified
        self._always_on = always_on
        self._statistics = statistics
        self._on_refused = on_refused
        # The latest camera_info.
        self._info: Message | None = None
        # The view made last, of what camera and from where.
        self._view: tuple[tuple[CameraModel, int, int], CameraPose, GroundView] | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether anything is to be published."""
        return bool(self._wanted())

    def subscribe(self) -> None:
        """Begin to receive camera_info, and transforms where they are needed."""
        if not self._info_topic.is_subscribed:
            self._info_topic.subscribe(self._receive_info, self._on_refused)
        if self._ground.transforms is not None:
            self._ground.transforms.subscribe(self)

    def unsubscribe(self) -> None:
        """Receive no more, and forget what came."""
        self._info_topic.unsubscribe()
        if self._ground.transforms is not None:
            self._ground.transforms.unsubscribe(self)
        self._info = None

    def publish(self, picture: LabelledPicture) -> list[str]:
        """Publish what is wanted of a picture; returns the topics."""
        wanted = self._wanted()
        if not wanted:
            return []
        try:
            camera, view = self._look(picture)
        except ImageError as error:
            for topic in wanted:
                self._statistics.count(f'{topic}_missed', str(error))
            return []
        for topic in wanted:
            publisher, make = self._outputs[topic]
            publisher.publish(make(picture, camera, view))
            self._statistics.count(topic)
        return wanted

    def explain(self) -> str:
        """Say who publishes camera_info."""
        if not self._info_topic.is_subscribed:
            return ''
        return f'{self._info_topic.name}: {self._info_topic.describe_publishers()}'

    def _wanted(self) -> list[str]:
        return [
            topic
            for topic, (publisher, _) in self._outputs.items()
            if self._always_on or publisher.get_subscription_count() > 0
        ]

    def _look(self, picture: LabelledPicture) -> tuple[CameraModel, GroundView]:
        header, (height, width) = picture.header, picture.result.label.shape
        # Read once: the last listener may leave meanwhile.
        info = self._info
        if info is None:
            raise ImageError(f'no camera_info on {self._info_topic.name}')
        camera, ground = camera_model(info, width, height, self._is_rectified), self._ground
        pose = ground.pose
        if pose is None:
            stamp_ns = header_stamp_ns(header)
            transform = ground.transforms.find(ground.frame, header.frame_id, stamp_ns)
            pose = pose_of_transform(transform)
        seen_by = camera, width, height
        if self._view is None or self._view[0] != seen_by or not self._view[1].is_near(pose):
            view = view_ground(*seen_by, pose, ground.range_m, ground.cell_m)
            self._view = seen_by, pose, view
        return camera, self._view[2]

    def _make_grid(self, picture: LabelledPicture, _camera: CameraModel, view: GroundView) -> bytes:
        table = cost_table(self.costs, picture.result.vocabulary)
        cells = ground_costs(view, picture.result.label, table)
        stamp_ns = header_stamp_ns(picture.header)
        header = serialized.MAKER.make_header(stamp_ns, self._ground.frame.lstrip('/'))
        grid = serialized.MAKER.make_grid(cells, view.cell_m, view.origin, header)
        return serialized.serialize(grid)

    def _make_points(
        self, picture: LabelledPicture, camera: CameraModel, view: GroundView
    ) -> PointCloud2:
        result = picture.result
        height, width = result.label.shape
        table = cost_table(self.costs, result.vocabulary)
        depth = ground_depth(view, result.label, table)
        rays = model_rays(camera, width, height)
        points = labelled_points(depth, rays, picture.pixels, result.label, result.confidence)
        return points_message(points, rclpy_header(picture.header))

    def _receive_info(self, info: Message) -> None:
        # One may be on its way when the last listener leaves.
        if self._info_topic.is_subscribed:
            self._info = info
