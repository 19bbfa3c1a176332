"""The ground before a camera: grids and points from labels alone, over real DDS."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import OccupancyGrid
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages.depth import POINT
from cliptrase_ros.messages.ground import pose_of_transform
from cliptrase_ros.ros import toybox_camera, transforms
from cliptrase_ros.ros.settings import NodeSettings, ParameterError, camera_pose, ground_cost
from cliptrase_ros.toybox.scenes import camera_pose as tour_pose
from cliptrase_ros.toybox.scenes import sample_room

GRID, POINTS = '/cliptrase/camera/ground', '/cliptrase/camera/points'
#: A metre high, looking 45 degrees down.
POSE = '0 0 1 0 0.7853982 0'
#: All words lie on the ground, each with a cost of its own.
COSTS = ['road = 0', 'person = 100', 'tree = 60']
COST = {'road': 0, 'person': 100, 'tree': 60}


class GroundCamera:
    """Publishes camera_info beside the images of a client."""

    def __init__(self, client):
        self.client = client
        self.info = client.node.create_publisher(CameraInfo, '/camera/camera_info', 10)

    def send(self, image=None, **fields):
        """Send camera_info, then an image; returns the image's header."""
        client = self.client
        client.wait_for(self.info.get_subscription_count, 'a subscriber of camera_info')
        k = [50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]
        self.info.publish(CameraInfo(**{'width': 64, 'height': 48, 'k': k} | fields))
        # Taken by the same thread as the image, once it is there.
        assert self.info.wait_for_all_acked()
        return client.send(image or client.image())

    def missed(self, header, text):
        """Wait until diagnostics warn, once, of an image without ground; the node labels on."""
        self.client.label_of(header)
        status, values = self.client.diagnostics(
            lambda s, v: text in v['last_ground_missed'] and 'images without ground' in s.message
        )
        assert int(values['ground_missed']) >= 1
        return status.message


@pytest.fixture
def camera(client):
    client.listen_to_label()
    client.listen_to_vocabulary()
    # All along: what is warned of once must not be overheard.
    client.listen('/diagnostics', DiagnosticArray)
    return GroundCamera(client)


def same_stamp(client, header, topic):
    def find():
        return next((m for m in client.received[topic] if m.header.stamp == header.stamp), None)

    return client.wait_for(find, topic)


def cells(grid):
    return np.reshape(np.asarray(grid.data, np.int8), (grid.info.height, grid.info.width))


def test_grid_and_points_of_a_camera_with_a_fixed_pose(start_node, client, camera):
    start_node(
        ground_frame='base_footprint', camera_poses=[POSE], ground_costs=COSTS, points='ground'
    )
    for topic, message_type in ((GRID, OccupancyGrid), (POINTS, PointCloud2)):
        client.listen(topic, message_type)
    header = camera.send()
    grid, label = same_stamp(client, header, GRID), client.label_of(header)
    cloud = client._answer(header, POINTS)
    names = {c.id: c.name for c in client.received['/cliptrase/vocabulary'][0].classes}

    assert grid.header.frame_id == 'base_footprint'
    assert grid.info.resolution == pytest.approx(0.05)
    assert grid.info.origin.orientation.w == 1.0 and grid.info.map_load_time == header.stamp
    points = np.frombuffer(cloud.data, POINT).reshape(48, 64)
    np.testing.assert_array_equal(points['label'].ravel(), np.asarray(label.data))
    placed = np.isfinite(points['z'])
    assert placed.sum() > 1000
    # In the optical frame: as far down as the plane is, a metre below the camera.
    x, y, z = (points[axis][placed].astype(float) for axis in 'xyz')
    np.testing.assert_allclose((y + z) * np.sqrt(0.5), 1.0, atol=1e-4)
    # Each with the cost of its class, or that of a dearer neighbour in the same cell.
    columns = np.floor(((z - y) * np.sqrt(0.5) - grid.info.origin.position.x) / 0.05).astype(int)
    rows = np.floor((-x - grid.info.origin.position.y) / 0.05).astype(int)
    inside = (rows >= 0) & (rows < grid.info.height) & (columns >= 0)
    inside &= columns < grid.info.width
    assert inside.mean() > 0.99
    own = np.array([COST[names[id]] for id in points['label'][placed]])
    found = cells(grid)[rows[inside], columns[inside]]
    assert (found >= own[inside]).mean() > 0.98 and (found == own[inside]).mean() > 0.8
    _, values = client.diagnostics(lambda _, v: v['ground'] == '1' and v['points'] == '1')
    assert values['ground_missed'] == '0' and values['costs_unknown'] == ''


