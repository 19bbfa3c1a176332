"""One camera: its subscription while somebody listens, its newest image, and its outputs."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rclpy.clock import Clock
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from cliptrase_ros.messages.images import (
    MAX_PIXELS,
    ImageError,
    check_compressed_stream,
    check_image,
    decompress_to_rgb,
    header_stamp_ns,
)
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.rays import is_rectified_topic
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros.conversions import to_rgb
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.ground import GroundOutput, GroundPlane
from cliptrase_ros.ros.outputs import CameraOutputs
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.points import DepthMatch, DepthTopics, PointsOutput
from cliptrase_ros.ros.subscribing import LATCHED_SENSOR_QOS, SensorTopic, transport_topic
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.rate_limit import RateLimiter

#: By transport: where images come from below NAME, as what.
TRANSPORT_TOPICS = {
    'raw': ('image_raw', Image),
    'compressed': ('image_raw/compressed', CompressedImage),
}


def node_time_ns(clock: Clock) -> int:
    """Return nanoseconds of the node's clock, also while nobody publishes simulated time.

    Such a clock reads 0; images may come before its first message, and time has to go on.
    """
    return clock.now().nanoseconds or time.monotonic_ns()


@dataclass(frozen=True)
class CameraImage:
    """An image on its way through inference.

    Attributes:
        message: Fields of a sensor_msgs/Image or CompressedImage, as the camera's transport is.
        received_ns: When it came, nanoseconds of the node's clock.
        next_ns: When the next one will come, if it takes as long as this one has, nanoseconds of
            `time.monotonic_ns`.
        depth: What is known of the depth image that belongs to it; None where nobody wants points.
    """

    camera: 'Camera'
    message: Message
    received_ns: int
    next_ns: int
    depth: DepthMatch | None = None

    @property
    def header(self) -> Message:
        """Of the message, and of everything that is made of it."""
        return self.message.header

    @property
    def time_ns(self) -> int:
        """Its stamp; of an image without one, when it was received."""
        return header_stamp_ns(self.header) or self.received_ns

    @property
    def is_compressed(self) -> bool:
        """Whether decoding it takes milliseconds."""
        return self.camera.transport == 'compressed'

    def decode(self) -> np.ndarray:
        """Return uint8 (H, W, 3) RGB, perhaps the message's own bytes.

        Raises:
            ImageError: The message cannot be decoded.
        """
        if self.is_compressed:
            return decompress_to_rgb(self.message, self.camera.max_pixels)
        # Nobody else has this message.
        return to_rgb(self.message, self.camera.max_pixels, may_share=True)


class CameraTopics:
    """The topics that one camera is read from.

    Args:
        depth_transport: How its depth comes, a key of `points.DEPTH_TYPES`; None for no depth.
        has_ground: Whether camera_info is needed for the ground.

    Raises:
        ParameterError: A QoS override, which is declared here, cannot be used.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        transport: str,
        depth_transport: str | None,
        has_ground: bool,
        reception: OwnThread,
    ):
        self.name = name
        self.transport = transport
        topic = transport_topic(node, f'{name}/image_raw', transport)
        self.image = SensorTopic(node, TRANSPORT_TOPICS[transport][1], topic, reception=reception)
        self.depth: DepthTopics | None = None
        if depth_transport is not None:
            self.depth = DepthTopics(node, name, depth_transport, reception)
        # A subscription of its own: points of depth and the ground are wanted at different times.
        self.ground_info: SensorTopic | None = None
        if has_ground:
            self.ground_info = SensorTopic(
                node, CameraInfo, f'{name}/camera_info', LATCHED_SENSOR_QOS, reception
            )

    def follow_publishers(self) -> None:
        """Subscribe anew where publishers that have come or gone ask for another QoS."""
        depth_topics = self.depth.topics if self.depth else ()
        for topic in filter(None, (self.image, *depth_topics, self.ground_info)):
            topic.follow_publishers()


