"""The executables as ROS runs them: separate processes over real DDS."""

import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from cliptrase_ros.messages.depth import POINT
from cliptrase_ros.ros.executable import StartFailure
from cliptrase_ros.toybox.scenes import CLASSES

#: Seconds a process may take on a busy machine.
PATIENCE = 90.0


def test_what_cannot_be_made_says_why_and_ends(processes):
    status, output = processes.run('segment_node', cameras=['front', 'front'])
    assert status == 1
    assert 'cannot start' in output and "'front' 2 times" in output, output
    # The reason is given once.
    assert output.count("'front'") == 1 and 'Traceback' not in output


def test_what_cannot_be_configured_says_why_and_ends(processes, tmp_path):
    path = tmp_path / 'weights.pt'
    path.write_bytes(np.random.default_rng(0).bytes(100_000))
    status, output = processes.run('segment_node', model='ViT-B-16', pretrained=str(path))
    assert status == 1
    assert 'cannot start' in output and 'Traceback' not in output
    assert output.count(str(path)) == 1, output


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'model': 'no-such-model'}, ['no-such-model', 'toybox']),
        ({'model': 'ViT-B-16', 'pretrained': '/no/such/file.safetensors'}, ['/no/such/file']),
        ({'model': 'toybox', 'device': 'cuda:99'}, ['cuda:99']),
    ],
)
def test_models_that_cannot_be_loaded_are_named(start_node, parameters, words):
    with pytest.raises(StartFailure) as caught:
        start_node(segmenter=None, **parameters)
    assert all(str(caught.value).count(word) == 1 for word in words), caught.value


@pytest.mark.parametrize(('parameter', 'value'), [('split', 'nonsense'), ('camera', 'a b')])
def test_camera_with_bad_parameters_says_why_and_ends(processes, parameter, value):
    status, output = processes.run('toybox_camera', **{parameter: value})
    assert status == 1
    assert 'cannot start' in output and repr(value) in output and 'Traceback' not in output


def test_fault_in_a_running_node_is_not_taken_for_a_failed_start():
    script = (
        'from rclpy.node import Node\n'
        'from cliptrase_ros.ros.executable import run_node\n'
        'class Faulty(Node):\n'
        '    def __init__(self):\n'
        '        super().__init__("faulty")\n'
        '        self.create_timer(0.01, lambda: int("a fault in a callback"))\n'
        'run_node(Faulty, "faulty", [])\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 1
    assert 'a fault in a callback' in done.stderr and 'Traceback' in done.stderr
    assert 'cannot start' not in done.stdout + done.stderr


def test_simulated_camera_to_labels(processes, client, tiny_model_folder):
    """Two processes: images of one are labelled by the other; both end when told to."""
    size = {'width': 160, 'height': 120}
    camera = processes.start('toybox_camera', camera='front', rate=20.0, seed=3, **size)
    node = processes.start(
        'segment_node',
        cameras=['front'],
        model=f'local-dir:{tiny_model_folder}',
        resolution=64,
        transport='compressed',
        depth=True,
    )
    client.listen('/front/image_raw', Image, qos_profile_sensor_data)
    client.listen('/front/camera_info', CameraInfo)
    client.listen('/front/depth/image_raw', Image)
    client.listen('/front/label_truth', Image)
    client.listen('/cliptrase/front/points', PointCloud2)
    client.listen_to_label('front')
    received = client.received
    topics = (
        *('/cliptrase/front/label', '/cliptrase/front/points'),
        *('/front/label_truth', '/front/depth/image_raw', '/front/camera_info'),
    )

    def same_frame():
        """Messages of one frame; the first ones of a topic may be missed."""
        for label in received[topics[0]]:
            found = [
                next((m for m in received[t] if m.header == label.header), None) for t in topics
            ]
            if all(found):
                return found
        return None

    label, cloud, truth, depth, info = client.wait_for(same_frame, 'a frame on every topic')
    assert label.header.frame_id == 'front_optical_frame'
    assert (label.width, label.height, label.encoding) == (160, 120, 'mono8')
    assert truth.encoding == 'mono8' and len(set(truth.data)) > 1
    assert all(i < len(CLASSES) or i == 255 for i in set(truth.data))
    metres = np.frombuffer(depth.data, np.float32)
    assert depth.encoding == '32FC1' and depth.step == 4 * 160
    assert metres.min() > 0.05 and metres.max() < 30.0
    assert info.k[2] == pytest.approx(79.5) and info.k[0] == info.k[4] > 0

    points = np.frombuffer(cloud.data, POINT)
    np.testing.assert_array_equal(points['z'], metres)
    np.testing.assert_array_equal(points['label'], np.asarray(label.data))
    rows, columns = np.indices((120, 160)).reshape(2, -1)
    # Projected again, every point is on its pixel.
    np.testing.assert_allclose(points['x'] / metres * info.k[0] + info.k[2], columns, atol=1e-3)
    np.testing.assert_allclose(points['y'] / metres * info.k[4] + info.k[5], rows, atol=1e-3)

    # As `ros2 param set` does, across processes.
    assert client.set_parameters(vocabulary='ball; wall')[0].successful
    client.listen_to_vocabulary()
    client.wait_for(
        lambda: [m for m in received['/cliptrase/vocabulary'] if len(m.classes) == 2], 'two classes'
    )

    node.send_signal(signal.SIGINT)
    camera.send_signal(signal.SIGTERM)
    for process in (node, camera):
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
        assert 'Traceback' not in output, output
