"""Windows that slide over a large image: where they stand, and the mean of what they show."""

from collections.abc import Sequence

import torch
from torch import Tensor

#: How many go through the tower at a time, to bound memory.
WINDOWS_AT_ONCE = 16

#: (top, left) of a window, in patches, or in pixels with a `patch_size` of 1.
Corner = tuple[int, int]


def window_corners(grid: tuple[int, int], window: tuple[int, int], stride: int) -> list[Corner]:
    """Where windows stand so that they cover a grid: every stride, and at the far border.

    Args:
        grid: (height, width), patches.
        window: (height, width), patches, not larger than the grid.
        stride: Patches.
    """
    tops, lefts = (
        sorted({*range(0, length - side, stride), length - side})
        for length, side in zip(grid, window, strict=True)
    )
    return [(top, left) for top in tops for left in lefts]


def cut_windows(
    pixels: Tensor, corners: Sequence[Corner], window: tuple[int, int], patch_size: int
) -> Tensor:
    """Cut windows out of images.

    Args:
        pixels: (B, 3, H, W).
        window: (height, width), patches.
        patch_size: Pixels.

    Returns:
        (corners x B, 3, h, w): the first window of all images, then the next.
    """
    height, width = (side * patch_size for side in window)
    starts = [(top * patch_size, left * patch_size) for top, left in corners]
    return torch.cat([pixels[..., y : y + height, x : x + width] for y, x in starts])


def join_windows(values: Tensor, corners: Sequence[Corner], grid: tuple[int, int]) -> Tensor:
    """Put windows together, with the mean where they overlap.

    Args:
        values: float (corners x B, C, h, w), in the order of `cut_windows`.
        grid: (height, width), patches.

    Returns:
        float (B, C, *grid).
    """
    height, width = values.shape[-2:]
    windows = values.unflatten(0, (len(corners), -1))
    total = values.new_zeros(*windows.shape[1:3], *grid)
    count = values.new_zeros(grid)
    for window, (top, left) in zip(windows, corners, strict=True):
        total[..., top : top + height, left : left + width] += window
        count[top : top + height, left : left + width] += 1
    return total / count
