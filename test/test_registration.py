"""Depth of another size or calibration than the image."""

from types import SimpleNamespace

import numpy as np
import pytest
from raw_images import camera_info, pixel_rays

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import CameraModel, camera_model
from cliptrase_ros.messages.registration import (
    Calibration,
    depth_and_rays,
    depth_camera_model,
    register_depth,
)
from cliptrase_ros.toybox.renderer import intrinsics
from cliptrase_ros.toybox.scenes import sample_room
from cliptrase_ros.toybox.sequences import photograph

COLOUR = CameraModel(80.0, 80.0, 63.5, 47.5)


def numbered(height, width):
    """Depth that differs in every pixel."""
    return np.arange(1, height * width + 1, dtype=np.float32).reshape(height, width)


def header(frame_id):
    return SimpleNamespace(frame_id=frame_id)


def test_depth_of_the_same_pixels_is_taken_as_it_is():
    depth = numbered(96, 128)
    assert register_depth(depth, None, COLOUR, 128, 96) is depth
    assert register_depth(depth, COLOUR, COLOUR, 128, 96) is depth


@pytest.mark.parametrize('has_camera', [True, False])
@pytest.mark.parametrize('factor', [2, 3])
def test_smaller_and_larger_by_a_whole_factor(has_camera, factor):
    small = CameraModel(10.0, 10.0, 4.0, 2.5)
    large = CameraModel(10.0 * factor, 10.0 * factor, 4.5 * factor - 0.5, 3.0 * factor - 0.5)
    depth = numbered(6, 9)
    spread = register_depth(depth, small if has_camera else None, large, 9 * factor, 6 * factor)
    np.testing.assert_array_equal(spread, depth.repeat(factor, 0).repeat(factor, 1))
    depth = numbered(6 * factor, 9 * factor)
    picked = register_depth(depth, large if has_camera else None, small, 9, 6)
    # The nearest centres; of some that are as near, any.
    row, column = np.divmod(picked.astype(int) - 1, 9 * factor)
    rows, columns = np.indices(picked.shape)
    assert np.abs(row - (factor * (rows + 0.5) - 0.5)).max() <= 0.5
    assert np.abs(column - (factor * (columns + 0.5) - 0.5)).max() <= 0.5


@pytest.mark.parametrize('shape', [(40, 64), (48, 60), (72, 96), (96, 64), (48, 128), (5, 7)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ImageError, match=f'depth is of {shape[1]} x {shape[0]} pixels, the image'):
        register_depth(np.ones(shape, np.float32), None, COLOUR, 128, 96)


def test_depth_of_equal_size_by_another_lens_is_not_taken_by_index():
    # Twice the focal length: the inner quarter of the image, and nothing else.
    depth = numbered(96, 128)
    found = register_depth(depth, CameraModel(160.0, 160.0, 63.5, 47.5), COLOUR, 128, 96)
    rows, columns = np.indices(found.shape)
    right, down = 2 * columns - 63.5, 2 * rows - 47.5
    is_seen = (np.abs(right - 63.5) <= 64) & (np.abs(down - 47.5) <= 48)
    np.testing.assert_array_equal(np.isfinite(found), is_seen)
    found_right, found_down = (found[is_seen] - 1) % 128, (found[is_seen] - 1) // 128
    assert np.abs(found_right - right[is_seen]).max() <= 0.5
    assert np.abs(found_down - down[is_seen]).max() <= 0.5


def test_distorted_image_takes_depth_of_the_rays_of_its_pixels():
    info = camera_info(128, 96, 80.0, d=(-0.2, 0.05, 0, 0))
    camera, depth_camera = camera_model(info, 128, 96), CameraModel(80.0, 80.0, 79.5, 59.5)
    found = register_depth(numbered(120, 160), depth_camera, camera, 128, 96)
    assert found[48, 64] == numbered(120, 160)[60, 80]
    # In the corner a barrel distorted image looks farther out than its pixel says.
    row, column = divmod(int(found[4, 4]) - 1, 160)
    assert column < 79.5 - 59.5 and row < 59.5 - 43.5


@pytest.mark.parametrize('scale', [0.5, 2, 0.75])
def test_depth_of_the_toy_world_at_another_size(scale):
    """Depth rendered at another size is that of the image's pixels."""
    room = sample_room(3, 'held_out')
    height, width = 48, 64
    model = CameraModel(*intrinsics(height, width))
    true = photograph(room, 1.0, height, width).depth
    size = round(height * scale), round(width * scale)
    depth = photograph(room, 1.0, *size).depth
    found = register_depth(depth, CameraModel(*intrinsics(*size)), model, width, height)
    error = np.abs(found - true)
    # But for edges of things, and slanted floors half a pixel on.
    assert np.isfinite(found).all() and np.quantile(error / true, 0.9) < 0.03
    shifted = np.abs(np.roll(found, 2, axis=1) - true)
    assert np.mean(error) < 0.5 * np.mean(shifted)


def test_camera_info_of_depth():
    info = camera_info(64, 48, 50.0, header=header('optical'))
    assert depth_camera_model(info, header('/optical'), (48, 64), False) == CameraModel(
        50.0, 50.0, 31.5, 23.5
    )
    # It says nothing of depth that is not calibrated, or was brought into another frame.
    assert depth_camera_model(None, header(''), (48, 64), False) is None
    assert depth_camera_model(info, header('colour'), (48, 64), False) is None
    for fields in ({'k': (0.0,) * 9}, {'p': (0.0,) * 12}):
        uncalibrated = camera_info(64, 48, header=header(''), **fields)
        is_rectified = 'p' in fields
        assert depth_camera_model(uncalibrated, header(''), (48, 64), is_rectified) is None
    with pytest.raises(ImageError, match='of depth, camera_info is of 64 x 48 pixels'):
        depth_camera_model(info, header(''), (24, 32), False)


def test_depth_and_rays_of_an_image():
    info = camera_info(64, 48, 50.0, d=(-0.2, 0.05, 0, 0))
    calibration = Calibration(info, None, False, False)
    depth = numbered(24, 32)
    for frames in (('/a', 'a'), ('', 'a'), ('a', '')):
        found, rays = depth_and_rays(depth, *map(header, frames), (48, 64), calibration)
        np.testing.assert_array_equal(found, depth.repeat(2, 0).repeat(2, 1))
        assert rays is pixel_rays(info, 64, 48)
    with pytest.raises(ImageError, match="depth is in frame 'b', the image in 'a'"):
        depth_and_rays(depth, header('b'), header('a'), (48, 64), calibration)
