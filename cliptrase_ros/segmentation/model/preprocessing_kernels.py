"""Scaling and normalising pictures as Triton kernels.

A pass of the bicubic filter is one kernel, the whole bilinear filter another. They add integers, so
that their bits are the references', which are Pillow's and OpenCV's.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.model.filter_taps import BICUBIC_PLACES
from cliptrase_ros.segmentation.model.preprocessing import Framing, filter_taps

# Pixels of a program: one for each thread of the four warps of `launch`.
_PIXELS = 128

_PLACES = tl.constexpr(BICUBIC_PLACES)
_HALF = tl.constexpr(1 << BICUBIC_PLACES - 1)


def resize_bicubic(frames: Tensor, framing: Framing) -> Tensor:
    """`preprocessing.resize_bicubic` on CUDA; only rows that the result needs are scaled across."""
    down, across = filter_taps(framing, frames.device)
    frames, batch = frames.contiguous(), len(frames)
    (height, width), (top, bottom) = framing.crop, down.span
    lines = frames.new_empty(batch, 3, bottom - top, width)
    launch(
        _scale_across,
        (triton.cdiv((bottom - top) * width, _PIXELS), batch),
        frames,
        across.first,
        across.weights,
        lines,
        len(across.weights),
        *frames.shape[1:3],
        top,
        bottom - top,
        width,
        _PIXELS,
    )
    result = frames.new_empty(batch, 3, height, width)
    launch(
        _scale_down,
        (triton.cdiv(height * width, _PIXELS), 3 * batch),
        lines,
        down.first,
        down.weights,
        result,
        len(down.weights),
        top,
        bottom - top,
        height,
        width,
        _PIXELS,
    )
    return result


# One compilation of a kernel serves all sizes.
@triton.jit(do_not_specialize=['taps', 'source_height', 'source_width', 'top', 'rows', 'width'])
def _scale_across(
    frames,
    first,
    weights,
    lines,
    taps,
    source_height,
    source_width,
    top,
    rows,
    width,
    PIXELS: tl.constexpr,
):
    """Rows from `top` on, of interleaved (source_height, source_width, 3), to (3, rows, width)."""
    # 32 bits count the values of one picture, but not those of many large ones.
    image = tl.program_id(1).to(tl.int64)
    frames += (image * source_height + top) * source_width * 3
    lines += image * 3 * rows * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < rows * width
    column = pixel % width
    line = frames + pixel // width * (source_width * 3)
    begin = tl.load(first + column, mask=inside, other=0)
    red = tl.full((PIXELS,), _HALF, tl.int32)
    green = red
    blue = red
    for tap in range(taps):
        # Beyond the line's end weights are 0.
        weight = tl.load(weights + tap * width + column, mask=inside, other=0)
        value = line + 3 * tl.minimum(begin + tap, source_width - 1)
        red += weight * tl.load(value, mask=inside, other=0)
        green += weight * tl.load(value + 1, mask=inside, other=0)
        blue += weight * tl.load(value + 2, mask=inside, other=0)
    lines += pixel
    tl.store(lines, _in_bytes(red), mask=inside)
    tl.store(lines + rows * width, _in_bytes(green), mask=inside)
    tl.store(lines + 2 * rows * width, _in_bytes(blue), mask=inside)


@triton.jit(do_not_specialize=['taps', 'top', 'rows', 'height', 'width'])
def _scale_down(
    lines, first, weights, result, taps, top, rows, height, width, PIXELS: tl.constexpr
):
    """Planes (rows, width), of which the first row is the picture's `top`, to (height, width)."""
    plane = tl.program_id(1).to(tl.int64)
    lines += plane * rows * width
    result += plane * height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row = pixel // width
    column = pixel % width
    begin = tl.load(first + row, mask=inside, other=0) - top
    total = tl.full((PIXELS,), _HALF, tl.int32)
    for tap in range(taps):
        weight = tl.load(weights + tap * height + row, mask=inside, other=0)
        line = tl.minimum(begin + tap, rows - 1)
        total += weight * tl.load(lines + line * width + column, mask=inside, other=0)
    tl.store(result + pixel, _in_bytes(total), mask=inside)


