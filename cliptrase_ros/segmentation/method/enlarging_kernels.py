"""Labels of pixels from maps of patches, each in one Triton kernel.

A thread has one pixel and reads the four patches around it of every map that counts there; enlarged
maps are not written anywhere. Sums are taken in the order of PyTorch's bilinear enlargement, and
alike for all maps, so that equal maps stay equal. Triton 3.4 and newer compile them.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.kernel_parts import (
    SIZES,
    STRIDES,
    corners_around,
    enlarged,
    load_corners,
)
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing

# Pixels of a program: one for each thread of the four warps of `launch`.
_PIXELS = 128

# Adding it to a float32 of 0..255 leaves no bits for fractions: what is added is rounded as
# PyTorch's round() does, if the product that it is was rounded before.
_NO_FRACTIONS = tl.constexpr(float(1 << 23))


def largest_enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`enlarging.largest_enlarged` on CUDA, of maps without NaN."""
    batch, count, *grid = maps.shape
    result = torch.empty(batch, *size, dtype=torch.int64, device=maps.device)
    launch(
        _largest_enlarged,
        (triton.cdiv(result[0].numel(), _PIXELS), batch),
        maps,
        result,
        count,
        *maps.stride(),
        *grid,
        *size,
        *(patches / pixels for patches, pixels in zip(grid, size, strict=True)),
        _PIXELS,
    )
    return result


def labels_at_camera(
    labels: Tensor,
    probability: Tensor,
    table: LabelTable,
    min_confidence: Tensor,
    framing: Framing,
) -> tuple[Tensor, Tensor]:
    """`enlarging.labels_at_camera` on CUDA; padding columns have no probability."""
    batch, grid = len(labels), probability.shape[-2:]
    label = table.ids.new_empty(batch, *framing.source)
    confidence = torch.empty_like(label, dtype=torch.uint8)
    launch(
        _labels_at_camera,
        (triton.cdiv(label[0].numel(), _PIXELS), batch),
        labels.contiguous(),
        probability,
        table.foreground,
        table.used,
        table.ids,
        min_confidence,
        label,
        confidence,
        table.unlabelled,
        *framing.source,
        *framing.resized,
        *framing.offset,
        *framing.crop,
        *probability.stride(),
        *grid,
        *(patches / pixels for patches, pixels in zip(grid, framing.crop, strict=True)),
        _PIXELS,
        fused_rounding=False,
    )
    return label, confidence


def ids_and_confidence(
    labels: Tensor, probability: Tensor, table: LabelTable, min_confidence: Tensor
) -> tuple[Tensor, Tensor]:
    """`enlarging.ids_and_confidence` on CUDA."""
    ids = table.ids.new_empty(labels.shape)
    confidence = torch.empty_like(ids, dtype=torch.uint8)
    launch(
        _ids_and_confidence,
        (triton.cdiv(labels.numel(), _PIXELS),),
        labels.contiguous(),
        probability.contiguous(),
        table.ids,
        min_confidence,
        ids,
        confidence,
        table.unlabelled,
        labels.numel(),
        _PIXELS,
        fused_rounding=False,
    )
    return ids, confidence


# One compilation serves all sizes and layouts.
@triton.jit(do_not_specialize=['count', *STRIDES, *SIZES])
def _largest_enlarged(
    maps,
    result,
    count,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    rows,
    columns,
    down_scale,
    across_scale,
    PIXELS: tl.constexpr,
):
    # 32 bits count what belongs to one image, but not to many large ones.
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < rows * columns
    corners, down, across = corners_around(
        pixel // columns,
        pixel % columns,
        down_scale,
        across_scale,
        height,
        width,
        row_stride,
        column_stride,
    )
    maps += image * image_stride
    best = tl.full((PIXELS,), float('-inf'), tl.float32)
    largest = tl.zeros((PIXELS,), tl.int32)
    for number in range(count):
        value = enlarged(maps + number * plane_stride, corners, down, across, inside)
        largest = tl.where(value > best, number, largest)
        best = tl.maximum(best, value)
    tl.store(result + image * rows * columns + pixel, largest.to(tl.int64), mask=inside)


@triton.jit(
    do_not_specialize=[
        'unlabelled',
        'source_rows',
        'source_columns',
        'resized_rows',
        'resized_columns',
        'first_row',
        'first_column',
        *SIZES,
        *STRIDES,
    ]
)
def _labels_at_camera(
    labels,
    probability,
    foreground,
    used,
    ids,
    min_confidence,
    label,
    confidence,
    unlabelled,
    source_rows,
    source_columns,
    resized_rows,
    resized_columns,
    first_row,
    first_column,
    rows,
    columns,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    down_scale,
    across_scale,
    PIXELS: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < source_rows * source_columns
    # The nearest pixel of the crop: the floor of (pixel + 0.5) * resized / source.
    row = (2 * (pixel // source_columns) + 1).to(tl.int64) * resized_rows // (
        2 * source_rows
    ) - first_row
    column = (
        (2 * (pixel % source_columns) + 1).to(tl.int64) * resized_columns // (2 * source_columns)
    )
    column -= first_column
    seen = inside & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    labels += image * rows * columns
    number = tl.load(labels + row * columns + column, mask=seen, other=0)

    # Of the background all columns count as one, which is enlarged: it is summed at each patch.
    foreground = tl.load(foreground)
    is_background = seen & (number >= foreground)
    corners, down, across = corners_around(
        row, column, down_scale, across_scale, height, width, row_stride, column_stride
    )
    probability += image * image_stride
    upper_left, upper_right, lower_left, lower_right = load_corners(
        probability + number * plane_stride, corners, seen
    )
    for other in range(foreground + 1, tl.load(used)):
        more = load_corners(probability + other * plane_stride, corners, is_background)
        upper_left += more[0]
        upper_right += more[1]
        lower_left += more[2]
        lower_right += more[3]
    upper = _lerp(upper_left, upper_right, across)
    value = _lerp(upper, _lerp(lower_left, lower_right, across), down)

    label_id, level = _published(number, value, seen, ids, min_confidence, unlabelled)
    first = image * source_rows * source_columns
    tl.store(label + first + pixel, label_id, mask=inside)
    tl.store(confidence + first + pixel, level, mask=inside)


@triton.jit(do_not_specialize=['unlabelled', 'pixels'])
def _ids_and_confidence(
    labels,
    probability,
    ids,
    min_confidence,
    label,
    confidence,
    unlabelled,
    pixels,
    PIXELS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    number = tl.load(labels + pixel, mask=inside, other=0)
    value = tl.load(probability + pixel, mask=inside, other=0.0)
    label_id, level = _published(number, value, inside, ids, min_confidence, unlabelled)
    tl.store(label + pixel, label_id, mask=inside)
    tl.store(confidence + pixel, level, mask=inside)


@triton.jit
def _published(number, probability, seen, ids, min_confidence, unlabelled):
    """Id and confidence of labels; of pixels that are not seen, `unlabelled` and 0."""
    label_id = tl.load(ids + number, mask=seen, other=0)
    is_unlabelled = (probability < tl.load(min_confidence)) | ~seen
    label_id = tl.where(is_unlabelled, unlabelled.to(label_id.dtype), label_id)
    level = (probability * 255 + _NO_FRACTIONS) - _NO_FRACTIONS
    return label_id, tl.where(seen, level, 0.0).to(tl.uint8)


@triton.jit
def _lerp(begin, end, weight):
    """torch.lerp."""
    step = end - begin
    return tl.where(weight < 0.5, begin + weight * step, end - step * (1 - weight))
