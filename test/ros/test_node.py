"""What the node promises about labels, vocabularies and cameras, over real DDS."""

import threading

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image

from cliptrase_ros.ros.conversions import decode_mask, to_rgb
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

UNLABELLED = 255


def ids(vocabulary_message):
    return {c.name: c.id for c in vocabulary_message.classes}


def pixels(image):
    return np.frombuffer(image.data, np.uint8).reshape(image.height, image.step)


def test_label_keeps_header_and_size_and_has_ids_of_the_announced_vocabulary(start_node, client):
    start_node()
    client.listen_to_vocabulary()
    client.listen_to_label()
    client.vocabulary_version()
    known = set(ids(client.received['/cliptrase/vocabulary'][-1]).values()) | {UNLABELLED}
    for seed, (height, width) in enumerate([(48, 64), (50, 70), (121, 97)]):
        header = client.send(client.image(height, width, seed))
        label = client.label_of(header)
        assert label.header == header
        assert (label.height, label.width, label.step) == (height, width, width)
        assert label.encoding == 'mono8'
        assert set(np.unique(pixels(label)).tolist()) <= known


def test_masks_say_the_same_as_the_label_image(start_node, client):
    start_node()
    client.listen_to_label()
    client.listen_to_masks()
    client.listen_to_vocabulary()
    client.vocabulary_version()
    names = {i: name for name, i in ids(client.received['/cliptrase/vocabulary'][-1]).items()}
    header = client.send(client.image(90, 130, seed=3))
    label, masks = pixels(client.label_of(header)), client.masks_of(header)
    assert (masks.height, masks.width) == label.shape
    drawn = np.full(label.shape, UNLABELLED, np.uint8)
    for mask in masks.masks:
        where = decode_mask(mask, masks.height, masks.width)
        assert mask.area == where.sum() > 0
        assert mask.class_name == names[mask.class_id]
        assert 0.0 <= mask.confidence <= 1.0
        drawn[where] = mask.class_id
    np.testing.assert_array_equal(drawn, label)


def test_overlay_is_the_image_under_the_colours_of_its_classes(start_node, client):
    vocabulary = parse_vocabulary(['road', 'person', 'tree'])
    start_node(vocabulary=[c.name for c in vocabulary.classes])
    client.listen('/cliptrase/camera/overlay', Image)
    client.listen_to_label()
    image = client.image(60, 80)
    label = pixels(client.label_of(client.send(image)))
    overlay = client._answer(image.header, '/cliptrase/camera/overlay')
    assert (overlay.height, overlay.width, overlay.encoding) == (60, 80, 'rgb8')
    np.testing.assert_array_equal(
        pixels(overlay).reshape(60, 80, 3), draw_overlay(to_rgb(image), label, vocabulary)
    )


def test_vocabulary_change_drops_no_frame_and_mixes_none(start_node, client):
    """Frames are sent one at a time, so each must be answered, also while encoding goes on."""
    start_node()
    client.listen_to_vocabulary()
    client.listen_to_label()
    client.listen_to_masks()
    assert client.vocabulary_version() == 1
    client.label_of(client.send(client.image()))

    new = ['tree', *(f'thing {i}' for i in range(80)), 'road']
    assert client.set_parameters(vocabulary=new)[0].successful
    versions = []
    while not versions or versions[-1] == 1 or versions.count(2) < 5:
        header = client.send(client.image(seed=len(versions)))
        label, masks = client.label_of(header), client.masks_of(header)
        versions.append(masks.vocabulary_version)
        announced = client.received['/cliptrase/vocabulary'][versions[-1] - 1]
        assert announced.version == versions[-1], 'a label came before its vocabulary'
        known = ids(announced)
        assert set(np.unique(pixels(label)).tolist()) <= {*known.values(), UNLABELLED}
        assert all(known[m.class_name] == m.class_id for m in masks.masks)
    assert versions == sorted(versions)
    assert versions.count(1) >= 2, 'labelling stood still while the new vocabulary was encoded'

    before, after = (ids(m) for m in client.received['/cliptrase/vocabulary'])
    assert after['tree'] == before['tree'] and after['road'] == before['road']
    gone = before['person']
    assert gone not in after.values(), 'an id was given to another class'


