"""Runs of equal pixels in the rows of a label image: few to count where pixels are many."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Runs:
    """The R runs of a label image, row by row; one ends where its value does, or its row.

    Attributes:
        value: (R,), the label; of its type.
        begin: int64 (R,), the first pixel, counted over all rows.
        length: int64 (R,), pixels.
    """

    value: np.ndarray
    begin: np.ndarray
    length: np.ndarray
    width: int


def find_runs(label: np.ndarray) -> Runs:
    """Runs of a label image, integers (H, W), in one pass over its pixels."""
    width = label.shape[1]
    flat = np.ascontiguousarray(label).ravel()
    is_first = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=is_first[1:])
    is_first[::width] = True
    begin = np.flatnonzero(is_first)
    length = np.empty_like(begin)
    np.subtract(begin[1:], begin[:-1], out=length[:-1])
    length[-1] = flat.size - begin[-1]
    return Runs(flat[begin], begin, length, width)


def sum_runs(runs: Runs, values: np.ndarray) -> np.ndarray:
    """Sum of the values in each run: uint32 (R,), of uint8 (H, W), contiguous."""
    # A run is no longer than a row, so that 32 bits hold its sum.
    return np.add.reduceat(values.ravel(), runs.begin, dtype=np.uint32)


def connect_runs(runs: Runs) -> np.ndarray:
    """Which connected region each run belongs to: equal pixels that touch at sides or corners.

    Returns:
        int64 (R,), numbers from 0 in the order in which regions begin, row by row.
    """
    # In few steps, as in `messages.masks`: NumPy lets other threads have the interpreter in each.
    count, width = runs.begin.size, runs.width
    run_at = np.repeat(np.arange(count, dtype=np.min_scalar_type(count)), runs.length)
    # Of two runs that touch, in one row and the next, one begins at the other or right beside its
    # end. So it is enough to look above and below where each run begins, and one pixel before.
    second, last = int(run_at[width - 1]) + 1, int(run_at[-width])
    run = np.concatenate([np.arange(second, count), np.arange(last)])
    pixel = np.concatenate([runs.begin[second:] - width, runs.begin[:last] + width])
    value, straight = runs.value[run], run_at[pixel]
    diagonal = run_at[pixel - (pixel % width > 0)]
    other = np.where(runs.value[straight] == value, straight, diagonal)
    touching = np.flatnonzero(runs.value[other] == value)
    run, other = run[touching], other[touching].astype(np.int64)
    upper, lower = np.minimum(run, other), np.maximum(run, other)

    # Every run points to one above it, and then to the first of all that are reached that way.
    first = np.arange(count)
    first[lower] = upper
    for _ in range((run_at.size // width).bit_length()):
        first = first[first]
    # Where two that touch have come to different ones, the later one points to the earlier.
    while True:
        ends = first[upper], first[lower]
        apart = np.flatnonzero(ends[0] != ends[1])
        if not apart.size:
            break
        upper, lower = np.minimum(*ends)[apart], np.maximum(*ends)[apart]
        first[lower] = upper
        while (further := first[first]).tobytes() != first.tobytes():
            first = further
    begins = first == np.arange(count)
    return (np.cumsum(begins) - 1)[first]
