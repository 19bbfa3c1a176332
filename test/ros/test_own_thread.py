"""A thread beside rclpy's executor that takes messages and events."""

import threading
import time

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from std_msgs.msg import Header

from cliptrase_ros.ros.own_thread import OwnThread

BEST_EFFORT = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.fixture
def node(context):
    node = Node('watched', context=context)
    yield node
    node.destroy_node()


@pytest.fixture
def own(node):
    own = OwnThread(node, 'own')
    own.start()
    yield own
    own.stop()


class Sender:
    """Publishes headers whose frame_id says which one it is."""

    def __init__(self, client, topic='/header', qos=10):
        self._client = client
        self.publisher = client.node.create_publisher(Header, topic, qos)

    def send(self, text):
        self._client.wait_for(self.publisher.get_subscription_count, 'a subscription')
        self.publisher.publish(Header(frame_id=text))


def subscribe(node, own, callback, topic='/header', qos=10, **arguments):
    return node.create_subscription(
        Header, topic, callback, qos, callback_group=own, raw=True, **arguments
    )


def test_messages_come_as_bytes_in_the_thread_and_not_in_the_executor(node, own, client):
    received = []
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    turns = [0]

    def spin():
        while turns[0] is not None:
            executor.spin_once()
            turns[0] = None if turns[0] is None else turns[0] + 1

    spinning = threading.Thread(target=spin, daemon=True)
    spinning.start()
    subscribe(node, own, lambda data, _: received.append((threading.current_thread().name, data)))
    sender = Sender(client)
    sender.send('first')
    client.wait_for(lambda: received, 'the first message')
    before = turns[0]
    for i in range(50):
        sender.send(str(i))
        client.wait_for(lambda i=i: len(received) == i + 2, 'the next one')
    assert turns[0] - before < 10, 'the executor is woken by messages that are not its own'
    assert {name for name, _ in received} == {'own'}
    texts = [deserialize_message(data, Header).frame_id for _, data in received]
    assert texts == ['first', *map(str, range(50))]
    turns[0] = None
    executor.shutdown()


def test_a_callback_that_fails_costs_its_message_alone(node, own, client):
    received = []

    def callback(data, info):
        received.append(data)
        if len(received) == 1:
            raise RuntimeError('no memory left')

    subscribe(node, own, callback)
    sender = Sender(client)
    sender.send('first')
    client.wait_for(lambda: received, 'the first message')
    sender.send('second')
    client.wait_for(lambda: len(received) == 2, 'the second message')


def test_others_see_at_once_that_a_subscription_or_publisher_is_destroyed(node, own, client):
    subscription = subscribe(node, own, lambda *_: None)
    sender = Sender(client)
    client.wait_for(sender.publisher.get_subscription_count, 'the subscription')
    node.destroy_subscription(subscription)
    own.wake()
    client.wait_for(lambda: not sender.publisher.get_subscription_count(), 'its end')

    publisher = node.create_publisher(Header, '/other', 10, callback_group=own)
    client.wait_for(lambda: client.node.count_publishers('/other'), 'the publisher')
    node.destroy_publisher(publisher)
    own.wake()
    client.wait_for(lambda: not client.node.count_publishers('/other'), 'its end')


def test_events_come_while_messages_do_and_while_none_does(node, own, client):
    events, received = [], []

    def note(kind):
        return lambda _: events.append((kind, threading.current_thread().name))

    subscribe(
        node,
        own,
        lambda data, _: received.append(data),
        event_callbacks=SubscriptionEventCallbacks(incompatible_qos=note('incompatible')),
    )
    sender = Sender(client)
    sender.send('first')
    client.wait_for(lambda: received, 'a message')
    Sender(client, qos=BEST_EFFORT)
    client.wait_for(lambda: events, 'an event')
    sender.send('second')
    client.wait_for(lambda: len(received) == 2, 'a message after it')

    node.create_publisher(
        Header,
        '/other',
        10,
        callback_group=own,
        event_callbacks=PublisherEventCallbacks(matched=note('matched')),
    )
    client.listen('/other', Header)
    client.wait_for(lambda: len(events) == 2, 'a listener')
    assert events == [('incompatible', 'own'), ('matched', 'own')]


def test_the_end_of_the_context_ends_the_thread(node, context):
    own = OwnThread(node, 'own')
    own.start()
    subscribe(node, own, lambda *_: None)
    context.shutdown()
    deadline = time.monotonic() + 30
    while any(thread.name == 'own' for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    own.stop()


def test_a_thread_that_was_never_started_can_be_stopped(node):
    OwnThread(node, 'own').stop()