def test_ids_stay_over_many_changes(start_node, client):
    start_node(vocabulary='a; b; c')
    client.listen_to_vocabulary()
    history = client.received['/cliptrase/vocabulary']
    client.vocabulary_version()
    for entries in ('b; c', 'd; c; b', 'a: x, y; d', 'e'):
        count = len(history)
        assert client.set_parameters(vocabulary=entries)[0].successful
        client.wait_for(lambda: len(history) > count, entries)  # noqa: B023
    owner = {}
    for message in history:
        for name, class_id in ids(message).items():
            assert owner.setdefault(class_id, name) == name
    assert [m.version for m in history] == [1, 2, 3, 4, 5]


def test_last_of_several_quick_changes_is_in_force(start_node, client):
    start_node()
    client.listen_to_vocabulary()
    client.vocabulary_version()
    slow = [f'slow {i}' for i in range(60)]
    for entries in (slow, ['one', 'two'], ['three']):
        assert client.set_parameters(vocabulary=entries)[0].successful
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: list(ids(history[-1])) == ['three'], 'the last vocabulary')
    versions = [m.version for m in history]
    assert versions == sorted(set(versions))


def test_what_changes_nothing_announces_nothing(start_node, client):
    start_node()
    client.listen_to_vocabulary()
    client.vocabulary_version()
    assert client.set_parameters(vocabulary='road ;person; tree')[0].successful
    assert client.set_parameters(background=['sky', 'wall'])[0].successful
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: len(history) == 2, 'the new background')
    assert list(history[1].background) == ['sky', 'wall']
    assert history[1].version == 2 and ids(history[0]) == ids(history[1])


def test_a_class_comes_before_the_background(start_node, client):
    start_node(vocabulary='road', background=['sky', 'wall'])
    client.listen_to_vocabulary()
    client.vocabulary_version()
    history = client.received['/cliptrase/vocabulary']
    assert client.set_parameters(vocabulary='road; building: Wall')[0].successful
    client.wait_for(lambda: len(history) == 2, 'the new class')
    assert list(history[1].background) == ['sky']
    assert client.set_parameters(vocabulary='road')[0].successful
    client.wait_for(lambda: len(history) == 3, 'the old classes')
    assert list(history[2].background) == ['sky', 'wall']
    # Also where the two only look the same.
    assert client.set_parameters(vocabulary='road; \u200bsky')[0].successful
    client.wait_for(lambda: len(history) == 4, 'the new class')
    assert list(history[3].background) == ['wall']


def test_late_listener_gets_the_vocabulary(start_node, client):
    start_node(vocabulary=['road: street, lane', 'käse'])
    client.listen_to_vocabulary()
    client.vocabulary_version()
    message = client.received['/cliptrase/vocabulary'][0]
    assert [(c.name, list(c.synonyms)) for c in message.classes] == [
        ('road', ['street', 'lane']),
        ('käse', []),
    ]
    assert all(0.0 <= getattr(c.color, k) <= 1.0 for c in message.classes for k in 'rgba')


def test_settings_take_effect_live(start_node, client):
    start_node()
    client.listen_to_label()
    image = client.image(100, 100, seed=5)
    client.label_of(client.send(image))
    assert client.set_parameters(min_confidence=1.0)[0].successful
    image = client.image(100, 100, seed=5)
    assert (pixels(client.label_of(client.send(image))) == UNLABELLED).all()
    assert all(
        r.successful
        for r in client.set_parameters(
            min_confidence=0.0, preset='paper', resolution=96, rate=50.0, background=''
        )
    )
    # The published method sees a square from the centre and nothing else.
    label = pixels(client.label_of(client.send(client.image(60, 120, seed=5))))
    assert (label[:, :30] == UNLABELLED).all()
    assert (label[:, 31:89] != UNLABELLED).any()


