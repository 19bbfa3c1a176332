"""The viewer's node beside a segmentation node, over real DDS; what it recorded is read back."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')
pytest.importorskip('rerun', reason='needs the viewer; `make test` brings it')

from rclpy.parameter import Parameter
from recordings import classes, labels, pictures, read_recording, stamps_ns
from sensor_msgs.msg import CameraInfo, Image

from cliptrase_ros.messages.images import mono8
from cliptrase_ros.messages.masks import decode_mask
from cliptrase_ros.ros.conversions import MAKER, to_rgb
from cliptrase_ros.ros.rerun_viewer import SHOWN, RerunViewer


@pytest.fixture
def start_viewer(context, client):
    viewers = []

    def start(**values):
        viewer = RerunViewer(
            context=context,
            parameter_overrides=[Parameter(name, value=v) for name, v in values.items()],
        )
        client.executor.add_node(viewer)
        viewers.append(viewer)
        return viewer

    yield start
    for viewer in viewers:
        client.executor.remove_node(viewer)
        viewer.destroy_node()


def stamp_ns(header):
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def is_watched(client, topic):
    # The test itself listens to labels.
    return client.node.count_subscribers(f'/cliptrase/camera/{topic}') > (topic == 'label')


def test_records_what_the_node_publishes(client, start_node, start_viewer, tmp_path):
    start_node(depth=True)
    client.listen_to_label()
    client.listen_to_masks()
    viewer = start_viewer(save=str(tmp_path / 'run.rrd'), show=list(SHOWN))
    info = client.node.create_publisher(CameraInfo, '/camera/camera_info', 10)
    depth = client.node.create_publisher(Image, '/camera/depth/image_raw', 10)
    for topic in ('label', 'overlay', 'confidence', 'points'):
        client.wait_for(partial(is_watched, client, topic), f'a viewer of {topic}')
    client.wait_for(lambda: info.get_subscription_count() and depth.get_subscription_count())
    client.wait_for(lambda: client.connect().get_subscription_count() == 2, 'node and viewer')
    client.wait_for(lambda: viewer._classes, 'the vocabulary')

    headers, images = [], []
    for seed in range(3):
        image = client.image(seed=seed)
        metres = np.full((48, 64), 2.0, np.float32)
        info.publish(
            CameraInfo(
                header=image.header, height=48, width=64, k=[50.0, 0, 32, 0, 50, 24, 0, 0, 1]
            )
        )
        depth.publish(MAKER.make_image(metres, '32FC1', image.header))
        headers.append(client.send(image))
        images.append(to_rgb(image))
        client.label_of(image.header)
        client.masks_of(image.header)
        # One by one: a viewer that lags behind leaves out what is old.
        client.wait_for(lambda: all(viewer.shown[n] == len(images) for n in SHOWN), 'all outputs')
    viewer.destroy_node()

    content = read_recording(tmp_path / 'run.rrd')
    stamps = [stamp_ns(header) for header in headers]
    published = {stamp_ns(m.header): m for m in client.received['/cliptrase/camera/label']}
    assert stamps_ns(content, '/camera/label', 'SegmentationImage:buffer') == stamps
    for label, stamp in zip(labels(content, 'camera'), stamps, strict=True):
        np.testing.assert_array_equal(label, mono8(published[stamp]))
    assert stamps_ns(content, '/camera/image', 'EncodedImage:blob') == stamps
    for picture, image in zip(pictures(content, 'camera'), images, strict=True):
        assert np.abs(picture.astype(int) - image).mean() < 20  # JPEG; of another picture 80
    (names,) = classes(content, 'camera')
    assert names == {0: 'road', 1: 'person', 2: 'tree', 255: 'unlabelled'}
    masks = client.received['/cliptrase/camera/masks'][0]
    _, ids = content['/camera/masks', 'Boxes2D:class_ids'][0]
    assert ids == [mask.class_id for mask in masks.masks]
    _, sizes = content['/camera/masks', 'Boxes2D:half_sizes'][0]
    for mask, (half_width, half_height) in zip(masks.masks, sizes, strict=True):
        rows, columns = np.nonzero(decode_mask(mask, masks.height, masks.width))
        assert 2 * half_width == np.ptp(columns) + 1
        assert 2 * half_height == np.ptp(rows) + 1
    _, positions = content['/camera/points', 'Points3D:positions'][0]
    assert len(positions) == 48 * 64
    assert {position[2] for position in positions} == {2.0}
    _, ids = content['/camera/points', 'Points3D:class_ids'][0]
    np.testing.assert_array_equal(ids, labels(content, 'camera')[0].ravel())
    assert stamps_ns(content, '/camera/overlay', 'EncodedImage:blob') == stamps
    assert stamps_ns(content, '/camera/confidence', 'EncodedImage:blob') == stamps


def test_nothing_is_computed_that_is_not_shown(client, start_node, start_viewer, tmp_path):
    start_node()
    start_viewer(save=str(tmp_path / 'run.rrd'), show=['label'])
    client.connect()
    for topic in ('masks', 'overlay', 'confidence'):
        assert client.node.count_subscribers(f'/cliptrase/camera/{topic}') == 0


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'save': 'run.txt'}, 'must end in .rrd'),
        ({'save': 'run.rrd', 'show': ['maps']}, 'show names maps'),
        ({'save': 'run.rrd', 'connect': 'rerun+http://there:9876/proxy'}, 'both set'),
        ({}, 'no display'),
    ],
)
def test_cannot_start(context, tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)
    parameters = [Parameter(name, value=value) for name, value in values.items()]
    with pytest.raises(ValueError, match=message):
        RerunViewer(context=context, parameter_overrides=parameters)
    assert not list(tmp_path.iterdir())


def test_missing_sdk(processes, tmp_path, monkeypatch):
    (tmp_path / 'rerun.py').write_text('raise ImportError("no such thing")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    status, output = processes.run('rerun_viewer', save=str(tmp_path / 'run.rrd'))
    assert status == 1
    assert 'pip install rerun-sdk' in output
    assert 'Traceback' not in output
