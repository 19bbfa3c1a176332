"""Compressed images in, and what is said of cameras nothing comes from; over real DDS."""

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

TOPIC = '/camera/image_raw/compressed'


def compressed(client, suffix='.png', height=48, width=64, seed=0, **changes):
    raw = client.image(height, width, seed)
    rgb = np.frombuffer(raw.data, np.uint8).reshape(height, width, 3)
    _, data = cv2.imencode(suffix, rgb[..., ::-1])
    format = {'.png': 'rgb8; png compressed bgr8', '.jpg': 'rgb8; jpeg compressed bgr8'}[suffix]
    message = CompressedImage(header=raw.header, format=format, data=data.tobytes())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_compressed_images_are_labelled_as_raw_ones(start_node, client):
    start_node(cameras=['raw', 'camera'], transport='raw; compressed')
    client.listen_to_label('raw')
    client.listen_to_label()
    publisher = client.node.create_publisher(CompressedImage, TOPIC, 10)
    client.wait_for(publisher.get_subscription_count, 'a subscriber')
    png, jpeg = compressed(client, '.png', seed=3), compressed(client, '.jpg', 50, 70, seed=3)
    publisher.publish(png)
    label = client.label_of(png.header)
    publisher.publish(jpeg)
    assert (client.label_of(jpeg.header).height, client.label_of(jpeg.header).width) == (50, 70)
    image = client.image(48, 64, seed=3)
    assert client.label_of(client.send(image, 'raw'), 'raw').data == label.data
    assert not client.node.count_subscribers('/camera/image_raw')


@pytest.mark.parametrize(
    ('remappings', 'topics'),
    [
        # As image_transport does: below wherever the raw ones are.
        (['left/image_raw:=/driver/color'], ['/driver/color/compressed', None]),
        (['left/image_raw:=/driver/color/compressed'], ['/driver/color/compressed', None]),
        (
            ['left/image_raw:=right/image_raw', 'right/image_raw:=left/image_raw'],
            ['/right/image_raw/compressed', '/left/image_raw/compressed'],
        ),
        # Unless they are remapped themselves.
        (['left/image_raw/compressed:=/driver/jpeg'], ['/driver/jpeg', None]),
        (
            ['left/image_raw:=/driver/color', 'left/image_raw/compressed:=/driver/jpeg'],
            ['/driver/jpeg', None],
        ),
    ],
)
def test_remapped_compressed_images(start_node, client, remappings, topics):
    cameras = ['left', 'right']
    start_node(remappings=remappings, cameras=cameras, transport='compressed')
    usual = [f'/{camera}/image_raw/compressed' for camera in cameras]
    for camera, topic, otherwise in zip(cameras, topics, usual, strict=True):
        client.listen_to_label(camera)
        publisher = client.node.create_publisher(CompressedImage, topic or otherwise, 10)
        client.wait_for(publisher.get_subscription_count, f'a subscriber of {topic}')
        image = compressed(client)
        publisher.publish(image)
        client.label_of(image.header, camera)


def test_bad_compressed_images_are_refused_and_forgotten(start_node, client):
    statistics = start_node(transport='compressed')._cameras[0].statistics
    client.listen_to_label()
    publisher = client.node.create_publisher(CompressedImage, TOPIC, 50)
    client.wait_for(publisher.get_subscription_count, 'a subscriber')
    png, jpeg = (bytes(compressed(client, suffix).data) for suffix in ('.png', '.jpg'))
    bad = {
        'no data': (b'', '0 bytes'),
        'no picture': (b'hello', 'neither JPEG nor PNG'),
        'a PNG cut short': (png[:-20], 'cut short'),
        'a JPEG cut short': (jpeg[: len(jpeg) // 2], 'cut short'),
        'a PNG of gigabytes': (png[:16] + b'\0\x0f\xff\xff' * 2 + png[24:], 'megapixels'),
        'a PNG of nothing': (png[:16] + bytes(8) + png[24:], '0 x 0'),
        'a PNG with damage inside': (png[:60] + bytes(40) + png[100:], 'cannot be read'),
    }
    for count, (kind, (data, reason)) in enumerate(bad.items(), start=1):
        publisher.publish(compressed(client, data=data))
        client.wait_for(lambda: statistics.counts['refused'] == count, kind)  # noqa: B023
        assert reason in statistics.reasons['refused'], kind
    publisher.publish(compressed(client, format='16UC1; compressedDepth png'))
    client.diagnostics(lambda _, v: 'is depth' in v['last_refusal'])
    good = compressed(client)
    publisher.publish(good)
    client.label_of(good.header)


@pytest.fixture
def stranger():
    """A node of another participant, as of another process."""
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('stranger', context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def silent(client, camera='camera'):
    status, _ = client.diagnostics(
        lambda status, _: status.level == DiagnosticStatus.WARN and 'no image' in status.message,
        camera,
    )
    return status.message


def test_silence_is_explained(start_node, client, stranger):
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    cameras = ['nobody', 'deaf', 'mute', 'other', 'packed', 'wrong']
    start_node(
        cameras=cameras,
        transport=['raw', 'raw', 'raw', 'raw', 'compressed', 'raw'],
        always_on=True,
        **{'qos_overrides./deaf/image_raw.subscription.reliability': 'reliable'},
    )
    node = client.node
    node.create_publisher(Image, '/deaf/image_raw', best_effort)
    node.create_publisher(Image, '/mute/image_raw', best_effort)
    node.create_publisher(CompressedImage, '/other/image_raw/compressed', 1)
    node.create_publisher(Image, '/packed/image_raw', 1)
    # One participant cannot have a topic by two types.
    stranger.create_publisher(CompressedImage, '/wrong/image_raw', 1)
    node.create_publisher(Image, '/robot/nobody/image_raw', 1)
    words = silent(client, 'nobody')
    assert '/nobody/image_raw; no publisher; images come on /robot/nobody/image_raw, ' in words
    assert 'remap nobody/image_raw to one' in words
    words = silent(client, 'deaf')
    assert '/deaf/image_raw; 1 publisher (/client: best effort, volatile' in words
    assert 'incompatible reliability' in words
    client.diagnostics(lambda _, v: int(v['incompatible_qos']) == 1, 'deaf')
    words = silent(client, 'mute')
    assert '1 publisher (/client: best effort, volatile)' in words
    words = silent(client, 'other')
    assert 'no publisher; /other/image_raw/compressed has 1: set transport to compressed' in words
    words = silent(client, 'packed')
    assert '/packed/image_raw has 1: set transport to raw' in words
    assert 'publishes sensor_msgs/msg/CompressedImage instead of sensor_msgs/msg/Image' in silent(
        client, 'wrong'
    )
