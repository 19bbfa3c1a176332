"""Messages to arrays and back."""

import sys

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import hypothesis.extra.numpy as arrays
from cliptrase_ros.msg import ClassMask
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sensor_msgs.msg import Image, PointField, RegionOfInterest
from std_msgs.msg import Header

from cliptrase_ros.messages import images
from cliptrase_ros.messages.depth import labelled_points
from cliptrase_ros.messages.images import (
    ENCODINGS,
    ImageError,
    check_compressed_stream,
    check_image,
    decompress_to_rgb,
)
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.ros import conversions
from cliptrase_ros.ros.conversions import MAKER, decode_mask, points_message, to_rgb
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

CHANNELS = {'mono': 1, 'rgb': 3, 'bgr': 3, 'rgba': 4, 'bgra': 4}
BAYER = {'rggb': 'RGGB', 'bggr': 'BGGR', 'gbrg': 'GBRG', 'grbg': 'GRBG'}
YUV422 = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv')


def raw_message(encoding, height, width, pixel_bytes, data, rows=None):
    rows = rows or height
    return Image(
        encoding=encoding, height=height, width=width, step=width * pixel_bytes, data=bytes(data)
    )


def message_of(encoding, color, height=6, width=8):
    """An image of one RGB colour in any encoding; YUV only in grey."""
    red, green, blue = color
    if encoding.startswith('bayer_'):
        pattern = encoding[6:10]
        tile = np.array([{'r': red, 'g': green, 'b': blue}[c] for c in pattern], np.uint8)
        pixels = np.tile(tile.reshape(2, 2), (height // 2, width // 2))
    elif encoding.startswith(('rgb', 'bgr', '8UC3', '8UC4')):
        order = color if encoding.startswith('rgb') else color[::-1]
        channels = 4 if 'a' in encoding or encoding == '8UC4' else 3
        pixels = np.tile(np.array([*order, 9][:channels], np.uint8), (height, width, 1))
    elif encoding.startswith(('mono', '8UC1')):
        pixels = np.full((height, width), red, np.uint8)
    else:
        # BT.601, limited range: what OpenCV and ROS mean by these.
        luma = round(16 + red * 219 / 255)
        if encoding in ('nv12', 'nv21'):
            pixels = np.full((height * 3 // 2, width), 128, np.uint8)
            pixels[:height] = luma
            return raw_message(encoding, height, width, 1, pixels.tobytes())
        first = luma if encoding in ('yuv422_yuy2', 'yuyv') else 128
        pixels = np.tile(np.array([first, luma + 128 - first], np.uint8), (height, width, 1))
    if encoding.endswith('16'):
        pixels = pixels.astype(np.uint16) * 257
    message = MAKER.make_image(pixels, encoding, Header())
    assert message.step == len(message.data) // height
    return message


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_keeps_size_and_colour(encoding):
    grey = encoding.startswith(('mono', '8UC1', 'nv', 'yuv', 'uyvy', 'yuyv'))
    color = (90, 90, 90) if grey else (200, 120, 40)
    rgb = to_rgb(message_of(encoding, color))
    assert rgb.shape == (6, 8, 3) and rgb.dtype == np.uint8 and rgb.flags.c_contiguous
    # Mosaics are interpolated: exact inside, and OpenCV repeats the edge.
    np.testing.assert_allclose(rgb.astype(int), np.broadcast_to(color, rgb.shape), atol=1)


def test_yuv_chroma_is_not_swapped():
    for encoding, red in (
        ('uyvy', [90, 81, 240, 81]),
        ('yuv422', [90, 81, 240, 81]),
        ('yuyv', [81, 90, 81, 240]),
        ('yuv422_yuy2', [81, 90, 81, 240]),
    ):
        rgb = to_rgb(raw_message(encoding, 2, 2, 2, red * 2))
        np.testing.assert_allclose(rgb.astype(int), np.broadcast_to((255, 0, 0), rgb.shape), atol=4)
    for encoding, red in (('nv12', [90, 240]), ('nv21', [240, 90])):
        rgb = to_rgb(raw_message(encoding, 2, 2, 1, [81] * 4 + red))
        np.testing.assert_allclose(rgb.astype(int), np.broadcast_to((255, 0, 0), rgb.shape), atol=4)


@st.composite
def encoded_images(draw):
    """A message of random pixels in any encoding, and how many rows its buffer has."""
    encoding = draw(st.sampled_from(ENCODINGS))
    height, width = 2 * draw(st.integers(2, 6)), 2 * draw(st.integers(2, 6))
    spec = images.ENCODING_TABLE[encoding]
    rows = int(height * spec.planes)
    row = width * spec.channels * spec.bits // 8
    data = draw(arrays.arrays(np.uint8, (rows, row)))
    if encoding == 'mono16':
        data[0, :4] = 0, 0, 255, 255  # something to see
    image = Image(encoding=encoding, height=height, width=width, step=row, data=data.tobytes())
    return image, data


@given(encoded_images(), st.integers(1, 9))
def test_padded_rows_equal_unpadded(drawn, padding):
    image, data = drawn
    expected = to_rgb(image)
    assert expected.shape == (image.height, image.width, 3)
    padded = np.pad(data, ((0, 0), (0, padding)), constant_values=0xA5)
    image.step += padding
    image.data = padded.tobytes()
    np.testing.assert_array_equal(to_rgb(image), expected)
    image.data = padded.tobytes()[:-padding]
    np.testing.assert_array_equal(to_rgb(image), expected)


@given(encoded_images().filter(lambda drawn: drawn[0].encoding.endswith('16')))
def test_big_endian_equals_little_endian(drawn):
    image, data = drawn
    expected = to_rgb(image)
    image.is_bigendian = 1
    image.data = data.view(np.uint16).byteswap().tobytes()
    np.testing.assert_array_equal(to_rgb(image), expected)


@given(encoded_images(), st.binary(max_size=40))
def test_what_is_accepted_converts_and_what_is_not_says_so(drawn, noise):
    """Fields overwritten at random: an array of the promised size, or an ImageError."""
    image, _ = drawn
    if noise:
        image.width = (image.width + noise[0]) % 64
        image.height = (image.height + noise[-1]) % 64
        image.step = (image.step * noise[len(noise) // 2]) % 1024
        image.data = (bytes(image.data) * 4)[: noise[0] * 16]
    try:
        rgb = to_rgb(image)
    except ImageError as error:
        assert str(error)
    else:
        assert rgb.shape == (image.height, image.width, 3)


def test_sixteen_bits_are_scaled_and_rounded():
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65535]], np.uint16)
    rgb = to_rgb(MAKER.make_image(values, 'mono16', Header()))
    assert rgb[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()


def test_array_does_not_change_with_the_message():
    image = MAKER.make_image(np.full((4, 4, 3), 5, np.uint8), 'rgb8', Header())
    rgb = to_rgb(image)
    # cv_bridge, where it is installed, shares nothing.
    shared = images.to_rgb(image, may_share=True)
    image.data[0] = 99
    assert rgb[0, 0, 0] == 5
    assert shared[0, 0, 0] == 99


def test_counts_of_a_thermal_camera_are_refused():
    """Whether cv_bridge reads them or not; and by name where the encoding is no picture's."""
    counts = np.linspace(7800, 8600, 48, dtype=np.uint16).reshape(6, 8)
    with pytest.raises(ImageError, match='mono16 image of 7800 to 8600 where 0 is black'):
        to_rgb(MAKER.make_image(counts, 'mono16', Header()))
    with pytest.raises(ImageError, match='thermal'):
        check_image(MAKER.make_image(counts, '16UC1', Header()))


def test_a_compressed_mosaic_is_read_as_the_raw_one():
    mosaic = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    png = MAKER.make_compressed_label(mosaic, Header())
    png.format = 'bayer_grbg8; png compressed '
    check_compressed_stream(png)
    raw = to_rgb(MAKER.make_image(mosaic, 'bayer_grbg8', Header()))
    np.testing.assert_array_equal(decompress_to_rgb(png), raw)
    assert np.ptp(raw, axis=2).max() > 50


def test_odd_sized_chroma_and_mosaic_too_small_are_refused():
    for encoding, height, width in (
        ('nv12', 3, 4),
        ('nv21', 4, 3),
        ('yuyv', 4, 3),
        ('bayer_rggb8', 2, 8),
    ):
        image = raw_message(encoding, height, width, 2, bytes(200))
        with pytest.raises(ImageError):
            check_image(image)


def test_mask_that_does_not_fit_is_refused():
    message = ClassMask(roi=RegionOfInterest(height=4, width=4), run_lengths=[0, 16])
    assert decode_mask(message, 4, 4).all()
    with pytest.raises(ValueError, match='reaches out'):
        decode_mask(message, 3, 4)
    message.run_lengths = [0, 15]
    with pytest.raises(ValueError, match='add up to 15'):
        decode_mask(message, 4, 4)


@given(arrays.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 255])))
def test_masks_message_is_the_label_image(label):
    vocabulary = parse_vocabulary(['a', 'b', 'c'])
    confidence = np.full(label.shape, 51, np.uint8)
    result = Segmentation(label, confidence, vocabulary)
    message = MAKER.make_masks(LabelledPicture(Header(frame_id='f'), None, result))
    assert message.header.frame_id == 'f' and message.vocabulary_version == 1
    drawn = np.full(label.shape, 255, np.uint8)
    for mask in message.masks:
        where = decode_mask(mask, message.height, message.width)
        drawn[where] = mask.class_id
        assert mask.area == where.sum() == sum(mask.run_lengths[1::2])
        assert sum(mask.run_lengths) == mask.roi.height * mask.roi.width
        assert mask.confidence == pytest.approx(0.2)
        assert mask.instances == ndimage.label(where, np.ones((3, 3)))[1]
    np.testing.assert_array_equal(drawn, label)
    assert [m.class_id for m in message.masks] == sorted(set(label.ravel().tolist()) - {255})


def test_vocabulary_message():
    vocabulary = parse_vocabulary('road: street; Käse', ['sky'])
    message = MAKER.make_vocabulary(vocabulary, Header())
    assert [c.name for c in message.classes] == ['road', 'Käse']
    assert list(message.classes[0].synonyms) == ['street'] and list(message.background) == ['sky']
    assert message.classes[0].color.r == pytest.approx(vocabulary.classes[0].color[0] / 255)


def test_images_are_not_filled_byte_by_byte(monkeypatch):
    """With checks of fields on, anything but an array is checked byte by byte: half a second."""
    monkeypatch.setattr('sensor_msgs.msg._image.ros_python_check_fields', '1')
    pixels = np.zeros((108, 192, 3), np.uint8)
    steps = []

    def trace(frame, event, _):
        steps.append(event)
        return trace

    sys.settrace(trace)
    try:
        MAKER.make_image(pixels, 'rgb8', Header())
    finally:
        sys.settrace(None)
    assert len(steps) < 1000


def points(height=3, width=4):
    generator = np.random.default_rng(0)
    return labelled_points(
        generator.uniform(0.5, 9.0, (height, width)).astype(np.float32),
        model_rays(CameraModel(50.0, 60.0, 1.5, 1.0), width, height),
        generator.integers(0, 256, (height, width, 3), np.uint8),
        *(generator.integers(0, 256, (height, width), np.uint8) for _ in range(2)),
    )


def test_points_message_is_the_array():
    header = Header(frame_id='optical')
    cloud = points_message(points(), header)
    assert (cloud.height, cloud.width, cloud.row_step) == (3, 4, 4 * cloud.point_step)
    dtype = np.dtype(
        {
            'names': [field.name for field in cloud.fields],
            'formats': [
                {PointField.FLOAT32: 'f4', PointField.UINT32: 'u4'}[f.datatype]
                for f in cloud.fields
            ],
            'offsets': [field.offset for field in cloud.fields],
            'itemsize': cloud.point_step,
        }
    )
    np.testing.assert_array_equal(np.frombuffer(cloud.data, dtype).reshape(3, 4), points())
    assert cloud.header == header


def test_own_points_equal_those_of_sensor_msgs_py(monkeypatch):
    point_cloud2 = pytest.importorskip(
        'sensor_msgs_py.point_cloud2', reason='sensor_msgs_py is not installed'
    )
    theirs = points_message(points(), Header(frame_id='optical'))
    assert conversions._create_cloud is not None
    monkeypatch.setattr(conversions, '_create_cloud', None)
    assert points_message(points(), Header(frame_id='optical')) == theirs
    read = point_cloud2.read_points(theirs)
    np.testing.assert_array_equal(read, points().ravel())


def test_own_conversion_equals_cv_bridge():
    cv_bridge = pytest.importorskip('cv_bridge', reason='cv_bridge is not installed')
    bridge = cv_bridge.CvBridge()
    generator = np.random.default_rng(0)
    compared = 0
    for encoding in ENCODINGS:
        spec = images.ENCODING_TABLE[encoding]
        dtype = np.uint16 if spec.bits == 16 else np.uint8
        shape = (12, 16) if spec.channels == 1 else (12, 16, spec.channels)
        pixels = generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        image = MAKER.make_image(pixels, encoding, Header())
        if spec.planes == 1 and conversions._cv_bridge_reads(image):
            theirs = bridge.imgmsg_to_cv2(image, 'rgb8')
            np.testing.assert_array_equal(images.to_rgb(image), theirs, encoding)
            compared += 1
    assert compared > 10
