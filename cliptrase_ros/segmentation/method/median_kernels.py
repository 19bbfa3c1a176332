"""The 7 x 7 median as one Triton kernel.

The network of `median.py` is several hundred operations on whole images, each a kernel of its own
on a GPU. Here it is one kernel: a thread reads the neighbourhood of one pixel into registers and
runs the whole network there. Triton 3.4 and newer compile it.
"""

# Triton joins tuples; it does not unpack them.
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.median import SIDE, selection_network, sorting_network

# Pixels of a program: one for each thread of the four warps of `launch`.
_PIXELS = 128


def _median_network() -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """For each exchange the wire of the smaller value and that of the larger, and the median's."""
    exchanges = [
        (low * SIDE + x, high * SIDE + x)
        for x in range(SIDE)
        for low, high in sorting_network(SIDE)
    ]
    selection, median = selection_network()
    # Values that nothing uses later are left out by the compiler.
    exchanges += [(low, high) for low, high, *_ in selection]
    low, high = zip(*exchanges, strict=True)
    return low, high, median


_LOW, _HIGH, _MEDIAN = map(tl.constexpr, _median_network())
_EXCHANGES = tl.constexpr(len(_LOW.value))
_SIDE = tl.constexpr(SIDE)


def median_7x7(images: Tensor, absent: Tensor) -> Tensor:
    """`median.median_7x7` on CUDA, of images of which H and W are at least 3.

    NaN, which PyTorch's minima and maxima keep, is dropped by these.
    """
    images = images.contiguous()
    result = torch.empty_like(images)
    height, width = images.shape[-2:]
    programs = (absent.numel(), triton.cdiv(height * width, _PIXELS))
    launch(_median, programs, images, absent.contiguous(), result, height, width, _PIXELS)
    return result


# One compilation serves all sizes.
@triton.jit(do_not_specialize=['height', 'width'])
def _median(images, absent, result, height, width, PIXELS: tl.constexpr):
    # 32 bits count the pixels of one image, but not those of many large ones.
    image = tl.program_id(0).to(tl.int64)
    images += image * height * width
    result += image * height * width
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    if tl.load(absent + image):
        tl.store(result + pixel, tl.full((PIXELS,), -1.0, tl.float32), mask=inside)
        return

    # The loops are unrolled, so that every wire is a register of the thread.
    wires = ()
    for y in tl.static_range(_SIDE):
        row = _mirrored(pixel // width + (y - _SIDE // 2), height)
        for x in tl.static_range(_SIDE):
            column = _mirrored(pixel % width + (x - _SIDE // 2), width)
            wires = wires + (tl.load(images + row * width + column, mask=inside, other=0.0),)
    for i in tl.static_range(_EXCHANGES):
        low, high = wires[_LOW[i]], wires[_HIGH[i]]
        wires = (
            wires[: _LOW[i]]
            + (tl.minimum(low, high),)
            + wires[_LOW[i] + 1 : _HIGH[i]]
            + (tl.maximum(low, high),)
            + wires[_HIGH[i] + 1 :]
        )
    tl.store(result + pixel, wires[_MEDIAN], mask=inside)


@triton.jit
def _mirrored(position, length):
    position = tl.where(position < 0, -1 - position, position)
    return tl.where(position < length, position, 2 * length - 1 - position)