def test_costs_change_while_the_node_runs(start_node, client, camera):
    start_node(ground_frame='base', camera_poses=[POSE], ground_costs='road = 7; gravel = 3')
    client.listen(GRID, OccupancyGrid)
    client.diagnostics(lambda _, v: v['costs_unknown'] == 'gravel')
    header = camera.send()
    known = cells(same_stamp(client, header, GRID))
    assert set(np.unique(known)) <= {-1, 7, 100}
    (result,) = client.set_parameters(ground_costs=['road = 20', 'person = 20', 'tree = 20'])
    assert result.successful, result.reason
    header = camera.send()
    changed = cells(same_stamp(client, header, GRID))
    assert 20 in changed and set(np.unique(changed)) <= {-1, 20}
    (result,) = client.set_parameters(ground_costs=['road = 101'])
    assert not result.successful and "give 'name = cost'" in result.reason


def test_nothing_is_subscribed_for_nobody(start_node, client, camera):
    start_node(ground_frame='base', camera_poses=[POSE])
    client.label_of(client.send(client.image()))
    assert camera.info.get_subscription_count() == 0
    subscription = client.listen(GRID, OccupancyGrid)
    client.wait_for(camera.info.get_subscription_count, 'camera_info')
    client.node.destroy_subscription(subscription)
    client.wait_for(lambda: not camera.info.get_subscription_count(), 'nobody')


def test_why_there_is_no_ground_is_counted(start_node, client, camera):
    start_node(ground_frame='base', camera_poses=['0 0 1 0 -1.3 0'])
    client.listen(GRID, OccupancyGrid)
    client.wait_for(camera.info.get_subscription_count, 'camera_info')
    camera.missed(client.send(client.image()), 'no camera_info on /camera/camera_info')
    camera.missed(camera.send(k=[0.0] * 9), 'not calibrated')
    camera.missed(camera.send(width=640), 'camera_info is of 640 x 48')
    message = camera.missed(camera.send(), 'looks 74 degrees up')
    assert '/camera/camera_info: 1 publisher' in message
    assert client.received[GRID] == []


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        ({'points': 'ground'}, "no 'ground_frame' is given"),
        ({'camera_poses': ((0, 0, 1, 0, 0, 0),) * 2}, '2 entries for 1 cameras'),
        ({'ground_costs': (('road', 1), ('Road', 2))}, "has 'road' twice"),
        ({'ground_range': 60.0}, 'more than 1000 cells'),
    ],
)
def test_settings_that_contradict_each_other(values, text):
    with pytest.raises(ParameterError, match=text):
        NodeSettings(**values)


@pytest.mark.parametrize('text', ['', '0 0 1', '0 0 1 0 0 x', '0 0 nan 0 0 0', '0 0 -1 0 0 0'])
def test_poses_that_are_none(text):
    with pytest.raises(ParameterError, match='camera_poses'):
        camera_pose(text)


@pytest.mark.parametrize('text', ['', 'road', 'road = ', '= 5', 'road = -1', 'road = 101', 'a = b'])
def test_costs_that_are_none(text):
    with pytest.raises(ParameterError, match="give 'name = cost'"):
        ground_cost(text)


def test_without_tf_poses_have_to_be_given(start_node, monkeypatch):
    monkeypatch.setattr(transforms, 'tf2_py', None)
    with pytest.raises(ParameterError, match="tf2_py or tf2_msgs is not installed.*'camera_poses'"):
        start_node(ground_frame='base')


