"""compressedDepth: PNG and RVL, whole millimetres and inverse depth, and what is none of it."""

import struct

import cv2
import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from depth_streams import compressed_depth, encode_depth, encode_rvl, quantise
from hypothesis import example, given
from hypothesis import strategies as st

from cliptrase_ros.messages.compressed_depth import check_compressed_depth, decompress_depth
from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rvl import decode_rvl

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
#: Runs of zeros and of others, near each other and far apart.
PIXELS = arrays.arrays(
    np.uint16, SIZES, elements=st.sampled_from([0, 1, 2, 1000, 1001, 65535]) | st.integers(0, 65535)
)


@given(PIXELS)
def test_rvl_round_trip(pixels):
    data = np.frombuffer(encode_rvl(pixels), np.uint8)
    np.testing.assert_array_equal(decode_rvl(data, pixels.size), pixels.ravel())


def test_rvl_by_hand():
    # 2 zeros, 2 others: +10 (20 = 4, 2 in octal digits, lowest first) and -1 (1); 1 zero, 0 others.
    words = struct.pack('<I', 0x22C21100)
    np.testing.assert_array_equal(decode_rvl(np.frombuffer(words, np.uint8), 5), [0, 0, 10, 9, 0])


@given(PIXELS, st.sampled_from(['png', 'rvl']), st.sampled_from(['16UC1', 'mono16']))
def test_millimetres(pixels, codec, encoding):
    data = encode_depth(pixels, codec)
    depth = decompress_depth(compressed_depth(f'{encoding}; compressedDepth {codec}', data))
    assert depth.dtype == np.float32 and depth.shape == pixels.shape
    assert (np.isnan(depth) == (pixels == 0)).all()
    np.testing.assert_allclose(depth[pixels > 0], pixels[pixels > 0] / 1000, rtol=1e-6)


@given(
    arrays.arrays(np.float32, SIZES, elements=st.floats(0.25, 12.0, width=32)),
    st.sampled_from(['png', 'rvl']),
)
def test_inverse_depth(metres, codec):
    metres[0, 0] = np.nan
    pixels, quantisation = quantise(metres)
    data = encode_depth(pixels, codec, quantisation)
    depth = decompress_depth(compressed_depth(f'32FC1; compressedDepth {codec}', data))
    is_near = metres < 10
    assert (np.isnan(depth) == ~is_near).all()
    # A step of the inverse is z^2 / 10100 of depth.
    error = np.abs(depth - metres)[is_near]
    assert (error <= 1.01 * metres[is_near] * depth[is_near] / 10100).all()


def test_old_publishers_do_not_name_the_codec():
    pixels = np.array([[0, 1500]], np.uint16)
    image = compressed_depth('16UC1; compressedDepth', encode_depth(pixels, 'png'))
    np.testing.assert_allclose(decompress_depth(image), [[np.nan, 1.5]], rtol=1e-6)


ONES = np.ones((4, 6), np.uint16)
PNG, RVL = encode_depth(ONES, 'png'), encode_depth(ONES, 'rvl')


def rvl(width, height, *words):
    return bytes(12) + struct.pack(f'<II{len(words)}I', width, height, *words)


@pytest.mark.parametrize(
    ('format', 'data', 'reason'),
    [
        ('16UC1; compressedDepth png', PNG[:7], '7 bytes of compressed depth, whose header'),
        ('16UC1; compressedDepth png', PNG[:12], '12 bytes of compressed depth, whose header'),
        ('16UC1; compressedDepth png', b'', '0 bytes'),
        ('16UC1; compressedDepth rvl', RVL[:19], '7 bytes of RVL'),
        ('32FC1; compressedDepth png', PNG, 'quantisation 0, 0'),
        ('32FC1; compressedDepth rvl', encode_depth(ONES, 'rvl', (np.nan, 0)), 'quantisation nan'),
        ('32FC1; compressedDepth png', encode_depth(ONES, 'png', (1, np.inf)), 'quantisation 1, i'),
        ('16UC1; compressedDepth zstd', PNG, "'16UC1; compressedDepth zstd' is not known"),
        ('bgr8; compressedDepth png', PNG, "'bgr8; compressedDepth png' is not known"),
        ('16UC1; png compressed ', PNG, 'not known as compressed depth'),
        ('', PNG, "format '' is not known"),
        ('16UC1; compressedDepth png', RVL, 'without a PNG'),
        ('16UC1; compressedDepth png', PNG[12:], 'without a PNG'),
        ('16UC1; compressedDepth png', PNG[:-9], 'cut short'),
        ('16UC1; compressedDepth rvl', rvl(0, 4, 0), '0 x 4'),
        ('16UC1; compressedDepth rvl', rvl(2**31, 2**31, 0), 'is larger than'),
        ('16UC1; compressedDepth rvl', rvl(16384, 16384, 0), 'is larger than'),
    ],
)
def test_what_is_refused_before_decoding(format, data, reason):
    image = compressed_depth(format, data)
    for read in (check_compressed_depth, decompress_depth):
        with pytest.raises(ImageError, match=reason):
            read(image)


def eight_bits(codec='.png', channels=1):
    return bytes(12) + cv2.imencode(codec, np.zeros((4, 6, channels), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ('codec', 'data', 'reason'),
    [
        ('png', eight_bits(), 'not of 16 bits'),
        ('png', eight_bits(channels=3), 'not of 16 bits'),
        ('rvl', RVL[:-4], 'cut short'),
        ('rvl', rvl(6, 4), 'cut short'),
        ('rvl', rvl(6, 4, 0, 0), 'cut short'),
        ('rvl', rvl(6, 4, *[0] * 100), 'longer than any'),
        # One number of all nibbles; more others than there are pixels, than there are data.
        ('rvl', rvl(6, 4, 0xFFFFFFFF, 0xFFFFFFF0), 'damaged'),
        ('rvl', rvl(6, 4, 0x0A400000), 'damaged'),
        ('rvl', rvl(6, 4, 0x0FFFFFFF, 0xFFF70000), 'damaged'),
        ('rvl', rvl(6, 4, 0xFFFFFFFF, 0xFF70FFFF, 0xFFFFFFF7), 'damaged'),
    ],
)
def test_what_cannot_be_decoded(codec, data, reason):
    with pytest.raises(ImageError, match=reason):
        decompress_depth(compressed_depth(f'16UC1; compressedDepth {codec}', data))


@given(
    st.sampled_from(['16UC1', '32FC1']),
    st.sampled_from(['png', 'rvl', '']),
    st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: RVL[:20] + tail),
)
@example('16UC1', 'rvl', RVL[:20] + b'\xff' * 40)
def test_whatever_bytes_are_read_or_refused(encoding, codec, data):
    try:
        depth = decompress_depth(compressed_depth(f'{encoding}; compressedDepth {codec}', data))
    except ImageError as error:
        assert str(error)
    else:
        assert depth.dtype == np.float32 and depth.ndim == 2
