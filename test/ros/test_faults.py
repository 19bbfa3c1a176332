"""What goes wrong on a robot, as its operator sees it: in the diagnostics, with labels going on."""

import signal
import time

import numpy as np
import pytest
import torch

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image

from cliptrase_ros.segmentation import device_faults
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.streams import fault_tolerance


class Watched(Segmenter):
    """Notes the sizes of batches, and fails for those larger than `most` with `error`."""

    error = None
    most = 0
    batches = ()
    gate = None

    def segment(self, images, vocabulary, settings=None, histories=()):
        if self.gate is not None:
            self.gate(images)
        self.batches = (*self.batches, len(images))
        if self.error is not None and len(images) > self.most:
            raise self.error
        return super().segment(images, vocabulary, settings, histories)


@pytest.fixture
def lost(monkeypatch):
    """The device raises whenever it is asked."""
    monkeypatch.setattr(device_faults, '_still_raises', lambda _: True)


@pytest.fixture
def batches_of_8(monkeypatch):
    monkeypatch.setattr(fault_tolerance, 'default_batch', lambda _: 8)


def send_while_busy(client, segmenter, cameras):
    """Send an image of every camera while another is labelled; returns their headers."""
    headers = {}

    def gate(_images):
        # In the inference thread, which is busy until every image has come to the node.
        segmenter.gate = None
        for i, camera in enumerate(cameras):
            headers[camera] = client.image(48 + 16 * i, 64)
            client._publishers[camera].publish(headers[camera])
        deadline = time.monotonic() + 60
        while any(c.wait_ns(0) is None for c in segmenter.waiting):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    segmenter.gate = gate
    first = client.image()
    client._publishers['busy'].publish(first)
    return first, headers


def test_images_that_wait_make_one_batch_across_cameras(
    start_node, client, make_segmenter, batches_of_8
):
    segmenter = make_segmenter(Watched)
    cameras = ['busy', 'front', 'rear', 'left']
    node = start_node(segmenter, cameras=cameras)
    for camera in cameras:
        client.listen_to_label(camera)
        client.connect(camera)
    segmenter.waiting = node._cameras[1:]
    first, images = send_while_busy(client, segmenter, cameras[1:])
    client.label_of(first.header, 'busy')
    for camera, image in images.items():
        label = client.label_of(image.header, camera)
        assert (label.height, label.width) == (image.height, image.width)
    assert segmenter.batches == (1, 3)


def test_lack_of_memory_is_an_error_in_the_diagnostics_and_labels_go_on(
    start_node, client, make_segmenter, batches_of_8
):
    segmenter = make_segmenter(Watched)
    cameras = ['busy', 'front', 'rear']
    node = start_node(segmenter, cameras=cameras)
    for camera in cameras:
        client.listen_to_label(camera)
        client.connect(camera)
    segmenter.error, segmenter.most = torch.OutOfMemoryError('CUDA out of memory'), 1
    segmenter.waiting = node._cameras[1:]
    first, images = send_while_busy(client, segmenter, cameras[1:])
    client.label_of(first.header, 'busy')
    for camera, image in images.items():
        client.label_of(image.header, camera)
    status, values = client.diagnostics(lambda _, v: v['device_fault'], camera=None)
    assert status.level == DiagnosticStatus.ERROR and 'CUDA out of memory' in status.message
    assert values['largest_batch'] == '1'


def test_lost_device_fails_images_or_leaves_them_to_the_cpu(
    start_node, client, make_segmenter, lost
):
    segmenter = make_segmenter(Watched)
    segmenter.error = RuntimeError('CUDA error: unspecified launch failure')
    start_node(segmenter)
    client.listen_to_label()
    client.send(client.image())
    _, values = client.diagnostics(lambda _, v: v['failed'] == '1')
    assert 'launch failure' in values['last_failure']
    status, _ = client.diagnostics(lambda _, v: v['device_fault'], camera=None)
    assert status.level == DiagnosticStatus.ERROR


def test_cpu_takes_over_where_it_may(start_node, client, make_segmenter, lost):
    segmenter = make_segmenter(Watched)
    segmenter.error = RuntimeError('CUDA error: unspecified launch failure')
    node = start_node(segmenter, allow_cpu_fallback=True)
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    assert node._engine.segmenter is not segmenter
    status, values = client.diagnostics(lambda _, v: v['device_fault'], camera=None)
    assert status.level == DiagnosticStatus.ERROR and values['device'] == 'cpu'
    _, values = client.diagnostics(lambda _, v: v['labelled'] == '1')
    assert values['failed'] == '0'


