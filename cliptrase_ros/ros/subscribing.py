"""Subscriptions to sensors, and why nothing arrives by one."""

import copy
import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from cliptrase_ros.messages.transports import raw_topic, topic_of
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.serialized import deserialize, type_name
from cliptrase_ros.ros.settings import ParameterError

_BEST_EFFORT, _RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
_VOLATILE, _TRANSIENT_LOCAL = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL

#: For what may be latched, published only once before the node came: durability is that of the
#: publishers, and so is reliability, because DDS latches nothing that is not reliable.
LATCHED_SENSOR_QOS = QoSProfile(
    depth=qos_profile_sensor_data.depth,
    reliability=ReliabilityPolicy.BEST_AVAILABLE,
    durability=DurabilityPolicy.BEST_AVAILABLE,
)

#: For video, of which a packet that is lost costs all up to the next key frame: reliable if the
#: publishers are, and small packets may wait.
VIDEO_QOS = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_AVAILABLE)

_OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)

# What middleware that does not count puts in place of a number.
_NO_SEQUENCE = 2**63

#: Most publishers or topics that are named in a sentence.
_MAX_NAMED = 3


class SensorTopic:
    """A topic of a sensor, with the QoS that `qos_overrides` parameters give it.

    The parameters are declared here and stay; nothing is subscribed to before `subscribe`. A policy
    that is `best_available` is what all publishers offer, and follows them as they come and go.

    Args:
        topic: Name before remapping.
        qos: Without overrides.
        reception: The thread that receives; None for the executor's.

    Attributes:
        name: What the topic resolves to.
        sequence: While the callback runs, the number of its message, one more for each that its
            publisher sends; 0 where the middleware does not count.

    Raises:
        ParameterError: An override cannot be used.
    """

    def __init__(
        self,
        node: Node,
        message_type: type,
        topic: str,
        qos: QoSProfile = qos_profile_sensor_data,
        reception: OwnThread | None = None,
    ):
        self.name = node.resolve_topic_name(topic)
        self.sequence = 0
        self._node = node
        self._message_type = message_type
        self._type_name = type_name(message_type)
        self._topic = topic
        self._reception = reception
        self._subscription: Subscription | None = None
        self._subscribed_times = 0
        self._callback: Callable[[Message], None] | None = None
        self._on_unreadable: Callable[[ValueError], None] | None = None
        self._events = SubscriptionEventCallbacks()
        try:
            # rclpy declares the overrides, and rcl checks them, with a subscription alone.
            subscription = node.create_subscription(
                message_type,
                topic,
                lambda _: None,
                # A copy: rclpy writes the overrides into the profile it is given.
                copy.copy(qos),
                qos_overriding_options=QoSOverridingOptions(_OVERRIDABLE, callback=self._keep_qos),
            )
        except (ParameterException, InvalidQosOverridesError, RuntimeError, ValueError) as error:
            raise ParameterError(
                f'{self.name} cannot be subscribed to; look at its qos_overrides: {error}'
            ) from error
        node.destroy_subscription(subscription)

    @property
    def is_subscribed(self) -> bool:
        """Whether messages are received."""
        return self._subscription is not None

    def subscribe(
        self,
        callback: Callable[[Message], None],
        on_unreadable: Callable[[ValueError], None] | None = None,
        on_incompatible: Callable[[], None] | None = None,
    ) -> None:
        """Begin to receive.

        Args:
            callback: Called with each message.
            on_unreadable: Called with the reason when bytes have come that are no such message.
            on_incompatible: Called when a publisher's QoS does not fit.
        """
        self._callback = callback
        self._on_unreadable = on_unreadable
        if on_incompatible is not None:
            self._events = SubscriptionEventCallbacks(incompatible_qos=lambda _: on_incompatible())
        self._create_subscription(self._fitting_qos(self._publishers()))

    def unsubscribe(self) -> None:
        """Receive no more."""
        if self._subscription is not None:
            self._destroy(self._subscription)
            self._subscription = None

    def follow_publishers(self) -> None:
        """Subscribe anew if publishers have come or gone and `best_available` is another QoS now.

        While there is no publisher everything stays as it was.
        """
        if self._subscription is None or not (publishers := self._publishers()):
            return
        old, new = self._subscription.qos_profile, self._fitting_qos(publishers)
        if (old.reliability, old.durability) != (new.reliability, new.durability):
            # The new one first: if it cannot be made, the old one stays.
            replaced = self._subscription
            self._create_subscription(new)
            self._destroy(replaced)

    @property
    def has_publishers(self) -> bool:
        """Whether somebody publishes."""
        return bool(self._publishers())

    def describe_publishers(self) -> str:
        """Say who publishes, and what keeps their messages from the subscription there is."""
        publishers = self._publishers()
        if not publishers:
            return 'no publisher'
        descriptions = []
        for publisher in publishers[:_MAX_NAMED]:
            qos = publisher.qos_profile
            description = (
                f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}: '
                f'{_policy_name(qos.reliability)}, {_policy_name(qos.durability)}'
            )
            if publisher.topic_type != self._type_name:
                description += f', publishes {publisher.topic_type} instead of {self._type_name}'
            elif policies := _incompatible_policies(qos, self._subscription.qos_profile):
                description += f', incompatible {policies}'
            descriptions.append(description)
        if len(publishers) > _MAX_NAMED:
            descriptions.append('...')
        count = f'{len(publishers)} publisher{"s" if len(publishers) > 1 else ""}'
        return f'{count} ({"; ".join(descriptions)})'

    def similar_topics(self) -> list[str]:
        """Topics that others publish such messages on, similar first; none if this one is used."""
        if self._publishers():
            return []
        own = f'{self._node.get_fully_qualified_name()}/'
        published = [
            name
            for name, types in self._node.get_topic_names_and_types()
            if self._type_name in types
            and not name.startswith(own)
            and self._node.count_publishers(name)
        ]
        return difflib.get_close_matches(self.name, published, _MAX_NAMED, cutoff=0.0)

    def _keep_qos(self, qos: QoSProfile) -> SetParametersResult:
        self._qos = copy.copy(qos)
        # The subscription that declares the overrides asks for what every publisher offers:
        # publishers warn of subscriptions that ask for more, as `best_available` does while no
        # publisher is known.
        qos.reliability, qos.durability = _BEST_EFFORT, _VOLATILE
        return SetParametersResult(successful=True)

    def _publishers(self) -> list[TopicEndpointInfo]:
        # By the name before remapping: rclpy remaps it.
        return self._node.get_publishers_info_by_topic(self._topic)

    def _fitting_qos(self, publishers: list[TopicEndpointInfo]) -> QoSProfile:
        qos = copy.copy(self._qos)
        offers = [publisher.qos_profile for publisher in publishers]
        if qos.reliability == ReliabilityPolicy.BEST_AVAILABLE:
            all_reliable = offers and all(o.reliability == _RELIABLE for o in offers)
            qos.reliability = _RELIABLE if all_reliable else _BEST_EFFORT
        if qos.durability == DurabilityPolicy.BEST_AVAILABLE:
            all_latched = offers and all(o.durability == _TRANSIENT_LOCAL for o in offers)
            qos.durability = _TRANSIENT_LOCAL if all_latched else _VOLATILE
        return qos

    def _create_subscription(self, qos: QoSProfile) -> None:
        self._subscribed_times += 1
        self._subscription = self._node.create_subscription(
            self._message_type,
            self._topic,
            partial(self._receive, self._subscribed_times),
            qos,
            callback_group=self._reception,
            event_callbacks=self._events,
            raw=True,
        )

    def _destroy(self, subscription: Subscription) -> None:
        self._node.destroy_subscription(subscription)
        if self._reception is not None:
            self._reception.wake()

    def _receive(self, subscription: int, data: bytes, info: dict[str, Any]) -> None:
        if subscription != self._subscribed_times:
            # Of one that was replaced: its messages come by both for a moment.
            return
        number = info.get('publication_sequence_number') or 0
        self.sequence = number if number < _NO_SEQUENCE else 0
        try:
            message = deserialize(data, self._type_name)
        except ValueError as error:
            if self._on_unreadable is not None:
                self._on_unreadable(error)
        else:
            self._callback(message)