def test_every_preset_and_refinement_labels_live_as_the_engine_does(start_node, client, segmenter):
    start_node(resolution=96)
    client.listen_to_label()
    words = segmenter.encode_vocabulary(parse_vocabulary(['road', 'person', 'tree'], ['sky']))
    seen = set()
    for refinement in ('none', 'edges', 'pamr'):
        for preset in PRESETS:
            # One after the other, images between them.
            for name, value in (('preset', preset), ('refinement', refinement)):
                (result,) = client.set_parameters(**{name: value})
                assert result.successful, result.reason
                image = client.image(90, 250, seed=5)
                label = pixels(client.label_of(client.send(image)))
            settings = SegmentationSettings(preset, resolution=96, refinement=refinement)
            (expected,) = segmenter.segment([to_rgb(image)], words, settings)
            np.testing.assert_array_equal(label, expected.label, f'{preset}, {refinement}')
            seen.add(label.tobytes())
    assert len(seen) > len(PRESETS)


@pytest.mark.parametrize(
    ('first', 'second'),
    [({'preset': 'sc_clip'}, {'smoothing': 0.5}), ({'smoothing': 0.5}, {'preset': 'sc_clip'})],
    ids=['preset first', 'smoothing first'],
)
def test_smoothing_and_a_preset_without_it_exclude_each_other(start_node, client, first, second):
    start_node()
    client.listen_to_label()
    assert client.set_parameters(**first)[0].successful
    before = pixels(client.label_of(client.send(client.image(seed=5))))
    (result,) = client.set_parameters(**second)
    assert not result.successful
    assert 'smoothing is 0.5' in result.reason and 'sc_clip has none' in result.reason
    ((name, value),) = second.items()
    assert client.parameter(name) != value
    label = pixels(client.label_of(client.send(client.image(seed=5))))
    np.testing.assert_array_equal(label, before)
    # Both can change at once.
    for preset, smoothing in (('plus', 0.5), ('sc_clip', 0.0)):
        assert client.set_parameters_atomically(preset=preset, smoothing=smoothing).successful


class Watched(Segmenter):
    """Notes for how many images of each call a memory of the image before was given."""

    def segment(self, images, vocabulary, settings=None, histories=()):
        if settings.smoothing:
            self.remembered = [
                *getattr(self, 'remembered', []),
                sum(h is not None for h in histories),
            ]
        return super().segment(images, vocabulary, settings, histories)


def test_smoothing_remembers_the_image_before_for_a_second(start_node, client, make_segmenter):
    segmenter = make_segmenter(Watched)
    start_node(segmenter, rate=0.0)
    client.listen_to_label()
    assert client.set_parameters(smoothing=0.5, preset='plus', refinement='edges')[0].successful
    # Stamps in ms: a gap, and a recording that begins anew.
    for stamp in (1000, 1100, 1200, 9000, 9100, 500, 600):
        image = client.image(100, 100, seed=5)
        image.header.stamp.sec, image.header.stamp.nanosec = stamp // 1000, stamp % 1000 * 1000000
        client.label_of(client.send(image))
    assert segmenter.remembered[-7:] == [0, 1, 1, 0, 1, 0, 1]


def test_images_without_stamps_are_remembered_from_when_they_came(
    start_node, client, make_segmenter
):
    from rosgraph_msgs.msg import Clock

    segmenter = make_segmenter(Watched)
    node = start_node(segmenter, use_sim_time=True, smoothing=0.5)
    clock = client.node.create_publisher(Clock, '/clock', 10)
    client.wait_for(clock.get_subscription_count, 'the node to listen to /clock')
    client.listen_to_label()
    labels = client.received['/cliptrase/camera/label']
    for count, milliseconds in enumerate((1000, 1100, 1200, 9000, 9100), start=1):
        now = Clock()
        now.clock.sec, now.clock.nanosec = milliseconds // 1000, milliseconds % 1000 * 1000000
        clock.publish(now)
        client.wait_for(
            lambda: node.get_clock().now().nanoseconds == milliseconds * 1000000,  # noqa: B023
            'the time',
        )
        image = client.image()
        image.header.stamp.sec = image.header.stamp.nanosec = 0
        client.send(image)
        client.wait_for(lambda: len(labels) == count, 'a label')  # noqa: B023
    assert segmenter.remembered == [0, 1, 1, 0, 1]


