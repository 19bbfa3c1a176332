"""Pixels of messages, without ROS: the fields are what counts."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cliptrase_ros.image_messages import (
    ENCODING_TABLE,
    ENCODINGS,
    ImageError,
    check_image,
    decode_mask,
    decompress_to_rgb,
    label_run_lengths,
    run_lengths,
    to_rgb,
)
from cliptrase_ros.segmentation.runs import find_runs

PICTURES = npst.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


def message(pixels, encoding, padding=0, is_bigendian=0, data=None):
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return SimpleNamespace(
        width=width,
        height=height,
        encoding=encoding,
        step=rows.shape[1],
        is_bigendian=is_bigendian,
        data=rows.ravel() if data is None else data,
    )


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
        image = message(stored, encoding, padding)
        image.data = container(image.data)
        result = to_rgb(image)
        assert (result == pixels).all()
        assert result.flags['C_CONTIGUOUS']
        assert not np.may_share_memory(result, image.data)
        assert (to_rgb(image, may_share=True) == pixels).all()


@given(PICTURES, st.booleans())
def test_sixteen_bits(pixels, big):
    stored = (pixels.astype(np.uint16) * 257).astype('>u2' if big else '<u2')
    assert (to_rgb(message(stored, 'rgb16', 4, int(big))) == pixels).all()
    grey = stored[..., 0]
    assert (to_rgb(message(grey, 'mono16', 2, int(big))) == pixels[..., :1]).all()


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_every_encoding_of_grey_is_grey(encoding):
    kind = ENCODING_TABLE[encoding]
    dtype = np.uint16 if kind.bits == 16 else np.uint8
    value = 128 * 257 if kind.bits == 16 else 128
    rows = int(8 * kind.planes)
    image = message(np.full((rows, 8, kind.channels), value, dtype), encoding)
    image.height = 8
    result = to_rgb(image)
    assert result.shape == (8, 8, 3)
    assert np.abs(result.astype(int) - 128).max() <= 3


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        ({'width': 0}, 'fill in width'),
        ({'height': 20000}, 'larger than'),
        ({'encoding': '16UC1'}, 'not known as a picture'),
        ({'encoding': 'nv12', 'width': 7}, 'even sides'),
        ({'step': 20}, 'step is 20'),
        ({'data': b'short'}, '5 bytes of data'),
    ],
)
def test_refused(changes, text):
    image = message(np.zeros((8, 8, 3), np.uint8), 'rgb8')
    check_image(image)
    for name, value in changes.items():
        setattr(image, name, value)
    with pytest.raises(ImageError, match=text):
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
