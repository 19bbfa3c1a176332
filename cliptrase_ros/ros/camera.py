"""One camera: its subscription while somebody listens, its latest image, its publishers."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages.images import (
    MAX_PIXELS,
    ImageError,
    check_compressed_stream,
    check_image,
    decompress_to_rgb,
    header_stamp_ns,
)
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, MakeOutput, MessageMaker
from cliptrase_ros.messages.type_names import IMAGE
from cliptrase_ros.ros.conversions import MAKER, message_class, to_rgb
from cliptrase_ros.ros.depth import DepthMatch
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.node_time import node_time
from cliptrase_ros.ros.points import PointsOutput
from cliptrase_ros.ros.settings import mask_topic_name
from cliptrase_ros.ros.subscribing import LATCHED_SENSOR_QOS, SensorTopic
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import class_mask
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.rate_limit import RateLimiter

try:
    from vision_msgs.msg import LabelInfo
except ImportError:
    LabelInfo = None

#: Reliable, newest only: what the outputs are published with.
OUTPUT_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
)
#: The same, kept for those who come later.
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)

#: By transport: where images come from below NAME, as what.
TRANSPORT_TOPICS = {
    'raw': ('image_raw', Image),
    'compressed': ('image_raw/compressed', CompressedImage),
}


@dataclass(frozen=True)
class Frame:
    """An image on its way through inference.

    received_ns: when it came, by the node's clock. depth: what is known of the depth image that
    belongs to it, None where nobody wants it.
    """

    camera: 'Camera'
    image: Image | CompressedImage
    received_ns: int
    depth: DepthMatch | None = None

    @property
    def time_ns(self) -> int:
        """Its stamp; of an image without one, when it came."""
        return header_stamp_ns(self.image.header) or self.received_ns

    def picture(self) -> np.ndarray:
        """Decode it: uint8 (H, W, 3) RGB, perhaps the message's own bytes. Raises ImageError."""
        if isinstance(self.image, CompressedImage):
            return decompress_to_rgb(self.image, self.camera.max_pixels)
        # Nobody else has the message: rclpy makes one for each that is taken.
        return to_rgb(self.image, self.camera.max_pixels, may_share=True)


class CameraTopics:
    """Where one camera is read from.

    transport: `raw` or `compressed`. depth: whether depth and camera_info are wanted as well.
    Raises ParameterError: a QoS override that cannot be used.
    """

    def __init__(self, node: Node, name: str, transport: str, depth: bool):
        self.name = name
        self.transport = transport
        self.image = SensorTopic(
            node, TRANSPORT_TOPICS[transport][1], _image_topic(node, name, transport)
        )
        self.depth: SensorTopic | None = None
        self.info: SensorTopic | None = None
        if depth:
            self.depth = SensorTopic(node, Image, f'{name}/depth/image_raw')
            self.info = SensorTopic(node, CameraInfo, f'{name}/camera_info', LATCHED_SENSOR_QOS)

    def follow_publishers(self) -> None:
        """See `SensorTopic.follow_publishers`."""
        for topic in filter(None, (self.image, self.depth, self.info)):
            topic.follow_publishers()


def _image_topic(node: Node, name: str, transport: str) -> str:
    topic = f'{name}/{TRANSPORT_TOPICS[transport][0]}'
    is_remapped = node.resolve_topic_name(topic) != node.resolve_topic_name(topic, only_expand=True)
    if transport == 'raw' or is_remapped:
        return topic
    # As image_transport has it: compressed images come below the topic of the raw ones, wherever
    # that is remapped to.
    raw = node.resolve_topic_name(f'{name}/{TRANSPORT_TOPICS["raw"][0]}')
    return f'{raw.removesuffix("/compressed")}/compressed'