def is_remapped(node: Node, topic: str) -> bool:
    """Whether the node's arguments remap a topic."""
    return node.resolve_topic_name(topic) != node.resolve_topic_name(topic, only_expand=True)


def transport_topic(node: Node, raw: str, transport: str) -> str:
    """Topic of a transport of the images on `raw`, as in image_transport.

    It lies below the topic of the raw ones, wherever that is remapped to, unless it is remapped
    itself.
    """
    topic = topic_of(raw, transport)
    if transport == 'raw' or is_remapped(node, topic):
        return topic
    return topic_of(raw_topic(node.resolve_topic_name(raw)), transport)


def _policy_name(policy) -> str:
    return policy.name.lower().replace('_', ' ')


def _incompatible_policies(offered: QoSProfile, wanted: QoSProfile) -> str:
    """Names of the policies that keep two ends apart, '' if none does."""
    compatibility, reason = qos_check_compatible(offered, wanted)
    if compatibility != QoSCompatibility.ERROR:
        return ''
    names = []
    if (offered.reliability, wanted.reliability) == (_BEST_EFFORT, _RELIABLE):
        names.append('reliability')
    if (offered.durability, wanted.durability) == (_VOLATILE, _TRANSIENT_LOCAL):
        names.append('durability')
    return ' and '.join(names) or reason