def test_transforms_are_received_while_somebody_needs_them(start_node, client, monkeypatch):
    """Without tf2: what comes on tf's topics reaches what stands for its buffer."""
    kept = []
    buffer = SimpleNamespace(
        set_transform=lambda transform, _: kept.append(('moving', transform.child_frame_id)),
        set_transform_static=lambda transform, _: kept.append(('fixed', transform.child_frame_id)),
        clear=kept.clear,
    )

    def read(data, message_type):
        return SimpleNamespace(transforms=[deserialize_message(data, message_type)])

    tf2 = SimpleNamespace(BufferCore=lambda _: buffer)
    monkeypatch.setattr(transforms, 'tf2_py', tf2)
    monkeypatch.setattr(transforms, 'TFMessage', TransformStamped, raising=False)
    monkeypatch.setattr(transforms, 'deserialize_message', read)
    start_node(ground_frame='base')
    assert not client.node.count_subscribers('/tf')
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    for topic, qos in (('/tf', 10), ('/tf_static', latched)):
        publisher = client.node.create_publisher(TransformStamped, topic, qos)
        grids = client.listen(GRID, OccupancyGrid)
        client.wait_for(publisher.get_subscription_count, f'a subscriber of {topic}')
        publisher.publish(TransformStamped(child_frame_id=topic))
        kind = 'moving' if topic == '/tf' else 'fixed'
        client.wait_for(lambda: (kind, topic) in kept, topic)  # noqa: B023
        client.node.destroy_subscription(grids)
        client.wait_for(lambda: not client.node.count_subscribers('/tf'), 'the node to leave')
        client.wait_for(lambda: not kept, 'the transforms to be forgotten')


def test_poses_of_tf(start_node, client, camera):
    pytest.importorskip('tf2_py', reason='needs tf2_py, which is no wheel')
    tf2 = pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs, which is no wheel')
    from builtin_interfaces.msg import Time

    node = client.node
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    moving = node.create_publisher(tf2.TFMessage, '/tf', 10)
    fixed = node.create_publisher(tf2.TFMessage, '/tf_static', latched)

    def transform(parent, child, stamp=None, z=0.0, quaternion=(0.0, 0.0, 0.0, 1.0)):
        message = TransformStamped(child_frame_id=child)
        message.header.frame_id = parent
        if stamp is not None:
            message.header.stamp = stamp
        message.transform.translation.z = z
        for axis, value in zip('xyzw', quaternion, strict=True):
            setattr(message.transform.rotation, axis, value)
        return tf2.TFMessage(transforms=[message])

    start_node(ground_frame='/base', ground_costs=COSTS)
    client.listen(GRID, OccupancyGrid)
    client.wait_for(lambda: moving.get_subscription_count() and fixed.get_subscription_count())
    camera.missed(camera.send(), "from the frame of the image, 'optical', to '/base'")
    # The mast moves, the camera on it does not: it looks straight down.
    fixed.publish(transform('mast', 'optical', quaternion=(1.0, 0.0, 0.0, 0.0)))
    assert fixed.wait_for_all_acked()
    camera.missed(camera.send(), 'tf does not lead')
    for z, late_ns in ((1.0, 0), (2.0, 90_000_000)):
        image = client.image()
        stamp = image.header.stamp
        early = Time(
            sec=stamp.sec - (stamp.nanosec < late_ns), nanosec=(stamp.nanosec - late_ns) % 10**9
        )
        moving.publish(transform('base', 'mast', early, z))
        assert moving.wait_for_all_acked()
        grid = same_stamp(client, camera.send(image), GRID)
        assert grid.header.frame_id == 'base'
        # What a camera sees straight below is as wide as it is high.
        assert max(grid.info.width, grid.info.height) * 0.05 == pytest.approx(z * 64 / 50, abs=0.11)
        # The next image is a second later: nothing is extrapolated so far.
        camera.missed(camera.send(), 'extrapolation')
    client.node.destroy_publisher(moving)


def test_the_simulated_camera_says_where_it_is():
    tour = tour_pose(sample_room(3, 'held_out', 'hard'), 2.0)
    header = Header(frame_id='optical')
    below, above = toybox_camera.make_transforms(tour, header, 'below')
    assert (below.header.frame_id, below.child_frame_id) == ('room', 'below')
    assert (above.header.frame_id, above.child_frame_id) == ('below', 'optical')
    first, second = (pose_of_transform(t.transform) for t in (below, above))
    assert first.position[2] == 0 and np.allclose(first.rotation[:, 2], [0, 0, 1])
    # The camera looks along the x axis of the frame below it.
    assert second.rotation[1, 2] == pytest.approx(0, abs=1e-6) and second.rotation[0, 2] > 0
    together = first.rotation @ second.position + first.position, first.rotation @ second.rotation
    assert np.allclose(together[0], tour.position, atol=1e-5)
    assert np.allclose(together[1], tour.rotation, atol=1e-5)