class Camera:
    """Images of one camera in, whatever is made of them out.

    Points are made where the topics have depth. mask_topics: names of classes that have a mask
    image each. max_pixels: of the largest image that is believed. `on_image` is called, from the
    executor's thread, when there is something to do. `take`, `publish` and `publish_waiting`
    belong to the inference thread. Nothing is subscribed before `activate`.
    """

    def __init__(
        self,
        node: Node,
        topics: CameraTopics,
        *,
        always_on: bool,
        on_image: Callable[[], None],
        mask_topics: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
    ):
        self.name = topics.name
        self.topic = topics.image.name
        self.transport = topics.transport
        self.max_pixels = max_pixels
        self.statistics = CameraStatistics()
        self.last_taken_ns = 0
        #: Names in `mask_topics` that the vocabulary announced last does not have.
        self.masks_unknown: tuple[str, ...] = ()
        self._node = node
        self._topics = topics
        self._always_on = always_on
        self._on_image = on_image
        self._mask_topics = tuple(mask_topics)
        self._lock = threading.Lock()
        # Listeners come and go in the executor's thread, states of the node change in another.
        self._subscription_lock = threading.Lock()
        #: Whether images are labelled while somebody listens.
        self.is_active = False
        self._waiting: Frame | None = None
        self._limiter = RateLimiter()
        self._rate = 0.0
        self._points: PointsOutput | None = None
        self._publishers: list[Publisher] = []
        self._outputs: dict[str, tuple[Publisher, MakeOutput]] = {}
        self._label_info: Publisher | None = None
        try:
            self._make_outputs()
            if topics.depth is not None:
                self._points = PointsOutput(
                    self._publisher(PointCloud2, 'points'),
                    topics.depth,
                    topics.info,
                    statistics=self.statistics,
                    wake=on_image,
                    on_refused=self.refuse_depth,
                    max_pixels=max_pixels,
                )
        except Exception:
            self.destroy()
            raise

    @property
    def subscribed(self) -> bool:
        """Whether images are wanted at the moment."""
        return self._topics.image.is_subscribed

    def activate(self) -> None:
        """Subscribe from now on while somebody listens."""
        self.is_active = True
        self.update_subscription()

    def deactivate(self) -> None:
        """Unsubscribe, and forget the image that waits."""
        self.is_active = False
        self.update_subscription()

    def destroy(self) -> None:
        """Unsubscribe and end the outputs, for good."""
        self.deactivate()
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)

    def update_subscription(self) -> None:
        """Subscribe while somebody listens, unsubscribe when the last one has gone."""
        with self._subscription_lock:
            points = self.is_active and self._points is not None and self._wants_points()
            wanted = self.is_active and (
                self._always_on or points or any(self._wanted(key) for key in self._outputs)
            )
            if points:
                self._points.subscribe()
            elif self._points is not None:
                self._points.unsubscribe()
            if wanted and not self.subscribed:
                self._topics.image.subscribe(self._receive, self._note_incompatible)
            elif not wanted and self.subscribed:
                self._topics.image.unsubscribe()
                with self._lock:
                    if self._waiting is not None:
                        self.statistics.count('dropped_unwanted')
                    self._waiting = None

    def follow_publishers(self) -> None:
        """Subscribe anew where publishers that have come or gone ask for another QoS."""
        with self._subscription_lock:
            self._topics.follow_publishers()

    def set_rate(self, rate: float) -> None:
        """Most frames a second to be taken, 0 = all."""
        with self._lock:
            self._rate = rate

    def wait_ns(self, now_ns: int) -> int | None:
        """Nanoseconds until `take` will give a frame, None while there is no image."""
        with self._lock:
            return None if self._waiting is None else self._limiter.wait_ns(now_ns, self._rate)

    def take(self, now_ns: int) -> Frame | None:
        """Take the waiting image, if there is one and the rate allows it; each only once."""
        with self._lock:
            if self._waiting is None or self._limiter.wait_ns(now_ns, self._rate):
                return None
            frame, self._waiting = self._waiting, None
            self._limiter.take(now_ns, self._rate)
        self.trace(frame.image.header, 'taken')
        if self._points is None or not self._wants_points():
            return frame
        return replace(frame, depth=self._points.match(frame.image.header))

    def publish(self, frame: Frame, picture: np.ndarray, result: Segmentation) -> None:
        """Publish what somebody listens to. picture: uint8 (H, W, 3) RGB, the frame's."""
        header = frame.image.header
        wanted = [key for key in self._outputs if self._always_on or self._wanted(key)]
        for key in wanted:
            publisher, make = self._outputs[key]
            publisher.publish(make(MAKER, header, picture, result))
        points = '' if frame.depth is None else ', points as soon as their depth is there'
        self.trace(header, f'published as {", ".join(wanted) or "nothing"}{points}')
        if frame.depth is not None:
            self._points.publish(header, frame.depth, picture, result)

    def publish_waiting(self) -> bool:
        """Publish points whose depth has come after the labels; returns whether there were any."""
        return self._points is not None and self._points.publish_waiting()

    def publish_label_info(self, vocabulary: Vocabulary, header: Header, threshold: float) -> None:
        """Publish id -> name as vision_msgs/LabelInfo, where vision_msgs is installed."""
        self._look_for_unknown_masks(vocabulary)
        if self._label_info is not None:
            self._label_info.publish(MAKER.make_label_info(vocabulary, threshold, header))

    def trace(self, header: Header, what: str) -> None:
        """Say at debug level what becomes of an image."""
        stamp = f'{header.stamp.sec}.{header.stamp.nanosec:09d}'
        self._node.get_logger().debug(f'{self.name} {stamp}: {what}')

    def explain_silence(self) -> str:
        """Say why no image may arrive: who publishes with what QoS, or on which other topic."""
        with self._subscription_lock:
            if not self.subscribed:
                return 'not subscribed'
            said = self._topics.image.describe_publishers()
        for transport, topic in self._other_topics():
            if publishers := self._node.count_publishers(topic):
                return f'{said}; {topic} has {publishers}: set transport to {transport}, or remap'
        if similar := self._topics.image.similar_topics():
            said += f'; images come on {", ".join(similar)}: remap {self.name}/image_raw to one'
        return said

    def explain_missing_points(self) -> str:
        """Say who publishes what the points are made of."""
        with self._subscription_lock:
            return '' if self._points is None else self._points.explain()

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

    def fail(self, error: Exception) -> None:
        """Count an image that inference failed on, and say so now and then."""
        self.statistics.count('failed', f'{type(error).__name__}: {error}')
        self._node.get_logger().error(
            f'image of {self.topic} could not be labelled: {type(error).__name__}: {error}',
            throttle_duration_sec=5.0,
        )

    def _make_outputs(self) -> None:
        masks = {f'mask/{mask_topic_name(name)}': _mask_of(name) for name in self._mask_topics}
        for topic, (message_type, make) in (CAMERA_OUTPUTS | masks).items():
            self._outputs[topic] = (self._publisher(message_class(message_type), topic), make)
        if LabelInfo is not None:
            self._label_info = self._publisher(LabelInfo, 'label_info', LATCHED_QOS)

    def _publisher(self, message_type: type, topic: str, qos: QoSProfile = OUTPUT_QOS) -> Publisher:
        # Names alone make nobody want images.
        matched = None if qos is LATCHED_QOS else lambda _: self.update_subscription()
        publisher = self._node.create_publisher(
            message_type,
            f'~/{self.name}/{topic}',
            qos,
            event_callbacks=PublisherEventCallbacks(matched=matched),
        )
        self._publishers.append(publisher)
        return publisher

    def _wanted(self, key: str) -> bool:
        return self._outputs[key][0].get_subscription_count() > 0

    def _wants_points(self) -> bool:
        return self._always_on or self._points.is_wanted

    def _receive(self, image: Image | CompressedImage) -> None:
        self.statistics.count('received')
        try:
            # Here and not in the inference thread, where a bad image could only be found after
            # it had replaced a good one that was waiting.
            if isinstance(image, CompressedImage):
                check_compressed_stream(image, self.max_pixels)
            else:
                check_image(image, self.max_pixels)
        except ImageError as error:
            self.refuse(error)
            return
        now_ns = node_time(self._node).ns
        with self._lock:
            if not self.subscribed:
                # On its way when the last listener left.
                self.statistics.count('dropped_unwanted')
                self.trace(image.header, 'dropped, because nobody listens any more')
                return
            if self._waiting is not None:
                limited = self._limiter.wait_ns(now_ns, self._rate) > 0
                self.statistics.count('dropped_rate' if limited else 'dropped_busy')
                why = 'sooner than rate allows' if limited else 'while others were labelled'
                self.trace(self._waiting.image.header, f'dropped, because a newer one came {why}')
            self._waiting = Frame(self, image, now_ns)
        self._on_image()

    def _note_incompatible(self) -> None:
        self.statistics.count('incompatible_qos')
        self._node.get_logger().warning(
            f'no image can come on {self.topic}: {self.explain_silence()}; set '
            f'qos_overrides.{self.topic}.subscription.*',
            throttle_duration_sec=5.0,
        )

    def _other_topics(self) -> list[tuple[str, str]]:
        """Where the images of this camera may be by the other transport."""
        other = 'raw' if self.transport == 'compressed' else 'compressed'
        beside = (
            self.topic.removesuffix('/compressed')
            if self.transport == 'compressed'
            else f'{self.topic}/compressed'
        )
        usual = self._node.resolve_topic_name(f'{self.name}/{TRANSPORT_TOPICS[other][0]}')
        return [(other, topic) for topic in dict.fromkeys((beside, usual)) if topic != self.topic]

    def _look_for_unknown_masks(self, vocabulary: Vocabulary) -> None:
        known = {entry.name.casefold() for entry in vocabulary.classes}
        unknown = tuple(name for name in self._mask_topics if name.casefold() not in known)
        if unknown and unknown != self.masks_unknown:
            self._node.get_logger().warning(
                f'mask_topics has {", ".join(unknown)}, which the vocabulary does not; '
                'the masks are empty'
            )
        self.masks_unknown = unknown


def _mask_of(class_name: str) -> tuple[str, MakeOutput]:
    def make(maker: MessageMaker, header: Header, _picture: np.ndarray, result: Segmentation):
        return maker.make_image(class_mask(result, class_name), 'mono8', header)

    return IMAGE, make
