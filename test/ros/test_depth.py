"""Points of depth that comes compressed, by pixels of its own, and of lenses; over real DDS."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from depth_streams import encode_depth
from raw_images import pixel_rays
from sensor_msgs.msg import CameraInfo, CompressedImage, PointCloud2

from cliptrase_ros.messages.depth import POINT
from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.points import DepthTopics

CLOUDS = '/cliptrase/camera/points'
K = [60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]


def points_of(cloud):
    return np.frombuffer(cloud.data, POINT).reshape(cloud.height, cloud.width)


def millimetres(height, width):
    return np.arange(1000, 1000 + height * width, dtype=np.uint16).reshape(height, width)


@pytest.fixture
def publish(client):
    """Publish a message on a topic that the node reads."""
    publishers = {}

    def send(topic, message):
        if topic not in publishers:
            publishers[topic] = client.node.create_publisher(type(message), topic, 10)
            client.wait_for(publishers[topic].get_subscription_count, topic)
        publishers[topic].publish(message)

    return send


def test_points_of_compressed_depth_at_half_the_size_of_a_distorted_image(
    start_node, client, publish
):
    points = start_node(depth=True, depth_transport='compressedDepth')._cameras[0]._points
    client.listen(CLOUDS, PointCloud2)
    client.listen_to_label()

    def send_depth(header, data, format='16UC1; compressedDepth rvl'):
        message = CompressedImage(header=header, format=format, data=data)
        publish('/camera/depth/image_raw/compressedDepth', message)

    def send_info(**fields):
        info = CameraInfo(width=64, height=48, k=K, **fields)
        publish('/camera/camera_info', info)
        client.wait_for(lambda: points._info and list(points._info.d) == list(info.d), 'its d')
        return info

    values = millimetres(24, 32)
    data = encode_depth(values, 'rvl')
    image = client.image()
    for format, bad, reason in (
        ('16UC1; compressedDepth rvl', data[:9], '9 bytes of compressed depth'),
        ('32FC1; compressedDepth rvl', data, 'compressed depth whose header has quantisation 0, 0'),
        ('16UC1; compressedDepth h264', data, "format '16UC1; compressedDepth h264' is not known"),
    ):
        send_depth(image.header, bad, format)
        client.diagnostics(lambda _, v: f'depth: {reason}' in v['last_refusal'])  # noqa: B023
    for fields, cut, reason in (
        ({'distortion_model': 'fov', 'd': [0.9]}, 0, "'fov' of camera_info is not known"),
        ({}, 4, 'cut short'),
    ):
        send_info(**fields)
        image = client.image()
        send_depth(image.header, data[: len(data) - cut])
        client.label_of(client.send(image))
        client.diagnostics(lambda _, v: reason in v['last_points_missed'])  # noqa: B023
    info = send_info(distortion_model='plumb_bob', d=[-0.2, 0.05, 0.001, 0.0, 0.0])
    image = client.image()
    send_depth(image.header, data)
    client.send(image)
    found = points_of(client._answer(image.header, CLOUDS))
    z = values.repeat(2, 0).repeat(2, 1) * 1e-3
    np.testing.assert_allclose(found['z'], z, rtol=1e-6)
    for name, rays in zip('xy', pixel_rays(info, 64, 48), strict=True):
        np.testing.assert_allclose(found[name], rays * z, rtol=1e-5)
    assert not client.node.count_subscribers('/camera/depth/image_raw')


def test_depth_with_a_camera_info_of_its_own_waits_for_it(start_node, client, publish):
    points = start_node(depth=True)._cameras[0]._points
    client.listen(CLOUDS, PointCloud2)
    client.listen_to_label()
    publish('/camera/camera_info', CameraInfo(width=64, height=48, k=K))
    client.wait_for(lambda: points._info, 'camera_info')
    # Somebody will publish it.
    own = client.node.create_publisher(CameraInfo, '/camera/depth/camera_info', 10)
    client.wait_for(own.get_subscription_count, 'a subscription')
    values = millimetres(48, 64)
    for _ in range(2):
        image = client.image()
        publish('/camera/depth/image_raw', MAKER.make_image(values, '16UC1', image.header))
        client.label_of(client.send(image))
    missing = 'no camera_info on /camera/depth/camera_info'
    client.diagnostics(lambda _, v: v['last_points_missed'] == missing)
    assert not client.received[CLOUDS]
    # Depth is of half the image's field of view, and only the last image still waits.
    own.publish(
        CameraInfo(width=64, height=48, k=[2 * v for v in K[:2]] + K[2:4] + [120.0] + K[5:])
    )
    found = points_of(client._answer(image.header, CLOUDS))
    is_measured = np.isfinite(found['z'])
    inner = is_measured[12:36, 16:48]
    assert inner.all() and is_measured.sum() == inner.size
    rows, columns = np.indices((48, 64))
    row, column = np.divmod(np.rint(found['z'][is_measured] * 1000).astype(int) - 1000, 64)
    assert np.abs(column - (2 * columns[is_measured] - 31.5)).max() <= 0.5
    assert np.abs(row - (2 * rows[is_measured] - 23.5)).max() <= 0.5


def test_depth_does_not_wait_forever_for_a_camera_info_of_its_own(start_node, client, publish):
    points = start_node(depth=True)._cameras[0]._points
    client.listen(CLOUDS, PointCloud2)
    client.listen_to_label()
    own = client.node.create_publisher(CameraInfo, '/camera/depth/camera_info', 10)
    client.wait_for(own.get_subscription_count, 'a subscription')
    publish('/camera/camera_info', CameraInfo(width=64, height=48, k=K))
    client.wait_for(lambda: points._info, 'camera_info')
    image = client.image()
    client.label_of(client.send(image))
    depth = MAKER.make_image(millimetres(48, 64), '16UC1', image.header)
    for count in range(1, 9):
        publish('/camera/depth/image_raw', depth)
        client.wait_for(lambda: len(points._recent) == count, 'depth')  # noqa: B023
    client._answer(image.header, CLOUDS)


def test_rectified_images_are_of_p(start_node, client, publish):
    rectified = ['camera/image_raw:=/camera/image_rect_color']
    points = start_node(depth=True, remappings=rectified)._cameras[0]._points
    client.listen(CLOUDS, PointCloud2)
    p = [120.0, 0.0, 30.0, 0.0, 0.0, 120.0, 20.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    info = CameraInfo(width=64, height=48, k=K, d=[0.3] * 5, distortion_model='plumb_bob', p=p)
    publish('/camera/camera_info', info)
    client.wait_for(lambda: points._info, 'camera_info')
    image = client.image()
    depth = MAKER.make_image(millimetres(48, 64), '16UC1', image.header)
    publish('/camera/depth/image_raw', depth)
    publish('/camera/image_rect_color', image)
    found = points_of(client._answer(image.header, CLOUDS))
    np.testing.assert_allclose(
        found['x'] / found['z'], np.tile((np.arange(64) - 30) / 120, (48, 1)), atol=1e-6
    )


@pytest.mark.parametrize(
    ('transport', 'remappings', 'depth', 'depth_info'),
    [
        ('raw', {}, '/camera/depth/image_raw', '/camera/depth/camera_info'),
        (
            'compressedDepth',
            {'depth/image_raw': '/driver/aligned/image_raw'},
            '/driver/aligned/image_raw/compressedDepth',
            '/driver/aligned/camera_info',
        ),
        (
            'compressedDepth',
            {'depth/image_raw/compressedDepth': '/driver/d/z', 'depth/camera_info': '/driver/info'},
            '/driver/d/z',
            '/driver/info',
        ),
        # Beside depth there is only that of the image.
        (
            'raw',
            {'depth/image_raw': '/driver/depth', 'camera_info': '/driver/camera_info'},
            '/driver/depth',
            None,
        ),
    ],
)
def test_topics_of_depth_follow_remapping(context, transport, remappings, depth, depth_info):
    rules = [f'camera/{old}:={new}' for old, new in remappings.items()]
    arguments = ['--ros-args', *(part for rule in rules for part in ('-r', rule))]
    node = rclpy.create_node('remapped', context=context, cli_args=arguments)
    try:
        topics = DepthTopics(node, 'camera', transport, None)
    finally:
        node.destroy_node()
    assert topics.depth.name == depth
    assert (topics.depth_info and topics.depth_info.name) == depth_info