def test_what_cannot_be_refined_is_refused_with_the_reason(start_node, client):
    start_node()
    (result,) = client.set_parameters(refinement='sam')
    assert not result.successful and 'sam_model' in result.reason


@pytest.mark.parametrize('preset', ['robot', 'sc_clip'])
def test_window_and_stride_are_set_in_any_order(start_node, client, preset):
    start_node(resolution=96, preset=preset)
    client.listen_to_label()

    def label_with(**values):
        for name, value in values.items():
            (result,) = client.set_parameters(**{name: value})
            assert result.successful, result.reason
        return pixels(client.label_of(client.send(client.image(96, 300, seed=5))))

    whole = label_with(window=0)
    # A stride beyond the window counts as the window.
    wide = label_with(stride=500, window=64)
    np.testing.assert_array_equal(wide, label_with(stride=64))
    assert (wide != label_with(stride=16)).any()
    # Without windows, and with those of the preset.
    np.testing.assert_array_equal(whole, label_with(window=0))
    assert (whole == label_with(window=-1, stride=0)).all() == (preset == 'robot')


def test_nothing_is_subscribed_or_computed_for_nobody(start_node, client):
    node = start_node()
    camera = node._cameras[0]
    client.wait_for(lambda: not camera.is_subscribed, 'the first look for listeners')
    publisher = client.node.create_publisher(Image, '/camera/image_raw', 50)
    listener = client.listen_to_label()
    client.wait_for(publisher.get_subscription_count, 'a subscription')
    client.label_of(client.send(client.image()))
    client.node.destroy_subscription(listener)
    client.wait_for(lambda: not publisher.get_subscription_count(), 'the end of it')
    before = camera.statistics.counts['received']
    for _ in range(5):
        publisher.publish(client.image())
    client.spin(0.3)
    assert camera.statistics.counts['received'] == before
    status, values = client.diagnostics(lambda _, v: v['labelled'] == '1')
    assert values['subscribed'] == 'False' and 'nobody listens' in status.message


def test_always_on_labels_without_listeners(start_node, client):
    start_node(always_on=True)
    client.send(client.image())
    client.diagnostics(lambda _, v: v['labelled'] == '1')


class Stepped(Segmenter):
    """Notes the heights of the images it is given, and labels each when the test lets it."""

    def segment(self, images, vocabulary, settings=None, histories=()):
        self.taken += [len(image) for image in images]
        assert self.step.acquire(timeout=60)
        return super().segment(images, vocabulary, settings, histories)


@pytest.fixture
def stepped(make_segmenter):
    segmenter = make_segmenter(Stepped)
    segmenter.taken, segmenter.step = [], threading.Semaphore(0)
    yield segmenter
    # Whatever still waits when a test has failed.
    segmenter.step.release(100)


def test_cameras_are_served_in_turn(start_node, client, stepped):
    """Two cameras send faster than the node labels; a third sends seldom."""
    heights = {'left': 48, 'right': 64, 'rare': 80}
    node = start_node(stepped, cameras=list(heights))
    counts = {camera.name: camera.statistics.counts for camera in node._cameras}
    for camera in heights:
        client.listen_to_label(camera)
        client.connect(camera)

    def send(*cameras):
        for camera in cameras:
            count = counts[camera]['received'] + 1
            client.send(client.image(heights[camera]), camera)
            client.wait_for(lambda: counts[camera]['received'] == count, camera)  # noqa: B023

    def wait_for(*cameras):
        """Wait until all of these, and no others, have been taken."""
        taken = [heights[camera] for camera in cameras]
        client.wait_for(lambda: len(stepped.taken) == len(taken), f'{cameras}')
        assert stepped.taken == taken

    send('left')
    wait_for('left')
    served = ['left']
    for turn in range(9):
        send('left', 'left', 'left', 'right')
        if turn % 3 == 0:
            send('rare')
        stepped.step.release()
        served.append(('right', 'rare', 'left')[turn % 3])
        wait_for(*served)
    assert counts['left']['dropped_busy'] > counts['right']['dropped_busy'] > 0
    assert counts['rare']['dropped_busy'] == 0


