"""The 7 x 7 median as one Triton kernel: importable where Triton is, which comes with CUDA.

The network of `median.py` is several hundred operations on whole images, each a kernel of its own
on a GPU. Here every pixel keeps its window in registers and finds the median bit by bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Of a program: one for each thread of the four warps that Triton gives it.
_PIXELS = 128


def median_7x7(images: Tensor) -> Tensor:
    """Median of every pixel's 7 x 7 neighbourhood.

    images: float32 (..., H, W), H and W at least 3. Borders are mirrored with the edge sample
    repeated. Returns the same shape.
    """
    images = images.contiguous()
    result = torch.empty_like(images)
    height, width = images.shape[-2:]
    pixels = images.numel()
    _median[(triton.cdiv(pixels, _PIXELS),)](images, result, height, width, pixels, _PIXELS)
    return result


@triton.jit
def _median(images, result, height, width, pixels, PIXELS: tl.constexpr):
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    exists = pixel < pixels
    x = pixel % width
    y = pixel // width % height
    image = pixel - y * width - x

    # 49 places of 64; the others hold infinity, which is above the median. Places lie along the
    # first axis, so that a thread has the whole window of its pixel and counts without the others.
    place = tl.arange(0, 64)
    row = y[None, :] + (place // 7 - 3)[:, None]
    column = x[None, :] + (place % 7 - 3)[:, None]
    row = tl.where(row < 0, -1 - row, row)
    row = tl.where(row >= height, 2 * height - 1 - row, row)
    column = tl.where(column < 0, -1 - column, column)
    column = tl.where(column >= width, 2 * width - 1 - column, column)
    loaded = exists[None, :] & (place < 49)[:, None]
    window = tl.load(
        images + image[None, :] + row * width + column, mask=loaded, other=float('inf')
    )

    # Integers in the order of the numbers; then the largest integer that at most 24 are below.
    bits = window.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    below = tl.sum((key < 0).to(tl.int32), axis=0)
    found = tl.where(below <= 24, 0, -2147483648)
    # Not unrolled: thirty times the code takes as much longer to compile.
    for i in range(31):
        candidate = found | (1 << (30 - i))
        below = tl.sum((key < candidate[None, :]).to(tl.int32), axis=0)
        found = tl.where(below <= 24, candidate, found)
    bits = tl.where(found < 0, found ^ 0x7FFFFFFF, found)
    tl.store(result + pixel, bits.to(tl.float32, bitcast=True), mask=exists)
