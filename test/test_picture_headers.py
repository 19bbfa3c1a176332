"""Sizes of JPEG and PNG before anything is decoded, and compressed images that lie."""

import struct
import sys
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliptrase_ros.messages.images import (
    ImageError,
    check_compressed_stream,
    compress_label,
    decompress_to_rgb,
)
from cliptrase_ros.messages.picture_headers import picture_size


def encoded(suffix, height=20, width=30, *options, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    _, data = cv2.imencode(suffix, pixels, list(options))
    return data.tobytes()


def message(data):
    return SimpleNamespace(format='jpeg', data=data)


JPEGS = (
    encoded('.jpg'),
    encoded('.jpg', 9, 300, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    encoded('.jpg', 64, 64, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
)
PNGS = (encoded('.png'), encoded('.png', 300, 9))


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(['.jpg', '.png']))
def test_size_is_that_of_the_decoder(height, width, suffix):
    data = encoded(suffix, height, width)
    assert picture_size(data) == (width, height)
    check_compressed_stream(message(data))
    assert decompress_to_rgb(message(data)).shape == (height, width, 3)


def test_segments_and_filling_before_the_size_are_skipped():
    plain = JPEGS[0]
    # A thumbnail has a size and an end of its own.
    thumbnail = b'\xff\xe1' + struct.pack('>H', 2 + len(JPEGS[1])) + JPEGS[1]
    data = plain[:2] + b'\xff\xff\xff' + thumbnail + plain[2:]
    assert picture_size(data) == (30, 20)
    with pytest.raises(ValueError, match='cut short'):
        picture_size(data[:-2])


def test_what_is_neither_has_no_size():
    for data in (b'', b'\xff', b'hello', encoded('.bmp'), encoded('.webp')):
        assert picture_size(data) is None
        with pytest.raises(ImageError, match='neither JPEG nor PNG'):
            check_compressed_stream(message(data))


@pytest.mark.parametrize('data', [*JPEGS, *PNGS])
def test_every_cut_is_refused(data):
    for length in range(len(data) if len(data) < 4000 else 4000):
        with pytest.raises(ImageError):
            check_compressed_stream(message(data[:length]))


@given(
    st.sampled_from(JPEGS + PNGS),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damage_is_refused_or_gives_a_picture_of_the_promised_size(data, changes):
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        check_compressed_stream(message(bytes(damaged)), max_pixels=100_000)
        width, height = picture_size(bytes(damaged))
        rgb = decompress_to_rgb(message(bytes(damaged)), max_pixels=100_000)
    except ImageError as error:
        assert str(error)
    else:
        assert rgb.shape == (height, width, 3)


@given(st.binary(max_size=300), st.sampled_from([b'', b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n']))
def test_noise_is_refused(data, start):
    with pytest.raises(ImageError):
        decompress_to_rgb(message(start + data))


@pytest.mark.parametrize(
    'part', [b'\xff', b'\xff\0', b'\xff\x01', b'\xff\xe0\0\2', b'\xff\xe0\0\0', b'x']
)
def test_a_header_made_to_be_searched_for_ever_is_not(part):
    """Megabytes of it: in Python, a loop over each part would take seconds."""
    data = b'\xff\xd8\xff' + part * (4_000_000 // len(part))
    steps = []

    def trace(frame, event, _):
        steps.append(event)
        return trace

    sys.settrace(trace)
    try:
        with pytest.raises(ValueError, match='JPEG'):
            picture_size(data)
    finally:
        sys.settrace(None)
    assert len(steps) < 20_000


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


@pytest.mark.parametrize('side', [12_000, 60_000, 2**31 - 1])
def test_a_few_bytes_cannot_ask_for_gigabytes(side):
    png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    png += chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
    at = JPEGS[0].index(b'\xff\xc0') + 5
    jpeg = JPEGS[0][:at] + struct.pack('>HH', *[min(side, 65_535)] * 2) + JPEGS[0][at + 4 :]
    for data in (png, jpeg):
        for read in (check_compressed_stream, decompress_to_rgb):
            with pytest.raises(ImageError, match='megapixels'):
                read(message(data))


@pytest.mark.parametrize('length', [100_000, 2**31 - 1, 2**32 - 1])
def test_a_part_longer_than_the_file_is_refused(length):
    """Decoders allocate what it claims to hold."""
    png = bytearray(PNGS[0])
    png[33:37] = struct.pack('>I', length)
    with pytest.raises(ImageError, match='a PNG that is cut short'):
        check_compressed_stream(message(bytes(png)))


def test_a_file_of_empty_parts_is_refused():
    with pytest.raises(ImageError, match='a PNG of more parts'):
        check_compressed_stream(
            message(PNGS[0][:33] + 200_000 * chunk(b'tEXt', b'') + PNGS[0][33:])
        )


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_compressed_labels_keep_every_id(height, width, seed):
    label = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    data = np.frombuffer(compress_label(label), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), label)
