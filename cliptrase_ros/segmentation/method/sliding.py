"""Windows that slide over a large frame: which ones, and the mean of what they say."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: (top, left) of a window, in patches.
Corner = tuple[int, int]


def corners(grid: tuple[int, int], window: tuple[int, int], stride: int) -> list[Corner]:
    """Where windows stand so that they cover a grid; all lengths in patches.

    Every `stride` patches, and at the far border, so that none reaches beyond the frame.
    window: not larger than the grid.
    """
    tops, lefts = (
        sorted({*range(0, length - side, stride), length - side})
        for length, side in zip(grid, window, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def cut(pixels: Tensor, places: Sequence[Corner], window: tuple[int, int], patch: int) -> Tensor:
    """Windows of images (B, 3, H, W) as one batch, (places x B, 3, h, w), place by place."""
    height, width = (side * patch for side in window)
    return torch.cat(
        [
            pixels[..., top * patch : top * patch + height, left * patch : left * patch + width]
            for top, left in places
        ]
    )


def mean(values: Tensor, places: Sequence[Corner], grid: tuple[int, int]) -> Tensor:
    """Put windows together, with the mean where they overlap.

    values: float (places x B, C, h, w), in the order of `cut`. Returns (B, C, *grid).
    """
    height, width = values.shape[-2:]
    by_place = values.unflatten(0, (len(places), -1))
    total = values.new_zeros(*by_place.shape[1:3], *grid)
    count = values.new_zeros(grid)
    for one, (top, left) in zip(by_place, places, strict=True):
        total[..., top : top + height, left : left + width] += one
        count[top : top + height, left : left + width] += 1
    return total / count