class Camera:
    """Receives the images of one camera and publishes what is made of them.

    Nothing is subscribed to before `activate`. `take` and `publish_pending_points` belong to the
    inference thread, `publish` to it and the one that publishes beside the engine.

    Args:
        topics: Where the camera is read from.
        always_on: Subscribe and publish even while nobody listens.
        on_image: Called in the reception thread with an image that may be taken.
        wake: Called in the reception thread when there is something else to do.
        listeners: The thread that sees who begins or ceases to listen.
        mask_topics: Names of the classes that have a mask image each.
        points: What points are made of, if that is there: `depth` or `ground`.
        ground: Where the ground is; None where it is not published.
        max_pixels: Of the largest image that is not refused.

    Attributes:
        last_taken_ns: When an image was taken last, nanoseconds of a clock that only runs forwards.
        is_active: Whether images are labelled while somebody listens.
        unknown_costs: Names of ground costs that the vocabulary announced last does not have.
    """

    def __init__(
        self,
        node: Node,
        topics: CameraTopics,
        *,
        always_on: bool,
        on_image: Callable[[CameraImage], None],
        wake: Callable[[], None],
        listeners: OwnThread,
        mask_topics: Sequence[str] = (),
        points: str = 'depth',
        ground: GroundPlane | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self.name = topics.name
        self.topic = topics.image.name
        self.transport = topics.transport
        self.max_pixels = max_pixels
        self.statistics = CameraStatistics()
        self.last_taken_ns = 0
        self.is_active = False
        self.unknown_costs: tuple[str, ...] = ()
        self._node = node
        self._topics = topics
        self._always_on = always_on
        self._on_image = on_image
        # Of the pending image and the rate.
        self._lock = threading.Lock()
        # Listeners come and go in a thread of their own, states of the node change in another.
        self._subscription_lock = threading.Lock()
        self._pending: CameraImage | None = None
        self._last_received_ns = 0
        self._limiter = RateLimiter()
        self._rate = 0.0
        self._points: PointsOutput | None = None
        self._ground: GroundOutput | None = None
        has_points_of_depth = points == 'depth' and topics.depth is not None
        has_points_of_ground = points == 'ground' and ground is not None
        self.outputs = CameraOutputs(
            node,
            self.name,
            mask_topics=mask_topics,
            with_points=has_points_of_depth or has_points_of_ground,
            with_ground=ground is not None,
            always_on=always_on,
            on_listeners_changed=self.update_subscription,
            listeners=listeners,
        )
        if has_points_of_depth:
            self._points = PointsOutput(
                self.outputs.points_publisher,
                topics.depth,
                is_rectified=is_rectified_topic(self.topic),
                statistics=self.statistics,
                wake=wake,
                on_refused=self.refuse_depth,
                max_pixels=max_pixels,
            )
        if ground is not None:
            self._ground = GroundOutput(
                self.outputs.ground_publisher,
                self.outputs.points_publisher if has_points_of_ground else None,
                topics.ground_info,
                ground,
                is_rectified=is_rectified_topic(self.topic),
                always_on=always_on,
                statistics=self.statistics,
                on_refused=self.refuse_camera_info,
            )

    @property
    def is_subscribed(self) -> bool:
        """Whether images are received at the moment."""
        return self._topics.image.is_subscribed

    def activate(self) -> None:
        """Subscribe from now on while somebody listens."""
        self.is_active = True
        self.update_subscription()

    def deactivate(self) -> None:
        """Unsubscribe, and drop the pending image."""
        self.is_active = False
        self.update_subscription()

    def destroy(self) -> None:
        """Unsubscribe and end the outputs, for good."""
        self.deactivate()
        self.outputs.destroy()

    def update_subscription(self) -> None:
        """Subscribe while somebody listens, unsubscribe when the last one has gone."""
        with self._subscription_lock:
            with_points = self.is_active and self._wants_points()
            with_ground = self.is_active and self._ground is not None and self._ground.is_wanted
            is_wanted = with_points or with_ground
            is_wanted |= self.is_active and self.outputs.any_is_wanted()
            if with_points:
                self._points.subscribe()
            elif self._points is not None:
                self._points.unsubscribe()
            if with_ground:
                self._ground.subscribe()
            elif self._ground is not None:
                self._ground.unsubscribe()
            if is_wanted and not self.is_subscribed:
                self._topics.image.subscribe(
                    self._receive, self._receive_unreadable, self._report_incompatible_qos
                )
            elif not is_wanted and self.is_subscribed:
                self._topics.image.unsubscribe()
                with self._lock:
                    if self._pending is not None:
                        self.statistics.count('dropped_unwanted')
                    self._pending = None

    def follow_publishers(self) -> None:
        """See `CameraTopics.follow_publishers`."""
        with self._subscription_lock:
            self._topics.follow_publishers()

    def set_rate(self, rate: float) -> None:
        """Take at most so many images a second, 0 = all."""
        with self._lock:
            self._rate = rate

    def set_ground_costs(self, costs: Mapping[str, int]) -> None:
        """Take costs of classes on the ground, by name."""
        if self._ground is not None:
            self._ground.costs = costs

    def announce(self, vocabulary: Vocabulary, header: Message, threshold: float) -> None:
        """Say by which words labels are made from now on."""
        self.outputs.publish_label_info(vocabulary, header, threshold)
        if self._ground is not None:
            unknown = vocabulary.unknown_names(self._ground.costs)
            if unknown and unknown != self.unknown_costs:
                self._node.get_logger().warning(
                    f'ground_costs has {", ".join(unknown)}, which the vocabulary does not'
                )
            self.unknown_costs = unknown

    def wait_ns(self, now_ns: int) -> int | None:
        """Return nanoseconds until the pending image can be taken, None while there is none."""
        with self._lock:
            return None if self._pending is None else self._limiter.wait_ns(now_ns, self._rate)

    def take(self, now_ns: int) -> CameraImage | None:
        """Take the pending image, if there is one and the rate allows it; each only once."""
        with self._lock:
            if self._pending is None or not self._limiter.take(now_ns, self._rate):
                return None
            image, self._pending = self._pending, None
        self.trace(image.header, 'taken')
        if not self._wants_points():
            return image
        return replace(image, depth=self._points.match(image.header))

    def publish(self, image: CameraImage, pixels: np.ndarray, result: Segmentation) -> None:
        """Publish what somebody listens to of an image; pixels: uint8 (H, W, 3) RGB."""
        picture = LabelledPicture(image.header, pixels, result)
        topics = self.outputs.publish(picture)
        if self._ground is not None:
            topics += self._ground.publish(picture)
        points = '' if image.depth is None else ', points as soon as their depth is there'
        self.trace(image.header, f'published as {", ".join(topics) or "nothing"}{points}')
        if image.depth is not None:
            self._points.publish(picture, image.depth)

    def publish_pending_points(self) -> bool:
        """Publish points whose depth has come after the labels; returns whether there were any."""
        return self._points is not None and self._points.publish_waiting()

    def trace(self, header: Message, event: str) -> None:
        """Log at debug level what becomes of an image."""
        logger = self._node.get_logger()
        if logger.is_enabled_for(LoggingSeverity.DEBUG):
            stamp = f'{header.stamp.sec}.{header.stamp.nanosec:09d}'
            logger.debug(f'{self.name} {stamp}: {event}')

    def explain_silence(self) -> str:
        """Say why no image may arrive: who publishes with what QoS, or on which other topic."""
        with self._subscription_lock:
            if not self.is_subscribed:
                return 'not subscribed'
            reason = self._topics.image.describe_publishers()
        for transport, topic in self._topics_of_other_transport():
            if publishers := self._node.count_publishers(topic):
                return f'{reason}; {topic} has {publishers}: set transport to {transport}, or remap'
        if similar := self._topics.image.similar_topics():
            reason += f'; images come on {", ".join(similar)}: remap {self.name}/image_raw to one'
        return reason

    def explain_missing(self) -> str:
        """Say who publishes what points and ground are made of, beside the image."""
        with self._subscription_lock:
            outputs = filter(None, (self._points, self._ground))
            return '; '.join(filter(None, (output.explain() for output in outputs)))

    def refuse(self, error: Exception) -> None:
        """Count an image that cannot be used, and say so now and then."""
        self.statistics.count('refused', str(error))
        self._node.get_logger().warning(
            f'image on {self.topic} refused: {error}', throttle_duration_sec=5.0
        )

    def refuse_depth(self, error: Exception) -> None:
        """Count a depth image that cannot be used, and say so now and then."""
        self.statistics.count('refused', f'depth: {error}')
        self._node.get_logger().warning(
            f'depth image of {self.name} refused: {error}', throttle_duration_sec=5.0
        )

    def refuse_camera_info(self, error: Exception) -> None:
        """Count a camera_info that cannot be read, and say so now and then."""
        self.statistics.count('refused', f'camera_info: {error}')
        self._node.get_logger().warning(
            f'camera_info of {self.name} refused: {error}', throttle_duration_sec=5.0
        )

    def fail(self, error: Exception) -> None:
        """Count an image that inference failed on, and say so now and then."""
        self.statistics.count('failed', f'{type(error).__name__}: {error}')
        self._node.get_logger().error(
            f'image of {self.topic} could not be labelled: {type(error).__name__}: {error}',
            throttle_duration_sec=5.0,
        )

    def _wants_points(self) -> bool:
        return self._points is not None and (self._always_on or self._points.is_wanted)

    def _receive_unreadable(self, error: ValueError) -> None:
        self.statistics.count('received')
        self.refuse(error)

    def _receive(self, message: Message) -> None:
        self.statistics.count('received')
        try:
            # Checked before it replaces the pending image, so that a bad one never costs a good.
            if self.transport == 'compressed':
                check_compressed_stream(message, self.max_pixels)
            else:
                check_image(message, self.max_pixels)
        except ImageError as error:
            self.refuse(error)
            return
        now_ns, steady_ns = node_time_ns(self._node.get_clock()), time.monotonic_ns()
        next_ns = 2 * steady_ns - self._last_received_ns if self._last_received_ns else 0
        self._last_received_ns = steady_ns
        image = CameraImage(self, message, now_ns, next_ns)
        with self._lock:
            if not self.is_subscribed:
                # On its way when the last listener left.
                self.statistics.count('dropped_unwanted')
                self.trace(message.header, 'dropped, because nobody listens any more')
                return
            if self._pending is not None:
                is_limited = self._limiter.wait_ns(now_ns, self._rate) > 0
                self.statistics.count('dropped_rate' if is_limited else 'dropped_busy')
                why = 'sooner than rate allows' if is_limited else 'while others were labelled'
                self.trace(self._pending.header, f'dropped, because a newer one came {why}')
            self._pending = image
        self._on_image(image)

    def _report_incompatible_qos(self) -> None:
        self.statistics.count('incompatible_qos')
        self._node.get_logger().warning(
            f'no image can come on {self.topic}: {self.explain_silence()}; set '
            f'qos_overrides.{self.topic}.subscription.*',
            throttle_duration_sec=5.0,
        )

    def _topics_of_other_transport(self) -> list[tuple[str, str]]:
        """Transport and topic where this camera's images may be instead."""
        if self.transport == 'compressed':
            other, beside = 'raw', self.topic.removesuffix('/compressed')
        else:
            other, beside = 'compressed', f'{self.topic}/compressed'
        usual = self._node.resolve_topic_name(f'{self.name}/{TRANSPORT_TOPICS[other][0]}')
        return [(other, topic) for topic in dict.fromkeys((beside, usual)) if topic != self.topic]
