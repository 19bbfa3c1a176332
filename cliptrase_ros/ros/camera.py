"""One camera: its subscription while somebody listens, its latest image, its publishers."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from cliptrase_ros.msg import ClassMasks
from cliptrase_ros.rate_limit import RateLimiter
from cliptrase_ros.ros import conversions
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.parameters import ParameterError
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import Vocabulary

try:
    from vision_msgs.msg import LabelInfo, VisionClass
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


@dataclass(frozen=True)
class Frame:
    """An image on its way through inference."""

    camera: 'Camera'
    image: Image


class Camera:
    """Images of one camera in, whatever is made of them out.

    `on_image` is called, from the executor's thread, when an image waits. `take` and `publish`
    belong to the inference thread.
    """

    def __init__(self, node: Node, name: str, *, always_on: bool, on_image: Callable[[], None]):
        self.name = name
        self.statistics = CameraStatistics()
        self.last_taken_ns = 0
        self._node = node
        self._always_on = always_on
        self._on_image = on_image
        self._lock = threading.Lock()
        self._waiting: Image | None = None
        self._limiter = RateLimiter()
        self._rate = 0.0

        matched = PublisherEventCallbacks(matched=lambda _: self.update_subscription())

        def output(message_type, topic: str) -> Publisher:
            return node.create_publisher(
                message_type, f'~/{name}/{topic}', OUTPUT_QOS, event_callbacks=matched
            )

        self._outputs: dict[str, tuple[Publisher, Callable]] = {
            'label': (output(Image, 'label'), _label),
            'masks': (output(ClassMasks, 'masks'), _masks),
            'overlay': (output(Image, 'overlay'), _overlay),
        }
        self._label_info = None
        if LabelInfo is not None:
            self._label_info = node.create_publisher(LabelInfo, f'~/{name}/label_info', LATCHED_QOS)
        self.topic = node.resolve_topic_name(f'{name}/image_raw')
        # Subscribed at first in any case: this declares the QoS overrides and finds mistakes in
        # them now, not when the first listener comes.
        try:
            self._subscription = self._subscribe()
        except (ParameterException, InvalidQosOverridesError, RuntimeError, ValueError) as error:
            raise ParameterError(f'QoS override for {self.topic}: {error}') from error
        self.update_subscription()

    @property
    def subscribed(self) -> bool:
        """Whether images are wanted at the moment."""
        return self._subscription is not None

    def update_subscription(self) -> None:
        """Subscribe while somebody listens, unsubscribe when the last one has gone."""
        wanted = self._always_on or any(self._wanted(key) for key in self._outputs)
        if wanted and self._subscription is None:
            self._subscription = self._subscribe()
        elif not wanted and self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
            with self._lock:
                self._waiting = None

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
            image, self._waiting = self._waiting, None
            self._limiter.take(now_ns, self._rate)
        return Frame(self, image)

    def publish(self, header: Header, picture: np.ndarray, result: Segmentation) -> None:
        """Publish what somebody listens to. picture: uint8 (H, W, 3) RGB, the input."""
        for key, (publisher, make) in self._outputs.items():
            if self._always_on or self._wanted(key):
                publisher.publish(make(header, picture, result))

    def publish_label_info(self, vocabulary: Vocabulary, header: Header, threshold: float) -> None:
        """Publish id -> name as vision_msgs/LabelInfo, where vision_msgs is installed."""
        if self._label_info is not None:
            classes = [VisionClass(class_id=c.id, class_name=c.name) for c in vocabulary.classes]
            self._label_info.publish(
                LabelInfo(header=header, class_map=classes, threshold=threshold)
            )

    def _wanted(self, key: str) -> bool:
        return self._outputs[key][0].get_subscription_count() > 0

    def _subscribe(self):
        profile = qos_profile_sensor_data
        return self._node.create_subscription(
            Image,
            f'{self.name}/image_raw',
            self._receive,
            # A new profile each time: rclpy writes the overrides into the one it is given.
            QoSProfile(
                history=profile.history, depth=profile.depth, reliability=profile.reliability
            ),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _receive(self, image: Image) -> None:
        self.statistics.count('received')
        try:
            # Here and not in the inference thread, where a bad image could only be found after
            # it had replaced a good one that was waiting.
            conversions.check_image(image)
        except conversions.ImageError as error:
            self.refuse(error)
            return
        now_ns = self._node.get_clock().now().nanoseconds
        with self._lock:
            if self._waiting is not None:
                limited = self._limiter.wait_ns(now_ns, self._rate) > 0
                self.statistics.count('dropped_rate' if limited else 'dropped_busy')
            self._waiting = image
        self._on_image()

    def refuse(self, error: Exception) -> None:
        """Count an image that cannot be used, and say so now and then."""
        self.statistics.count('refused', str(error))
        self._node.get_logger().warning(
            f'image on {self.topic} refused: {error}', throttle_duration_sec=5.0
        )

    def fail(self, error: Exception) -> None:
        """Count an image that inference failed on, and say so now and then."""
        self.statistics.count('failed', f'{type(error).__name__}: {error}')
        self._node.get_logger().error(
            f'image of {self.topic} could not be labelled: {type(error).__name__}: {error}',
            throttle_duration_sec=5.0,
        )


def _label(header: Header, _picture: np.ndarray, result: Segmentation) -> Image:
    return conversions.image_message(result.label, 'mono8', header)


def _masks(header: Header, _picture: np.ndarray, result: Segmentation) -> ClassMasks:
    return conversions.masks_message(result.label, result.confidence, result.vocabulary, header)


def _overlay(header: Header, picture: np.ndarray, result: Segmentation) -> Image:
    drawn = draw_overlay(picture, result.label, result.vocabulary)
    return conversions.image_message(drawn, 'rgb8', header)
