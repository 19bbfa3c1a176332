"""Depth images and points, without ROS."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from raw_images import raw_image

from cliptrase_ros.messages.depth import (
    DEPTH_ENCODINGS,
    back_project,
    check_depth,
    depth_in_metres,
    labelled_points,
)
from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import CameraModel, model_rays

SIZES = st.tuples(st.integers(1, 8), st.integers(1, 8))


@given(npst.arrays(np.uint16, SIZES), st.integers(0, 5), st.booleans())
def test_millimetres(values, padding, big):
    stored = values.astype('>u2' if big else '<u2')
    for encoding in ('16UC1', 'mono16'):
        depth = depth_in_metres(raw_image(stored, encoding, padding, int(big)))
        assert depth.dtype == np.float32 and depth.shape == values.shape
        assert (np.isnan(depth) == (values == 0)).all()
        np.testing.assert_allclose(depth[values > 0], values[values > 0] / 1000, rtol=1e-6)


ODD = [float(np.float32(v)) for v in (0, -0.0, -1, np.nan, np.inf, -np.inf, 1e-30, 3.4e38, 1.5)]


@given(
    npst.arrays(np.float32, SIZES, elements=st.sampled_from(ODD) | st.floats(width=32)),
    st.integers(0, 5),
    st.booleans(),
)
def test_metres(values, padding, big):
    stored = values.astype('>f4' if big else '<f4')
    depth = depth_in_metres(raw_image(stored, '32FC1', padding, int(big)))
    measured = np.isfinite(values) & (values > 0)
    assert (np.isnan(depth) == ~measured).all()
    assert (depth[measured] == values[measured]).all()


@given(
    st.sampled_from(sorted(DEPTH_ENCODINGS)),
    *(st.integers(0, 2**32 - 1) | st.integers(0, 12) for _ in range(3)),
    st.binary(max_size=200),
)
@example('32FC1', 4_000_000_000, 1, 2**32 - 1, b'')
def test_depth_that_is_accepted_converts(encoding, width, height, step, data):
    image = SimpleNamespace(
        width=width, height=height, encoding=encoding, step=step, is_bigendian=0, data=data
    )
    try:
        check_depth(image)
    except ImageError as error:
        assert str(error)
        with pytest.raises(ImageError):
            depth_in_metres(image)
    else:
        assert depth_in_metres(image).shape == (height, width)


@given(
    npst.arrays(np.float32, SIZES, elements=st.floats(0.25, 64.0, width=32)),
    st.floats(20, 2000),
    st.floats(20, 2000),
    st.floats(-10, 10),
    st.floats(-10, 10),
)
def test_points_project_back_to_their_pixels(depth, fx, fy, cx, cy):
    height, width = depth.shape
    x, y, z = back_project(depth, model_rays(CameraModel(fx, fy, cx, cy), width, height))
    np.testing.assert_array_equal(z, depth)
    rows, columns = np.indices(depth.shape)
    np.testing.assert_allclose(x / depth * fx + cx, columns, atol=1e-3)
    np.testing.assert_allclose(y / depth * fy + cy, rows, atol=1e-3)


def test_pixels_without_depth_keep_colour_and_label():
    depth = np.array([[1.0, np.nan]], np.float32)
    picture = np.array([[[1, 2, 3], [255, 0, 128]]], np.uint8)
    points = labelled_points(
        depth,
        np.zeros((2, 1, 2), np.float32),
        picture,
        np.array([[7, 255]], np.uint8),
        np.array([[255, 0]], np.uint8),
    )
    assert points['rgb'].view(np.uint32).tolist() == [[0x010203, 0xFF0080]]
    assert points['label'].tolist() == [[7, 255]]
    assert points['confidence'].tolist() == [[1.0, 0.0]]
    assert [bool(np.isnan(points[0, 1][name])) for name in 'xyz'] == [True] * 3
