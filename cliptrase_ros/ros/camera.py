"""One camera: its subscription while somebody listens, its newest image, and its outputs."""

import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from rclpy.clock import Clock
from rclpy.logging import LoggingSeverity
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo

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
from cliptrase_ros.messages.transports import TRANSPORTS, VIDEO_TYPES, raw_topic, topic_of
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.messages.video import NoPictureError, VideoPacket, VideoPicture, video_packet
from cliptrase_ros.ros.conversions import message_class, to_rgb
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.ground import GroundOutput, GroundPlane
from cliptrase_ros.ros.outputs import CameraOutputs
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.points import DepthMatch, DepthTopics, PointsOutput
from cliptrase_ros.ros.settings import NodeSettings, ParameterError
from cliptrase_ros.ros.subscribing import (
    LATCHED_SENSOR_QOS,
    VIDEO_QOS,
    SensorTopic,
    transport_topic,
)
from cliptrase_ros.ros.video import VideoThread
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.rate_limit import RateLimiter
from cliptrase_ros.streams.tracking import InstanceTracker


def node_time_ns(clock: Clock) -> int:
    """Return nanoseconds of the node's clock, also while nobody publishes simulated time.

    Such a clock reads 0; images may come before its first message, and time has to go on.
    """
    return clock.now().nanoseconds or time.monotonic_ns()


@dataclass(frozen=True)
class CameraImage:
    """An image on its way through inference.

    Attributes:
        message: Fields of a sensor_msgs/Image or CompressedImage, by the transport, or a
            VideoPicture.
        received_ns: When it came, nanoseconds of the node's clock.
        next_ns: When the next one will come, if it takes as long as this one has, nanoseconds of
            `time.monotonic_ns`.
        depth: What is known of the depth image that belongs to it; None where nobody wants points.
        is_only_searched: Whether nobody listened when it came, so that it is not to be labelled.
    """

    camera: 'Camera'
    message: Message
    received_ns: int
    next_ns: int
    depth: DepthMatch | None = None
    is_only_searched: bool = False
    # Its pixels once they are decoded, for labelling and search.
    _decoded: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)
    # A search may need them while they are decoded ahead.
    _decoding: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

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
        """Whether decoding it, or its conversion to colours, takes milliseconds."""
        return self.camera.transport != 'raw'

    def decode(self) -> np.ndarray:
        """Return uint8 (H, W, 3) RGB, perhaps the message's own bytes; decoded once.

        Raises:
            ImageError: The message cannot be decoded.
        """
        with self._decoding:
            if not self._decoded:
                self._decoded.append(self._read())
            return self._decoded[0]

    def _read(self) -> np.ndarray:
        if isinstance(self.message, VideoPicture):
            return self.message.to_rgb()
        if self.is_compressed:
            return decompress_to_rgb(self.message, self.camera.max_pixels)
        # Nobody else has this message.
        return to_rgb(self.message, self.camera.max_pixels, may_share=True)


