"""How right the ground before a camera is, on toybox rooms that training never saw.

`python benchmark/ground.py` compares `~/NAME/ground`, which is made of labels and a pose alone,
with the true depth of the room: where the floor is, which cells are free, and how far away things
begin. Labels are the true ones or those of the toybox model; the pose is true, or it looks one
degree too high from 2 cm too high.
"""

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from cliptrase_ros.messages.ground import (
    MAX_COST,
    CameraPose,
    cost_table,
    ground_costs,
    view_ground,
)
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.renderer import intrinsics
from cliptrase_ros.toybox.scenes import DIFFICULTIES, true_labels
from cliptrase_ros.toybox.sequences import Photograph, photograph_room

VOCABULARY = parse_vocabulary(
    ['floor', 'wall', 'ball', 'box', 'cone', 'cylinder', 'door', 'window'], ['ceiling']
)
FLOOR, CEILING = 0, 255
RANGE_M, CELL_M = 5.0, 0.05
PITCH_ERROR, HEIGHT_ERROR_M = math.radians(1), 0.02
#: Distances from the camera along the floor, metres.
BANDS = ((0, 1), (1, 2), (2, 3), (3, 5))
_DIRECTIONS = np.radians(np.arange(0, 360, 0.5))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rooms', type=int, default=60)
    parser.add_argument('--first-seed', type=int, default=1000)
    parser.add_argument('--difficulty', choices=DIFFICULTIES, default='easy')
    options = parser.parse_args()
    # Small tensors: more threads would wait for each other.
    torch.set_num_threads(1)
    segmenter = load_segmenter('toybox', device='cpu')
    words = segmenter.encode_vocabulary(VOCABULARY)
    figures: dict[tuple[str, str], list[tuple[np.ndarray, ...]]] = {}
    for seed in tqdm(range(options.first_seed, options.first_seed + options.rooms), leave=False):
        photo = photograph_room(seed, 'held_out', options.difficulty)
        names = [entry.name for entry in VOCABULARY.classes]
        true_label = true_labels(photo.label, names)
        (result,) = segmenter.segment([photo.image], words, SegmentationSettings())
        for labels, label in (('true', true_label), ('toybox', result.label)):
            for pose, believed in (('true', true_pose(photo)), ('wrong', wrong_pose(photo))):
                measured = measure(photo, true_label, label, believed)
                figures.setdefault((labels, pose), []).append(measured)
    for (labels, pose), parts in figures.items():
        print(f'{labels} labels, {pose} pose')
        print_figures(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))


def true_pose(photo: Photograph) -> CameraPose:
    """Where the camera is in the room, whose floor is z = 0."""
    return CameraPose(photo.pose.position.double().numpy(), photo.pose.rotation.double().numpy())


def wrong_pose(photo: Photograph) -> CameraPose:
    """The same, by a mounting that was measured badly."""
    pose = true_pose(photo)
    cosine, sine = math.cos(PITCH_ERROR), math.sin(PITCH_ERROR)
    # About the optical frame's x, to the right.
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return CameraPose(pose.position + np.array([0, 0, HEIGHT_ERROR_M]), pose.rotation @ turn)


