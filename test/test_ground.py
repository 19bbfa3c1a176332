"""Labels on the ground: geometry by hand-computed cases, costs of cells, what is hidden."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptrase_ros.messages.ground import (
    FOOT_M,
    cost_table,
    ground_costs,
    ground_depth,
    pose_of_body,
    pose_of_transform,
    view_ground,
)
from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

DOWN_45 = pose_of_body(0, 0, 1, 0, math.pi / 4, 0)
WORDS = parse_vocabulary(['floor', 'grass', 'box'])
FLOOR, GRASS, BOX = (entry.id for entry in WORDS.classes)
TABLE = cost_table({'Floor': 0, 'grass': 60}, WORDS)


def places(view, camera, pose):
    """Where every pixel is in the ground's frame, (3, H, W)."""
    height, width = view.depth.shape
    rays = np.concatenate([model_rays(camera, width, height), np.ones((1, height, width))])
    return np.tensordot(pose.rotation, rays * view.depth, axes=1) + pose.position[:, None, None]


def test_a_camera_a_metre_high_that_looks_45_degrees_down():
    camera = CameraModel(100.0, 100.0, 100.0, 100.0)
    view = view_ground(camera, 201, 201, DOWN_45, range_m=5.0, cell_m=0.1)
    x, y, z = places(view, camera, DOWN_45)
    # Along the axis, a metre ahead and a metre down; and as far to the right as it is away.
    assert view.depth[100, 100] == pytest.approx(math.sqrt(2))
    assert (x[100, 100], y[100, 100]) == pytest.approx((1, 0), abs=1e-6)
    assert (x[100, 200], y[100, 200]) == pytest.approx((1, -math.sqrt(2)), abs=1e-6)
    # Straight down, which is 45 degrees below the axis.
    assert view.depth[200, 100] == pytest.approx(math.sqrt(0.5))
    assert (x[200, 100], y[200, 100]) == pytest.approx((0, 0), abs=1e-6)
    # The first row is the horizon, and five metres away is atan(1/5) below it.
    seen = np.flatnonzero(np.isfinite(view.depth[:, 100]))
    first = 100 - 100 * math.tan(math.pi / 4 - math.atan(1 / 5))
    assert seen[0] == math.ceil(first) and np.isnan(view.depth[0]).all()
    assert np.nanmax(abs(z)) < 1e-5
    assert view.origin[0] == pytest.approx(0) and view.shape[1] in (50, 51)


def test_roll_turns_the_horizon():
    camera = CameraModel(50.0, 50.0, 30.0, 20.0)
    pose = pose_of_body(0, 0, 0.5, math.pi / 2, 0, 0)
    view = view_ground(camera, 61, 41, pose, range_m=20.0, cell_m=0.1)
    # Lying on its right side it has the ground there.
    assert np.isnan(view.depth[:, :31]).all() and np.isfinite(view.depth[:, 34:]).all()


def test_poses_of_tf_are_those_of_parameters():
    roll, pitch, yaw = 0.3, 0.5, -2.0
    cr, cp, cy = (math.cos(angle / 2) for angle in (roll, pitch, yaw))
    sr, sp, sy = (math.sin(angle / 2) for angle in (roll, pitch, yaw))
    body = (
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
        cr * cp * cy + sr * sp * sy,
    )
    # From the body to the optical frame, as URDFs have it: rpy = -pi/2 0 -pi/2.
    x, y, z, w = body
    a, b, c, d = -0.5, 0.5, -0.5, 0.5
    optical = (
        w * a + x * d + y * c - z * b,
        w * b - x * c + y * d + z * a,
        w * c + x * b - y * a + z * d,
        w * d - x * a - y * b - z * c,
    )
    transform = SimpleNamespace(
        translation=SimpleNamespace(x=1.0, y=2.0, z=3.0),
        rotation=SimpleNamespace(**dict(zip('xyzw', optical, strict=True))),
    )
    pose = pose_of_transform(transform)
    assert pose.is_near(pose_of_body(1, 2, 3, roll, pitch, yaw))
    assert not pose.is_near(pose_of_body(1, 2, 3, roll, pitch + 0.001, yaw))


CAMERAS = (
    CameraModel(40.0, 40.0, 32.0, 24.0),
    CameraModel(40.0, 40.0, 32.0, 24.0, (-0.2, 0.05, 0.001, -0.001, 0.0)),
    CameraModel(20.0, 20.0, 31.0, 25.0, (0.05, -0.01, 0.0, 0.0), is_fisheye=True),
)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(CAMERAS),
    st.floats(0.1, 0.8),
    st.floats(-0.4, 0.4),
    st.floats(0.3, 1.2),
    st.floats(-3.0, 3.0),
    st.sampled_from((0.02, 0.05, 0.3)),
)
def test_every_place_is_in_its_cell_and_none_is_left_out(camera, height, roll, pitch, yaw, cell_m):
    pose = pose_of_body(3.0, -1.0, height, roll, pitch, yaw)
    view = view_ground(camera, 64, 48, pose, range_m=2.0, cell_m=cell_m)
    x, y, z = places(view, camera, pose)
    seen = np.isfinite(view.depth)
    assert abs(z[seen]).max() < 1e-4
    assert np.hypot(x[seen] - 3, y[seen] + 1).max() < 2.0 + 1e-4
    # Each pixel in the cell that it is in, up to rounding at its border.
    cell = view.cells[view.cell_of_pixel.reshape(48, 64)[seen]]
    rows, columns = np.divmod(cell, view.shape[1])
    for index, metres, origin in ((columns, x, view.origin[0]), (rows, y, view.origin[1])):
        assert abs((metres[seen] - origin) / cell_m - index - 0.5).max() < 0.51
        assert abs(origin / cell_m - round(origin / cell_m)) < 1e-6, 'whole cells'
    # Where pixels are larger than cells, no cell is left out between them.
    grid = ground_costs(view, np.full((48, 64), GRASS, np.uint8), TABLE)
    inner = grid[1:-1, 1:-1]
    around = np.stack([grid[:-2, 1:-1], grid[2:, 1:-1], grid[1:-1, :-2], grid[1:-1, 2:]])
    assert ((inner == 60) | ~(around == 60).all(axis=0)).all()
    # As the edge of the view, so the edge of the grid.
    assert all((grid.max(axis=axis)[[0, -1]] == 60).all() for axis in (0, 1))