class CameraTopics:
    """The topics that one camera is read from.

    Args:
        depth_transport: How its depth comes, one of `DEPTH_TRANSPORTS`; None for no depth.
        has_ground: Whether camera_info is needed for the ground.

    Raises:
        ParameterError: A QoS override, which is declared here, cannot be used, or the transport
            needs what is not installed.
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
        self.is_video = TRANSPORTS[transport] in VIDEO_TYPES
        topic = transport_topic(node, f'{name}/image_raw', transport)
        qos = VIDEO_QOS if self.is_video else qos_profile_sensor_data
        self.image = SensorTopic(node, _message_class(transport), topic, qos, reception)
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


def _message_class(transport: str) -> type:
    message_type = TRANSPORTS[transport]
    package, _, _ = message_type.partition('/')
    try:
        if message_type in VIDEO_TYPES:
            importlib.import_module('av')
        return message_class(message_type)
    except ImportError as error:
        missing = f'the package {package} (apt install ros-$ROS_DISTRO-{package.replace("_", "-")})'
        if error.name == 'av':
            missing = 'PyAV (pip install "av>=14.1")'
        raise ParameterError(
            f"'transport' is {transport}, which needs {missing}; install it, or choose another"
        ) from error


class Camera:
    """Receives the images of one camera and publishes what is made of them.

    Nothing is subscribed to before `activate`. `take`, `take_to_search` and
    `publish_pending_points` belong to the inference thread, `publish` to it and the one that
    publishes beside the engine.

    Args:
        topics: Where the camera is read from.
        always_on: Subscribe and publish even while nobody listens.
        on_image: Called in the reception thread with an image that may be taken.
        wake: Called in the reception thread when there is something else to do.
        listeners: The thread that sees who begins or ceases to listen.
        mask_topics: Names of the classes that have a mask image each.
        score_topics: Phrases that have a score image each.
        points: What points are made of, if that is there: `depth` or `ground`.
        ground: Where the ground is; None where it is not published.
        tracker: What gives the camera's instances their ids.
        max_pixels: Of the largest image that is not refused.

    Attributes:
        last_taken_ns: When an image was taken last, nanoseconds of a clock that only runs forwards.
        last_searched_ns: The same of images to be searched.
        is_active: Whether images are labelled while somebody listens.
        is_labelled: Whether they are at the moment.
        unknown_costs: Names of ground costs that the vocabulary announced last does not have.
        min_instance_area: The setting of this name.
        overlay_boxes: The setting of this name.
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
        tracker: InstanceTracker,
        mask_topics: Sequence[str] = (),
        score_topics: Sequence[str] = (),
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
        self.last_searched_ns = 0
        self.is_active = False
        self.is_labelled = False
        self.unknown_costs: tuple[str, ...] = ()
        self.min_instance_area = SegmentationSettings.min_instance_area
        self.overlay_boxes = NodeSettings.overlay_boxes
        self._tracker = tracker
        self._node = node
        self._topics = topics
        self._on_image = on_image
        self._wake = wake
        # Of the pending images and the rate.
        self._lock = threading.Lock()
        # Listeners come and go in a thread of their own, states of the node change in another.
        self._subscription_lock = threading.Lock()
        self._pending: CameraImage | None = None
        self._is_searched = False
        self._to_search: CameraImage | None = None
        # While subscribed, with a transport that is video.
        self._video: VideoThread | None = None
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
            score_topics=score_topics,
            with_points=has_points_of_depth or has_points_of_ground,
            with_detections_3d=has_points_of_depth,
            with_ground=ground is not None,
            always_on=always_on,
            on_listeners_changed=self.update_subscription,
            listeners=listeners,
        )
        if has_points_of_depth:
            self._points = PointsOutput(
                self.outputs.points_publisher,
                topics.depth,
                detections_publisher=self.outputs.detections_3d_publisher,
                always_on=always_on,
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

    def search(self, begins: bool) -> None:
        """Receive images for a search from now on, labelled or not, or no more."""
        with self._lock:
            self._is_searched = begins
        self.update_subscription()

    def update_subscription(self) -> None:
        """Subscribe while somebody listens or searches, unsubscribe when the last one has gone."""
        with self._subscription_lock:
            with_points = self.is_active and self._wants_points()
            with_ground = self.is_active and self._ground is not None and self._ground.is_wanted
            is_labelled = with_points or with_ground
            is_labelled |= self.is_active and self.outputs.any_is_wanted()
            if with_points:
                self._points.subscribe()
            elif self._points is not None:
                self._points.unsubscribe()
            if with_ground:
                self._ground.subscribe()
            elif self._ground is not None:
                self._ground.unsubscribe()
            with self._lock:
                self.is_labelled = is_labelled
                is_searched = self.is_active and self._is_searched
            if (is_labelled or is_searched) and not self.is_subscribed:
                if self._topics.is_video:
                    self._video = self._start_video()
                self._topics.image.subscribe(
                    self._receive_packet if self._topics.is_video else self._receive,
                    self._receive_unreadable,
                    self._report_incompatible_qos,
                )
            elif not (is_labelled or is_searched) and self.is_subscribed:
                self._topics.image.unsubscribe()
                if self._video is not None:
                    self._video.stop()
            with self._lock:
                if not is_labelled and self._pending is not None:
                    self.statistics.count('dropped_unwanted')
                    self._pending = None
                if not is_searched and self._to_search is not None:
                    # Others are counted as what is labelled.
                    if self._to_search.is_only_searched:
                        self.statistics.count('dropped_unwanted')
                    self._to_search = None

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

    def take_to_search(self) -> CameraImage | None:
        """Take the newest image that was not searched yet, if there is one."""
        with self._lock:
            image, self._to_search = self._to_search, None
        if image is not None:
            self.last_searched_ns = time.monotonic_ns()
            self.trace(image.header, 'taken to be searched')
        return image

    def publish(self, image: CameraImage, pixels: np.ndarray, result: Segmentation) -> None:
        """Publish what somebody listens to of an image; pixels: uint8 (H, W, 3) RGB."""
        picture = LabelledPicture(
            image.header,
            pixels,
            result,
            self.min_instance_area,
            partial(self._tracker.track, time_ns=image.time_ns),
            self.overlay_boxes,
        )
        topics = self.outputs.publish(picture)
        if self._ground is not None:
            topics += self._ground.publish(picture)
        points = '' if image.depth is None else ', points as soon as their depth is there'
        self.trace(image.header, f'published as {", ".join(topics) or "nothing"}{points}')
        if image.depth is not None:
            if self._points.are_detections_wanted:
                # In the order of the images, which depth need not keep.
                _ = picture.ids
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
        for transport, topic in self._topics_of_other_transports():
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
        return self._points is not None and self._points.is_wanted

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
        self._offer(message, node_time_ns(self._node.get_clock()))

    def _receive_packet(self, message: Message) -> None:
        self.statistics.count('received')
        now_ns, sequence = node_time_ns(self._node.get_clock()), self._topics.image.sequence
        try:
            packet = video_packet(message, now_ns, sequence, self.max_pixels)
        except ImageError as error:
            self.refuse(error)
        else:
            self._video.put(packet)

    def _start_video(self) -> VideoThread:
        statistics = self.statistics
        return VideoThread(
            self.name,
            self.max_pixels,
            on_settled=self._take_from_video,
            on_lost=lambda number: statistics.count('frames_lost', number=number),
            on_dropped=lambda name, number: statistics.count(name, number=number),
            logger=self._node.get_logger(),
        )

    def _take_from_video(self, packet: VideoPacket, outcome: VideoPicture | ImageError) -> None:
        if isinstance(outcome, VideoPicture):
            self._offer(outcome, packet.received_ns)
        elif isinstance(outcome, NoPictureError):
            self.statistics.count('no_picture', str(outcome))
            self.trace(packet.header, f'no picture: {outcome}')
        else:
            self.refuse(outcome)

    def _offer(self, message: Message, received_ns: int) -> None:
        """Let an image be the next to be taken, instead of the one that waits."""
        steady_ns = time.monotonic_ns()
        next_ns = 2 * steady_ns - self._last_received_ns if self._last_received_ns else 0
        self._last_received_ns = steady_ns
        with self._lock:
            is_labelled, is_searched = self.is_labelled, self.is_active and self._is_searched
            image = CameraImage(
                self, message, received_ns, next_ns, is_only_searched=not is_labelled
            )
            if not is_labelled and not is_searched:
                # On its way when the last listener left.
                self.statistics.count('dropped_unwanted')
                self.trace(message.header, 'dropped, because nobody listens any more')
                return
            if is_searched:
                if self._to_search is not None and self._to_search.is_only_searched:
                    self.statistics.count('dropped_busy')
                self._to_search = image
            if is_labelled:
                if self._pending is not None:
                    is_limited = self._limiter.wait_ns(received_ns, self._rate) > 0
                    self.statistics.count('dropped_rate' if is_limited else 'dropped_busy')
                    why = 'sooner than rate allows' if is_limited else 'while others were labelled'
                    self.trace(self._pending.header, f'dropped, because a newer one came {why}')
                self._pending = image
        if is_labelled:
            self._on_image(image)
        else:
            self._wake()

    def _report_incompatible_qos(self) -> None:
        self.statistics.count('incompatible_qos')
        self._node.get_logger().warning(
            f'no image can come on {self.topic}: {self.explain_silence()}; set '
            f'qos_overrides.{self.topic}.subscription.*',
            throttle_duration_sec=5.0,
        )

    def _topics_of_other_transports(self) -> list[tuple[str, str]]:
        """Transport and topic where this camera's images may be instead."""
        raw = self.topic if self.transport == 'raw' else raw_topic(self.topic)
        topics = []
        for other in TRANSPORTS:
            usual = self._node.resolve_topic_name(topic_of(f'{self.name}/image_raw', other))
            beside = topic_of(raw, other)
            topics += [(other, t) for t in dict.fromkeys((beside, usual)) if t != self.topic]
        return topics
