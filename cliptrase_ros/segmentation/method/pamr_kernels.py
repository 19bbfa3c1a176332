"""PAMR as two Triton kernels: the weights, and a step of all maps.

Triton 3.4 and newer compile them.
"""

# Triton joins tuples; it does not unpack them.
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.kernel_parts import STRIDES, nearest_inside
from cliptrase_ros.segmentation.method.pamr import OFFSETS, TOLERANCE

# Pixels of a program, one a thread.
_PIXELS = 128

_NEIGHBOURS = tl.constexpr(len(OFFSETS))
_DOWN, _RIGHT = map(tl.constexpr, zip(*OFFSETS, strict=True))
_TOLERANCE = tl.constexpr(TOLERANCE)


def neighbour_weights(picture: Tensor) -> Tensor:
    """`pamr.neighbour_weights` on CUDA, of a picture of float32 or uint8."""
    batch, _, height, width = picture.shape
    weights = torch.empty(batch, len(OFFSETS), height, width, device=picture.device)
    programs = (triton.cdiv(height * width, _PIXELS), batch)
    launch(
        _weights,
        programs,
        picture,
        weights,
        *picture.stride(),
        height,
        width,
        _PIXELS,
    )
    return weights


def step(maps: Tensor, weights: Tensor) -> Tensor:
    """`pamr._step` on CUDA."""
    maps = maps.contiguous()
    result = torch.empty_like(maps)
    batch, number, height, width = maps.shape
    programs = (triton.cdiv(height * width, _PIXELS), batch)
    weights = weights.contiguous()
    launch(_step, programs, maps, weights, result, number, height, width, _PIXELS)
    return result


# One compilation of each serves all sizes.
@triton.jit(do_not_specialize=[*STRIDES, 'height', 'width'])
def _weights(
    picture,
    weights,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    itself = pixel // width * row_stride + pixel % width * column_stride
    picture += image * image_stride

    # The loops are unrolled, so that what belongs to a neighbour is a register of the thread.
    neighbours, energies = (), ()
    for i in tl.static_range(_NEIGHBOURS):
        row, column = nearest_inside(
            pixel // width + _DOWN[i], pixel % width + _RIGHT[i], height, width
        )
        neighbours = neighbours + (row * row_stride + column * column_stride,)
        energies = energies + (tl.zeros((PIXELS,), tl.float32),)
    for _ in tl.static_range(3):
        centre = tl.load(picture + itself, mask=inside, other=0).to(tl.float32)
        # Differences spread as the colours do, and are exact where these are close.
        differences = ()
        total = tl.zeros((PIXELS,), tl.float32)
        for i in tl.static_range(_NEIGHBOURS):
            around = tl.load(picture + neighbours[i], mask=inside, other=0).to(tl.float32)
            differences = differences + (around - centre,)
            total += differences[i]
        # Two more differences are 0, of the pixel itself.
        mean = total / (_NEIGHBOURS + 2)
        squares = 2 * mean * mean
        for i in tl.static_range(_NEIGHBOURS):
            squares += (differences[i] - mean) * (differences[i] - mean)
        spread = 1e-8 + _TOLERANCE * tl.sqrt(squares / (_NEIGHBOURS + 1))
        sums = ()
        for i in tl.static_range(_NEIGHBOURS):
            sums = sums + (energies[i] + tl.abs(differences[i]) / spread,)
        energies = sums
        picture += plane_stride

    least = energies[0]
    for i in tl.static_range(1, _NEIGHBOURS):
        least = tl.minimum(least, energies[i])
    shares = ()
    total = tl.zeros((PIXELS,), tl.float32)
    for i in tl.static_range(_NEIGHBOURS):
        shares = shares + (tl.exp((least - energies[i]) / 3),)
        total += shares[i]
    weights += image * _NEIGHBOURS * height * width + pixel
    for i in tl.static_range(_NEIGHBOURS):
        tl.store(weights + i * height * width, shares[i] / total, mask=inside)


@triton.jit(do_not_specialize=['number', 'height', 'width'])
def _step(maps, weights, result, number, height, width, PIXELS: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    size = height * width
    inside = pixel < size
    # Neighbours and their weights are the same in every map, so a thread keeps them.
    neighbours, shares = (), ()
    weights += image * _NEIGHBOURS * size + pixel
    for i in tl.static_range(_NEIGHBOURS):
        row, column = nearest_inside(
            pixel // width + _DOWN[i], pixel % width + _RIGHT[i], height, width
        )
        neighbours = neighbours + (row * width + column,)
        shares = shares + (tl.load(weights + i * size, mask=inside, other=0.0),)
    maps += image * number * size
    result += image * number * size
    for _ in range(number):
        total = tl.zeros((PIXELS,), tl.float32)
        for i in tl.static_range(_NEIGHBOURS):
            total += shares[i] * tl.load(maps + neighbours[i], mask=inside, other=0.0)
        tl.store(result + pixel, total, mask=inside)
        maps += size
        result += size
