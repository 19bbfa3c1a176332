"""Bad images and bad parameters: a clear word to whoever caused it, and everything goes on."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.parameter import Parameter

from cliptrase_ros.ros.executable import StartFailure


def change(**fields):
    def spoil(image):
        for name, value in fields.items():
            setattr(image, name, value)

    return spoil


def shorten(image):
    image.data = image.data[:-65]


BAD_IMAGES = {
    'zero width': (change(width=0), 'width and height'),
    'zero height': (change(height=0), 'width and height'),
    'impossible size': (change(width=4_000_000_000, step=4_000_000_000), 'corrupt'),
    'impossible step': (change(step=4_000_000_000), 'bytes of data'),
    'step of zero': (change(step=0), 'step is 0'),
    'step shorter than a row': (change(step=64), 'step is 64'),
    'short data': (shorten, 'bytes of data'),
    'no data': (change(data=[]), '0 bytes of data'),
    'unknown encoding': (change(encoding='rgb9'), "'rgb9' is not known"),
    'empty encoding': (change(encoding=''), "'' is not known"),
    'not a picture': (change(encoding='32FC1', step=256), 'is not known as a picture'),
    'endless encoding': (change(encoding='x' * 10_000), 'is not known'),
}


@pytest.mark.parametrize('kind', BAD_IMAGES)
def test_bad_image_is_refused_counted_and_forgotten(start_node, client, kind):
    spoil, reason = BAD_IMAGES[kind]
    start_node()
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    image = client.image()
    spoil(image)
    client.send(image)
    status, values = client.diagnostics(lambda _, v: v['refused'] == '1')
    assert reason in values['last_refusal']
    assert len(values['last_refusal']) < 1000
    assert values['labelled'] == '1'
    client.label_of(client.send(client.image()))


def test_image_the_engine_cannot_take_costs_that_image_alone(start_node, client):
    start_node()
    client.listen_to_label()
    client.send(client.image(16, 4096))
    _, values = client.diagnostics(lambda _, v: v['failed'] == '1')
    assert 'elongated' in values['last_failure']
    client.label_of(client.send(client.image()))


def test_bad_camera_does_not_disturb_the_good_one(start_node, client):
    start_node(cameras=['good', 'bad'])
    client.listen_to_label('good')
    client.listen_to_label('bad')
    for _ in range(10):
        image = client.image()
        image.encoding = 'rgb9'
        client.send(image, 'bad')
        client.label_of(client.send(client.image(), 'good'), 'good')
    _, values = client.diagnostics(lambda _, v: v['refused'] == '10', camera='bad')
    assert not client.received['/cliptrase/bad/label']


def test_padded_rows_and_foreign_byte_order_make_no_difference(start_node, client):
    start_node()
    client.listen_to_label()
    plain = client.image(48, 62, seed=9)
    padded = client.image(48, 62, seed=9)
    rows = np.frombuffer(padded.data, np.uint8).reshape(48, 62 * 3)
    rows = np.pad(rows, ((0, 0), (0, 5)), constant_values=77)
    padded.step, padded.data = rows.shape[1], rows.tobytes()
    wide = np.frombuffer(plain.data, np.uint8).astype('>u2') * 257
    big_endian = client.image(48, 62, seed=9)
    big_endian.encoding, big_endian.is_bigendian = 'rgb16', 1
    big_endian.step, big_endian.data = 62 * 6, wide.astype('>u2').tobytes()
    labels = [client.label_of(client.send(image)).data for image in (plain, padded, big_endian)]
    assert labels[0] == labels[1] == labels[2]


LONG = ' '.join(['word'] * 500)
BAD_PARAMETERS = {
    'vocabulary': {
        'empty text': ('', 'empty'),
        'empty list of booleans': (Parameter('x', Parameter.Type.BOOL_ARRAY, []), 'empty'),
        'blanks alone': (['', '  '], 'empty'),
        'a blank': (['road', ' '], 'blank'),
        'a blank synonym': ('road: , street', 'blank'),
        'duplicates': (['road', 'Road'], 'twice'),
        '300 entries': ([f'thing {i}' for i in range(300)], '300 classes'),
        '2000 synonyms': (f'thing: {", ".join(f"word {i}" for i in range(2000))}', '2002 phrases'),
        '500 words': (['road', LONG], 'too long'),
        'too long and not ASCII': (['ü' * 2000], 'too long'),
        'integers': ([1, 2], 'Quote every entry'),
        'booleans': ([True, False], 'Quote every entry'),
        'nothing visible': (['road', '\u200b'], 'blank'),
        'a number': (3.5, 'Quote every entry'),
        'half a list': ('[road, 5]', "\"['road', 'no']\""),
        'two signs': ('road = street, car: van', "'=' or ':' in the synonym 'car: van'"),
        'bytes': (Parameter('x', Parameter.Type.BYTE_ARRAY, [b'r']), 'Quote every entry'),
        'nothing': (Parameter('x', Parameter.Type.NOT_SET), 'give it a value'),
    },
    'background': {
        'duplicates': ('wall; wall', 'background'),
        'a blank': (['wall', ' '], 'blank'),
        'synonyms': ('sky = clouds; wall', 'no synonyms'),
        'integers': ([1], 'Quote every entry'),
        'too long': ([LONG], 'too long'),
    },
    'rate': {
        'negative': (-1.0, 'out of range'),
        'not a number': (float('nan'), 'out of range'),
        'infinite': (float('inf'), 'out of range'),
        'next to never': (1e-300, '0, or 0.001 to 1000'),
        'text': ('fast', 'DOUBLE'),
        'an integer': (5, '5.0, not 5'),
    },
    'min_confidence': {
        'above one': (1.5, 'out of range'),
        'not a number': (float('nan'), 'out of range'),
    },
    'resolution': {'tiny': (1, 'out of range'), 'huge': (10**6, 'out of range')},
    'preset': {'unknown': ('fast', 'paper, robot')},
    'cameras': {'at run time': (['other'], 'read-only')},
    'model': {'at run time': ('toybox', 'read-only')},
    'device': {'at run time': ('cuda', 'read-only')},
}


def test_bad_parameters_are_refused_with_a_reason_and_nothing_changes(start_node, client):
    start_node(vocabulary=['road', 'person'])
    client.listen_to_vocabulary()
    client.listen_to_masks()
    assert client.vocabulary_version() == 1
    for name, values in BAD_PARAMETERS.items():
        before = client.parameter(name)
        for kind, (value, reason) in values.items():
            if isinstance(value, Parameter):
                value = Parameter(name, value.type_, value.value)
            (result,) = client.set_parameters(**{name: value})
            assert not result.successful, f'{name}: {kind}'
            assert reason in result.reason, f'{name}, {kind}: {result.reason}'
            assert len(result.reason) < 1000
        assert client.parameter(name) == before
    assert client.masks_of(client.send(client.image())).vocabulary_version == 1
    assert len(client.received['/cliptrase/vocabulary']) == 1


def test_atomic_change_is_all_or_nothing(start_node, client):
    start_node()
    client.listen_to_vocabulary()
    client.vocabulary_version()
    result = client.set_parameters_atomically(rate=3.0, vocabulary='dog', preset='fast')
    assert not result.successful and 'paper, robot' in result.reason
    assert client.parameter('rate') == 0.0
    assert client.set_parameters_atomically(
        rate=3.0, vocabulary='dog', background=['cat']
    ).successful
    assert client.parameter('rate') == 3.0
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: len(history) == 2, 'the new vocabulary')
    assert [c.name for c in history[-1].classes] == ['dog']
    assert list(history[-1].background) == ['cat']


@pytest.mark.parametrize(
    ('values', 'reason'),
    [
        ({'cameras': ['front', 'front']}, 'name it once'),
        ({'cameras': ['1st']}, 'topic name'),
        ({'cameras': ['front/left']}, 'topic name'),
        ({'cameras': ['']}, 'topic name'),
        ({'vocabulary': ['road', 'road']}, 'twice'),
        ({'vocabulary': [1, 2]}, 'Quote every entry'),
        ({'vocabulary': [LONG]}, 'too long'),
        ({'background': ['wall', 'wall']}, 'background'),
        ({'background': 'x' * 500_000}, 'the background is too long'),
        ({'rate': 5}, '5.0, not 5'),
        ({'cameras': 'front'}, "['front', 'rear']"),
        ({'cameras': [1, 2]}, "['front', 'rear']"),
        ({'cameras': []}, "['front', 'rear']"),
        ({'device': 0}, '"\'no\'"'),
        ({'depth': 'yes'}, 'of type BOOL'),
        ({'rate': -1.0}, 'out of range'),
        ({'rate': 1e-9}, '0, or 0.001 to 1000'),
        ({'preset': 'fast'}, 'paper, robot'),
        ({'preset': 'sc_clip', 'smoothing': 0.5}, 'smoothing is 0.5'),
        ({'refinement': 'sam'}, 'sam_model'),
        ({'qos_overrides./camera/image_raw.subscription.reliability': 'nonsense'}, 'nonsense'),
        ({'qos_overrides./camera/image_raw.subscription.durability': 'latched'}, 'latched'),
        (
            {
                'transport': 'compressed',
                'qos_overrides./camera/image_raw/compressed.subscription.history': 'nonsense',
            },
            'nonsense',
        ),
        (
            {
                'depth': True,
                'qos_overrides./camera/camera_info.subscription.reliability': 'nonsense',
            },
            'nonsense',
        ),
        ({'transport': 'jpeg'}, 'raw, compressed'),
        ({'transport': ''}, 'raw, compressed'),
        ({'transport': ['raw', 'compressed']}, 'one for each of the 1'),
        ({'depth_transport': 'compressed'}, 'raw, compressedDepth'),
        ({'depth_transport': ['raw', 'raw']}, 'one for each of the 1'),
        ({'mask_topics': ['red car', 'Red-Car']}, 'the same topic'),
        ({'mask_topics': 'road; 人'}, 'Latin letters'),
        ({'mask_topics': [1]}, 'Quote every entry'),
        ({'score_topics': ['red car', 'Red-Car']}, "'score_topics' has 'red car' and 'Red-Car'"),
        ({'score_topics': '人'}, "'score_topics' has '人'"),
        ({'warm_up_sizes': ['640*480']}, 'WIDTHxHEIGHT'),
        ({'warm_up_sizes': '640x480; 0x480'}, "'0x480'"),
        ({'warm_up_sizes': ['6400x100']}, 'WIDTHxHEIGHT'),
        ({'warm_up_sizes': ['64x64'], 'max_image_megapixels': 0.001}, 'max_image_megapixels'),
        ({'threads': -1}, 'out of range'),
    ],
)
def test_node_does_not_start_with_bad_parameters(start_node, values, reason):
    with pytest.raises((ValueError, StartFailure)) as caught:
        start_node(**values)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ('topic', 'policy', 'value'),
    [
        ('/camera/image_raw', 'reliability', 'reliable'),
        ('/camera/image_raw', 'durability', 'transient_local'),
        # Also where the publishers' own are followed otherwise.
        ('/camera/camera_info', 'reliability', 'reliable'),
        ('/camera/camera_info', 'durability', 'transient_local'),
    ],
)
def test_qos_overrides_are_honoured(start_node, client, topic, policy, value):
    start_node(
        **{f'qos_overrides.{topic}.subscription.{policy}': value}, depth=True, always_on=True
    )

    def policies():
        found = client.node.get_subscriptions_info_by_topic(topic)
        return [getattr(endpoint.qos_profile, policy).name.lower() for endpoint in found]

    client.wait_for(lambda: policies() == [value], f'{policy} of {topic}')


def test_silent_camera_is_reported(start_node, client):
    start_node(always_on=True)
    status, _ = client.diagnostics(lambda status, _: status.level == DiagnosticStatus.WARN)
    assert 'no image for' in status.message and '/camera/image_raw' in status.message