def test_far_from_the_origin_it_is_the_same():
    """As in frames of UTM coordinates, where float32 ends at half a metre."""
    views = [
        view_ground(CAMERAS[0], 64, 48, pose_of_body(x, y, 0.5, 0, 0.5, 0.3), 3.0, 0.25)
        for x, y in ((0.1, 0.2), (500_000.1, 5_500_000.2))
    ]
    near, far = (view.origin for view in views)
    assert (far[0] - near[0], far[1] - near[1]) == (500_000, 5_500_000)
    np.testing.assert_array_equal(views[0].cells, views[1].cells)
    np.testing.assert_array_equal(views[0].pixels, views[1].pixels)


def scene():
    """A box on the floor from 2.0 to 2.6 m as it is seen, with floor and grass around."""
    camera = CameraModel(200.0, 200.0, 160.0, 60.0)
    pose = pose_of_body(0, 0, 1.0, 0, 0.4, 0)
    view = view_ground(camera, 320, 240, pose, range_m=4.0, cell_m=0.05)
    x, y, _ = places(view, camera, pose)
    label = np.full((240, 320), FLOOR, np.uint8)
    label[y > 0.5] = GRASS
    distance = np.hypot(x, y)
    label[(distance > 2.0) & (distance < 2.6) & (abs(y) < 0.2)] = BOX
    label[np.isfinite(x) & (distance < 1.2)] = 255
    return view, label, camera, pose


def cost_at(view, grid, x, y):
    return grid[int((y - view.origin[1]) / 0.05), int((x - view.origin[0]) / 0.05)]


def test_costs_of_what_lies_and_of_what_stands():
    view, label, *_ = scene()
    grid = ground_costs(view, label, TABLE)
    assert grid.dtype == np.int8 and grid.shape == view.shape
    assert set(np.unique(grid)) == {-1, 0, 60, 100}
    assert cost_at(view, grid, 1.0, 0.0) == -1, 'unlabelled'
    assert cost_at(view, grid, 1.6, 0.0) == 0
    assert cost_at(view, grid, 1.9, 0.8) == 60
    # Known are the foot of the box and the floor beyond; what is between, the box hides.
    assert cost_at(view, grid, 2.05, 0.0) == 100
    assert cost_at(view, grid, 2.05 + FOOT_M + 0.1, 0.0) == -1
    assert cost_at(view, grid, 2.55, 0.0) == -1
    assert cost_at(view, grid, 2.8, 0.0) == 0
    # A foot without gaps, all across the box.
    occupied = np.argwhere(grid == 100) * 0.05 + view.origin[::-1]
    for y in np.arange(-0.17, 0.17, 0.05):
        assert (abs(occupied[:, 0] - y) < 0.05).any()
    assert np.hypot(*occupied.T).max() < 2.0 + FOOT_M + 0.1


def test_of_several_pixels_the_dearest_counts():
    view, label, *_ = scene()
    label[:] = FLOOR
    pixel = view.pixels[view.starts[len(view.starts) // 2]]
    label.ravel()[pixel] = GRASS
    assert 1 <= (ground_costs(view, label, TABLE) == 60).sum() <= 2


def test_points_are_where_the_grid_is_known():
    view, label, camera, pose = scene()
    depth = ground_depth(view, label, TABLE)
    assert depth.dtype == np.float32
    lies = np.isin(label, (FLOOR, GRASS))
    np.testing.assert_array_equal(depth[lies], view.depth[lies])
    assert np.isnan(depth[label == 255]).all()
    x, y, _ = places(view, camera, pose)
    box = label == BOX
    placed = box & np.isfinite(depth)
    assert placed.any() and np.hypot(x, y)[placed].max() < 2.0 + FOOT_M + 0.1
    assert np.isnan(depth[box & (np.hypot(x, y) > 2.3)]).all()


def test_a_wall_all_around_is_known_where_it_begins():
    """Nothing nearer is in view."""
    view, label, *_ = scene()
    label[:] = BOX
    grid = ground_costs(view, label, TABLE)
    assert 0 < (grid == 100).sum() < 0.5 * len(view.cells)


@pytest.mark.parametrize(
    ('pose', 'text'),
    [
        (pose_of_body(0, 0, 1, 0, -1.2, 0), 'looks 69 degrees up'),
        (pose_of_body(0, 0, 20, 0, 0.3, 0), 'no ground within 5 m: it is 20.00 m'),
        (pose_of_body(0, 0, -0.5, 0, 0.3, 0), 'z = -0.50 m'),
        (pose_of_body(0, 0, 0, 0, 0.3, 0), 'z = 0.00 m'),
        (pose_of_body(math.inf, 0, 1, 0, 0.3, 0), 'which is no place'),
    ],
)
def test_a_camera_that_sees_no_ground(pose, text):
    with pytest.raises(ImageError, match=text):
        view_ground(CameraModel(100.0, 100.0, 100.0, 100.0), 201, 201, pose, 5.0, 0.1)
