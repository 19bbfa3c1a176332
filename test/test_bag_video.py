"""Recordings of cameras that send video, by the command `cliptrase bag`."""

import bags
import numpy as np
import pytest
from video_streams import GOP, Packet, encode

from cliptrase_ros.bag.reader import BagReader
from cliptrase_ros.cli import main
from cliptrase_ros.messages.type_names import COMPRESSED_VIDEO, FFMPEG_PACKET, IMAGE
from cliptrase_ros.messages.typestore import make_typestore
from cliptrase_ros.messages.video import VideoDecoder, video_packet
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

WORDS = 'red ball; box: crate, carton'
TYPES = make_typestore()


@pytest.fixture
def run(capsys, tiny_model):
    def run(*arguments):
        options = ['bag', '--no-overlay', '--model', tiny_model, '--resolution', '64']
        status = main([*options, '--device', 'cpu', '-v', WORDS, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def ffmpeg_message(packet, stamp):
    return TYPES.types[FFMPEG_PACKET](
        header=bags.header(stamp - 3, 'front'),
        width=96,
        height=64,
        encoding='libx264',
        pts=packet.number,
        flags=0,
        is_bigendian=False,
        data=np.frombuffer(packet.data, np.uint8),
    )


def foxglove_message(packet, stamp):
    return TYPES.types[COMPRESSED_VIDEO](
        timestamp=bags.header(stamp - 3).stamp,
        frame_id='rear',
        data=np.frombuffer(packet.data, np.uint8),
        format='h265',
    )


def video_topic(name, packets, codec='h264'):
    """A topic of a recording: messages as they come, later by the order in which they are sent."""
    make, kind = (
        (ffmpeg_message, FFMPEG_PACKET) if codec == 'h264' else (foxglove_message, COMPRESSED_VIDEO)
    )
    rows = [
        (bags.START + place * bags.STEP, make(packet, bags.START + packet.number * bags.STEP))
        for place, packet in enumerate(packets)
    ]
    return name, kind, [], [(s, bytes(TYPES.serialize_cdr(m, kind))) for s, m in rows]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recording with types that the store of `bags` does not know."""
    monkeypatch.setattr(bags, 'STORE', TYPES)
    return lambda *topics: bags.write_bag(tmp_path / 'in', list(topics))


def labels(path, camera):
    """Label images of a camera by number of the frame, and their frame id."""
    with BagReader(path, make_typestore()) as reader:
        found = {}
        for message in reader.messages():
            if message.topic.name == f'/cliptrase/{camera}/label':
                image = reader.typestore.deserialize_cdr(message.data, IMAGE)
                stamp = image.header.stamp.sec * 10**9 + image.header.stamp.nanosec + 3
                number = (stamp - bags.START) // bags.STEP
                found[number] = image.data.reshape(image.height, image.width)
                assert image.header.frame_id == camera
        return found


def test_labels_are_those_of_the_pictures(run, write, tiny_model, tmp_path):
    front, rear = encode('h264', GOP, b_frames=2), encode('h265', GOP)
    source = write(
        video_topic('/front/image_raw/ffmpeg', front),
        video_topic('/rear/image_raw/foxglove', rear, 'h265'),
    )
    status, out, err = run(source, tmp_path / 'out')
    assert (status, err) == (0, '')
    assert f'/front/image_raw/ffmpeg: {GOP} images labelled, in /cliptrase/front/' in out
    assert f'/rear/image_raw/foxglove: {GOP} images labelled, in /cliptrase/rear/' in out
    segmenter = load_segmenter(tiny_model, device='cpu')
    words = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
    decoder = VideoDecoder()
    settled = []
    for packet in front:
        settled += decoder.decode(video_packet(ffmpeg_message(packet, bags.START)))
    pictures = [outcome.to_rgb() for _, outcome in settled + decoder.finish()]
    found = labels(tmp_path / 'out', 'front')
    assert sorted(found) == list(range(GOP)) == sorted(labels(tmp_path / 'out', 'rear'))
    for number, picture in enumerate(pictures):
        (result,) = segmenter.segment([picture], words, SegmentationSettings(resolution=64))
        assert (found[number] == result.label).all()


def test_rate_decodes_what_it_leaves_out(run, write, tmp_path):
    source = write(video_topic('/front/image_raw/ffmpeg', encode('h264')))
    assert run(source, tmp_path / 'out', '--rate', '2.5')[0] == 0
    assert list(labels(tmp_path / 'out', 'front')) == [0, 4, 8, 12]


def test_what_is_missing_is_said(run, write, tmp_path):
    packets = encode('h264')
    kept = [*packets[2:GOP], packets[GOP], *packets[GOP + 3 :]]
    status, out, err = run(write(video_topic('/front/image_raw/ffmpeg', kept)), tmp_path / 'out')
    assert status == 1
    assert list(labels(tmp_path / 'out', 'front')) == [GOP]
    assert '/front/image_raw/ffmpeg: 2 frames of the video are missing' in err
    assert f'{len(kept) - 1} not labelled: no key frame has come yet' in err


def test_damage_costs_no_more_than_it_must(run, write, tmp_path):
    packets = [*encode('h264')[:2], Packet(2, b'hello'), *encode('h264')[GOP : GOP + 2]]
    status, _, err = run(write(video_topic('/front/image_raw/ffmpeg', packets)), tmp_path / 'out')
    assert status == 1 and '/front/image_raw/ffmpeg: 1 not labelled: 5 bytes of h264' in err
    assert list(labels(tmp_path / 'out', 'front')) == [0, 1, GOP, GOP + 1]


def test_one_topic_of_a_camera_is_labelled(run, write, tmp_path):
    pixels = bags.picture(0)
    jpeg = (bags.START, bags.compressed(pixels))
    source = write(
        video_topic('/a/image_raw/ffmpeg', encode('h264')[:2]),
        video_topic('/b/image_raw/ffmpeg', encode('h264')[:2]),
        video_topic('/b/image_raw/foxglove', encode('h265')[:2], 'h265'),
        video_topic('/b/video', encode('h265')[:2], 'h265'),
        ('/a/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', [], [jpeg]),
    )
    _, out, _ = run(source, tmp_path / 'out')
    assert '/a/image_raw/compressed: 1 images labelled, in /cliptrase/a/' in out
    assert '/a/image_raw/ffmpeg: not labelled: /a/image_raw/compressed is labelled' in out
    assert '/b/image_raw/ffmpeg: 2 images labelled, in /cliptrase/b/' in out
    assert '/b/image_raw/foxglove: not labelled: /b/image_raw/ffmpeg is labelled' in out
    assert '/b/video: 2 images labelled, in /cliptrase/b_video/' in out
