"""Smoothing as two Triton kernels: what looks alike, and the blend.

Triton 3.4 and newer compile them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.kernel_parts import (
    SIZES,
    STRIDES,
    mean_colours,
    nearest_inside,
    window,
)
from cliptrase_ros.segmentation.method.smoothing import (
    CELLS_PER_PATCH,
    REACH,
    SAME_COLOUR,
    SAME_SCENE,
    TELLING_COLOUR,
)

# Pixels that a program averages over at a time, and patches of one that blends, one a thread.
_AVERAGED = 64
_PATCHES = 128

_CELLS = tl.constexpr(CELLS_PER_PATCH)
_REACH = tl.constexpr(REACH)
_SIDE = tl.constexpr(2 * REACH + 1)
_NEIGHBOURS = tl.constexpr((2 * REACH + 1) ** 2)
_SAME_SCENE = tl.constexpr(SAME_SCENE)
_SAME_SQUARE = tl.constexpr(SAME_COLOUR**2)
_TELLING_SQUARE = tl.constexpr(TELLING_COLOUR**2)


def compare(picture: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`smoothing._compare` on CUDA."""
    batch, _, rows, columns = earlier.shape
    side = 2 * REACH + 1
    earlier = earlier.contiguous()
    appearance = torch.empty_like(earlier)
    weights = earlier.new_empty(batch, side, side, rows, columns)
    resemblance = earlier.new_empty(batch, rows, columns)
    launch(
        _compare,
        (rows * columns, batch),
        picture,
        earlier,
        appearance,
        weights,
        resemblance,
        *picture.stride(),
        *picture.shape[-2:],
        rows,
        columns,
        triton.next_power_of_2(side * side),
        _AVERAGED,
        warps=1,
    )
    return appearance, weights, resemblance


def blend(
    probability: Tensor,
    earlier: Tensor,
    weights: Tensor,
    resemblance: Tensor,
    known: Tensor,
    strength: float,
) -> Tensor:
    """`smoothing._blend` on CUDA."""
    probability = probability.contiguous()
    smoothed = torch.empty_like(probability)
    batch, classes, rows, columns = probability.shape
    launch(
        _blend,
        (triton.cdiv(rows * columns, _PATCHES), classes, batch),
        probability,
        earlier.contiguous(),
        weights.contiguous(),
        resemblance.contiguous(),
        known.contiguous(),
        smoothed,
        strength,
        classes,
        rows,
        columns,
        _PATCHES,
    )
    return smoothed


# One compilation of each serves all sizes.
@triton.jit(do_not_specialize=[*STRIDES, *SIZES])
def _compare(
    picture,
    earlier,
    appearance,
    weights,
    resemblance,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    rows,
    columns,
    NEIGHBOURS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    patch = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    patches = rows * columns
    row, column = patch // columns, patch % columns
    picture += image * image_stride
    values = 3 * _CELLS * _CELLS
    appearance += image * values * patches + patch
    earlier += image * values * patches

    # Each element is an earlier patch.
    which = tl.arange(0, NEIGHBOURS)
    is_one = which < _NEIGHBOURS
    near_row, near_column = nearest_inside(
        row + which // _SIDE - _REACH, column + which % _SIDE - _REACH, rows, columns
    )
    neighbour = near_row * columns + near_column
    distance = tl.zeros((NEIGHBOURS,), tl.float32)
    colour = tl.arange(0, 4)
    for down in range(_CELLS):
        for across in range(_CELLS):
            top, bottom = window(row * _CELLS + down, height, rows * _CELLS)
            left, right = window(column * _CELLS + across, width, columns * _CELLS)
            seen = mean_colours(
                picture, plane_stride, row_stride, column_stride, top, bottom, left, right, BLOCK
            )
            # In the order of pixel_unshuffle.
            place = ((colour * _CELLS + down) * _CELLS + across) * patches
            tl.store(appearance + place, seen, mask=colour < 3)
            before = tl.load(
                earlier + place[:, None] + neighbour[None, :],
                mask=(colour < 3)[:, None] & is_one[None, :],
                other=0.0,
            )
            difference = seen[:, None] - before
            distance += tl.sum(difference * difference, 0)
    distance = tl.where(is_one, distance / (2 * values), float('inf'))

    least = tl.min(distance, 0)
    tl.store(resemblance + image * patches + patch, tl.exp(-least / _SAME_SQUARE))
    weight = tl.exp((least - distance) / _TELLING_SQUARE)
    weights += (image * _NEIGHBOURS + which) * patches + patch
    tl.store(weights, weight / tl.sum(weight, 0), mask=is_one)


@triton.jit(do_not_specialize=['classes', 'rows', 'columns'])
def _blend(
    probability,
    earlier,
    weights,
    resemblance,
    known,
    smoothed,
    strength,
    classes,
    rows,
    columns,
    PATCHES: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    patches = rows * columns
    block = tl.arange(0, PATCHES)
    # Every program decides on the image, and all alike.
    resemblance += image * patches
    total = tl.zeros((PATCHES,), tl.float32)
    for first in range(0, patches, PATCHES):
        total += tl.load(resemblance + first + block, mask=first + block < patches, other=0.0)
    same_scene = tl.load(known + image) & (tl.sum(total, 0) / patches > _SAME_SCENE)

    patch = tl.program_id(0) * PATCHES + block
    inside = patch < patches
    row, column = patch // columns, patch % columns
    first = (image * classes + tl.program_id(1)) * patches
    weights += image * _NEIGHBOURS * patches + patch
    expected = tl.zeros((PATCHES,), tl.float32)
    for down in range(-_REACH, _REACH + 1):
        for across in tl.static_range(-_REACH, _REACH + 1):
            weight = tl.load(weights, mask=inside, other=0.0)
            near_row, near_column = nearest_inside(row + down, column + across, rows, columns)
            neighbour = near_row * columns + near_column
            expected += weight * tl.load(earlier + first + neighbour, mask=inside, other=0.0)
            weights += patches
    share = strength * tl.load(resemblance + patch, mask=inside, other=0.0)
    share = tl.where(same_scene, share, 0.0)
    value = tl.load(probability + first + patch, mask=inside, other=0.0)
    tl.store(smoothed + first + patch, value + share * (expected - value), mask=inside)
