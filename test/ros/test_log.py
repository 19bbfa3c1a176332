"""What the node says of each image at debug level, and of a camera that sends none."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rcl_interfaces.msg import Log
from rclpy.logging import LoggingSeverity


@pytest.fixture
def log(start_node, client):
    """A function: start a node at a log level; returns it and a function that waits for a line."""
    nodes = []

    def start(level):
        # Of three images the first is labelled, and the last takes the place of the second.
        node = start_node(rate=0.01)
        nodes.append(node)
        node.get_logger().set_level(level)
        client.listen('/rosout', Log)
        client.listen_to_label()
        client.wait_for(lambda: client.node.count_publishers('/rosout') >= 2, 'the log')

        def line(text):
            return client.wait_for(
                lambda: next((m.msg for m in client.received['/rosout'] if text in m.msg), None),
                text,
            )

        return node, line

    yield start
    for node in nodes:
        # Levels are those of the process, by name.
        node.get_logger().set_level(LoggingSeverity.UNSET)


def stamp(header):
    return f'{header.stamp.sec}.{header.stamp.nanosec:09d}'


def test_at_debug_it_says_what_becomes_of_each_image(log, client):
    _, line = log(LoggingSeverity.DEBUG)
    first = stamp(client.send(client.image()))
    assert line('taken') == f'camera {first}: taken'
    assert line('labelled').startswith(f'camera {first}: labelled in ')
    assert line('published') == f'camera {first}: published as label'
    second, _ = (stamp(client.send(client.image())) for _ in range(2))
    assert line('dropped').startswith(f'camera {second}: dropped, because a newer one came sooner')


def test_a_camera_of_which_nothing_came_is_named_once(log, client):
    _, line = log(LoggingSeverity.INFO)
    said = line('no image for')
    assert said == 'camera: no image for 3 s on /camera/image_raw; no publisher'
    client.diagnostics(lambda status, _: 'no image for 5 s' in status.message)
    assert sum('no image for' in m.msg for m in client.received['/rosout']) == 1


def test_otherwise_it_says_nothing_of_them(log, client):
    node, line = log(LoggingSeverity.INFO)
    header = client.send(client.image())
    client.label_of(header)
    node.get_logger().warning('that is all')
    line('that is all')
    assert not any(stamp(header) in m.msg for m in client.received['/rosout'])
