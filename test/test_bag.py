"""`cliptrase bag`: recordings in, the same recordings with labels out."""

import functools
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import tracemalloc
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import bags
import cv2
import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from pages import ROOT
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import CompressionMode, Reader

from cliptrase_ros.bag.cameras import camera_name, choose_cameras
from cliptrase_ros.bag.folder import BagError, find_files
from cliptrase_ros.bag.reader import BagReader
from cliptrase_ros.bag.types import CAMERA_TOPICS, VOCABULARY_TOPIC
from cliptrase_ros.cli import main
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture
from cliptrase_ros.messages.masks import decode_mask
from cliptrase_ros.messages.type_names import IMAGE
from cliptrase_ros.messages.typestore import (
    definition_file,
    make_typestore,
    typestore_message_maker,
)
from cliptrase_ros.segmentation.segmenter import Segmentation, Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.rate_limit import RateLimiter

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORDS = 'red ball; box: crate, carton'
STORAGES = [
    ('mcap', CompressionMode.NONE),
    ('mcap', CompressionMode.STORAGE),
    ('mcap', CompressionMode.FILE),
    ('mcap', CompressionMode.MESSAGE),
    ('sqlite3', CompressionMode.NONE),
    ('sqlite3', CompressionMode.FILE),
    ('sqlite3', CompressionMode.MESSAGE),
]


@pytest.fixture(scope='session')
def typestore():
    return make_typestore()


@pytest.fixture
def run(capsys, tiny_model):
    def run(*arguments, words=WORDS):
        status = main(
            ['bag', '--model', tiny_model, '--resolution', '64', '--device', 'cpu']
            + ([] if words is None else ['-v', words])
            + [str(argument) for argument in arguments]
        )
        return status, *capsys.readouterr()

    return run


def read(path):
    """Topics and messages of a recording, by the library's own reader."""
    with Reader(path) as reader:
        topics = {
            c.topic: (c.msgtype, c.msgdef.data, c.digest, c.ext.offered_qos_profiles)
            for c in reader.connections
        }
        return topics, [(c.topic, stamp, bytes(data)) for c, stamp, data in reader.messages()]


@pytest.fixture(scope='module')
def recording(tmp_path_factory):
    """A recording to be damaged: folder, file, whole content, messages."""

    @functools.cache
    def recording(storage, compression):
        source = tmp_path_factory.mktemp('whole') / 'in'
        bags.write_bag(source, bags.contents(9), storage, compression)
        (file,) = (path for path in source.iterdir() if path.name != 'metadata.yaml')
        return source, file, file.read_bytes(), read(source)[1]

    return recording


def read_ours(path, typestore):
    with BagReader(path, typestore) as reader:
        messages = [(m.topic.name, m.stamp_ns, bytes(m.data)) for m in reader.messages()]
        list(reader.extras())
        return messages, reader.damage


def assert_nothing_left(folder, *expected):
    assert sorted(p.name for p in folder.iterdir()) == sorted(expected)


@pytest.mark.parametrize(('storage', 'compression'), STORAGES)
def test_round_trip(run, typestore, tmp_path, storage, compression):
    source = bags.write_bag(tmp_path / 'in', storage=storage, compression=compression)
    status, out, err = run(source, tmp_path / 'out')
    assert (status, err) == (0, '')
    assert '/front/image_raw: 4 images labelled' in out

    topics, messages = read(tmp_path / 'out')
    old_topics, old_messages = read(source)
    assert [row for row in messages if not row[0].startswith('/cliptrase/')] == old_messages
    assert {name: topics[name] for name in old_topics} == old_topics
    assert Counter(name for name, _, _ in messages if name.startswith('/cliptrase/')) == {
        '/cliptrase/vocabulary': 1,
        **{
            f'/cliptrase/{camera}/{output}': 4 if output != 'label_info' else 1
            for camera in ('front', 'rear')
            for output in ('label', 'masks', 'detections', 'overlay', 'label_info')
        },
    }
    for name, (_, _, _, profiles) in topics.items():
        if name.startswith('/cliptrase/'):
            (profile,) = profiles
            latched = name.endswith(('label_info', 'vocabulary'))
            assert profile.durability is (
                QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE
            )
            assert (profile.reliability, profile.depth) == (QosReliability.RELIABLE, 1)
    with BagReader(tmp_path / 'out', typestore) as reader:
        assert reader.storage == storage
        assert reader.compressed == (compression is not CompressionMode.NONE)
        assert reader.custom_data == {'site': 'hall 3'}
    assert_nothing_left(tmp_path, 'in', 'out')


