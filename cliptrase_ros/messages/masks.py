"""Masks of classes as lengths of runs, as cliptrase_ros/ClassMask has them, without any ROS."""

from dataclasses import dataclass

import numpy as np

from cliptrase_ros.messages.type_names import Message
from cliptrase_ros.segmentation.run_lengths import Runs


@dataclass(frozen=True)
class Box:
    """A box in an image, pixels; fields as in sensor_msgs/RegionOfInterest."""

    x_offset: int
    y_offset: int
    width: int
    height: int


def label_run_lengths(runs: Runs) -> dict[int, tuple[Box, np.ndarray]]:
    """Bounding box and mask of every value in a label image, as cliptrase_ros/ClassMask has them.

    Returns:
        By value, the box, and uint32 lengths of alternating runs inside it, row after row, the
        first of zeros (0 long before a run of ones).
    """
    # All values at once: sorted by value, the runs of each still in the order of the image. In few
    # steps: NumPy lets other threads have the interpreter in each, and waits to get it back.
    order = np.argsort(runs.value, kind='stable')
    begin, length = runs.begin[order], runs.length[order]
    row = begin // runs.width
    column = begin - row * runs.width
    count = np.bincount(runs.value)
    values = np.flatnonzero(count)
    count = count[values]
    last = np.cumsum(count) - 1
    first = last + 1 - count
    top, left = row[first], np.minimum.reduceat(column, first)
    height = row[last] + 1 - top
    width = np.maximum.reduceat(column + length, first) - left

    # Zeros before each run, counted in the rows of the image and then in those of its value's box.
    zeros = begin.copy()
    zeros[1:] -= (begin + length)[:-1]
    zeros[1:] -= (row[1:] - row[:-1]) * np.repeat(runs.width - width, count)[1:]
    zeros[first] = column[first] - left
    rest = width * (top + height - row[last]) - (column[last] + length[last] - left)

    # A run that reaches the right edge of its box goes on in a run that begins at the left edge
    # of the next row: the two become one.
    begins = zeros > 0
    begins[first] = True
    if not begins.all():
        kept = np.flatnonzero(begins)
        zeros, length = zeros[kept], np.add.reduceat(length, kept)
        first, last = np.searchsorted(kept, first), np.searchsorted(kept, last, 'right') - 1

    turns = np.stack([zeros, length], axis=1).astype(np.uint32)
    boxes = np.stack([left, top, width, height], axis=1).tolist()
    return {
        value: (Box(*sides), np.append(turns[i : j + 1], after[after > 0]))
        for value, sides, i, j, after in zip(
            values.tolist(),
            boxes,
            first.tolist(),
            last.tolist(),
            rest.astype(np.uint32)[:, None],
            strict=True,
        )
    }


def run_lengths(pixels: np.ndarray) -> np.ndarray:
    """Lengths of the alternating runs of one mask, whose pixels are taken in any order.

    Args:
        pixels: bool (N,), N > 0.

    Returns:
        uint32, adding up to N, the first of zeros (0 long before a run of ones).
    """
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate(([0, 0] if pixels[0] else [0], changes, [pixels.size]))
    return np.diff(edges).astype(np.uint32)


def decode_mask(mask: Message, height: int, width: int) -> np.ndarray:
    """Pixels of one class: bool (H, W), True where it is.

    Args:
        mask: Fields of cliptrase_ros/ClassMask.
        height: Of the ClassMasks message, pixels.
        width: Of the ClassMasks message, pixels.

    Raises:
        ValueError: Where roi, run lengths and size do not fit together.
    """
    roi, lengths = mask.roi, np.asarray(mask.run_lengths, np.int64)
    if roi.x_offset + roi.width > width or roi.y_offset + roi.height > height:
        raise ValueError(f'a roi that reaches out of an image of {width} x {height} pixels')
    if lengths.sum() != roi.height * roi.width:
        raise ValueError(
            f'run lengths add up to {lengths.sum()}, the roi has {roi.height * roi.width} pixels'
        )
    ones = np.arange(lengths.size) % 2 == 1
    pixels = np.zeros((height, width), bool)
    pixels[roi.y_offset : roi.y_offset + roi.height, roi.x_offset : roi.x_offset + roi.width] = (
        np.repeat(ones, lengths).reshape(roi.height, roi.width)
    )
    return pixels
