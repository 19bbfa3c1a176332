"""The ground as a camera sees it: labels in the plane z = 0 of a frame, without any depth.

Where a camera is says where the line of sight of each of its pixels meets the plane. What lies on
the ground is there. What stands on it is not: its upper parts meet the plane behind it. So labels
are told apart: classes that have a cost lie on the ground, all others stand on it, and of those the
foot is known, while nothing is known of what they hide.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import CameraModel, model_rays, project
from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.segmentation.vocabulary import Vocabulary

#: Costs of a cell, as nav_msgs/OccupancyGrid has them.
MAX_COST = 100
UNKNOWN_COST = -1
#: How far behind its foot a thing is taken to reach, metres: its depth is not seen.
FOOT_M = 0.15

# What a pixel or a cell shows; of several in a cell the greatest counts. A cost is 1 more.
_UNLABELLED = 0
_STANDING = MAX_COST + 2


@dataclass(frozen=True)
class CameraPose:
    """Where a camera is in the ground's frame, whose z points up.

    Attributes:
        position: float64 (3,), metres.
        rotation: float64 (3, 3); columns are the axes of the optical frame (x right, y down, z
            forward).
    """

    position: np.ndarray
    rotation: np.ndarray

    def is_near(self, other: 'CameraPose') -> bool:
        """Whether both show the same: they differ by less than 0.01 mm and 0.001 degrees."""
        return all(
            np.abs(mine - its).max() < 1e-5
            for mine, its in ((self.position, other.position), (self.rotation, other.rotation))
        )


def pose_of_body(x: float, y: float, z: float, roll: float, pitch: float, yaw: float) -> CameraPose:
    """Pose of a camera whose body (x forward, y left, z up, REP 103) is there, metres and radians.

    Angles are those of URDF: about the fixed axes x, y and z, in this order. A positive pitch looks
    down.
    """
    (cr, cp, cy), (sr, sp, sy) = (map(f, (roll, pitch, yaw)) for f in (math.cos, math.sin))
    body = np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
    # Right, down and forward, of forward, left and up.
    return CameraPose(
        np.array([x, y, z], float), np.stack([-body[:, 1], -body[:, 2], body[:, 0]], 1)
    )


def pose_of_transform(transform: Message) -> CameraPose:
    """Pose of a camera whose optical frame a geometry_msgs/Transform leads from."""
    t, q = transform.translation, transform.rotation
    x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / math.hypot(q.x, q.y, q.z, q.w)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return CameraPose(np.array([t.x, t.y, t.z], float), np.array(rotation))


@dataclass(frozen=True)
class GroundView:
    """Where a camera's pixels are on the ground, found once for a camera and its pose.

    Attributes:
        depth: float32 (H, W), metres along the optical axis to the ground; NaN above the horizon,
            beyond the range, and where the camera's model has no ray.
        cell_m: Side of a cell, metres.
        origin: x and y of the grid's first corner in the ground's frame, metres: whole cells.
        shape: Rows (along y) and columns (along x) of the grid, which just holds all cells seen.
        cells: int (C,), flat indices into the grid of the cells that are seen.
        pixels: int32 (N,), flat indices of the pixels in each of those cells, cell after cell.
        starts: int (C,), where each cell begins in `pixels`.
        cell_of_pixel: int32 (H * W,), index into `cells`; C for a pixel that is in none.
        nearer: int32 (K, C), indices into `cells` of the cells between a cell and the camera, up to
            `FOOT_M` away; C for one that is not seen.
    """

    depth: np.ndarray
    cell_m: float
    origin: tuple[float, float]
    shape: tuple[int, int]
    cells: np.ndarray
    pixels: np.ndarray
    starts: np.ndarray
    cell_of_pixel: np.ndarray
    nearer: np.ndarray


@dataclass(frozen=True)
class _Square:
    """Cells around a camera, as many as are within its range, with a margin against rounding.

    Places are along the axes of the ground's frame, but from below the camera on: float32 is exact
    enough for them also where that frame's origin is hundreds of kilometres away.

    Attributes:
        camera: Column and row that it is at, float64 (2,).
        side: Cells in a row and in a column.
        cell_m: Side of a cell, metres.
    """

    camera: np.ndarray
    side: int
    cell_m: float

    def index(self, away: np.ndarray) -> np.ndarray:
        """Flat index, int32 (N,), of the cells at places (2, N), metres."""
        column, row = (
            np.floor(metres / self.cell_m + camera).astype(np.int32)
            for metres, camera in zip(away, self.camera, strict=True)
        )
        return row * self.side + column

    def centres(self) -> np.ndarray:
        """Where all its cells have their middle, float64 (2, side * side), metres."""
        rows, columns = np.divmod(np.arange(self.side**2), self.side)
        return (np.stack([columns, rows]) + 0.5 - self.camera[:, None]) * self.cell_m


def view_ground(
    camera: CameraModel, width: int, height: int, pose: CameraPose, range_m: float, cell_m: float
) -> GroundView:
    """Find where the pixels of a camera's images are on the ground.

    A cell has the pixels whose middle lies in it, and the pixel in which its own middle lies: far
    away pixels are larger than cells.

    Args:
        width: Of the images, pixels, as is `height`.
        range_m: How far the ground is looked at, from below the camera, metres.
        cell_m: Side of a cell, metres.

    Raises:
        ImageError: The camera sees no ground within the range.
    """
    # What a metre along the optical axis is along the axes of the ground's frame, for each pixel.
    right, down = model_rays(camera, width, height)
    along = np.stack([x * right + y * down + z for x, y, z in pose.rotation.astype(np.float32)])
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        depth = np.float32(-pose.position[2]) / along[2]
        away = depth * along[:2]
        is_seen = (depth > 0) & (np.hypot(*away) <= range_m)
    if not np.isfinite(pose.position).all() or pose.position[2] <= 0 or not is_seen.any():
        raise ImageError(_explain_no_ground(pose, range_m))
    depth[~is_seen] = np.nan

    first = np.floor((pose.position[:2] - range_m) / cell_m) - 1
    side = math.ceil(2 * range_m / cell_m) + 3
    square = _Square(pose.position[:2] / cell_m - first, side, cell_m)
    pixels = np.flatnonzero(is_seen)
    cell_of_seen = square.index(away[:, is_seen])
    centres = square.centres()
    looked_at, pixels_there = _pixels_at(camera, width, height, pose, range_m, centres)
    all_cells = np.concatenate([cell_of_seen, looked_at])
    # In two bytes, where they are enough, sorting takes a fraction of the time.
    order = np.argsort(all_cells.astype(np.min_scalar_type(square.side**2)), kind='stable')
    in_order = all_cells[order]
    starts = np.flatnonzero(np.diff(in_order, prepend=-1))
    seen = in_order[starts]

    position_of = np.full(square.side**2, len(seen), np.int32)
    position_of[seen] = np.arange(len(seen))
    cell_of_pixel = np.full(width * height, len(seen), np.int32)
    cell_of_pixel[pixels] = position_of[cell_of_seen]
    rows, columns = np.divmod(seen, square.side)
    corner = columns.min(), rows.min()
    shape = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    return GroundView(
        depth=depth,
        cell_m=cell_m,
        origin=tuple(float(cells * cell_m) for cells in first + corner),
        shape=shape,
        cells=(rows - corner[1]) * shape[1] + columns - corner[0],
        pixels=np.concatenate([pixels, pixels_there])[order].astype(np.int32),
        starts=starts,
        cell_of_pixel=cell_of_pixel,
        nearer=position_of[_nearer_cells(square, centres[:, seen])],
    )


def cost_table(costs: Mapping[str, int], vocabulary: Vocabulary) -> np.ndarray:
    """What every label means on the ground, uint8 (256,), for `ground_costs` and `ground_depth`.

    Args:
        costs: By name of a class that lies on the ground, 0 to `MAX_COST`. Others stand on it.
    """
    by_name = {name.casefold(): cost for name, cost in costs.items()}
    table = np.full(256, _UNLABELLED, np.uint8)
    for entry in vocabulary.classes:
        cost = by_name.get(entry.name.casefold())
        table[entry.id] = _STANDING if cost is None else 1 + cost
    return table


def ground_costs(view: GroundView, label: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Cost of every cell, the dearest of its pixels.

    Args:
        label: uint8 (H, W), class ids.
        table: Of `cost_table`.

    Returns:
        int8, of the view's `shape`, first row and column at its `origin`: 0 to `MAX_COST`;
        `UNKNOWN_COST` for cells that are not seen, unlabelled, or hidden by what stands before.
    """
    shown, is_hidden = _look(view, cv2.LUT(label, table))
    costs = np.minimum(shown, MAX_COST + 1).astype(np.int8) - 1
    costs[is_hidden] = UNKNOWN_COST
    grid = np.full(view.shape, UNKNOWN_COST, np.int8)
    grid.ravel()[view.cells] = costs
    return grid