def test_outputs_agree(run, typestore, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    assert run(source, tmp_path / 'out', '--batch', '3', '--min-confidence', '0.1')[0] == 0
    topics, messages = read(tmp_path / 'out')
    parsed = [
        (name, stamp, typestore.deserialize_cdr(data, topics[name][0]))
        for name, stamp, data in messages
        if name != '/odd'
    ]
    assert parsed[0][0] == '/cliptrase/vocabulary'
    vocabulary = parsed[0][2]
    assert [(c.id, c.name, c.synonyms) for c in vocabulary.classes] == [
        (0, 'red ball', []),
        (1, 'box', ['crate', 'carton']),
    ]
    for camera, topic in (('front', '/front/image_raw'), ('rear', '/rear/image_raw/compressed')):
        by_output = {
            output: [(s, m) for n, s, m in parsed if n == f'/cliptrase/{camera}/{output}']
            for output in ('label', 'label_info', 'masks', 'detections', 'overlay')
        }
        images = [(s, m) for n, s, m in parsed if n == topic]
        outputs = ('label', 'masks', 'overlay', 'detections')
        rows = zip(images, *(by_output[output] for output in outputs), strict=True)
        for (_stamp, image), (_, label), (_, masks), (_, overlay), (_, detections) in rows:
            assert label.header == masks.header == overlay.header == image.header
            assert (label.encoding, label.step, label.is_bigendian) == ('mono8', label.width, 0)
            pixels = label.data.reshape(label.height, label.width)
            assert overlay.data.size == 3 * pixels.size
            again = np.full_like(pixels, 255)
            for mask in masks.masks:
                again[decode_mask(mask, masks.height, masks.width)] = mask.class_id
                assert mask.area == (pixels == mask.class_id).sum()
            assert (again == pixels).all()
            assert detections.header == image.header
            found = Counter(d.results[0].hypothesis.class_id for d in detections.detections)
            assert found == {m.class_name: m.instances for m in masks.masks if m.instances}
        for output in outputs:
            assert [s for s, _ in by_output[output]] == [s for s, _ in images]
        ((_, information),) = by_output['label_info']
        assert [(c.class_id, c.class_name) for c in information.class_map] == [
            (0, 'red ball'),
            (1, 'box'),
        ]
        assert information.threshold == pytest.approx(0.1)
        names = [name for name, _, _ in messages]
        label_info = names.index(f'/cliptrase/{camera}/label_info')
        assert names.index(topic) < label_info < names.index(f'/cliptrase/{camera}/label')


def test_detections_keep_their_ids(run, typestore, tmp_path):
    """Of each camera by itself: both are shown the same picture all the time."""
    topics = [compressed_camera(f'/{name}/image_raw/compressed') for name in ('front', 'rear')]
    source = bags.write_bag(tmp_path / 'in', topics)
    assert run(source, tmp_path / 'out', '--overlay-boxes')[0] == 0
    topics, messages = read(tmp_path / 'out')
    found = [
        typestore.deserialize_cdr(data, topics[name][0]).detections
        for name, _, data in messages
        if name.endswith('/detections')
    ]
    described = [
        [(d.id, d.bbox.center.position, d.bbox.size_x, d.results[0].hypothesis) for d in each]
        for each in found
    ]
    assert len(described) == 6 and described.count(described[0]) == 6
    assert [d.id for d in found[0]] == [f'{i}' for i in range(1, len(found[0]) + 1)]
    least = SegmentationSettings.min_instance_area * 64 * 48
    for detection in found[0]:
        centre, box = detection.bbox.center.position, detection.bbox
        left, top = centre.x - box.size_x / 2, centre.y - box.size_y / 2
        assert left == int(left) and top == int(top) and min(left, top) >= 0
        assert left + box.size_x <= 64 and top + box.size_y <= 48
        assert box.size_x * box.size_y >= least


def test_labels_are_the_engines(run, typestore, tiny_model, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    assert run(source, tmp_path / 'out', '--topic', '/front/image_raw=nose', '--no-overlay')[0] == 0
    topics, messages = read(tmp_path / 'out')
    assert not any('overlay' in name or 'rear/' in name for name in topics if 'clip' in name)
    labels = [
        typestore.deserialize_cdr(data, topics[name][0]).data
        for name, _, data in messages
        if name == '/cliptrase/nose/label'
    ]
    segmenter = load_segmenter(tiny_model, device='cpu')
    encoded = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
    for number, label in enumerate(labels):
        (expected,) = segmenter.segment(
            [bags.picture(number)], encoded, SegmentationSettings(resolution=64)
        )
        assert (label.reshape(48, 64) == expected.label).all()


def test_smoothing_is_that_of_each_camera(run, typestore, tiny_model, tmp_path):
    """Batches must not keep a frame from what the one before has left."""
    noise = np.random.default_rng(0)
    noisy = [
        (bags.picture(0) // 2 + noise.integers(0, 40, (48, 64, 3))).astype(np.uint8)
        for _ in range(6)
    ]
    stamped = [(bags.START + bags.STEP * number, picture) for number, picture in enumerate(noisy)]
    messages = [(stamp, bags.image(picture, stamp=stamp)) for stamp, picture in stamped]
    contents = [(f'/{name}/image_raw', IMAGE, [bags.qos()], messages) for name in ('front', 'rear')]
    source = bags.write_bag(tmp_path / 'in', contents)
    options = ('--smoothing', '0.9', '--batch', '8', '--no-overlay')
    assert run(source, tmp_path / 'out', *options)[0] == 0
    _, written = read(tmp_path / 'out')
    segmenter = load_segmenter(tiny_model, device='cpu')
    encoded = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
    settings = SegmentationSettings(resolution=64, smoothing=0.9)
    history, expected, alone = None, [], []
    for picture in noisy:
        (result,) = segmenter.segment([picture], encoded, settings, [history])
        history = result.history
        expected.append(result.label)
        alone.append(segmenter.segment([picture], encoded, settings)[0].label)
    assert any((a != b).any() for a, b in zip(expected, alone, strict=True))
    for camera in ('front', 'rear'):
        labels = [
            typestore.deserialize_cdr(data, IMAGE).data.reshape(48, 64)
            for name, _, data in written
            if name == f'/cliptrase/{camera}/label'
        ]
        np.testing.assert_array_equal(labels, expected)


def test_label_info_comes_again(run, tmp_path):
    times = [bags.START + second * 10**9 for second in (0, 1, 4, 6, 7, 12)]
    messages = [(stamp, bags.image(bags.picture(0), stamp=stamp)) for stamp in times]
    topics = [('/camera/image_raw', 'sensor_msgs/msg/Image', [], messages)]
    assert run(bags.write_bag(tmp_path / 'in', topics), tmp_path / 'out')[0] == 0
    _, messages = read(tmp_path / 'out')
    stamps = [stamp for name, stamp, _ in messages if name.endswith('label_info')]
    assert stamps == [times[0], times[3], times[5]]


def test_rate(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in', bags.contents(9))
    assert run(source, tmp_path / 'out', '--rate', '5', '--topic', '/front/image_raw')[0] == 0
    _, messages = read(tmp_path / 'out')
    assert sum(name == '/cliptrase/front/label' for name, _, _ in messages) == 5
    assert sum(name == '/front/image_raw' for name, _, _ in messages) == 9


@given(
    st.lists(st.integers(0, 10**8), min_size=1, max_size=60),
    st.floats(0.5, 200),
)
def test_rate_limit(gaps, rate):
    stamps = np.cumsum(gaps).tolist()
    limiter = RateLimiter()
    taken = [stamp for stamp in stamps if limiter.take(stamp, rate)]
    assert taken[0] == stamps[0]
    # On an even schedule: at most one for each period that has begun, and one more.
    assert len(taken) <= (stamps[-1] - stamps[0]) * rate / 1e9 + 2
    assert RateLimiter().take(stamps[0], rate)


def test_rate_limit_survives_time_running_back():
    limiter = RateLimiter()
    assert limiter.take(10**12, 1)
    assert not limiter.take(10**12 + 10**8, 1)
    assert limiter.take(0, 1)
    assert not limiter.take(10**8, 1)


@pytest.mark.parametrize(
    ('topic', 'name'),
    [
        ('/camera/image_raw', 'camera'),
        ('/camera/color/image_raw', 'camera_color'),
        ('/camera/image_raw/compressed', 'camera'),
        ('/image_raw', 'image_raw'),
        ('/compressed', 'compressed'),
        ('/2nd/image-rect', '_2nd'),
        ('/robot-1/cam/image_rect_color/compressed', 'robot_1_cam'),
    ],
)
def test_camera_name(topic, name):
    assert camera_name(topic) == name


def test_raw_wins_over_compressed(run, tmp_path):
    pixels = bags.picture(0)
    topics = [
        ('/a/image_raw', 'sensor_msgs/msg/Image', [], [(bags.START, bags.image(pixels))]),
        (
            '/a/image_raw/compressed',
            'sensor_msgs/msg/CompressedImage',
            [],
            [(bags.START, bags.compressed(pixels))],
        ),
        ('/a/image_rect', 'sensor_msgs/msg/Image', [], [(bags.START, bags.image(pixels))]),
    ]
    status, out, _ = run(bags.write_bag(tmp_path / 'in', topics), tmp_path / 'out')
    assert status == 0
    assert out.splitlines()[:2] == [
        '/a/image_raw: 1 images labelled, in /cliptrase/a/',
        '/a/image_rect: 1 images labelled, in /cliptrase/a_2/',
    ]


def empty_image(stamp):
    image = bags.image(bags.picture(0), stamp=stamp)
    image.height = image.width = image.step = 0
    image.encoding, image.data = '', image.data[:0]
    return image


def camera(name, frames=3, odd=()):
    """A topic of images, the first of which are odd."""
    stamps = [bags.START + i * bags.STEP for i in range(frames)]
    good = [bags.image(bags.picture(i), stamp=stamp) for i, stamp in enumerate(stamps)]
    return (name, IMAGE, [], list(zip(stamps, [*odd, *good[len(odd) :]], strict=True)))


def compressed_camera(name, frames=3):
    stamps = [bags.START + i * bags.STEP for i in range(frames)]
    images = [(stamp, bags.compressed(bags.picture(0), stamp=stamp)) for stamp in stamps]
    return (name, 'sensor_msgs/msg/CompressedImage', [], images)


def test_odd_images_at_the_beginning_cost_themselves_only(run, tmp_path):
    unknown = bags.image(bags.picture(0))
    unknown.encoding = 'h264'
    odd = [empty_image(bags.START), b'\0\1\0\0nonsense', unknown]
    topics = [camera('/good/image_raw', 5), camera('/late/image_raw', 5, odd)]
    source = bags.write_bag(tmp_path / 'in', topics)
    status, out, err = run(source, tmp_path / 'out', '--no-overlay')
    assert status == 1
    assert '/good/image_raw: 5 images labelled' in out
    assert '/late/image_raw: 2 images labelled' in out
    assert '/late/image_raw: 3 not labelled: image of 0 x 0 pixels' in err


def test_topic_none_of_whose_images_can_be_labelled_is_said(run, tmp_path):
    odd = [empty_image(bags.START + i) for i in range(3)]
    topics = [camera('/good/image_raw'), camera('/never/image_raw', odd=odd), bags.contents()[3]]
    topics.append(('/silent/image_raw', IMAGE, [], []))
    source = bags.write_bag(tmp_path / 'in', topics)
    status, out, err = run(source, tmp_path / 'out', '--no-overlay')
    assert status == 1
    assert err.count('\n') == 1
    assert '/never/image_raw: 3 not labelled: image of 0 x 0 pixels' in err
    assert '/silent/image_raw: not labelled: it has no messages' in out
    assert "/front/depth/image_raw: not labelled: encoding '16UC1' is not known as a picture" in out
    assert set(read(tmp_path / 'out')[0]) == {
        *(name for name, *_ in topics),
        '/cliptrase/vocabulary',
        *(f'/cliptrase/good/{output}' for output in CAMERA_TOPICS if output != 'overlay'),
    }


@pytest.mark.parametrize(
    'raw',
    [
        ('/a/image_raw', IMAGE, [], []),
        camera('/a/image_raw', odd=[empty_image(bags.START + i) for i in range(3)]),
    ],
    ids=['without messages', 'without pictures'],
)
def test_compressed_stands_in_for_a_raw_topic_without_pictures(run, tmp_path, raw):
    topics = [raw, compressed_camera('/a/image_raw/compressed')]
    status, out, err = run(bags.write_bag(tmp_path / 'in', topics), tmp_path / 'out')
    assert (status, err) == (0, '')
    assert '/a/image_raw/compressed: 3 images labelled, in /cliptrase/a/' in out
    assert '/a/image_raw: not labelled: i' in out


def test_judging_topics_reads_no_more_than_it_takes(typestore, tmp_path, monkeypatch):
    odd = [empty_image(bags.START)]
    topics = [*bags.contents(9), camera('/late/image_raw', 9, odd)]
    source = bags.write_bag(tmp_path / 'in', topics)
    read, messages = Counter(), BagReader.messages

    def counted(self, wanted=None):
        for message in messages(self, wanted):
            read[message.topic.name] += 1
            yield message

    monkeypatch.setattr(BagReader, 'messages', counted)
    with BagReader(source, typestore) as reader:
        chosen = choose_cameras(reader, [])
    assert [c.name for c in chosen.cameras] == ['front', 'rear', 'late']
    assert read == {
        '/front/image_raw': 1,
        '/rear/image_raw/compressed': 1,
        '/front/depth/image_raw': 1,
        '/late/image_raw': 2,
    }


def test_counts_in_metadata_are_not_believed(typestore, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    nothing = yaml.safe_load((source / 'metadata.yaml').read_text())
    topics = nothing['rosbag2_bagfile_information']['topics_with_message_count']
    change_metadata(
        source,
        message_count=3,
        topics_with_message_count=[{**topic, 'message_count': 0} for topic in topics],
    )
    with BagReader(source, typestore) as reader:
        assert [c.name for c in choose_cameras(reader, []).cameras] == ['front', 'rear']
        assert len(list(reader.messages())) == 17
        assert reader.notes == ['17 messages could be read, metadata.yaml counts 3']
        assert reader.damage == []


def write_mcap(path, frames=3, **options):
    """Write an MCAP file with all that rosbag2 itself does not write."""
    definition, _ = bags.STORE.generate_msgdef(IMAGE, ros_version=2)
    with path.open('wb') as file:
        writer = McapWriter(file, **options)
        writer.start('ros2')
        writer.add_attachment(bags.START, 5, 'calibration.yaml', 'text/yaml', b'fx: 100')
        schema = writer.register_schema(IMAGE, 'ros2msg', definition.encode())
        images = writer.register_channel('/cam/image_raw', 'cdr', schema, {'driver': 'v4l2'})
        schema = writer.register_schema('site.Event', 'protobuf', b'\x0a\xff')
        events = writer.register_channel('/events', 'protobuf', schema)
        for i in range(frames):
            stamp = bags.START + i * bags.STEP
            image = bags.image(bags.picture(i), stamp=stamp)
            data = bytes(bags.STORE.serialize_cdr(image, IMAGE))
            writer.add_message(images, stamp, data, stamp - 5_000_000, sequence=i + 7)
            writer.add_message(events, stamp + 1, b'\x08\x01', stamp - 1, sequence=i)
        writer.add_metadata('vehicle', {'name': 'toy'})
        writer.finish()
    return path


def read_mcap(path):
    """Messages of `write_mcap`'s topics, descriptions of the topics, attachments, metadata."""
    with path.open('rb') as file:
        reader = make_reader(file)
        rows = [row for row in reader.iter_messages() if not row[1].topic.startswith('/cliptrase')]
        return (
            [(c.topic, m.log_time, m.publish_time, m.sequence, m.data) for _, c, m in rows],
            {
                c.topic: (s.name, s.encoding, s.data, c.message_encoding, c.metadata.get('driver'))
                for s, c, _ in rows
            },
            list(reader.iter_attachments()),
            {m.name: m.metadata for m in reader.iter_metadata() if m.name != 'rosbag2'},
        )


def test_mcap_keeps_what_only_mcap_has(run, tmp_path):
    """Publish times, sequence numbers, attachments, metadata, schemas of other kinds."""
    source = write_mcap(tmp_path / 'in.mcap', chunk_size=20_000)
    status, _, err = run(source, tmp_path / 'out', '--no-overlay')
    assert (status, err) == (0, '')
    assert read_mcap(tmp_path / 'out' / 'out.mcap') == read_mcap(source)


@pytest.mark.parametrize(
    'options',
    [
        {'chunk_size': 20_000},
        {'compression': CompressionType.LZ4, 'use_statistics': False},
        {'compression': CompressionType.NONE, 'repeat_channels': False, 'repeat_schemas': False},
        {'index_types': IndexType.NONE},
        {'index_types': IndexType.CHUNK},
        {'use_chunking': False},
    ],
    ids=lambda options: '-'.join(options),
)
def test_mcap_is_read_however_it_was_written(typestore, tmp_path, options):
    whole, _, attachments, metadata = read_mcap(write_mcap(tmp_path / 'whole.mcap'))
    with BagReader(write_mcap(tmp_path / 'in.mcap', **options), typestore) as reader:
        messages = [
            (m.topic.name, m.stamp_ns, m.publish_ns, m.sequence, m.data) for m in reader.messages()
        ]
        extras = list(reader.extras())
        assert messages == whole
        assert extras[:1] == attachments
        assert {extra.name: extra.metadata for extra in extras[1:]} == metadata
        assert reader.damage == reader.notes == []


def test_messages_of_overlapping_chunks_come_by_time(typestore, tmp_path):
    """A recorder writes them as they arrive, and readers put them in order."""
    order = [5, 0, 3, 9, 1, 8, 2, 7, 6, 4]
    with (tmp_path / 'in.mcap').open('wb') as file:
        writer = McapWriter(file, chunk_size=300)
        writer.start('ros2')
        schema = writer.register_schema('std_msgs/msg/String', 'ros2msg', b'string data')
        channel = writer.register_channel('/chatter', 'cdr', schema)
        for number in order:
            writer.add_message(channel, bags.START + number // 2, bytes([number] * 150), 0)
        writer.finish()
    with BagReader(tmp_path / 'in.mcap', typestore) as reader:
        numbers = [message.data[0] for message in reader.messages()]
    # Of equal times as they stand in the file.
    assert numbers == sorted(order, key=lambda number: number // 2)


def test_messages_of_one_time_are_not_gathered(typestore, tmp_path):
    """As where the clock of a simulation stands still."""
    with (tmp_path / 'in.mcap').open('wb') as file:
        writer = McapWriter(file, chunk_size=1)
        writer.start('ros2')
        schema = writer.register_schema('std_msgs/msg/String', 'ros2msg', b'string data')
        channel = writer.register_channel('/chatter', 'cdr', schema)
        for number in range(40):
            writer.add_message(channel, bags.START, bytes([number] * 100_000), 0)
        writer.finish()
    with BagReader(tmp_path / 'in.mcap', typestore) as reader:
        tracemalloc.start()
        try:
            assert [message.data[0] for message in reader.messages()] == list(range(40))
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()


def test_publish_times_of_a_file_that_breaks_off(run, tmp_path):
    source = write_mcap(tmp_path / 'in.mcap', use_chunking=False)
    with source.open('rb+') as file:
        file.truncate(source.stat().st_size * 2 // 3)
    status, _, err = run(source, tmp_path / 'out', '--no-overlay')
    assert status == 1
    assert 'breaks off' in err
    messages, _, attachments, _ = read_mcap(tmp_path / 'out' / 'out.mcap')
    expected = read_mcap(write_mcap(tmp_path / 'whole.mcap'))
    assert 2 <= len(messages) < 6
    assert messages == expected[0][: len(messages)]
    assert attachments == expected[2]


def test_what_sqlite_has_no_place_for_is_said(run, tmp_path):
    source = write_mcap(tmp_path / 'in.mcap')
    status, _, err = run(source, tmp_path / 'out', '--storage', 'sqlite3')
    assert status == 0
    assert (
        'SQLite has no place for publish times and sequence numbers of 6 messages and attachments '
        'and metadata (calibration.yaml, vehicle); --storage mcap keeps them' in err
    )
    assert err.count('\n') == 1


def test_damaged_attachment_costs_itself(typestore, tmp_path):
    source = write_mcap(tmp_path / 'in.mcap')
    content = source.read_bytes()
    name = content.index(b'calibration.yaml')
    # The length of its name says more than the record has.
    source.write_bytes(content[: name - 4] + b'\xff\xff\0\0' + content[name:])
    with BagReader(source, typestore) as reader:
        assert len(list(reader.messages())) == 6
        assert [extra.name for extra in reader.extras()] == ['vehicle']
        assert 'attachment or metadata at byte' in reader.damage[0]


def test_chunk_damaged_within_costs_what_follows(typestore, tmp_path):
    source = write_mcap(
        tmp_path / 'in.mcap', 9, compression=CompressionType.NONE, chunk_size=20_000
    )
    whole = read_ours(source, typestore)[0]
    content = source.read_bytes()
    place = content.index(whole[10][2])
    source.write_bytes(content[:place] + b'\xff' + content[place + 1 :])
    messages, damage = read_ours(source, typestore)
    assert 4 <= len(messages) < len(whole)
    assert messages == whole[: len(messages)]
    assert 'chunk' in damage[0] and 'damaged' in damage[0]


def test_custom_data_of_a_single_file_are_kept(typestore, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    with BagReader(source / 'in.mcap', typestore) as reader:
        assert reader.custom_data == {'site': 'hall 3'}


def test_ros1_in_mcap(run, tmp_path):
    source = tmp_path / 'drive_1.mcap'
    with source.open('wb') as file:
        writer = McapWriter(file)
        writer.start('ros1')
        schema = writer.register_schema('sensor_msgs/Image', 'ros1msg', b'uint32 height')
        channel = writer.register_channel('/cam/image_raw', 'ros1', schema)
        writer.add_message(channel, bags.START, b'1234', bags.START)
        writer.finish()
    status, _, err = run(source, tmp_path / 'out', '--topic', '/cam/image_raw')
    assert status == 2
    assert 'recording of ROS 1; convert the .bag it was made from: rosbags-convert --src' in err
    assert_nothing_left(tmp_path, 'drive_1.mcap')


@pytest.mark.parametrize('name', ['drive.bag', 'drive.bag.active', 'drive'])
def test_ros1_is_known_by_its_content(typestore, tmp_path, name):
    (tmp_path / 'folder').mkdir()
    file = tmp_path / 'folder' / name
    file.write_bytes(b'#ROSBAG V2.0\n')
    for path in (file, tmp_path / 'folder'):
        with pytest.raises(BagError, match='recording of ROS 1'):
            BagReader(path, typestore)


def test_single_file_and_other_storage(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    status, _, err = run(
        source / 'in.mcap', tmp_path / 'deep' / 'out', '--storage', 'sqlite3', '--compress'
    )
    assert (status, err) == (0, '')
    assert (tmp_path / 'deep' / 'out' / 'out.db3').is_file()
    topics, messages = read(tmp_path / 'deep' / 'out')
    old_topics, old_messages = read(source)
    assert [row for row in messages if not row[0].startswith('/cliptrase/')] == old_messages
    assert {name: topics[name] for name in old_topics} == old_topics


def test_again_under_another_name(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    assert run(source, tmp_path / 'once')[0] == 0
    status, _, err = run(tmp_path / 'once', tmp_path / 'twice')
    assert status == 2
    assert '--node /NAME' in err
    assert run(tmp_path / 'once', tmp_path / 'twice', '--node', '/robot/other')[0] == 0
    topics, _ = read(tmp_path / 'twice')
    assert '/cliptrase/front/label' in topics
    # The labels and overlays of the first time are no cameras of the second.
    assert {name.split('/')[3] for name in topics if name.startswith('/robot/other/')} == {
        *('front', 'rear', 'vocabulary')
    }


def test_outputs_that_are_there_without_labels_are_not_mixed_with(run, tmp_path):
    topics = bags.contents()
    _, kind, profiles, messages = topics[1]
    topics.append(('/cliptrase/front/overlay', kind, [], messages))
    source = bags.write_bag(tmp_path / 'in', topics)
    status, _, err = run(source, tmp_path / 'out')
    assert status == 2 and 'already has /cliptrase/front/overlay' in err


def split(folder, storage):
    """A recording in two files, as a recorder splits it."""
    first = bags.write_bag(folder / 'first', storage=storage)
    later = [
        (name, kind, profiles, [(stamp + 10**10, message) for stamp, message in messages])
        for name, kind, profiles, messages in bags.contents()[::-1]
    ]
    second = bags.write_bag(folder / 'second', later, storage=storage)
    expected = read(first)[1] + read(second)[1]
    suffix = {'mcap': 'mcap', 'sqlite3': 'db3'}[storage]
    bag = folder / 'bag'
    bag.mkdir()
    (first / f'first.{suffix}').rename(bag / f'bag_9.{suffix}')
    (second / f'second.{suffix}').rename(bag / f'bag_10.{suffix}')
    return bag, expected


def test_files_without_metadata_come_in_the_order_of_their_numbers(tmp_path):
    names = ['run_2024.05_2.mcap', 'run_2024.05_9.mcap.zstd', 'run_2024.05_10.mcap']
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in find_files(tmp_path).paths] == names


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_split_without_metadata(run, typestore, tmp_path, storage):
    bag, expected = split(tmp_path, storage)
    messages, damage = read_ours(bag, typestore)
    assert messages == expected
    assert damage == ['metadata.yaml is missing: the recording was not ended in order']
    status, _, err = run(bag, tmp_path / 'out')
    assert status == 1
    assert 'metadata.yaml is missing' in err
    assert [r for r in read(tmp_path / 'out')[1] if not r[0].startswith('/clip')] == expected


def test_file_of_a_split_is_missing(typestore, tmp_path):
    bag, expected = split(tmp_path, 'mcap')
    (bag / 'metadata.yaml').write_text(
        'rosbag2_bagfile_information:\n'
        '  relative_file_paths: [bag_9.mcap, bag/bag_10.mcap, bag_11.mcap]\n'
        f'  message_count: {len(expected) + 3}\n'
    )
    messages, damage = read_ours(bag, typestore)
    assert messages == expected
    assert damage == [
        'bag_11.mcap is missing, though metadata.yaml names it',
        f'{len(expected)} messages could be read, metadata.yaml counts {len(expected) + 3}',
    ]


def change_metadata(folder, **changes):
    path = folder / 'metadata.yaml'
    content = yaml.safe_load(path.read_text())
    content['rosbag2_bagfile_information'].update(changes)
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ('named', 'there', 'notes'),
    [
        (['in.mcap'], ['in.mcap'], []),
        # As Foxy wrote it, from the folder above.
        (['in/in.mcap'], ['in.mcap'], []),
        (
            ['/home/u/old/in.mcap'],
            ['in.mcap'],
            ['metadata.yaml names /home/u/old/in.mcap; in.mcap of the folder is read'],
        ),
        (
            ['in.mcap.zstd'],
            ['in.mcap'],
            ['metadata.yaml names in.mcap.zstd; in.mcap of the folder is read'],
        ),
        (
            ['in.mcap'],
            ['in.mcap.zstd'],
            ['metadata.yaml names in.mcap; in.mcap.zstd of the folder is read'],
        ),
        # Unpacked, and the packed file kept.
        (['in.mcap.zstd'], ['in.mcap', 'in.mcap.zstd'], []),
        (
            ['in.mcap'],
            ['monday.mcap'],
            ['metadata.yaml names in.mcap; monday.mcap of the folder is read'],
        ),
        ([], ['in.mcap'], ['metadata.yaml names no file; in.mcap of the folder is read']),
        (
            ['in.mcap'],
            ['in.mcap', 'other.mcap'],
            ['other.mcap is left out: metadata.yaml does not name it'],
        ),
        # What macOS leaves beside a file on other disks.
        (['in.mcap'], ['in.mcap', '._in.mcap'], []),
    ],
)
def test_metadata_that_name_another_file(typestore, tmp_path, named, there, notes):
    source = bags.write_bag(tmp_path / 'in', compression=CompressionMode.FILE)
    expected = read(source)[1]
    packed = source / 'in.mcap.zstd'
    contents = {'.mcap': zstd.decompress(packed.read_bytes()), '.zstd': packed.read_bytes()}
    packed.unlink()
    for name in there:
        (source / name).write_bytes(contents[Path(name).suffix])
    change_metadata(source, relative_file_paths=named)
    with BagReader(source, typestore) as reader:
        messages = [(m.topic.name, m.stamp_ns, bytes(m.data)) for m in reader.messages()]
        assert (messages, reader.notes, reader.damage) == (expected, notes, [])
        assert reader.compressed == ('in.mcap.zstd' in there)


def test_difference_that_loses_nothing_is_said(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    (source / 'in.mcap').rename(source / 'monday.mcap')
    status, out, err = run(source, tmp_path / 'out', '--no-overlay')
    assert status == 0
    assert 'metadata.yaml names in.mcap; monday.mcap of the folder is read' in err
    assert '/front/image_raw: 4 images labelled' in out


@pytest.mark.parametrize(
    ('named', 'note', 'missing'),
    [
        # Renamed altogether, or the first of them only.
        (['old_9.mcap', 'old_10.mcap'], 'old_9.mcap, old_10.mcap; bag_9.mcap, bag_10.mcap', ''),
        (['old_9.mcap', 'bag_10.mcap'], 'old_9.mcap; bag_9.mcap', ''),
        (
            ['old_9.mcap', 'old_10.mcap', 'old_11.mcap'],
            '',
            'old_9.mcap, old_10.mcap, old_11.mcap; bag_9.mcap, bag_10.mcap',
        ),
    ],
)
def test_split_under_other_names(typestore, tmp_path, named, note, missing):
    bag, expected = split(tmp_path, 'mcap')
    (bag / 'metadata.yaml').write_text('rosbag2_bagfile_information: {relative_file_paths: []}')
    change_metadata(bag, relative_file_paths=named)
    with BagReader(bag, typestore) as reader:
        messages = [(m.topic.name, m.stamp_ns, bytes(m.data)) for m in reader.messages()]
        assert messages == expected
        for sentences, files in ((reader.notes, note), (reader.damage, missing)):
            expected_sentence = f'metadata.yaml names {files} of the folder is read'
            assert sentences == ([expected_sentence] if files else [])


def test_half_packed_file_beside_the_whole_one(typestore, tmp_path):
    """As a recorder leaves them that was killed while it compressed."""
    source = bags.write_bag(tmp_path / 'in')
    expected = read(source)[1]
    (source / 'metadata.yaml').unlink()
    (source / 'in.mcap.zstd').write_bytes(zstd.compress((source / 'in.mcap').read_bytes())[:900])
    messages, damage = read_ours(source, typestore)
    assert messages == expected
    assert len(damage) == 1


@pytest.mark.parametrize('text', ['', ': [', 'rosbag2_bagfile_information: 5', '- a', '\0'])
def test_damaged_metadata(typestore, tmp_path, text):
    source = bags.write_bag(tmp_path / 'in')
    expected = read(source)[1]
    (source / 'metadata.yaml').write_text(text)
    messages, damage = read_ours(source, typestore)
    assert messages == expected
    assert len(damage) == 1
    assert damage[0].startswith('metadata.yaml is damaged')


@pytest.mark.parametrize(('storage', 'compression'), STORAGES)
@settings(deadline=None, max_examples=15)
@given(share=st.floats(0, 0.999))
def test_truncated(typestore, recording, storage, compression, share):
    """Whatever the length, a cut file gives the first messages of the whole one, and says so."""
    source, file, content, expected = recording(storage, compression)
    file.write_bytes(content[: int(share * len(content))])
    try:
        messages, damage = read_ours(source, typestore)
    except BagError as error:
        assert file.name in str(error)
        messages = []
    else:
        # What follows the messages is only an index.
        assert damage or messages == expected
    assert messages == expected[: len(messages)]


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@settings(deadline=None, max_examples=30)
@example(place=0.109375, size=1, seed=0)
@given(place=st.floats(0, 0.9999), size=st.integers(1, 300), seed=st.integers(0, 99))
def test_corrupted(typestore, recording, storage, place, size, seed):
    """Damage within a file ends in messages or in BagError, never in anything else."""
    source, file, content, _ = recording(storage, CompressionMode.NONE)
    content = bytearray(content)
    begin = int(place * len(content))
    end = min(begin + size, len(content))
    content[begin:end] = np.random.default_rng(seed).bytes(end - begin)
    file.write_bytes(content)
    try:
        read_ours(source, typestore)
    except BagError as error:
        assert file.name in str(error)


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_truncated_is_labelled_up_to_the_break(run, tmp_path, storage):
    # Larger than a chunk of MCAP, so that there is something before the break.
    topics = [
        (
            '/camera/image_raw',
            'sensor_msgs/msg/Image',
            [bags.qos()],
            [
                (bags.START + i, bags.image(bags.picture(i, 400, 500), stamp=bags.START + i))
                for i in range(8)
            ],
        )
    ]
    source = bags.write_bag(tmp_path / 'in', topics, storage)
    expected = read(source)[1]
    (file,) = (path for path in source.iterdir() if path.name != 'metadata.yaml')
    with file.open('rb+') as opened:
        opened.truncate(int(0.7 * file.stat().st_size))
    status, _, err = run(source, tmp_path / 'out')
    assert status == 1
    assert file.name in err
    assert 'Traceback' not in err
    topics, messages = read(tmp_path / 'out')
    copied = [row for row in messages if row[0] == '/camera/image_raw']
    assert 3 <= len(copied) < 8
    assert copied == expected[: len(copied)]
    assert sum(name == '/cliptrase/camera/label' for name, _, _ in messages) == len(copied)


def labels_of(messages):
    return [row for row in messages if row[0].startswith('/cliptrase/')]


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_sidecar_has_the_labels_alone_and_merges_into_the_whole(run, tmp_path, storage):
    source = bags.write_bag(tmp_path / 'in', storage=storage)
    assert run(source, tmp_path / 'whole')[0] == 0
    status, out, err = run(source, tmp_path / 'labels', '--sidecar', '--batch', '3')
    assert (status, err) == (0, '')
    assert out.endswith(f'the labels are in {tmp_path}/labels\n')
    topics, messages = read(tmp_path / 'whole')
    assert read(tmp_path / 'labels') == (
        {name: topic for name, topic in topics.items() if name.startswith('/cliptrase/')},
        labels_of(messages),
    )
    metadata = yaml.safe_load((tmp_path / 'labels' / 'metadata.yaml').read_text())
    information = metadata['rosbag2_bagfile_information']
    assert information['storage_identifier'] == 'mcap' and not information['custom_data']

    status, out, err = run(source, tmp_path / 'out', '--merge', tmp_path / 'labels', words=None)
    assert (status, err) == (0, '')
    assert out == f'17 messages and 35 messages of labels are in {tmp_path}/out\n'
    merged_topics, merged = read(tmp_path / 'out')
    assert merged_topics == topics
    assert Counter(merged) == Counter(messages)
    assert [row for row in merged if row not in labels_of(merged)] == read(source)[1]
    assert labels_of(merged) == labels_of(messages)
    image_at = {row[1]: place for place, row in enumerate(merged) if 'image_raw' in row[0]}
    for place, (name, stamp, _) in enumerate(merged):
        if name.startswith('/cliptrase/') and name != '/cliptrase/vocabulary':
            assert place > image_at[stamp]


def test_labels_of_another_recording_are_told(run, tmp_path):
    drive = bags.write_bag(tmp_path / 'drive')
    later = [
        (name, kind, profiles, [(stamp + 3, message) for stamp, message in messages])
        for name, kind, profiles, messages in bags.contents()
    ]
    other = bags.write_bag(tmp_path / 'other', later)
    # As `batch` leaves them: one folder below that of their name.
    assert run(drive, tmp_path / 'results' / '0123', '--sidecar')[0] == 0
    (tmp_path / 'results' / '0123' / '0123.mcap').rename(tmp_path / 'results/0123/labels.mcap')
    merge = ['--merge', tmp_path / 'results']
    status, _, err = run(drive, tmp_path / 'out', *merge, words=None)
    assert status == 0 and 'another recording' not in err
    status, _, err = run(other, tmp_path / 'other_out', *merge, words=None)
    assert status == 0 and 'they may be those of another recording' in err


def test_merged_with_all_that_only_mcap_has(run, tmp_path):
    source = write_mcap(tmp_path / 'in.mcap')
    assert run(source, tmp_path / 'labels', '--sidecar')[0] == 0
    content = (tmp_path / 'labels' / 'labels.mcap').read_bytes()
    # Compressed, and without the attachment.
    assert b'zstd' in content and b'fx: 100' not in content
    labels = tmp_path / 'labels' / 'labels.mcap'
    assert run(source, tmp_path / 'out', '--merge', labels, words=None)[0] == 0
    assert read_mcap(tmp_path / 'out' / 'out.mcap') == read_mcap(source)


def test_sidecars_of_one_recording_are_equal_byte_for_byte(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in')
    contents = []
    for folder in ('one', 'another'):
        assert run(source, tmp_path / folder / 'labels', '--sidecar')[0] == 0
        files = (tmp_path / folder / 'labels').iterdir()
        contents.append({file.name: file.read_bytes() for file in files})
    assert sorted(contents[0]) == ['labels.mcap', 'metadata.yaml']
    assert contents[0] == contents[1]


def test_sidecar_keeps_no_messages_while_a_batch_comes_together(run, tmp_path, monkeypatch):
    text = bags.make('std_msgs/msg/String', data='x' * 100_000)
    clutter = [(bags.START + 1, text), (bags.START + bags.STEP + 1, text)]
    source = bags.write_bag(
        tmp_path / 'in', [bags.contents()[1], ('/log', 'std_msgs/msg/String', [], clutter)]
    )
    monkeypatch.setattr('cliptrase_ros.bag.label._MAX_PENDING_BYTES', 100_000)
    counts = []
    segment = Segmenter.segment

    def counted(self, images, *arguments):
        counts.append(len(images))
        return segment(self, images, *arguments)

    monkeypatch.setattr(Segmenter, 'segment', counted)
    assert run(source, tmp_path / 'labels', '--sidecar', '--batch', '4')[0] == 0
    assert counts == [4]


def test_damage_is_said_of_a_sidecar_and_of_what_it_is_merged_with(run, tmp_path):
    """Also damage where no image lies."""
    # Each ends a chunk; the images are in the first.
    noise = np.random.default_rng(0).bytes(2_000_000)
    late = [(bags.START + i * bags.STEP, noise) for i in (8, 9)]
    topics = [bags.contents()[1], ('/log', 'std_msgs/msg/String', [], late)]
    source = bags.write_bag(tmp_path / 'in', topics, compression=CompressionMode.STORAGE)
    (file,) = source.glob('*.mcap')
    content = bytearray(file.read_bytes())
    content[3_000_000:3_300_000] = bytes(300_000)
    file.write_bytes(content)
    status, out, err = run(source, tmp_path / 'labels', '--sidecar')
    assert status == 1
    assert '/front/image_raw: 4 images labelled' in out
    assert 'is damaged' in err and '5 messages could be read, metadata.yaml counts 6' in err

    (tmp_path / 'labels' / 'metadata.yaml').unlink()
    status, _, err = run(source, tmp_path / 'out', '--merge', tmp_path / 'labels', words=None)
    assert status == 1
    assert f'{source}: in.mcap' in err
    assert f'{tmp_path}/labels: metadata.yaml is missing' in err
    assert sum(name.endswith('/label') for name, _, _ in read(tmp_path / 'out')[1]) == 4


@pytest.mark.parametrize(
    ('words', 'options', 'message'),
    [
        (None, [], '-v WORDS'),
        (WORDS, ['--merge', 'labels'], 'leave out --vocabulary'),
        (None, ['--merge', 'labels', '--sidecar'], 'leave out --sidecar'),
        (None, ['--merge', 'labels', '--view'], 'leave out --view'),
        (None, ['--merge', 'nothing'], 'nothing does not exist'),
        (None, ['--merge', 'in'], '/front/depth/image_raw, /front/image_raw'),
    ],
)
def test_what_cannot_be_merged(run, tmp_path, monkeypatch, words, options, message):
    monkeypatch.chdir(tmp_path)
    bags.write_bag(tmp_path / 'in', bags.contents(1))
    status, out, err = run('in', 'out', *options, words=words)
    assert (status, out) == (2, '')
    assert err.startswith('cliptrase bag: error: ') and err.count('\n') == 1
    assert message in err
    assert_nothing_left(tmp_path, 'in')


@pytest.mark.parametrize('stamp', [2**62, 2**31 * 10**9])
def test_time_that_cannot_be(typestore, tmp_path, stamp):
    frames = [(bags.START, bags.image(bags.picture(0))), (stamp, bags.image(bags.picture(0)))]
    topics = [('/camera/image_raw', 'sensor_msgs/msg/Image', [], frames)]
    messages, damage = read_ours(bags.write_bag(tmp_path / 'in', topics), typestore)
    assert len(messages) == 1
    assert f'time {stamp}' in damage[0]


def test_write_ahead_log_is_read(typestore, tmp_path):
    source = bags.write_bag(tmp_path / 'in', storage='sqlite3')
    expected = read(source)[1]
    file = source / 'in.db3'
    database = sqlite3.connect(file)
    database.execute('PRAGMA journal_mode = WAL')
    database.execute('PRAGMA wal_autocheckpoint = 0')
    database.execute(
        'INSERT INTO messages (topic_id, timestamp, data) VALUES (1, ?, ?)',
        (bags.START + 10**9, b'\0\1\0\0late'),
    )
    database.commit()
    killed = tmp_path / 'killed'
    shutil.copytree(source, killed)
    database.close()
    messages, damage = read_ours(killed, typestore)
    assert messages == [*expected, ('/robot_description', bags.START + 10**9, b'\0\1\0\0late')]
    assert 'stopped before it could tidy up' in damage[0]


def test_old_sqlite_without_definitions(run, tmp_path):
    """Older recorders wrote no message definitions and no hashes."""
    source = bags.write_bag(tmp_path / 'in', storage='sqlite3')
    (source / 'metadata.yaml').unlink()
    with sqlite3.connect(source / 'in.db3') as database:
        for table in ('schema', 'metadata', 'message_definitions'):
            database.execute(f'DROP TABLE {table}')
        database.execute('ALTER TABLE topics DROP COLUMN type_description_hash')
    database.close()
    status, _, err = run(source / 'in.db3', tmp_path / 'out')
    assert (status, err) == (0, '')
    topics, _ = read(tmp_path / 'out')
    assert topics['/front/image_raw'][2] == bags.STORE.hash_rihs01('sensor_msgs/msg/Image')
    assert 'float32' not in topics['/odd'][1]


def test_unreadable_images_are_counted(run, tmp_path):
    topics = bags.contents()
    front = topics[1][3]
    front[1][1].encoding = 'h264'
    front[2] = (front[2][0], b'\0\1\0\0nonsense')
    rear = topics[2][3]
    rear[3][1].data = rear[3][1].data[:20]
    source = bags.write_bag(tmp_path / 'in', topics)
    status, out, err = run(source, tmp_path / 'out', '--batch', '2')
    assert status == 1
    assert '/front/image_raw: 2 not labelled: encoding' in err
    assert '/rear/image_raw/compressed: 1 not labelled: 20 bytes' in err
    assert '/front/image_raw: 2 images labelled' in out
    _, messages = read(tmp_path / 'out')
    kept = [row for row in messages if not row[0].startswith('/cliptrase/')]
    assert kept == read(source)[1]
    labels = [s for name, s, _ in messages if name == '/cliptrase/front/label']
    assert labels == [front[0][0], front[3][0]]


def test_image_the_engine_refuses(run, tmp_path):
    long = np.zeros((2, 200, 3), np.uint8)
    frames = [(bags.START, bags.image(long)), (bags.START + 1, bags.image(bags.picture(1)))]
    topics = [('/camera/image_raw', 'sensor_msgs/msg/Image', [], frames)]
    source = bags.write_bag(tmp_path / 'in', topics)
    status, out, err = run(source, tmp_path / 'out', '--batch', '2')
    assert status == 1
    assert 'too elongated' in err
    assert '1 images labelled' in out


def test_labels_that_cannot_be_made_cost_their_image(run, tmp_path, monkeypatch):
    source = bags.write_bag(tmp_path / 'in', [camera('/cam/image_raw')])
    drawn = []

    def fail_once(picture, *rest):
        drawn.append(picture)
        if len(drawn) == 2:
            raise ValueError('no font')
        return picture

    monkeypatch.setattr('cliptrase_ros.messages.maker.draw_overlay', fail_once)
    status, out, err = run(source, tmp_path / 'out')
    assert status == 1
    assert '/cam/image_raw: 1 not labelled: no font' in err
    assert '/cam/image_raw: 2 images labelled' in out
    counts = Counter(name for name, *_ in read(tmp_path / 'out')[1])
    assert [counts[f'/cliptrase/cam/{name}'] for name in ('label', 'masks', 'overlay')] == [2] * 3
    assert counts['/cam/image_raw'] == 3


def test_name_that_cannot_be_shown(run, tmp_path, monkeypatch):
    """A terminal that has no such letters must not cost the summary."""
    bags.write_bag(tmp_path / 'in', [camera('/cam/image_raw', 1)])
    shown = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', shown)
    assert run(tmp_path / 'in', tmp_path / 'öut')[0] == 0
    shown.flush()
    assert b'\\xf6ut' in shown.buffer.getvalue().splitlines()[-1]


@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere names are Unicode')
def test_name_that_metadata_cannot_have(run, tmp_path):
    source = bags.write_bag(tmp_path / 'in', [camera('/cam/image_raw', 1)])
    status, _, err = run(source, os.fsdecode(bytes(tmp_path / 'caf') + b'\xe9'))
    assert status == 2
    assert 'not being UTF-8' in err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing', 'out'], 'missing does not exist'),
        (['empty', 'out'], 'empty is no recording'),
        (['text.mcap', 'out'], 'it does not begin as MCAP does'),
        (['text.db3', 'out'], 'nothing can be read of'),
        (['empty.mcap', 'out'], 'it is empty'),
        (['text.txt', 'out'], 'neither .mcap nor .db3'),
        (['old.bag', 'out'], 'recording of ROS 1'),
        (['in', 'empty'], 'empty exists already'),
        (['in', 'in'], 'in exists already'),
        (['in', 'text.txt'], 'text.txt exists already'),
        (['in', 'in/out'], 'lies within the recording'),
        (['in', 'text.txt/out'], 'could not be written'),
        (['in', 'out', '--topic', '/nose'], 'there is no topic /nose; the topics are'),
        (['in', 'out', '--topic', '/odd'], '/odd holds my_robot_msgs/msg/Odd'),
        (['in', 'out', '--topic', '/front/depth/image_raw'], "encoding '16UC1'"),
        (['in', 'out', '--topic', '/front/image_raw=a b'], "camera name 'a b'"),
        (
            [
                'in',
                'out',
                '--topic',
                '/front/image_raw=a',
                '--topic',
                '/rear/image_raw/compressed=a',
            ],
            "camera name 'a'",
        ),
        (['in', 'out', '--node', 'cliptrase'], 'full name'),
        (['blind', 'out'], 'no image topic found; the topics are /odd'),
        (['depth', 'out'], 'no topic with pictures found; /front/depth/image_raw: encoding'),
        (['in', 'out', '--background', 'red ball;;', '--preset', 'best'], "preset is 'best'"),
        (['in', 'out', '--resolution', '5'], 'resolution is 5'),
        (['in', 'out', '--device', 'tpu'], "device is 'tpu'"),
        (['in', 'out', '--precision', 'int8'], "precision is 'int8'"),
        (['in', 'out', '--model', 'ViT-B-17'], 'not an architecture'),
    ],
)
def test_errors(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    for name in ('text.mcap', 'text.db3', 'text.txt', 'old.bag'):
        Path(name).write_text('some text that is longer than a few bytes' * 40)
    Path('empty.mcap').touch()
    topics = bags.contents(1)
    bags.write_bag(tmp_path / 'in', topics)
    bags.write_bag(tmp_path / 'blind', [topics[4]])
    bags.write_bag(tmp_path / 'depth', [topics[3]])
    before = sorted(tmp_path.rglob('*'))
    status, out, err = run(*arguments)
    assert (status, out) == (2, '')
    assert message in err
    assert err.startswith('cliptrase bag: error: ')
    assert err.count('\n') == 1
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('words', ['', ';', 'a; a', 'a: , b', 'word ' * 90])
def test_bad_vocabulary(run, tmp_path, words):
    bags.write_bag(tmp_path / 'in', bags.contents(1))
    status, _, err = run(tmp_path / 'in', tmp_path / 'out', words=words)
    assert status == 2
    assert err.startswith('cliptrase bag: error: ')
    assert err.count('\n') == 1
    assert_nothing_left(tmp_path, 'in')


@pytest.mark.parametrize('error', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_nothing_half_written_is_left(run, tmp_path, monkeypatch, error):
    source = bags.write_bag(tmp_path / 'in')
    written = 0

    def write(self, connection, timestamp, data):
        nonlocal written
        written += 1
        if written > 9:
            raise error

    monkeypatch.setattr('cliptrase_ros.bag.label.BagWriter.write', write)
    status, _, err = run(source, tmp_path / 'out')
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert 'Traceback' not in err
    assert_nothing_left(tmp_path, 'in')


def test_engine_that_fails_costs_labels_only(run, tmp_path, monkeypatch):
    source = bags.write_bag(tmp_path / 'in')

    def fail(*_):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(Segmenter, 'segment', fail)
    status, _, err = run(source, tmp_path / 'out')
    assert status == 1
    assert '/front/image_raw: 4 not labelled: out of memory' in err


def test_missing_package_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rosbags', None)
    monkeypatch.delitem(sys.modules, 'cliptrase_ros.bag.reader')
    monkeypatch.setitem(sys.modules, 'rosbags.rosbag2', None)
    status, _, err = run(tmp_path, tmp_path / 'out')
    assert status == 2
    assert "'rosbags" in err
    assert err.count('\n') == 1


def test_label_info_is_that_of_ros(typestore):
    """The hash is the one in the code generated for vision_msgs."""
    assert typestore.hash_rihs01('vision_msgs/msg/LabelInfo') == (
        'RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783'
    )


@pytest.mark.parametrize('name', ['ClassMask', 'ClassMasks', 'Vocabulary', 'VocabularyClass'])
def test_own_types_are_those_of_ros(typestore, name):
    assert definition_file(name).is_file()
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    paths = [Path(prefix, f'share/cliptrase_ros/msg/{name}.json') for prefix in prefixes]
    generated = next((path for path in paths if path.is_file()), None)
    if generated is None:
        pytest.skip('the messages are not built here')
    message_type = f'cliptrase_ros/msg/{name}'
    hashes = {
        h['type_name']: h['hash_string'] for h in json.loads(generated.read_text())['type_hashes']
    }
    assert typestore.hash_rihs01(message_type) == hashes[message_type]


def test_the_page_has_every_topic():
    rows = re.findall(r'^\| `/cliptrase/(\S+)`', (ROOT / 'docs/commands.md').read_text(), re.M)
    assert set(rows) == {f'CAMERA/{topic}' for topic in CAMERA_TOPICS} | {VOCABULARY_TOPIC}


def test_messages_are_those_of_the_node(typestore):
    """What a bag gets is what the node would have published."""
    pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')
    from rclpy.serialization import deserialize_message, serialize_message
    from std_msgs.msg import Header

    from cliptrase_ros.ros.conversions import MAKER

    vocabulary = parse_vocabulary(WORDS)
    random = np.random.default_rng(0)
    label = random.choice(np.array([0, 1, 255], np.uint8), (20, 30))
    result = Segmentation(label, random.integers(0, 256, label.shape, np.uint8), vocabulary)
    maker = typestore_message_maker(typestore)
    header, theirs = maker.make_header(12_345_678_901, 'eye'), Header(frame_id='eye')
    theirs.stamp.sec, theirs.stamp.nanosec = 12, 345_678_901
    image = random.integers(0, 256, (*label.shape, 3), np.uint8)
    pairs = [
        tuple(
            make(own, LabelledPicture(head, image, result))
            for own, head in ((maker, header), (MAKER, theirs))
        )
        for message_type, make in CAMERA_OUTPUTS.values()
        if find_spec(message_type.split('/')[0])
    ]
    pairs.append(
        (maker.make_vocabulary(vocabulary, header), MAKER.make_vocabulary(vocabulary, theirs))
    )
    for ours, message in pairs:
        serialised = typestore.serialize_cdr(ours, ours.__msgtype__)
        # Not the bytes: what pads them is left to chance.
        sent = deserialize_message(serialize_message(message), type(message))
        assert deserialize_message(bytes(serialised), type(message)) == sent


@pytest.mark.parametrize(
    ('name', 'images'), [('diningroom_rgbd5_mcap', 5), ('udacity_drive_compressed_sqlite3', 9)]
)
def test_real_recordings(run, shared, tmp_path, name, images):
    source = shared / 'bags' / name
    if not source.is_dir():
        pytest.skip(f'{source} is not there')
    status, out, err = run(source, tmp_path / 'out', '--rate', '1')
    assert (status, err) == (0, '')
    assert f': {images} images labelled' in out
    topics, messages = read(tmp_path / 'out')
    old_topics, old_messages = read(source)
    kept = [row for row in messages if not row[0].startswith('/cliptrase/')]
    assert Counter(kept) == Counter(old_messages)
    assert [stamp for _, stamp, _ in kept] == [stamp for _, stamp, _ in old_messages]
    assert {topic: topics[topic] for topic in old_topics} == old_topics


@pytest.mark.parametrize('compress', ['--compress', '--no-compress'])
def test_another_reader_reads_it(run, tmp_path, compress):
    """A reader in another language: of MCAP, of message definitions, of what is in messages."""
    chunks = pytest.importorskip('rerun.chunk', reason='needs the viewer; `make test` brings it')
    bags.write_bag(tmp_path / 'in')
    assert run(tmp_path / 'in', tmp_path / 'out', compress)[0] == 0
    reader = chunks.McapReader(tmp_path / 'out' / 'out.mcap')
    information = reader.info()
    _, messages = read(tmp_path / 'out')
    assert information.message_count == len(messages)
    assert {chunk.codec for chunk in information.compression} == {
        'zstd' if compress == '--compress' else ''
    }
    assert {channel.topic: channel.message_count for channel in information.channels} == Counter(
        name for name, _, _ in messages
    )
    (latched,) = (c for c in information.channels if c.topic == '/cliptrase/vocabulary')
    assert 'durability: transient_local' in latched.metadata['offered_qos_profiles']

    content = {}
    for chunk in reader.stream():
        batch = chunk.to_record_batch()
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if ':' not in name:
                continue
            content.setdefault((chunk.entity_path, name), []).extend(column.to_pylist())
    ((vocabulary,),) = content['/cliptrase/vocabulary', 'cliptrase_ros.msg.Vocabulary:message']
    assert [c['name'] for c in vocabulary['classes']] == ['red ball', 'box']
    assert vocabulary['classes'][1]['synonyms'] == ['crate', 'carton']
    masks = content['/cliptrase/front/masks', 'cliptrase_ros.msg.ClassMasks:message']
    # Single-channel images are taken for depth there.
    labels = content['/cliptrase/front/label', 'DepthImage:buffer']
    for (message,), (label,) in zip(masks, labels, strict=True):
        ids = np.array(label, np.uint8)
        assert {m['class_id']: m['area'] for m in message['masks']} == {
            int(i): int((ids == i).sum()) for i in np.unique(ids) if i != 255
        }


@pytest.mark.parametrize(('storage', 'compression'), STORAGES)
def test_metadata_has_what_rosbag2_wants(run, tmp_path, storage, compression):
    """Keys and types that rosbag2's own reader insists on, in its version 9 of the file."""
    bags.write_bag(tmp_path / 'in', storage=storage, compression=compression)
    assert run(tmp_path / 'in', tmp_path / 'out')[0] == 0
    text = (tmp_path / 'out' / 'metadata.yaml').read_text()
    bag = yaml.safe_load(text)['rosbag2_bagfile_information']
    _, messages = read(tmp_path / 'out')
    stamps = [stamp for _, stamp, _ in messages]
    assert bag['version'] == 9
    assert bag['storage_identifier'] == storage
    assert bag['message_count'] == len(messages)
    assert bag['starting_time']['nanoseconds_since_epoch'] == min(stamps)
    assert bag['duration']['nanoseconds'] == max(stamps) - min(stamps)
    assert bag['custom_data'] == {'site': 'hall 3'}
    assert bag['ros_distro']
    packed = bag['compression_format'], bag['compression_mode'].lower()
    assert packed in (('', ''), ('zstd', 'message'), ('zstd', 'file'))
    assert bag['relative_file_paths'] == [entry['path'] for entry in bag['files']]
    for entry in bag['files']:
        assert (tmp_path / 'out' / entry['path']).is_file()
    assert sum(entry['message_count'] for entry in bag['files']) == len(messages)
    counts = Counter(name for name, _, _ in messages)
    for entry in bag['topics_with_message_count']:
        topic = entry['topic_metadata']
        assert entry['message_count'] == counts[topic['name']]
        assert topic['serialization_format'] == 'cdr'
        assert topic['type_description_hash'].startswith('RIHS01_')
        for profile in topic['offered_qos_profiles']:
            assert {'history', 'depth', 'reliability', 'durability', 'liveliness'} < set(profile)
            for duration in ('deadline', 'lifespan', 'liveliness_lease_duration'):
                assert set(profile[duration]) == {'sec', 'nsec'}


def test_a_compressed_mosaic_is_labelled_as_the_raw_one(run, typestore, tmp_path):
    mosaic = bags.picture(3)[..., 0]
    _, data = cv2.imencode('.png', mosaic)
    png = bags.compressed(bags.picture(0), format='bayer_rggb8; png compressed ')
    png.data = data.ravel()
    topics = [
        ('/raw/image_raw', bags.image(mosaic, 'bayer_rggb8')),
        ('/packed/image_raw/compressed', png),
    ]
    source = bags.write_bag(
        tmp_path / 'in',
        [(name, message.__msgtype__, [], [(bags.START, message)]) for name, message in topics],
    )
    status, _, err = run(source, tmp_path / 'out')
    assert (status, err) == (0, '')
    overlays = {
        name: typestore.deserialize_cdr(message, IMAGE).data.tobytes()
        for name, _, message in read(tmp_path / 'out')[1]
        if name.endswith('/overlay')
    }
    assert overlays['/cliptrase/packed/overlay'] == overlays['/cliptrase/raw/overlay']