def measure(
    photo: Photograph, true_label: np.ndarray, label: np.ndarray, believed: CameraPose
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare one picture's ground with the room.

    Returns:
        Of floor pixels (2, N): true distance and error of the place, metres. Of directions (2, D)
        in which something stands behind floor that is seen: how far away it begins in truth and on
        the grid, metres, NaN where the grid has nothing. Of cells (2, C): true cost, and cost on
        the grid.
    """
    height, width = label.shape
    camera, pose = CameraModel(*intrinsics(height, width)), true_pose(photo)
    rays = np.stack([*model_rays(camera, width, height), np.ones((height, width), np.float32)])
    places = place(rays * photo.depth, pose)
    distance = np.hypot(*(places[:2] - pose.position[:2, None, None]))

    view = view_ground(camera, width, height, believed, RANGE_M, CELL_M)
    error = np.hypot(*(place(rays * view.depth, believed) - places)[:2])
    floor = (true_label == FLOOR) & np.isfinite(view.depth) & (distance <= RANGE_M)

    found = ground_costs(view, label, cost_table({'floor': 0}, VOCABULARY))
    # Of all that is seen, nearer than the floor in view as well.
    first = np.floor(pose.position[:2] / CELL_M).astype(int) - round(RANGE_M / CELL_M)
    truth = np.full((2 * round(RANGE_M / CELL_M) + 1,) * 2, -1, np.int8)
    for pixels, cost in (
        (true_label == FLOOR, 0),
        ((true_label != FLOOR) & (true_label != CEILING), MAX_COST),
    ):
        pixels = pixels & (distance <= RANGE_M)
        truth[cells_of(first * CELL_M, places[0][pixels], places[1][pixels])] = cost
    # In the same places.
    row, column = np.indices(found.shape)
    left, low = np.rint(np.array(view.origin) / CELL_M).astype(int) - first
    inside = (row + low < len(truth)) & (column + left < len(truth))
    inside &= (row + low >= 0) & (column + left >= 0)
    cells = np.stack([truth[row[inside] + low, column[inside] + left], found[inside]])

    floor_begins, thing_begins = (begins(first * CELL_M, truth, c, pose) for c in (0, MAX_COST))
    found_begins = begins(view.origin, found, MAX_COST, pose)
    return (
        np.stack([distance[floor], error[floor]]),
        np.stack([thing_begins, found_begins])[:, floor_begins < thing_begins],
        cells[:, cells[0] >= 0],
    )


def place(points: np.ndarray, pose: CameraPose) -> np.ndarray:
    """Points (3, H, W) of the optical frame in the room."""
    return np.tensordot(pose.rotation, points, axes=1) + pose.position[:, None, None]


def cells_of(
    origin: Sequence[float], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the cells at places in the room, perhaps outside the grid."""
    column, row = (
        np.floor((metres - corner) / CELL_M).astype(int)
        for metres, corner in zip((x, y), origin, strict=True)
    )
    return row, column


def begins(origin: Sequence[float], grid: np.ndarray, cost: int, pose: CameraPose) -> np.ndarray:
    """How far away the first cell of a cost is in all `_DIRECTIONS`, metres, NaN without one."""
    distance = np.arange(0, RANGE_M, CELL_M / 2)
    x, y = (
        middle + np.outer(turn(_DIRECTIONS), distance)
        for middle, turn in zip(pose.position[:2], (np.cos, np.sin), strict=True)
    )
    row, column = cells_of(origin, x, y)
    padded = np.pad(grid, 1, constant_values=-1)
    rows, columns = (size - 1 for size in padded.shape)
    is_there = padded[(row + 1).clip(0, rows), (column + 1).clip(0, columns)] == cost
    return np.where(is_there.any(axis=1), distance[is_there.argmax(axis=1)], np.nan)


def print_figures(floor: np.ndarray, begin: np.ndarray, cells: np.ndarray) -> None:
    """Print what `measure` found in all pictures."""
    print('  metres away   floor: error, 95 %   things: median error   off by > 0.25 m   not found')
    for low, high in BANDS:
        errors = floor[1][(floor[0] >= low) & (floor[0] < high)]
        truth, found = begin[:, (begin[0] >= low) & (begin[0] < high)]
        error, is_missing = abs(found - truth), np.isnan(found)
        if len(truth) == 0 or len(errors) == 0:
            print(f'  {low} - {high}         nothing')
            continue
        print(
            f'  {low} - {high}         {errors.mean():.3f} m, {np.quantile(errors, 0.95):.3f} m'
            f'{np.nanmedian(error):18.2f} m{(error > 0.25).mean():17.1%}{is_missing.mean():12.1%}'
        )
    truth, found = cells
    free = found[truth == 0]
    free_share, occupied_share, unknown_share = (
        (free == cost).mean() for cost in (0, MAX_COST, -1)
    )
    wrongly_free = (truth[found == 0] == MAX_COST).mean()
    print(
        f'  free cells: {free_share:.1%} free, {occupied_share:.1%} occupied, '
        f'{unknown_share:.1%} unknown; of cells called free {wrongly_free:.1%} are occupied'
    )


if __name__ == '__main__':
    main()
