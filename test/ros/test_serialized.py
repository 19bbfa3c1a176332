"""Messages as the bytes of the middleware: what rclpy reads and writes."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from cliptrase_ros.messages.images import to_rgb
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture
from cliptrase_ros.ros import conversions, serialized
from cliptrase_ros.ros.conversions import message_class, rclpy_header
from cliptrase_ros.ros.outputs import _mask_output
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary


@pytest.fixture
def result():
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 1, 255], np.uint8), (7, 9))
    vocabulary = parse_vocabulary('road; tree; red ball', ['sky'])
    return Segmentation(label, rng.integers(0, 256, (7, 9), np.uint8), vocabulary)


@pytest.mark.parametrize('frame_id', ['', 'optical', 'optische_achse_ä'])
@pytest.mark.parametrize('topic', [*CAMERA_OUTPUTS, 'mask/tree'])
def test_outputs_are_read_as_what_rclpy_would_have_sent(topic, frame_id, result):
    message_type, make = {**CAMERA_OUTPUTS, 'mask/tree': _mask_output('tree')}[topic]
    package = message_type.split('/')[0]
    pytest.importorskip(f'{package}.msg', reason=f'{package} is not installed')
    picture = np.arange(7 * 9 * 3, dtype=np.uint8).reshape(7, 9, 3)
    header = serialized.MAKER.make_header(1_700_000_000_123_456_789, frame_id)
    data = serialized.serialize(make(serialized.MAKER, LabelledPicture(header, picture, result)))
    sent = make(conversions.MAKER, LabelledPicture(rclpy_header(header), picture, result))
    kind = message_class(message_type)
    # Sent as well: a message that is not has numbers that it cannot hold.
    assert deserialize_message(data, kind) == deserialize_message(serialize_message(sent), kind)


@pytest.mark.parametrize('message_class', [Image, CompressedImage, CameraInfo])
def test_an_empty_message_is_read(message_class):
    name = serialized.type_name(message_class)
    read = serialized.deserialize(serialize_message(message_class()), name)
    assert deserialize_message(serialized.serialize(read), message_class) == message_class()


def test_images_are_read_without_a_copy():
    picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    sent = conversions.MAKER.make_image(picture, 'rgb8', Header(frame_id='optical'))
    data = serialize_message(sent)
    read = serialized.deserialize(data, 'sensor_msgs/msg/Image')
    assert (read.header.frame_id, read.encoding, read.step) == ('optical', 'rgb8', 18)
    pixels = to_rgb(read, may_share=True)
    assert (pixels == picture).all()
    assert np.may_share_memory(pixels, np.frombuffer(data, np.uint8))


def test_foreign_byte_order_is_read():
    typestore = serialized._TYPESTORE
    header = serialized.MAKER.make_header(5_000_000_007, 'optical')
    sent = serialized.MAKER.make_image(np.eye(4, dtype=np.uint8), 'mono8', header)
    for little_endian in (True, False):
        data = typestore.serialize_cdr(sent, sent.__msgtype__, little_endian=little_endian)
        read = serialized.deserialize(bytes(data), sent.__msgtype__)
        assert (read.width, read.header.stamp.sec, read.header.stamp.nanosec) == (4, 5, 7)
        assert (read.data == sent.data).all()


@pytest.mark.parametrize('damage', ['empty', 'cut', 'length', 'text', 'noise'])
def test_bytes_that_are_no_message_say_so(damage):
    good = serialize_message(
        conversions.MAKER.make_image(np.eye(8, dtype=np.uint8), 'mono8', Header(frame_id='optical'))
    )
    data = {
        'empty': b'',
        'cut': good[:50],
        'length': good[:-68] + b'\xff\xff\xff\x7f' + good[-64:],
        'text': good.replace(b'optical', b'opti\xff\xfe\x80'),
        'noise': np.random.default_rng(0).bytes(300),
    }[damage]
    with pytest.raises(ValueError, match=f'{len(data)} bytes that are no sensor_msgs/msg/Image'):
        serialized.deserialize(data, 'sensor_msgs/msg/Image')
