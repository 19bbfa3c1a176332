"""Pixels of messages, without ROS: the fields are what counts."""

import io
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from raw_images import raw_image

from cliptrase_ros.messages.images import (
    ENCODING_TABLE,
    ENCODINGS,
    ImageError,
    check_compressed_stream,
    check_image,
    decompress_to_rgb,
    to_rgb,
)
from cliptrase_ros.messages.masks import decode_mask, label_run_lengths, run_lengths
from cliptrase_ros.segmentation.run_lengths import find_runs

PICTURES = npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(PICTURES, st.integers(0, 5), st.sampled_from([bytes, bytearray, np.asarray]))
def test_orders_of_colours(pixels, padding, container):
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
    for encoding, stored in (
        ('rgb8', pixels),
        ('bgr8', pixels[..., ::-1]),
        ('8UC3', pixels[..., ::-1]),
        ('rgba8', opaque),
        ('bgra8', opaque[..., [2, 1, 0, 3]]),
    ):
        image = raw_image(stored, encoding, padding)
        image.data = container(image.data)
        result = to_rgb(image)
        assert (result == pixels).all()
        assert result.flags['C_CONTIGUOUS']
        assert not np.may_share_memory(result, image.data)
        assert (to_rgb(image, may_share=True) == pixels).all()


@given(PICTURES, st.booleans())
def test_sixteen_bits(pixels, big):
    stored = (pixels.astype(np.uint16) * 257).astype('>u2' if big else '<u2')
    assert (to_rgb(raw_image(stored, 'rgb16', 4, int(big))) == pixels).all()
    # Black on the left and white on the right, so that there is something to see.
    grey = np.pad(stored[..., 0], ((0, 0), (1, 1)), constant_values=((0, 0), (0, 65535)))
    result = to_rgb(raw_image(grey, 'mono16', 2, int(big)))
    assert (result[:, 1:-1] == pixels[..., :1]).all()
    assert (result[:, 0] == 0).all() and (result[:, -1] == 255).all()


def thermal(low, high):
    """What a sensor counted, between two numbers."""
    return np.linspace(low, high, 48, dtype=np.uint16).reshape(6, 8)


@pytest.mark.parametrize('counts', [(7800, 8600), (29_315, 31_000), (0, 1023)])
def test_counts_that_eight_bits_would_not_show_are_refused(counts):
    _, data = cv2.imencode('.png', thermal(*counts))
    packed = SimpleNamespace(format='mono16; png compressed ', data=data)
    for read, image in (
        (to_rgb, raw_image(thermal(*counts), 'mono16')),
        (decompress_to_rgb, packed),
    ):
        with pytest.raises(ImageError, match=rf'mono16 image of {counts[0]} to {counts[1]} '):
            read(image)


def test_dark_and_even_pictures_of_sixteen_bits_are_pictures():
    for low, high in ((0, 4095), (30_000, 30_200), (0, 0)):
        rgb = to_rgb(raw_image(thermal(low, high), 'mono16'))
        assert (rgb.min(), rgb.max()) == (round(low / 257), round(high / 257))


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_of_grey_is_grey(encoding):
    kind = ENCODING_TABLE[encoding]
    dtype = np.uint16 if kind.bits == 16 else np.uint8
    value = 128 * 257 if kind.bits == 16 else 128
    rows = int(8 * kind.planes)
    image = raw_image(np.full((rows, 8, kind.channels), value, dtype), encoding)
    image.height = 8
    result = to_rgb(image)
    assert result.shape == (8, 8, 3)
    assert np.abs(result.astype(int) - 128).max() <= 3


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'width': 0}, 'fill in width'),
        ({'height': 20000}, 'larger than'),
        ({'encoding': 'rgb9'}, "'rgb9' is not known as a picture; publish one of .*bayer_bggr8"),
        ({'encoding': '16UC1'}, "'16UC1' is not known as a picture but as depth, .* thermal"),
        ({'encoding': 'nv12', 'width': 7}, 'even sides'),
        ({'step': 20}, 'step is 20'),
        ({'data': b'short'}, '5 bytes of data'),
    ],
)
def test_refused(changes, text):
    image = raw_image(np.zeros((8, 8, 3), np.uint8), 'rgb8')
    check_image(image)
    for name, value in changes.items():
        setattr(image, name, value)
    with pytest.raises(ImageError, match=text):
        to_rgb(image)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21'])