def test_frames_are_labelled_once_and_the_newest_wins(start_node, client, stepped):
    statistics = start_node(stepped)._cameras[0].statistics
    client.listen_to_label()
    sent = []
    for count in range(1, 11):
        sent.append(client.send(client.image()))
        client.wait_for(lambda: statistics.counts['received'] == count, 'an image')  # noqa: B023
        client.wait_for(lambda: stepped.taken, 'the first image')
    stepped.step.release(10)
    client.label_of(sent[-1])
    client.label_of(client.send(client.image()))
    labels = client.received['/cliptrase/camera/label']
    assert [m.header for m in labels[:2]] == [sent[0], sent[-1]] and len(labels) == 3
    assert statistics.counts['dropped_busy'] == 8


def test_rate_is_kept(start_node, client):
    node = start_node(rate=5.0)
    client.listen_to_label()
    client.connect()
    labels = client.received['/cliptrase/camera/label']
    client.label_of(client.send(client.image()))
    begin = client.node.get_clock().now()
    while len(labels) < 6:
        client.send(client.image())
        client.spin(0.01)
    elapsed = (client.node.get_clock().now() - begin).nanoseconds * 1e-9
    assert elapsed >= 0.9
    assert node._cameras[0].statistics.counts['dropped_rate'] > 0


def test_labelling_survives_a_clock_that_runs_backwards(start_node, client):
    from rosgraph_msgs.msg import Clock

    start_node(use_sim_time=True, rate=1.0)
    clock = client.node.create_publisher(Clock, '/clock', 10)
    client.wait_for(clock.get_subscription_count, 'the node to listen to /clock')
    client.listen_to_label()
    client.connect()
    labels = client.received['/cliptrase/camera/label']
    # A bag of 10 s, played three times.
    for loop in range(3):
        before = len(labels)
        for second in range(10):
            message = Clock()
            message.clock.sec = 500 + second
            for _ in range(3):
                clock.publish(message)
                client.send(client.image())
                client.spin(0.03)
        client.wait_for(lambda: len(labels) - before >= 5, f'labels in loop {loop}')  # noqa: B023


def test_no_latency_before_simulated_time_is_known(start_node, client):
    start_node(use_sim_time=True)
    client.listen_to_label()
    client.listen('/diagnostics', DiagnosticArray)
    client.wait_for(lambda: client.received['/diagnostics'], 'a report')
    client.label_of(client.send(client.image()))
    client.diagnostics(
        lambda _, v: 'processing_ms_mean' in v and not any('latency' in key for key in v)
    )


class Faulty(Segmenter):
    def encode_vocabulary(self, vocabulary):
        if 'unspeakable' in vocabulary.phrases:
            raise RuntimeError('out of memory')
        return super().encode_vocabulary(vocabulary)


def test_failure_to_encode_leaves_the_old_vocabulary_in_force(start_node, client, make_segmenter):
    start_node(make_segmenter(Faulty))
    client.listen_to_vocabulary()
    client.listen_to_masks()
    client.vocabulary_version()
    assert client.set_parameters(vocabulary='unspeakable; road')[0].successful
    status, values = client.diagnostics(lambda _, v: v['vocabulary_failure'], camera=None)
    assert 'out of memory' in status.message and values['vocabulary_version'] == '1'
    assert client.masks_of(client.send(client.image())).vocabulary_version == 1
    assert client.set_parameters(vocabulary='road; tree')[0].successful
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: len(history) == 2, 'the next vocabulary')
    client.diagnostics(lambda _, v: not v['vocabulary_failure'], camera=None)
    # The one that failed had version 2, and nothing else may have it.
    assert [m.version for m in history] == [1, 3]