def ground_depth(view: GroundView, label: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Depth of the pixels that show ground, or the foot of what stands on it.

    Arguments are those of `ground_costs`.

    Returns:
        float32 (H, W), metres along the optical axis, NaN for all other pixels.
    """
    values = cv2.LUT(label, table)
    _, is_hidden = _look(view, values)
    is_hidden = np.append(is_hidden, False)[view.cell_of_pixel].reshape(label.shape)
    has_place = (values != _UNLABELLED) & ~(is_hidden & (values == _STANDING))
    return np.where(has_place, view.depth, np.float32(np.nan))


def _look(view: GroundView, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each cell that is seen shows, uint8 (C,), and whether what stands there hides it."""
    shown = np.maximum.reduceat(values.ravel()[view.pixels], view.starts)
    stands = shown == _STANDING
    return shown, stands & np.append(stands, False)[view.nearer].all(axis=0)


def _pixels_at(
    camera: CameraModel,
    width: int,
    height: int,
    pose: CameraPose,
    range_m: float,
    places: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the places, (2, P) from below the camera, that it sees, and their pixels."""
    down = np.full((1, places.shape[1]), -pose.position[2])
    x, y, z = pose.rotation.T @ np.concatenate([places, down])
    with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
        right, down = np.rint(project(camera, np.stack([x, y]) / z))
        is_seen = (z > 0) & (np.hypot(*places) <= range_m)
        is_seen &= (right >= 0) & (right < width) & (down >= 0) & (down < height)
    indices = np.flatnonzero(is_seen)
    return indices, (down[indices] * width + right[indices]).astype(np.int32)


def _nearer_cells(square: _Square, centres: np.ndarray) -> np.ndarray:
    """Flat indices, (K, C), of the cells that lie between cells and the camera, nearest first."""
    step = -centres * square.cell_m / np.maximum(np.hypot(*centres), 1e-9)
    count = max(1, round(FOOT_M / square.cell_m))
    return np.stack([square.index(centres + (1 + i) * step) for i in range(count)])


def _explain_no_ground(pose: CameraPose, range_m: float) -> str:
    height = pose.position[2]
    if not np.isfinite(pose.position).all():
        return f'the camera is at {pose.position.tolist()}, which is no place'
    if height <= 0:
        return f'the camera is at z = {height:.2f} m of the ground, it has to be above it'
    down = -math.degrees(math.asin(min(1.0, max(-1.0, pose.rotation[2, 2]))))
    return (
        f'the camera sees no ground within {range_m:g} m: it is {height:.2f} m above it and looks '
        f'{abs(down):.0f} degrees {"down" if down > 0 else "up"}; the frame of the image has to be '
        'the optical one, whose z points forward'
    )
