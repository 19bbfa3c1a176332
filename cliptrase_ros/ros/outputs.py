"""The publishers of one camera; nothing is made that nobody listens to."""

from collections.abc import Callable, Sequence

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture, MakeOutput, MessageMaker
from cliptrase_ros.messages.type_names import DETECTIONS_3D, IMAGE, OCCUPANCY_GRID, Message
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import MAKER, message_class
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.settings import phrase_topic_name
from cliptrase_ros.segmentation.statistics import class_mask, score_column, score_image
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


def _score_output(phrase: str) -> tuple[str, MakeOutput]:
    def make(maker: MessageMaker, picture: LabelledPicture) -> Message:
        return maker.make_image(score_image(picture.result, phrase), 'mono8', picture.header)

    return IMAGE, make


class CameraOutputs:
    """The publishers of one camera, on topics below ~/NAME.

    Args:
        mask_topics: Names of the classes that have a mask image each.
        score_topics: Phrases that have a score image each.
        on_listeners_changed: Called in the thread of `listeners` when somebody begins or ceases to
            listen.

    Attributes:
        points_publisher: None without points.
        ground_publisher: None without ground.
        detections_3d_publisher: None without depth, or where vision_msgs is not installed.
        unknown_masks: Names in `mask_topics` that the vocabulary announced last does not have.
        unknown_scores: Phrases in `score_topics` that it does not have.
    """

    def __init__(
        self,
        node: Node,
        camera: str,
        *,
        mask_topics: Sequence[str],
        score_topics: Sequence[str],
        with_points: bool,
        with_detections_3d: bool,
        with_ground: bool,
        always_on: bool,
        on_listeners_changed: Callable[[], None],
        listeners: OwnThread,
    ):
        self.points_publisher: Publisher | None = None
        self.ground_publisher: Publisher | None = None
        self.detections_3d_publisher: Publisher | None = None
        self.unknown_masks: tuple[str, ...] = ()
        self.unknown_scores: tuple[str, ...] = ()
        self._node = node
        self._camera = camera
        self._mask_topics, self._score_topics = tuple(mask_topics), tuple(score_topics)
        self._always_on = always_on
        self._on_matched = PublisherEventCallbacks(matched=lambda _: on_listeners_changed())
        self._listeners = listeners
        self._publishers: list[Publisher] = []
        self._outputs: dict[str, tuple[Publisher, MakeOutput]] = {}
        self._label_info: Publisher | None = None
        outputs = dict(CAMERA_OUTPUTS)
        for name in self._mask_topics:
            outputs[f'mask/{phrase_topic_name("mask_topics", name)}'] = _mask_output(name)
        for phrase in self._score_topics:
            outputs[f'scores/{phrase_topic_name("score_topics", phrase)}'] = _score_output(phrase)
        try:
            for topic, (message_type, make) in outputs.items():
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
            if with_detections_3d and LabelInfo is not None:
                self.detections_3d_publisher = self._create_publisher(
                    message_class(DETECTIONS_3D), 'detections_3d'
                )
            if with_ground:
                grid = message_class(OCCUPANCY_GRID)
                self.ground_publisher = self._create_publisher(grid, 'ground')
        except Exception:
            self.destroy()
            raise

    def destroy(self) -> None:
        """End the publishers."""
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
        self._listeners.wake()

    def any_is_wanted(self) -> bool:
        """Whether anything, points and ground aside, is to be published."""
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
        self._warn_of_unknown(vocabulary)
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

    def _warn_of_unknown(self, vocabulary: Vocabulary) -> None:
        masks = vocabulary.unknown_names(self._mask_topics)
        scores = tuple(p for p in self._score_topics if score_column(vocabulary, p) is None)
        for parameter, unknown, before, what in (
            ('mask_topics', masks, self.unknown_masks, 'masks are empty'),
            ('score_topics', scores, self.unknown_scores, 'scores are 0'),
        ):
            if unknown and unknown != before:
                self._node.get_logger().warning(
                    f'{parameter} has {", ".join(unknown)}, which the vocabulary does not; '
                    f'the {what}'
                )
        self.unknown_masks, self.unknown_scores = masks, scores