@triton.jit
def _in_bytes(total):
    return tl.minimum(tl.maximum(total >> _PLACES, 0), 255).to(tl.uint8)


def resize_bilinear(frames: Tensor, framing: Framing) -> Tensor:
    """`preprocessing.resize_bilinear` on CUDA."""
    down, across = filter_taps(framing, frames.device)
    frames, batch, (height, width) = frames.contiguous(), len(frames), framing.crop
    result = frames.new_empty(batch, 3, height, width)
    launch(
        _interpolate,
        (triton.cdiv(height * width, _PIXELS), batch),
        frames,
        down.first,
        down.weights,
        across.first,
        across.weights,
        result,
        *frames.shape[1:3],
        height,
        width,
        _PIXELS,
    )
    return result


@triton.jit(do_not_specialize=['source_height', 'source_width', 'height', 'width'])
def _interpolate(
    frames,
    rows,
    row_weights,
    columns,
    column_weights,
    result,
    source_height,
    source_width,
    height,
    width,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    frames += image * source_height * source_width * 3
    result += image * 3 * height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row = pixel // width
    column = pixel % width
    left = tl.load(columns + column, mask=inside, other=0)
    right = 3 * tl.minimum(left + 1, source_width - 1)
    left *= 3
    left_weight = tl.load(column_weights + column, mask=inside, other=0)
    right_weight = tl.load(column_weights + width + column, mask=inside, other=0)
    above = tl.load(rows + row, mask=inside, other=0)
    for channel in tl.static_range(3):
        total = tl.full((PIXELS,), 2, tl.int32)
        for tap in tl.static_range(2):
            line = tl.minimum(tl.maximum(above + tap, 0), source_height - 1) * source_width * 3
            values = frames + channel + line
            between = left_weight * tl.load(values + left, mask=inside, other=0)
            between += right_weight * tl.load(values + right, mask=inside, other=0)
            weight = tl.load(row_weights + tap * height + row, mask=inside, other=0)
            # Rounded as in `preprocessing.resize_bilinear`.
            total += (between >> 4) * weight >> 16
        value = (total >> 2).to(tl.uint8)
        tl.store(result + channel * height * width + pixel, value, mask=inside)


def normalise(
    pixels: Tensor, divisor: float, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """`preprocessing.normalise` on CUDA."""
    batch, _, height, width = pixels.shape
    result = pixels.new_empty(pixels.shape, dtype=dtype)
    launch(
        _normalise,
        (triton.cdiv(height * width, _PIXELS), batch * 3),
        pixels,
        mean,
        std,
        result,
        float(divisor),
        *pixels.stride(),
        height,
        width,
        _PIXELS,
    )
    return result


@triton.jit(
    do_not_specialize=[
        'divisor',
        'image_stride',
        'plane_stride',
        'row_stride',
        'column_stride',
        'height',
        'width',
    ]
)
def _normalise(
    pixels,
    mean,
    std,
    result,
    divisor,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    PIXELS: tl.constexpr,
):
    plane = tl.program_id(1)
    channel = plane % 3
    pixels += (plane // 3).to(tl.int64) * image_stride + channel * plane_stride
    result += plane.to(tl.int64) * height * width
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    place = pixel // width * row_stride + pixel % width * column_stride
    value = tl.load(pixels + place, mask=inside, other=0).to(tl.float32)
    # Triton's own division is not rounded correctly.
    value = tl.div_rn(value, divisor) - tl.load(mean + channel)
    value = tl.div_rn(value, tl.load(std + channel))
    tl.store(result + pixel, value.to(result.dtype.element_ty), mask=inside)