def test_limits_are_the_operators(start_node, client):
    start_node(max_image_megapixels=0.01, max_phrases=4, max_phrase_length=12, background='')
    client.listen_to_label()
    client.label_of(client.send(client.image(50, 100)))
    client.send(client.image(100, 101))
    _, values = client.diagnostics(lambda _, v: v['refused'] == '1')
    assert '0.01 megapixels' in values['last_refusal']
    for vocabulary, words in (
        ('a; b: c, d, e', '5 phrases'),
        ('a lengthy phrase', 'max_phrase_length'),
        ('; '.join(['word'] * 60_000), 'too long'),
    ):
        (result,) = client.set_parameters(vocabulary=vocabulary)
        assert not result.successful and words in result.reason
    for name, value in (('max_phrases', 100), ('pretrained', '/etc/passwd'), ('cache_dir', '/')):
        (result,) = client.set_parameters(**{name: value})
        assert not result.successful and 'read-only' in result.reason
    assert client.set_parameters(vocabulary='a; b: c, d')[0].successful


def test_bytes_that_are_no_image_do_no_harm(start_node, client):
    start_node()
    client.listen_to_label()
    publisher = client.connect()
    good = serialize_message(client.image(8, 8))
    random = np.random.default_rng(0)
    publisher.publish(good[:40])
    publisher.publish(good[:4])
    for at in range(4, 60):
        publisher.publish(good[:at] + random.bytes(2) + good[at + 2 :])
    # Not UTF-8 where text belongs.
    publisher.publish(
        good.replace(b'optical', b'opti\xff\xfe\x80').replace(b'rgb8', b'r\xc0\x80\xff')
    )
    publisher.publish(good.replace(b'optical', b'opti\xff\xfe\x80'))
    client.label_of(client.send(client.image()))
    client.diagnostics(lambda _, v: int(v['received']) > 1)


@pytest.mark.parametrize('topic', ['image_raw', 'depth/image_raw', 'camera_info'])
def test_bytes_that_are_no_message_are_counted(start_node, client, topic):
    start_node(depth=True, always_on=True)
    kind = CameraInfo if topic == 'camera_info' else Image
    publisher = client.node.create_publisher(kind, f'/camera/{topic}', 5)
    client.wait_for(publisher.get_subscription_count, 'a subscription')
    for _ in range(3):
        publisher.publish(b'\0\1\0\0' + b'\xff' * 64)
    _, values = client.diagnostics(lambda _, v: int(v['refused']) == 3)
    assert f'68 bytes that are no sensor_msgs/msg/{kind.__name__}' in values['last_refusal']
    assert int(values['received']) == (3 if topic == 'image_raw' else 0)
    client.listen_to_label()
    client.label_of(client.send(client.image()))


def test_cache_that_cannot_be_written_costs_nothing(start_node, client, tiny_model):
    # No folder can be made in it, whoever tries.
    start_node(segmenter=None, model=tiny_model, cache_dir='/dev/null')
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    client.diagnostics(lambda s, _: s.level == DiagnosticStatus.OK, camera=None)


def test_every_image_is_accounted_for(start_node, client):
    """Also those that wait when the last listener leaves."""
    camera = start_node(rate=2.0)._cameras[0]
    for _ in range(3):
        listener = client.listen_to_label()
        client.connect()
        for _ in range(7):
            client.send(client.image())
        client.send(client.image(encoding='rgb9'))
        client.spin(0.05)
        client.node.destroy_subscription(listener)
        client.wait_for(lambda: not camera.is_subscribed, 'the end of the subscription')
    client.wait_for(lambda: camera.wait_ns(0) is None, 'rest')
    counts = camera.statistics.counts
    ends = ('labelled', 'refused', 'failed', 'dropped_busy', 'dropped_rate', 'dropped_unwanted')

    def accounted():
        return counts['received'] == sum(counts[end] for end in ends)

    client.wait_for(accounted, 'the last image')
    assert all(counts[end] for end in ('dropped_unwanted', 'dropped_rate', 'refused', 'labelled'))


def test_killed_node_comes_back_with_what_its_parameters_say(processes, client, tiny_model):
    parameters = {
        'model': tiny_model,
        'resolution': 64,
        'rate': 0.0,
        'vocabulary': ['lake', 'road'],
        'background': [''],
    }
    client.listen_to_label()
    client.listen_to_vocabulary()
    history = client.received['/cliptrase/vocabulary']
    for life in range(2):
        node = processes.start('segment_node', **parameters)
        publisher = client.connect()
        labels = client.received['/cliptrase/camera/label']
        count = len(labels)

        def labelled(publisher=publisher, labels=labels, count=count):
            publisher.publish(client.image())
            return len(labels) > count

        client.wait_for(labelled, f'labels in life {life}')
        # Topics are discovered one by one: a late listener may see labels before the vocabulary.
        client.wait_for(lambda life=life: len(history) > life, f'the vocabulary of life {life}')
        node.send_signal(signal.SIGKILL)
        node.wait(30)
    assert [[(c.id, c.name) for c in m.classes] for m in history] == [
        [(0, 'lake'), (1, 'road')]
    ] * 2
