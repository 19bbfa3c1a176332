"""The publishers of one camera; nothing is made that nobody listens to."""

from collections.abc import Callable, Sequence

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture, MakeOutput, MessageMaker
from cliptrase_ros.messages.type_names import DETECTIONS_3D, IMAGE, Message
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import MAKER, message_class
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.settings import mask_topic_name
from cliptrase_ros.segmentation.statistics import class_mask
from cliptrase_ros.segmentation.vocabulary import Vocabulary

try:
    from vision_msgs.msg import LabelInfo
except ImportError:
    LabelInfo = None

#: Reliable, the newest message only.
OUTPUT_QOS = QoSProfile(depth=1)
#: The same, kept for subscribers that come later.
LATCHED_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def _mask_output(class_name: str) -> tuple[str, MakeOutput]:
    def make(maker: MessageMaker, picture: LabelledPicture) -> Message:
        return maker.make_image(class_mask(picture.result, class_name), 'mono8', picture.header)

    return IMAGE, make


class CameraOutputs:
    """The publishers of one camera, on topics below ~/NAME.

    Args:
        mask_topics: Names of the classes that have a mask image each.
        on_listeners_changed: Called in the thread of `listeners` when somebody begins or ceases to
            listen.

    Attributes:
        points_publisher: None without points.
        detections_3d_publisher: None without points, or where vision_msgs is not installed.
        unknown_masks: Names in `mask_topics` that the vocabulary announced last does not have.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        *,
        mask_topics: Sequence[str],
        with_points: bool,
        always_on: bool,
        on_listeners_changed: Callable[[], None],
        listeners: OwnThread,
    ):
        self.points_publisher: Publisher | None = None
        self.detections_3d_publisher: Publisher | None = None
        self.unknown_masks: tuple[str, ...] = ()
        self._node = node
        self._camera = camera
        self._mask_topics = tuple(mask_topics)
        self._always_on = always_on
        self._on_matched = PublisherEventCallbacks(matched=lambda _: on_listeners_changed())
        self._listeners = listeners
        self._publishers: list[Publisher] = []
        self._outputs: dict[str, tuple[Publisher, MakeOutput]] = {}
        self._label_info: Publisher | None = None
        mask_outputs = {
            f'mask/{mask_topic_name(name)}': _mask_output(name) for name in self._mask_topics
        }
        try:
            for topic, (message_type, make) in (CAMERA_OUTPUTS | mask_outputs).items():
                if LabelInfo is None and message_type.startswith('vision_msgs/'):
                    continue
                self._outputs[topic] = (
                    self._create_publisher(message_class(message_type), topic),
                    make,
                )
            if LabelInfo is not None:
                # Without the callback: listening to label_info alone must not start the camera.
                self._label_info = node.create_publisher(
                    LabelInfo, f'~/{camera}/label_info', LATCHED_QOS, callback_group=listeners
                )
                self._publishers.append(self._label_info)
            if with_points:
                self.points_publisher = self._create_publisher(PointCloud2, 'points')
                if LabelInfo is not None:
                    self.detections_3d_publisher = self._create_publisher(
                        message_class(DETECTIONS_3D), 'detections_3d'
                    )
        except Exception:
            self.destroy()
            raise

    def destroy(self) -> None:
        """End the publishers."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._listeners.wake()

    def any_is_wanted(self) -> bool:
        """Whether anything, points aside, is to be published."""
        return any(map(self.is_wanted, self._outputs))

    def is_wanted(self, topic: str) -> bool:
        """Whether messages of a topic below ~/NAME are to be published."""
        return self._always_on or self._outputs[topic][0].get_subscription_count() > 0

    def publish(self, picture: LabelledPicture) -> list[str]:
        """Publish what is wanted of a picture; returns the topics."""
        wanted = [topic for topic in self._outputs if self.is_wanted(topic)]
        for topic in wanted:
            publisher, make = self._outputs[topic]
            publisher.publish(serialized.serialize(make(serialized.MAKER, picture)))
        return wanted

    def publish_label_info(self, vocabulary: Vocabulary, header: Header, threshold: float) -> None:
        """Publish id -> name as vision_msgs/LabelInfo, where vision_msgs is installed."""
        self._warn_of_unknown_masks(vocabulary)
        if self._label_info is not None:
            self._label_info.publish(MAKER.make_label_info(vocabulary, threshold, header))

    def _create_publisher(self, message_type: type, topic: str) -> Publisher:
        publisher = self._node.create_publisher(
            message_type,
            f'~/{self._camera}/{topic}',
            OUTPUT_QOS,
            callback_group=self._listeners,
            event_callbacks=self._on_matched,
        )
        self._publishers.append(publisher)
        return publisher

    def _warn_of_unknown_masks(self, vocabulary: Vocabulary) -> None:
        known = {entry.name.casefold() for entry in vocabulary.classes}
        unknown = tuple(name for name in self._mask_topics if name.casefold() not in known)
        if unknown and unknown != self.unknown_masks:
            self._node.get_logger().warning(
                f'mask_topics has {", ".join(unknown)}, which the vocabulary does not; '
                'the masks are empty'
            )
        self.unknown_masks = unknown
