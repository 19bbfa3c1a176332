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
