"""Cameras that send video, over real DDS where the message packages are installed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.logging import get_logger
from rclpy.qos import QoSProfile, ReliabilityPolicy
from video_streams import GOP, Packet, encode, ffmpeg_packet

from cliptrase_ros.messages.video import VideoDecoder, VideoPicture, video_packet
from cliptrase_ros.ros import camera as camera_module
from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.segment_node import SegmentNode
from cliptrase_ros.ros.settings import ParameterError
from cliptrase_ros.ros.video import _MAX_WAITING, VideoThread

#: What becomes of images that were received.
OUTCOMES = (
    *('labelled', 'refused', 'failed', 'no_picture'),
    *('dropped_busy', 'dropped_rate', 'dropped_unwanted'),
)
QOS = QoSProfile(depth=50)


@pytest.fixture
def ffmpeg():
    reason = 'ffmpeg_image_transport_msgs is not installed'
    return pytest.importorskip('ffmpeg_image_transport_msgs.msg', reason=reason)


@pytest.fixture
def foxglove():
    return pytest.importorskip('foxglove_msgs.msg', reason='foxglove_msgs is not installed')


def header(client):
    return client.image(2, 2).header


def wait_for_reliable(client, publisher):
    """Wait until the node has seen the publisher, and follows its quality of service."""

    def is_reliable():
        found = client.node.get_subscriptions_info_by_topic(publisher.topic_name)
        return [end.qos_profile.reliability for end in found] == [ReliabilityPolicy.RELIABLE]

    client.wait_for(is_reliable, 'a reliable subscription')
    client.wait_for(publisher.get_subscription_count, 'a subscription')


class FfmpegCamera:
    """Sends packets as ffmpeg_image_transport does."""

    def __init__(self, client, messages, topic='/camera/image_raw/ffmpeg'):
        self._client, self._type = client, messages.FFMPEGPacket
        self.publisher = client.node.create_publisher(self._type, topic, QOS)

    def send(self, packets, encoding='libx264', **fields):
        """Returns the headers."""
        wait_for_reliable(self._client, self.publisher)
        headers = []
        for packet in packets:
            headers.append(header(self._client))
            values = {'width': 96, 'height': 64, 'pts': packet.number} | fields
            data = np.frombuffer(packet.data, np.uint8)
            message = self._type(header=headers[-1], encoding=encoding, **values)
            message.data.frombytes(data)
            self.publisher.publish(message)
        return headers


def pictures(packets, codec='h264'):
    decoder, found = VideoDecoder(), []
    for packet in packets:
        found += decoder.decode(video_packet(ffmpeg_packet(packet, codec)))
    return [outcome.to_rgb() for _, outcome in found + decoder.finish()]


def balance(statistics):
    counts = statistics.counts
    return counts['received'] - sum(counts[name] for name in OUTCOMES)


def test_labels_are_those_of_the_pictures(start_node, client, ffmpeg, foxglove):
    node = start_node(
        cameras=['front', 'rear', 'plain'], transport='ffmpeg; foxglove; raw', rate=0.0
    )
    for name in ('front', 'rear', 'plain'):
        client.listen_to_label(name)
    packets = encode('h264')
    headers = FfmpegCamera(client, ffmpeg, '/front/image_raw/ffmpeg').send(packets)
    raw = MAKER.make_image(pictures(packets)[-1], 'rgb8', header(client))
    expected = client.label_of(client.send(raw, 'plain'), 'plain')
    assert client.label_of(headers[-1], 'front').data == expected.data

    rear = client.node.create_publisher(foxglove.CompressedVideo, '/rear/image_raw/foxglove', QOS)
    wait_for_reliable(client, rear)
    for packet in packets:
        last = header(client)
        message = foxglove.CompressedVideo(
            timestamp=last.stamp, frame_id=last.frame_id, format='h264'
        )
        message.data.frombytes(packet.data)
        rear.publish(message)
    assert client.label_of(last, 'rear').data == expected.data
    for camera in node._cameras:
        client.wait_for(lambda camera=camera: balance(camera.statistics) == 0, 'all to be counted')
        assert camera.statistics.counts['refused'] == 0


def test_packets_that_the_rate_leaves_out_are_decoded(start_node, client, ffmpeg):
    statistics = start_node(transport='ffmpeg', rate=0.01)._cameras[0].statistics
    client.listen_to_label()
    camera = FfmpegCamera(client, ffmpeg)
    first = camera.send(encode('h264')[:1])
    client.label_of(first[0])
    headers = camera.send(encode('h264')[1:6])
    client.wait_for(lambda: statistics.counts['dropped_rate'] == 4, 'four to be left out')
    client.set_parameters(rate=0.0)
    label = client.label_of(headers[-1])
    node = start_node(cameras=['plain'])
    client.node_name = f'/{node.get_name()}'
    client.listen_to_label('plain')
    raw = MAKER.make_image(pictures(encode('h264')[:6])[-1], 'rgb8', header(client))
    assert client.label_of(client.send(raw, 'plain'), 'plain').data == label.data


def test_lost_and_bad_packets_are_counted(start_node, client, ffmpeg):
    statistics = start_node(transport='ffmpeg')._cameras[0].statistics
    client.listen_to_label()
    camera = FfmpegCamera(client, ffmpeg)
    packets = encode('h264', 3 * GOP)
    camera.send(packets[:2])
    camera.send(packets[4:GOP])
    camera.send([Packet(GOP, b'hello')])
    camera.send(packets[:1], encoding='mjpeg')
    camera.send(packets[:1], width=2**31 - 1, height=2**31 - 1)
    camera.send([Packet(0, b'')])
    camera.send(packets[1:3])
    client.label_of(camera.send(packets[2 * GOP :])[-1])
    client.wait_for(lambda: balance(statistics) == 0, 'all to be counted')
    assert statistics.counts['refused'] == 4
    assert statistics.counts['no_picture'] == GOP - 4 + 2
    assert statistics.counts['frames_lost'] >= 2
    client.diagnostics(lambda _, v: 'key frame' in v['last_no_picture'])


def test_video_begins_anew_for_who_comes_later(start_node, client, ffmpeg):
    camera_of_node = start_node(transport='ffmpeg')._cameras[0]
    statistics = camera_of_node.statistics
    camera, packets = FfmpegCamera(client, ffmpeg), encode('h264')
    subscription = client.listen_to_label()
    client.label_of(camera.send(packets[:3])[-1])
    client.node.destroy_subscription(subscription)
    client.wait_for(lambda: not camera.publisher.get_subscription_count(), 'the node to leave')
    camera.publisher.publish(camera._type())
    client.listen_to_label()
    headers = camera.send(packets[3:])
    client.label_of(headers[-1])
    client.wait_for(lambda: balance(statistics) == 0, 'all to be counted')
    # Of messages that DDS has counted.
    assert camera_of_node._topics.image.sequence == len(packets) + 1
    assert statistics.counts['no_picture'] == GOP - 3
    assert 'no key frame has come yet' in statistics.reasons['no_picture']


def test_labelling_and_a_search_make_the_colours_of_a_picture_once():
    # FFmpeg converts a frame in one thread at a time, and may never return from two.
    class Slow(VideoPicture):
        def to_rgb(self):
            made.append(np.zeros((4, 4, 3), np.uint8))
            time.sleep(0.05)
            return made[0]

    made = []
    camera = SimpleNamespace(transport='ffmpeg')
    image = camera_module.CameraImage(camera, Slow(None, None), received_ns=1, next_ns=1)
    with ThreadPoolExecutor(2) as threads:
        to_label = threads.submit(replace(image, depth=None).decode)
        assert image.decode() is to_label.result()
    assert len(made) == 1


def test_a_node_that_is_destroyed_ends_its_video(start_node, client, ffmpeg):
    node = start_node(transport='ffmpeg')
    client.listen_to_label()
    client.label_of(FfmpegCamera(client, ffmpeg).send(encode('h264')[:1])[0])
    node.executor.remove_node(node)
    node.destroy_node()
    assert not [t.name for t in threading.enumerate() if t.name.startswith('video')]


def test_silence_names_the_topic_of_the_video(start_node, client, ffmpeg):
    camera = start_node(always_on=True)._cameras[0]
    client.node.create_publisher(ffmpeg.FFMPEGPacket, '/camera/image_raw/ffmpeg', QOS)
    words = '/camera/image_raw/ffmpeg has 1: set transport to ffmpeg'
    client.wait_for(lambda: words in camera.explain_silence(), words)


@pytest.mark.parametrize(
    ('transport', 'missing', 'advice'),
    [
        ('ffmpeg', 'ffmpeg_image_transport_msgs', 'ros-$ROS_DISTRO-ffmpeg-image-transport-msgs'),
        ('foxglove', 'foxglove_msgs', 'ros-$ROS_DISTRO-foxglove-msgs'),
        ('ffmpeg', 'av', 'pip install'),
    ],
)
def test_what_a_transport_needs_is_said(
    context, segmenter, monkeypatch, transport, missing, advice
):
    def fail(name):
        raise ImportError(f'No module named {missing}', name=missing)

    monkeypatch.setattr(camera_module, 'message_class', fail)
    from rclpy.parameter import Parameter

    with pytest.raises(ParameterError) as caught:
        SegmentNode(
            segmenter,
            context=context,
            parameter_overrides=[Parameter('transport', value=transport)],
        )
    assert f"'transport' is {transport}" in str(caught.value) and advice in str(caught.value)


def test_decoding_that_is_too_slow_goes_on_at_a_key_frame():
    settled, lost, dropped = [], [], []
    is_waiting, may_go_on = threading.Event(), threading.Event()

    def take(packet, outcome):
        settled.append((packet, outcome))
        is_waiting.set()
        assert may_go_on.wait(60)

    video = VideoThread(
        'front',
        10_000,
        on_settled=take,
        on_lost=lost.append,
        on_dropped=lambda *what: dropped.append(what),
        logger=get_logger('video'),
    )
    packets = [
        video_packet(ffmpeg_packet(packet, 'h264'))
        for packet in encode('h264', _MAX_WAITING + 1 + 2 * GOP)
    ]
    video.put(packets[0])
    assert is_waiting.wait(60)
    late = packets[1 : _MAX_WAITING + 1]
    for packet in late:
        video.put(packet)
    assert dropped == []
    rest = packets[_MAX_WAITING + 1 :]
    for packet in rest:
        video.put(packet)
    assert dropped == [('dropped_busy', len(late))]
    may_go_on.set()
    deadline = threading.Event()
    while len(settled) < 1 + len(rest):
        assert not deadline.wait(0.01)
    video.stop()
    shown = [p.number for p, outcome in settled if isinstance(outcome, VideoPicture)]
    first_key = -(-rest[0].number // GOP) * GOP
    assert shown == [0, *range(first_key, rest[-1].number + 1)]
    assert 'too slow' in str(settled[1][1]) and not lost
    assert dropped[1:] == [('dropped_unwanted', 0)]
    video.put(packets[0])
    assert dropped[-1] == ('dropped_unwanted', 1)


def test_the_viewer_shows_video_too(client, start_node, ffmpeg, tmp_path):
    pytest.importorskip('rerun', reason='needs the viewer; `make test` brings it')
    from rclpy.parameter import Parameter
    from recordings import pictures as recorded_pictures
    from recordings import read_recording

    from cliptrase_ros.ros.rerun_viewer import RerunViewer

    start_node(transport='ffmpeg')
    values = {'save': str(tmp_path / 'run.rrd'), 'show': ['image']}
    viewer = RerunViewer(
        context=client.node.context,
        parameter_overrides=[Parameter(name, value=value) for name, value in values.items()],
    )
    client.executor.add_node(viewer)
    try:
        camera = FfmpegCamera(client, ffmpeg)
        client.wait_for(camera.publisher.get_subscription_count, 'the viewer')
        packets = encode('h264')[:3]
        camera.send(packets)
        client.wait_for(lambda: viewer.shown['image'] == 3, 'three pictures')
    finally:
        client.executor.remove_node(viewer)
        viewer.destroy_node()
    content = read_recording(tmp_path / 'run.rrd')
    for shown, expected in zip(
        recorded_pictures(content, 'camera'), pictures(packets), strict=True
    ):
        assert np.abs(shown.astype(int) - expected).mean() < 20
