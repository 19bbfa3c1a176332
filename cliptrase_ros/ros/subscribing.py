"""Subscriptions to sensors, and why nothing arrives by one."""

from collections.abc import Callable

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.qos import (
    DurabilityPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
    qos_profile_sensor_data,
)
from rclpy.qos_overriding_options import InvalidQosOverridesError, QoSOverridingOptions
from rclpy.subscription import Subscription

from cliptrase_ros.ros.parameters import ParameterError

_BEST_EFFORT, _RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
_VOLATILE, _TRANSIENT_LOCAL = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL

#: Publishers named in a sentence; of more, only the number is said.
_NAMED = 3


def subscribe_to_sensor(
    node: Node,
    message_type: type,
    topic: str,
    callback: Callable,
    on_incompatible: Callable[[], None] | None = None,
) -> Subscription:
    """Subscribe with the QoS of sensor data, which `qos_overrides` parameters may change.

    on_incompatible: called when a publisher appears whose QoS does not go with it.
    Raises ParameterError for an override that cannot be used.
    """
    profile = qos_profile_sensor_data
    events = SubscriptionEventCallbacks()
    if on_incompatible is not None:
        events = SubscriptionEventCallbacks(incompatible_qos=lambda _: on_incompatible())
    try:
        return node.create_subscription(
            message_type,
            topic,
            callback,
            # A new profile each time: rclpy writes the overrides into the one it is given.
            QoSProfile(
                history=profile.history, depth=profile.depth, reliability=profile.reliability
            ),
            event_callbacks=events,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
    except (ParameterException, InvalidQosOverridesError, RuntimeError, ValueError) as error:
        name = node.resolve_topic_name(topic)
        raise ParameterError(
            f'{name} cannot be subscribed to; look at its qos_overrides: {error}'
        ) from error


def describe_publishers(node: Node, subscription: Subscription) -> str:
    """Say who publishes on a topic, and what keeps their messages from a subscription."""
    message_type = _type_name(subscription.msg_type)
    publishers = node.get_publishers_info_by_topic(subscription.topic_name)
    if not publishers:
        return 'no publisher'
    said = []
    for publisher in publishers[:_NAMED]:
        qos = publisher.qos_profile
        words = f'{_node_name(publisher)}: {_word(qos.reliability)}, {_word(qos.durability)}'
        if publisher.topic_type != message_type:
            words += f', publishes {publisher.topic_type} instead of {message_type}'
        elif policies := _incompatible(qos, subscription.qos_profile):
            words += f', incompatible {policies}'
        said.append(words)
    if len(publishers) > _NAMED:
        said.append('...')
    count = f'{len(publishers)} publisher{"s" if len(publishers) > 1 else ""}'
    return f'{count} ({"; ".join(said)})'


def _type_name(message_type: type) -> str:
    package, kind, *_ = message_type.__module__.split('.')
    return f'{package}/{kind}/{message_type.__name__}'


def _node_name(publisher) -> str:
    return f'{publisher.node_namespace.rstrip("/")}/{publisher.node_name}'


def _word(policy) -> str:
    return policy.name.lower().replace('_', ' ')


def _incompatible(offered: QoSProfile, wanted: QoSProfile) -> str:
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