@pytest.mark.parametrize(('rows', 'padding'), [(2, 0), (8, 56), (62, 3)])
def test_rows_between_the_planes_are_not_chroma(encoding, rows, padding):
    """Hardware decoders work on 16 or 64 rows at a time: 1080 become 1088."""
    planes = np.random.default_rng(rows).integers(0, 256, (36, 32), np.uint8)
    image = raw_image(planes, encoding)
    image.height = 24
    expected = to_rgb(image)
    luma, chroma = (
        np.pad(plane, ((0, more), (0, padding)), constant_values=255)
        for plane, more in ((planes[:24], rows), (planes[24:], rows // 2))
    )
    image.step += padding
    image.data = np.concatenate([luma, chroma]).ravel()
    assert (to_rgb(image) == expected).all()


def test_what_follows_the_planes_is_left_out_or_refused():
    planes = np.random.default_rng(0).integers(0, 256, (1080 * 3 // 2, 64), np.uint8)
    image = raw_image(planes, 'nv12')
    image.height = 1080
    expected = to_rgb(image)
    image.data = bytes(planes) + bytes(4095)
    assert (to_rgb(image) == expected).all()
    image.data += b'x'
    with pytest.raises(ImageError, match='4096 bytes too many to tell where its chroma begins'):
        to_rgb(image)


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp'])
def test_compressed(suffix):
    pixels = np.full((20, 30, 3), (200, 40, 90), np.uint8)
    _, data = cv2.imencode(suffix, pixels[..., ::-1])
    image = SimpleNamespace(format='rgb8; jpeg compressed bgr8', data=bytes(data))
    assert np.abs(decompress_to_rgb(image).astype(int) - pixels).max() <= 6


@pytest.mark.parametrize(
    ('format', 'data', 'text'),
    [
        (
            'mono16; tiff compressed ',
            cv2.imencode('.tiff', np.ones((4, 4), np.float32))[1],
            'float',
        ),
        ('bayer_rggb8; png compressed ', cv2.imencode('.png', np.ones((2, 9)))[1], '9 x 2 pixels'),
        ('h264', b'x', "'h264' is video"),
        ('bgr8; HEVC compressed ', b'x', 'is video'),
        ('jpeg', b'', '0 bytes'),
        ('jpeg', b'no image', '8 bytes'),
        ('16UC1; compressedDepth png', b'x', 'is depth'),
        ('32FC1; compressedDepth', b'x', 'is depth'),
        ('16UC1; png compressed ', b'x', 'is depth'),
    ],
)
def test_compressed_refused(format, data, text):
    with pytest.raises(ImageError, match=text):
        decompress_to_rgb(SimpleNamespace(format=format, data=data))


@pytest.mark.parametrize('format', ['bgr8; tiff compressed ', 'zstd', 'draco', 'jxl', ''])
def test_other_formats_are_refused_by_name_in_a_stream(format):
    _, data = cv2.imencode('.tiff', np.ones((4, 4, 3), np.uint8))
    with pytest.raises(ImageError, match=f"format '{format}' are neither JPEG nor PNG; set the"):
        check_compressed_stream(SimpleNamespace(format=format, data=data))


def scene(bits=8):
    """Red beside blue, grey below, and its mosaic as a camera of pattern rggb sees it."""
    rgb = np.full((48, 64, 3), 128, np.uint8)
    rgb[:24, :32], rgb[:24, 32:] = (200, 30, 40), (20, 60, 220)
    if bits == 16:
        rgb = rgb.astype(np.uint16) * 257
    mosaic = rgb[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    return rgb, mosaic


def packed(format, suffix, pixels):
    return SimpleNamespace(format=format, data=cv2.imencode(suffix, pixels)[1])


@pytest.mark.parametrize(
    ('format', 'suffix', 'bits'),
    [
        ('bayer_rggb8; jpeg compressed bayer_rggb8', '.jpg', 8),
        ('bayer_rggb8; jpeg compressed ', '.jpg', 8),
        ('bayer_rggb16; jpeg compressed ', '.jpg', 8),
        ('bayer_rggb8; png compressed ', '.png', 8),
        ('bayer_rggb8;png compressed', '.png', 8),
        ('bayer_rggb16; png compressed ', '.png', 16),
        ('bayer_rggb8; tiff compressed ', '.tiff', 8),
    ],
)
def test_a_compressed_mosaic_becomes_colours(format, suffix, bits):
    rgb, mosaic = scene(bits)
    result = decompress_to_rgb(packed(format, suffix, mosaic)).astype(int)
    inside = np.s_[4:20, 4:28], np.s_[4:20, 36:60], np.s_[28:44, 4:60]
    for where in inside:
        assert np.abs(result[where] - scene()[0][where]).max() <= 20
    if suffix != '.jpg':
        assert (result == to_rgb(raw_image(mosaic, f'bayer_rggb{bits}'))).all()


@pytest.mark.parametrize(
    ('format', 'suffix'),
    [
        ('mono8; jpeg compressed mono8', '.jpg'),
        ('mono8; png compressed ', '.png'),
        ('jpeg', '.jpg'),
        ('bayer_rggb8; jpeg compressed mono8', '.jpg'),
        ('yuv422_yuy2; jpeg compressed mono8', '.jpg'),
        ('yuv422; jpeg compressed ', '.jpg'),
        ('8UC1; jpeg compressed mono8', '.jpg'),
    ],
)
def test_compressed_grey_stays_grey(format, suffix):
    grey = cv2.cvtColor(scene()[0], cv2.COLOR_RGB2GRAY)
    result = decompress_to_rgb(packed(format, suffix, grey))
    assert (np.ptp(result, 2) == 0).all()
    assert np.abs(result[..., 0].astype(int) - grey).max() <= 20


@pytest.mark.parametrize(
    ('format', 'suffix', 'bits'),
    [
        ('rgb8; jpeg compressed rgb8', '.jpg', 8),
        ('rgb8; jpeg compressed bgr8', '.jpg', 8),
        ('bgr8; jpeg compressed ', '.jpg', 8),
        ('bayer_rggb8; jpeg compressed bgr8', '.jpg', 8),
        ('nv21; jpeg compressed bgr8', '.jpg', 8),
        ('yuv422_yuy2; jpeg compressed bgr8', '.jpg', 8),
        ('jpg', '.jpg', 8),
        ('', '.png', 8),
        ('rgb8; png compressed bgr8', '.png', 8),
        ('bgr8; png compressed', '.png', 16),
        ('rgb16; png compressed bgr16', '.png', 16),
        ('bgr8; tiff compressed ', '.tiff', 8),
        ('rgb8; tiff compressed ', '.tiff', 8),
        ('rgba16; tiff compressed ', '.tiff', 16),
    ],
)
def test_compressed_colours_are_those_of_the_file(format, suffix, bits):
    pixels = scene(bits)[0]
    if format.startswith('rgba'):
        pixels = np.dstack([pixels, pixels[..., 0]])
    # Into a TIFF image_transport writes what lies in memory, whatever its order.
    if not (suffix == '.tiff' and format.startswith('rgb')):
        pixels = pixels[..., ::-1]
    result = decompress_to_rgb(packed(format, suffix, pixels)).astype(int)
    # Colours of JPEG run into each other at the edges.
    inside = np.s_[4:20, 4:28], np.s_[4:20, 36:60], np.s_[28:44, 4:60]
    for where in inside if suffix == '.jpg' else [np.s_[:, :]]:
        assert np.abs(result[where] - scene()[0][where]).max() <= (9 if suffix == '.jpg' else 0)


def test_transparency_and_orientation_are_left_out():
    rgb = scene()[0]
    bgra = np.dstack([rgb[..., ::-1], np.zeros(rgb.shape[:2], np.uint8)])
    assert (decompress_to_rgb(packed('png', '.png', bgra)) == rgb).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, 'jpeg', exif=exif)
    turned = SimpleNamespace(format='jpeg', data=file.getvalue())
    assert decompress_to_rgb(turned).shape == rgb.shape


MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@given(MASKS)
def test_run_lengths_alternate(mask):
    lengths = run_lengths(mask.ravel())
    assert (lengths[1:] > 0).all()
    ones = np.arange(lengths.size) % 2 == 1
    assert (np.repeat(ones, lengths) == mask.ravel()).all()


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@example(np.zeros((1, 1), np.uint8))
def test_run_lengths_of_labels_are_the_label(label):
    label = label % 5
    drawn = np.full(label.shape, 99, np.uint8)
    runs = label_run_lengths(find_runs(label))
    assert sorted(runs) == np.unique(label).tolist()
    for value, (box, lengths) in runs.items():
        assert lengths.dtype == np.uint32 and (lengths[1:] > 0).all()
        rows, columns = np.nonzero(label == value)
        assert (box.x_offset, box.y_offset) == (columns.min(), rows.min())
        assert (box.width, box.height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
        stored = SimpleNamespace(roi=box, run_lengths=lengths)
        where = decode_mask(stored, *label.shape)
        assert (where == (label == value)).all()
        with pytest.raises(ValueError, match='reaches out'):
            decode_mask(stored, label.shape[0], box.x_offset + box.width - 1)
        drawn[where] = value
    assert (drawn == label).all()
