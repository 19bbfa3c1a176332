"""What planners read: confidence, masks of classes, compressed labels, points; over real DDS."""

import threading
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from pages import ROOT, python_blocks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages.depth import POINT, check_depth
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.conversions import MAKER, to_rgb
from cliptrase_ros.ros.diagnostics import CameraStatistics
from cliptrase_ros.ros.points import PointsOutput
from cliptrase_ros.ros.subscribing import LATCHED_SENSOR_QOS, SensorTopic
from cliptrase_ros.segmentation.instances import find_instances
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

UNLABELLED = 255


def pixels(image):
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)


def points_of(cloud):
    return np.frombuffer(cloud.data, POINT).reshape(cloud.height, cloud.width)


def test_every_output_of_a_frame_says_the_same(start_node, client):
    start_node(
        vocabulary='road; red car: auto; tree',
        background='sky; wall',
        mask_topics='Red Car; road; no such thing',
        score_topics='Auto; road; tree; Sky; wall; no such phrase',
    )
    topics = {
        name: f'/cliptrase/camera/{name}'
        for name in (
            *('label', 'confidence', 'label/compressed'),
            *('mask/Red_Car', 'mask/road', 'mask/no_such_thing'),
            *('scores/Auto', 'scores/road', 'scores/tree', 'scores/Sky', 'scores/wall'),
            'scores/no_such_phrase',
        )
    }
    for name, topic in topics.items():
        client.listen(topic, CompressedImage if 'compressed' in name else Image)
    client.listen_to_masks()
    client.listen_to_vocabulary()
    client.vocabulary_version()
    ids = {c.name: c.id for c in client.received['/cliptrase/vocabulary'][0].classes}
    header = client.send(client.image(60, 90, seed=4))
    received = {name: client._answer(header, topic) for name, topic in topics.items()}
    label = pixels(received['label'])

    compressed = received['label/compressed']
    assert compressed.format == 'mono8; png compressed '
    decoded = cv2.imdecode(np.frombuffer(compressed.data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, label)

    for name, image in received.items():
        if name == 'label/compressed':
            continue
        assert image.header == header
        assert (image.encoding, image.height, image.width, image.step) == ('mono8', 60, 90, 90)
    for name, class_name in (('mask/Red_Car', 'red car'), ('mask/road', 'road')):
        np.testing.assert_array_equal(
            pixels(received[name]), np.where(label == ids[class_name], 255, 0)
        )
    assert not pixels(received['mask/no_such_thing']).any()

    # Together they are all there is, and what is most probable is what pixels are labelled.
    scores = [pixels(received[f'scores/{n}']) for n in ('road', 'Auto', 'tree', 'Sky', 'wall')]
    assert np.abs(np.sum(scores, 0, int) - 255).max() <= 3
    assert (np.append([0, 1, 2], [255, 255])[np.argmax(scores, 0)] == label).mean() > 0.9
    assert not pixels(received['scores/no_such_phrase']).any()

    confidence = pixels(received['confidence']) / 255.0
    for mask in client.masks_of(header).masks:
        mean = confidence[label == mask.class_id].mean()
        assert mask.confidence == pytest.approx(mean, abs=1e-5)

    status, values = client.diagnostics(lambda _, v: v['masks_unknown'])
    assert values['masks_unknown'] == 'no such thing'
    assert values['scores_unknown'] == 'no such phrase'
    assert status.level == DiagnosticStatus.WARN and 'no such thing' in status.message


class DepthCamera:
    """Publishes depth and camera_info beside the images of a client."""

    def __init__(self, client):
        self._client = client
        self.depth = client.node.create_publisher(Image, '/camera/depth/image_raw', 10)
        self.info = self.publish_info_with(10)

    def publish_info_with(self, qos):
        return self._client.node.create_publisher(CameraInfo, '/camera/camera_info', qos)

    def wait(self):
        for publisher in (self.depth, self.info):
            self._client.wait_for(publisher.get_subscription_count, publisher.topic_name)

    def send_info(self, width, height, fx=100.0, fy=50.0, cx=3.0, cy=2.0):
        k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
        self.info.publish(CameraInfo(width=width, height=height, k=k))

    def send_depth(self, header, values, encoding='16UC1'):
        self.depth.publish(MAKER.make_image(values, encoding, header))


@pytest.fixture
def depth_camera(client):
    return DepthCamera(client)


def millimetres(height, width):
    values = np.random.default_rng(0).integers(1, 9000, (height, width)).astype(np.uint16)
    values[::3, ::4] = 0
    return values


def test_points_are_labels_at_their_depth(start_node, client, depth_camera):
    start_node(depth=True)
    client.listen('/cliptrase/camera/points', PointCloud2)
    client.listen_to_label()
    depth_camera.wait()
    for order in ('depth first', 'image first'):
        image, values = client.image(48, 64, seed=2), millimetres(48, 64)
        if order == 'depth first':
            depth_camera.send_info(64, 48)
            depth_camera.send_depth(image.header, values)
            client.spin(0.1)
            client.send(image)
        else:
            # Depth that is later than the labels, and a little beside the stamp.
            client.label_of(client.send(image))
            late = Header(frame_id=f'/{image.header.frame_id}')
            late.stamp.sec = image.header.stamp.sec
            late.stamp.nanosec = image.header.stamp.nanosec + 15_000_000
            depth_camera.send_depth(late, (values * 1e-3).astype(np.float32), '32FC1')
        label = client.label_of(image.header)
        cloud = client._answer(image.header, '/cliptrase/camera/points')
        assert (cloud.height, cloud.width, cloud.point_step) == (48, 64, POINT.itemsize)
        assert cloud.row_step == 64 * cloud.point_step and len(cloud.data) == 48 * cloud.row_step
        assert [f.name for f in cloud.fields] == ['x', 'y', 'z', 'rgb', 'label', 'confidence']
        assert not cloud.is_dense and not cloud.is_bigendian
        points = points_of(cloud)
        np.testing.assert_array_equal(points['label'], pixels(label))
        measured = values > 0
        assert np.isnan(points['z'][~measured]).all() and np.isnan(points['x'][~measured]).all()
        z = values * 1e-3
        rows, columns = np.mgrid[:48, :64]
        for name, expected in (
            ('z', z),
            ('x', (columns - 3.0) / 100.0 * z),
            ('y', (rows - 2.0) / 50.0 * z),
        ):
            np.testing.assert_allclose(points[name][measured], expected[measured], rtol=1e-5)
        colours = points['rgb'].copy().view(np.uint32)
        rgb = np.frombuffer(image.data, np.uint8).reshape(48, 64, 3).astype(np.uint32)
        np.testing.assert_array_equal(colours, rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
        assert ((points['confidence'] >= 0) & (points['confidence'] <= 1)).all()


def test_missing_points_say_what_is_missing(start_node, client, depth_camera):
    statistics = start_node(depth=True)._cameras[0].statistics
    client.listen('/cliptrase/camera/points', PointCloud2)
    client.listen_to_label()
    depth_camera.wait()

    def send(values=None, encoding='16UC1', frame_id='optical'):
        image = client.image(48, 64)
        if values is not None:
            header = Header(stamp=image.header.stamp, frame_id=frame_id)
            depth_camera.send_depth(header, values, encoding)
        client.send(image)
        client.label_of(image.header)

    def wait_for(reason):
        client.wait_for(
            lambda: (
                reason in statistics.reasons['points_missed']
                or reason in statistics.reasons['refused']
            ),
            reason,
        )

    # Points wait for their depth until the next picture comes.
    send()
    send(millimetres(48, 64))
    wait_for('no depth image within 20 ms of the image on /camera/depth/image_raw')
    send()
    wait_for('no camera_info on /camera/camera_info')
    for depth, info, reason in (
        ({}, {'width': 640, 'height': 480}, 'camera_info is of 640 x 480'),
        ({}, {'fx': 0.0}, 'not calibrated'),
        ({'values': millimetres(30, 40)}, {}, 'depth is of 40 x 30 pixels'),
        ({'frame_id': 'other'}, {}, "depth is in frame 'other'"),
        ({'encoding': '8UC1', 'values': np.ones((48, 64), np.uint8)}, {}, "'8UC1' is not known"),
    ):
        depth_camera.send_info(**{'width': 64, 'height': 48, **info})
        send(**{'values': millimetres(48, 64), **depth})
        wait_for(reason)
    assert not client.received['/cliptrase/camera/points']
    missed = client.diagnostics(lambda _, v: int(v['points_missed']) >= 6)[1]
    assert missed['last_points_missed'] == statistics.reasons['points_missed']
    # And all is well again.
    depth_camera.send_info(64, 48)
    send(millimetres(48, 64))
    client.wait_for(lambda: client.received['/cliptrase/camera/points'], 'points')


@pytest.mark.parametrize(
    ('depth_stamp', 'stamp', 'reason'),
    [
        (Time(sec=5, nanosec=40_000_000), Time(sec=5), 'the nearest differs by 40 ms'),
        (Time(), Time(sec=5), 'depth has no stamp, the image has'),
        (Time(sec=5), Time(), 'the image has no stamp, depth has'),
    ],
)
def test_missing_points_say_how_stamps_differ(
    start_node, client, depth_camera, depth_stamp, stamp, reason
):
    camera = start_node(depth=True)._cameras[0]
    client.listen('/cliptrase/camera/points', PointCloud2)
    depth_camera.wait()
    depth_camera.send_depth(Header(stamp=depth_stamp), millimetres(48, 64))
    client.wait_for(lambda: camera._points._recent, 'depth')
    for count in (1, 2):
        image = client.image(48, 64)
        image.header.stamp = stamp
        client.send(image)
        client.wait_for(lambda: camera.statistics.counts['labelled'] == count, 'labels')  # noqa: B023
    assert camera.statistics.reasons['points_missed'] == (
        f'no depth image within 20 ms of the image on /camera/depth/image_raw; {reason}'
    )


@pytest.mark.parametrize('seconds', [0, 1000], ids=['no stamps', 'a stamp that stays'])
def test_newest_depth_of_equal_stamps(start_node, client, depth_camera, seconds):
    points = start_node(depth=True)._cameras[0]._points
    client.listen('/cliptrase/camera/points', PointCloud2)
    depth_camera.wait()
    depth_camera.send_info(64, 48)
    header = Header(stamp=Time(sec=seconds), frame_id='optical')
    clouds = client.received['/cliptrase/camera/points']
    for count in range(1, 4):
        depth_camera.send_depth(header, np.full((48, 64), 1000 * count, np.uint16))
        client.wait_for(lambda: points._info and len(points._recent) == count, 'depth')  # noqa: B023
        image = client.image(48, 64)
        image.header = header
        client.send(image)
        client.wait_for(lambda: len(clouds) == count, 'points')  # noqa: B023
        assert points_of(clouds[-1])['z'] == pytest.approx(count)


def test_camera_info_is_found_that_was_published_once(start_node, client):
    """Before the node, while it runs, and beside others that publish it again and again."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    depth_camera = DepthCamera(client)
    client.node.destroy_publisher(depth_camera.info)
    depth_camera.info = depth_camera.publish_info_with(latched)
    depth_camera.send_info(64, 48, cx=1.0)
    points = start_node(depth=True)._cameras[0]._points

    def principal_point(x):
        client.wait_for(lambda: points._info and points._info.k[2] == x, f'the camera_info of {x}')

    client.listen('/cliptrase/camera/points', PointCloud2)
    principal_point(1.0)
    image = client.image(48, 64)
    depth_camera.send_depth(image.header, millimetres(48, 64))
    client.send(image)
    client._answer(image.header, '/cliptrase/camera/points')
    first = points._topics.info._subscription

    # The same driver once more: nothing changes.
    client.node.destroy_publisher(depth_camera.info)
    client.wait_for(lambda: not client.node.count_publishers('/camera/camera_info'), 'its end')
    client.spin(0.3)
    depth_camera.info = depth_camera.publish_info_with(latched)
    depth_camera.send_info(64, 48, cx=2.0)
    principal_point(2.0)
    assert points._topics.info._subscription is first

    once, depth_camera.info = depth_camera.info, depth_camera.publish_info_with(10)
    client.wait_for(depth_camera.info.get_subscription_count, 'a subscription that takes both')
    depth_camera.send_info(64, 48, cx=3.0)
    principal_point(3.0)
    client.node.destroy_publisher(depth_camera.info)
    client.node.destroy_publisher(once)
    depth_camera.info = depth_camera.publish_info_with(latched)
    depth_camera.send_info(64, 48, cx=4.0)
    principal_point(4.0)


def test_overrides_are_declared_without_asking_a_driver_for_what_it_may_lack(context):
    """Publishers log a warning of each subscription whose QoS does not fit."""
    asked = []

    class Watched(Node):
        def create_subscription(self, *arguments, **keywords):
            subscription = super().create_subscription(*arguments, **keywords)
            asked.append(subscription.qos_profile)
            return subscription

    node = Watched('watched', context=context)
    SensorTopic(node, CameraInfo, 'info', LATCHED_SENSOR_QOS)
    value = node.get_parameter('qos_overrides./info.subscription.durability').value
    node.destroy_node()
    assert value == 'best_available'
    assert [(qos.reliability.name, qos.durability.name) for qos in asked] == [
        ('BEST_EFFORT', 'VOLATILE')
    ]


def test_subscription_stays_where_a_fitting_one_cannot_be_made(context, client):
    class Full(Node):
        is_full = False

        def create_subscription(self, *arguments, **keywords):
            if self.is_full:
                raise RuntimeError('no more file descriptors')
            return super().create_subscription(*arguments, **keywords)

    node = Full('full', context=context)
    topic = SensorTopic(node, CameraInfo, 'info', LATCHED_SENSOR_QOS)
    topic.subscribe(lambda _: None)
    node.create_publisher(CameraInfo, 'info', 10)
    client.wait_for(lambda: node.count_publishers('info'), 'the publisher')
    node.is_full = True
    with pytest.raises(RuntimeError, match='descriptors'):
        topic.follow_publishers()
    assert topic.is_subscribed
    node.destroy_node()


def test_depth_is_subscribed_while_points_are_wanted(start_node, client, depth_camera):
    start_node(depth=True)
    client.listen_to_label()
    client.connect()
    assert not depth_camera.depth.get_subscription_count()
    listener = client.listen('/cliptrase/camera/points', PointCloud2)
    depth_camera.wait()
    client.node.destroy_subscription(listener)
    client.wait_for(lambda: not depth_camera.depth.get_subscription_count(), 'the end of it')
    client.label_of(client.send(client.image()))


def test_detections_are_the_instances_of_the_label_image(start_node, client, depth_camera):
    vision = pytest.importorskip('vision_msgs.msg', reason='vision_msgs is not installed')
    start_node(depth=True, min_instance_area=0.01)
    flat, deep = '/cliptrase/camera/detections', '/cliptrase/camera/detections_3d'
    client.listen(flat, vision.Detection2DArray)
    client.listen(deep, vision.Detection3DArray)
    client.listen_to_label()
    client.listen_to_masks()
    depth_camera.wait()
    ids = []
    for _ in range(2):
        image = client.image(48, 64, seed=2)
        depth_camera.send_info(64, 48)
        depth_camera.send_depth(image.header, np.full((48, 64), 2000, np.uint16))
        header = client.send(image)
        label, masks = pixels(client.label_of(header)), client.masks_of(header)
        detections, placed = (client._answer(header, topic) for topic in (flat, deep))
        found = Counter(d.results[0].hypothesis.class_id for d in detections.detections)
        assert found == {m.class_name: m.instances for m in masks.masks if m.instances}
        of_class = {m.class_name: m.class_id for m in masks.masks}
        for detection, box in zip(detections.detections, placed.detections, strict=True):
            hypothesis = detection.results[0].hypothesis
            assert detection.header == box.header == header
            assert (detection.id, hypothesis) == (box.id, box.results[0].hypothesis)
            assert 0.0 <= hypothesis.score <= 1.0
            width, height = detection.bbox.size_x, detection.bbox.size_y
            centre = detection.bbox.center.position
            left, top = round(centre.x - width / 2), round(centre.y - height / 2)
            inside = label[top : top + round(height), left : left + round(width)]
            assert (inside == of_class[hypothesis.class_id]).any(axis=0).all()
            # All is 2 m away, of a camera of 100 and 50 pixels focal length.
            position, size = box.bbox.center.position, box.bbox.size
            assert position.x == pytest.approx(2 * (centre.x - 0.5 - 3) / 100, abs=1e-4)
            assert position.y == pytest.approx(2 * (centre.y - 0.5 - 2) / 50, abs=1e-4)
            assert (size.x, size.y) == pytest.approx(
                (2 * (width - 1) / 100, 2 * (height - 1) / 50), abs=1e-4
            )
            assert (position.z, size.z) == (2.0, 0.0)
        ids.append([detection.id for detection in detections.detections])
    assert ids[0] == ids[1] == [f'{i}' for i in range(1, len(ids[0]) + 1)] != []


def test_the_page_counts_boxes(capsys):
    pytest.importorskip('vision_msgs.msg', reason='vision_msgs is not installed')
    (example,) = (b for b in python_blocks(ROOT / 'docs' / 'planners.md') if 'Detection3D' in b)
    names = {}
    exec(example.partition('rclpy.init()')[0], names)
    label = np.full((40, 60), 255, np.uint8)
    label[10:20, 5:15], label[10:20, 30:40], label[25:35, 20:40] = 0, 0, 1
    depth = np.full(label.shape, 3.0, np.float32)
    depth[:, :20], depth[20:] = 2.0, 1.0
    picture = LabelledPicture(
        Header(), None, Segmentation(label, label, parse_vocabulary('box; ball'))
    )
    rays = np.stack(np.meshgrid(np.linspace(-0.3, 0.29, 60), np.linspace(-0.2, 0.19, 40)))
    names['tell'](MAKER.make_detections_3d(picture, depth, rays.astype(np.float32)))
    assert capsys.readouterr().out == (
        '2 boxes\nnearest: 1, -0.41 m right, -0.11 m down, 2.00 m ahead\n'
    )


def test_boxes_come_onto_the_overlay_while_the_node_runs(start_node, client):
    start_node(vocabulary=['road', 'person', 'tree'])
    client.listen('/cliptrase/camera/overlay', Image)
    client.listen_to_label()

    def overlay_of(image):
        label = pixels(client.label_of(client.send(image)))
        return label, pixels(client._answer(image.header, '/cliptrase/camera/overlay'))

    before = overlay_of(client.image(60, 80))[1]
    assert client.set_parameters(overlay_boxes=True, min_instance_area=0.2)[0].successful
    image = client.image(60, 80)
    label, after = overlay_of(image)
    result = Segmentation(label, label, parse_vocabulary(['road', 'person', 'tree']))
    instances = find_instances(result, 0.2)
    ids = range(1, len(instances) + 1)
    expected = draw_overlay(to_rgb(image), label, result.vocabulary, instances=instances, ids=ids)
    np.testing.assert_array_equal(after.reshape(60, 80, 3), expected)
    assert (after != before).any()


class DepthTopic:
    """Stands for a topic of depth or camera_info that nobody publishes."""

    name = 'depth'
    is_subscribed = True

    def unsubscribe(self):
        self.is_subscribed = False


@pytest.fixture
def points_output(monkeypatch):
    """A PointsOutput whose points are the stamps of their pictures, and what it has published.

    Making those of stamp 1 waits for `output.may_go_on`, which `output.has_begun` asks for.
    """
    published = []
    publisher = SimpleNamespace(get_subscription_count=lambda: 1)
    depth, info = DepthTopic(), DepthTopic()
    depth_topics = SimpleNamespace(
        topics=(depth, info), depth=depth, info=info, depth_info=None, check=check_depth
    )
    output = PointsOutput(
        publisher,
        depth_topics,
        is_rectified=False,
        statistics=CameraStatistics(),
        wake=lambda: None,
        on_refused=pytest.fail,
        max_pixels=1000,
    )
    output.has_begun, output.may_go_on = threading.Event(), threading.Event()

    def publish(labelled, depth, info, depth_info):
        if labelled.header.stamp.sec == 1:
            output.has_begun.set()
            assert output.may_go_on.wait(30)
        published.append(labelled.header.stamp.sec)

    monkeypatch.setattr(output, '_publish_placed', publish)
    return output, published


def test_points_of_one_picture_do_not_overtake_those_before(points_output):
    output, published = points_output
    output._receive_info(CameraInfo())
    headers = [serialized.MAKER.make_header(10**9 * stamp_s) for stamp_s in (1, 2)]
    first = output.match(headers[0])
    output.publish(LabelledPicture(headers[0], None, None), first)
    # It comes late: the inference thread publishes, while the other has the next picture.
    first.depth = Image()
    late = threading.Thread(target=output.publish_waiting)
    late.start()
    assert output.has_begun.wait(30)
    second = output.match(headers[1])
    second.depth = Image()
    following = threading.Thread(
        target=output.publish, args=(LabelledPicture(headers[1], None, None), second)
    )
    following.start()
    following.join(0.1)
    output.may_go_on.set()
    for thread in (late, following):
        thread.join(30)
    assert published == [1, 2]


def test_depth_on_its_way_when_the_last_listener_leaves_is_not_kept(points_output):
    output, _ = points_output
    output.unsubscribe()
    output._receive_depth(Image(width=1, height=1, step=2, encoding='16UC1', data=[1, 0]))
    output._receive_info(CameraInfo())
    assert not output._recent and output._info is None