def test_old_vocabulary_set_again_ends_the_warning(start_node, client, make_segmenter):
    start_node(make_segmenter(Faulty), vocabulary='road; tree')
    client.listen_to_vocabulary()
    client.vocabulary_version()
    assert client.set_parameters(vocabulary='unspeakable; road')[0].successful
    client.diagnostics(lambda _, v: v['vocabulary_failure'], camera=None)
    assert client.set_parameters(vocabulary='road; tree')[0].successful
    status, values = client.diagnostics(lambda _, v: not v['vocabulary_failure'], camera=None)
    assert status.level == DiagnosticStatus.OK and values['vocabulary_version'] == '1'
    assert client.set_parameters(vocabulary='road; dog')[0].successful
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: len(history) == 2, 'the next vocabulary')
    assert [m.version for m in history] == [1, 3]


def test_no_vocabulary_in_force_is_an_error(start_node, client, make_segmenter):
    start_node(make_segmenter(Faulty), vocabulary='unspeakable')
    status, values = client.diagnostics(lambda _, v: v['vocabulary_failure'], camera=None)
    assert status.level == DiagnosticStatus.ERROR and values['vocabulary_version'] == '0'
    client.listen_to_vocabulary()
    assert client.set_parameters(vocabulary='road')[0].successful
    assert client.vocabulary_version() == 2


@pytest.mark.parametrize('part', ['vocabulary', 'label_info'])
def test_vocabulary_outlives_an_announcement_that_fails(start_node, client, monkeypatch, part):
    node = start_node()
    client.listen_to_vocabulary()
    client.listen_to_masks()
    client.vocabulary_version()
    owner, name = {
        'vocabulary': (node._vocabulary_publisher, 'publish'),
        'label_info': (node._cameras[0].outputs, 'publish_label_info'),
    }[part]
    really = getattr(owner, name)
    failures = [RuntimeError('no memory left')]

    def fail_once(*arguments):
        if failures:
            raise failures.pop()
        really(*arguments)

    monkeypatch.setattr(owner, name, fail_once)
    history = client.received['/cliptrase/vocabulary']
    assert client.set_parameters(vocabulary='road; dog')[0].successful
    client.wait_for(lambda: not failures, 'the failure')
    client.wait_for(lambda: len(history) == 2, 'the vocabulary')
    assert client.masks_of(client.send(client.image())).vocabulary_version == 2
    assert client.set_parameters(vocabulary='road; cat')[0].successful
    client.wait_for(lambda: len(history) == 3, 'the next vocabulary')
    assert [m.version for m in history] == [1, 2, 3]
    client.diagnostics(lambda _, v: not v['vocabulary_failure'], camera=None)


def test_label_info_comes_before_the_first_label_and_again(start_node, client):
    vision_msgs = pytest.importorskip('vision_msgs.msg', reason='vision_msgs is not installed')
    start_node(min_confidence=0.25)
    qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    client.listen('/cliptrase/camera/label_info', vision_msgs.LabelInfo, qos)
    messages = client.received['/cliptrase/camera/label_info']
    client.wait_for(lambda: len(messages) >= 2, 'label_info twice')
    names = [(c.class_id, c.class_name) for c in messages[0].class_map]
    assert names == [(0, 'road'), (1, 'person'), (2, 'tree')]
    assert messages[0].threshold == 0.25
    assert client.set_parameters(vocabulary='tree; dog')[0].successful
    client.wait_for(lambda: len(messages[-1].class_map) == 2, 'the new names')


def test_separator_at_the_end_is_no_blank_entry(start_node, client):
    start_node(vocabulary='road; tree;', background='sky;', transport='raw;', mask_topics='road;')
    client.listen_to_vocabulary()
    client.vocabulary_version()
    (announced,) = client.received['/cliptrase/vocabulary']
    assert list(ids(announced)) == ['road', 'tree'] and list(announced.background) == ['sky']


def test_node_of_the_same_name_is_a_warning(context, start_node, client):
    start_node()
    other = rclpy.create_node('cliptrase', context=context)
    status, _ = client.diagnostics(lambda s, _: s.level == DiagnosticStatus.WARN, camera=None)
    assert '2 nodes have this name' in status.message
    other.destroy_node()
    client.diagnostics(lambda s, _: s.level == DiagnosticStatus.OK, camera=None)
