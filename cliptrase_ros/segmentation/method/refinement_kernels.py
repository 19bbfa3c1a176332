"""Edge-aware refinement as four Triton kernels: candidates' masks never exist.

Two more count labels and choose among maps that exist. Triton 3.4 and newer compile them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.kernel_parts import (
    SIZES,
    STRIDES,
    corners_around,
    count_each,
    enlarged,
    mean_colours,
    window,
)
from cliptrase_ros.segmentation.method.refinement import FLAT_VARIANCE, MOST_LABELS, RADIUS

# Pixels or cells of a program, one a thread.
_BLOCK = 128
# Pixels of a program that counts labels, and, at a time, of one that averages over a cell.
_COUNTED = 1024
_AVERAGED = 64
_CANDIDATES = triton.next_power_of_2(MOST_LABELS)

_RADIUS = tl.constexpr(RADIUS)
_FLAT_VARIANCE = tl.constexpr(FLAT_VARIANCE)


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """`refinement.count_labels` on CUDA."""
    labels = labels.contiguous()
    counts = torch.zeros(len(labels), classes, device=labels.device)
    pixels = labels[0].numel()
    programs = (triton.cdiv(pixels, _COUNTED), len(labels))
    launch(_count_labels, programs, labels, counts, pixels, classes, _COUNTED)
    return counts


def choose_among(maps: Tensor, labels: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """`refinement.choose_among` on CUDA."""
    labels = labels.contiguous()
    result = torch.empty_like(labels)
    pixels = labels[0].numel()
    launch(
        _choose_among,
        (triton.cdiv(pixels, _BLOCK), len(labels)),
        maps.contiguous(),
        labels,
        candidates.contiguous(),
        counts.contiguous(),
        result,
        pixels,
        candidates.shape[1],
        counts.shape[1],
        _BLOCK,
    )
    return result


def cell_means(
    labels: Tensor, picture: Tensor, candidates: Tensor, cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`refinement._cell_means` on CUDA."""
    batch, number = candidates.shape
    colours = torch.empty(batch, 3, *cells, device=picture.device)
    shares = torch.empty(batch, number, *cells, device=picture.device)
    launch(
        _cell_means,
        (cells[0] * cells[1], batch),
        labels.contiguous(),
        picture,
        candidates.contiguous(),
        colours,
        shares,
        *picture.stride(),
        *picture.shape[-2:],
        *cells,
        number,
        _CANDIDATES,
        _AVERAGED,
        warps=1,
    )
    return colours, shares


def regress(colours: Tensor, shares: Tensor) -> Tensor:
    """`refinement._regress` on CUDA."""
    batch, number, *cells = shares.shape
    coefficients = shares.new_empty(batch, 4, number, *cells)
    launch(
        _regress,
        (triton.cdiv(cells[0] * cells[1], _BLOCK), number, batch),
        colours.contiguous(),
        shares.contiguous(),
        coefficients,
        *cells,
        number,
        _BLOCK,
    )
    return coefficients


def mean_around(maps: Tensor) -> Tensor:
    """`refinement._mean_around` on CUDA."""
    maps = maps.contiguous()
    means = torch.empty_like(maps)
    rows, columns = maps.shape[-2:]
    programs = (maps[..., 0, 0].numel(), triton.cdiv(rows * columns, _BLOCK))
    launch(_mean_around, programs, maps, means, rows, columns, _BLOCK)
    return means


def choose_filtered(
    coefficients: Tensor, labels: Tensor, picture: Tensor, candidates: Tensor, counts: Tensor
) -> Tensor:
    """`refinement._choose_filtered` on CUDA."""
    labels = labels.contiguous()
    result = torch.empty_like(labels)
    height, width = labels.shape[-2:]
    rows, columns = coefficients.shape[-2:]
    launch(
        _choose_filtered,
        (triton.cdiv(height * width, _BLOCK), len(labels)),
        coefficients.contiguous(),
        labels,
        picture,
        candidates.contiguous(),
        counts.contiguous(),
        result,
        *picture.stride(),
        height,
        width,
        rows,
        columns,
        rows / height,
        columns / width,
        candidates.shape[1],
        counts.shape[1],
        _BLOCK,
    )
    return result


# One compilation of each serves all sizes.
@triton.jit(do_not_specialize=['pixels', 'classes'])
def _count_labels(labels, counts, pixels, classes, BLOCK: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + image * pixels + pixel, mask=pixel < pixels, other=classes)
    count_each(counts + image * classes, label, classes)


@triton.jit(do_not_specialize=['pixels', 'number', 'classes'])
def _choose_among(
    maps, labels, candidates, counts, result, pixels, number, classes, BLOCK: tl.constexpr
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label = tl.load(labels + image * pixels + pixel, mask=inside, other=0)
    candidates += image * number
    counts += image * classes
    winner, best, is_candidate = _nothing_chosen(label, candidates)
    for i in range(number):
        value = tl.load(maps + (image * number + i) * pixels + pixel, mask=inside, other=0.0)
        winner, best, is_candidate = _choose(
            value, label, tl.load(candidates + i), counts, winner, best, is_candidate
        )
    chosen = tl.where(is_candidate, winner, label)
    tl.store(result + image * pixels + pixel, chosen, mask=inside)


@triton.jit
def _nothing_chosen(label, candidates):
    winner = tl.zeros_like(label) + tl.load(candidates)
    return winner, tl.full(label.shape, float('-inf'), tl.float32), tl.zeros(label.shape, tl.int1)


@triton.jit
def _choose(value, label, candidate, counts, winner, best, is_candidate):
    # The first of those that are equally large.
    occurs = tl.load(counts + candidate) > 0
    larger = tl.where(occurs, value, float('-inf')) > best
    winner = tl.where(larger, candidate, winner)
    best = tl.where(larger, value, best)
    return winner, best, is_candidate | (label == candidate)


@triton.jit(do_not_specialize=[*STRIDES, *SIZES, 'number'])
def _cell_means(
    labels,
    picture,
    candidates,
    colours,
    shares,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    rows,
    columns,
    number,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cell = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    cells = rows * columns
    top, bottom = window(cell // columns, height, rows)
    left, right = window(cell % columns, width, columns)
    picture += image * image_stride
    colours += image * 3 * cells + cell
    means = mean_colours(
        picture, plane_stride, row_stride, column_stride, top, bottom, left, right, BLOCK
    )
    colour = tl.arange(0, 4)
    tl.store(colours + colour * cells, means, mask=colour < 3)

    labels += image * height * width
    which = tl.arange(0, CANDIDATES)
    candidate = tl.load(candidates + image * number + which, mask=which < number, other=-1)
    pixels = (bottom - top) * (right - left)
    found = tl.zeros((CANDIDATES, BLOCK), tl.float32)
    for first in range(0, pixels, BLOCK):
        pixel = first + tl.arange(0, BLOCK)
        row = top + pixel // (right - left)
        column = left + pixel % (right - left)
        # No candidate is -2.
        label = tl.load(labels + row * width + column, mask=pixel < pixels, other=-2)
        found += (candidate[:, None] == label[None, :]).to(tl.float32)
    share = tl.sum(found, 1) / pixels
    tl.store(shares + (image * number + which) * cells + cell, share, mask=which < number)


@triton.jit(do_not_specialize=['rows', 'columns', 'number'])
def _regress(colours, shares, coefficients, rows, columns, number, BLOCK: tl.constexpr):
    candidate = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    cells = rows * columns
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    colours += image * 3 * cells
    shares += (image * number + candidate) * cells

    # Sums over the neighbourhood: of the colours, the share s, and their products.
    nothing = tl.zeros((BLOCK,), tl.float32)
    count, r, g, b, s = nothing, nothing, nothing, nothing, nothing
    rr, rg, rb, gg, gb, bb = nothing, nothing, nothing, nothing, nothing, nothing
    rs, gs, bs = nothing, nothing, nothing
    for down in range(-_RADIUS, _RADIUS + 1):
        for across in tl.static_range(-_RADIUS, _RADIUS + 1):
            near, is_there = _cell_beside(cell, down, across, rows, columns)
            red = tl.load(colours + near, mask=is_there, other=0.0)
            green = tl.load(colours + cells + near, mask=is_there, other=0.0)
            blue = tl.load(colours + 2 * cells + near, mask=is_there, other=0.0)
            share = tl.load(shares + near, mask=is_there, other=0.0)
            count += is_there.to(tl.float32)
            r, g, b, s = r + red, g + green, b + blue, s + share
            rr, rg, rb = rr + red * red, rg + red * green, rb + red * blue
            gg, gb, bb = gg + green * green, gb + green * blue, bb + blue * blue
            rs, gs, bs = rs + red * share, gs + green * share, bs + blue * share

    r, g, b, s = r / count, g / count, b / count, s / count
    rs, gs, bs = rs / count - r * s, gs / count - g * s, bs / count - b * s
    rg, rb, gb = rg / count - r * g, rb / count - r * b, gb / count - g * b
    rr = rr / count - r * r + _FLAT_VARIANCE
    gg = gg / count - g * g + _FLAT_VARIANCE
    bb = bb / count - b * b + _FLAT_VARIANCE

    # The inverse of the variance is its adjugate by its determinant.
    adjugate_rr, adjugate_rg, adjugate_rb = gg * bb - gb * gb, gb * rb - rg * bb, rg * gb - gg * rb
    adjugate_gg, adjugate_gb, adjugate_bb = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    determinant = rr * adjugate_rr + rg * adjugate_rg + rb * adjugate_rb
    slope_r = (rs * adjugate_rr + gs * adjugate_rg + bs * adjugate_rb) / determinant
    slope_g = (rs * adjugate_rg + gs * adjugate_gg + bs * adjugate_gb) / determinant
    slope_b = (rs * adjugate_rb + gs * adjugate_gb + bs * adjugate_bb) / determinant
    offset = s - (slope_r * r + slope_g * g + slope_b * b)

    inside = cell < cells
    coefficients += (image * 4 * number + candidate) * cells + cell
    tl.store(coefficients, offset, mask=inside)
    tl.store(coefficients + number * cells, slope_r, mask=inside)
    tl.store(coefficients + 2 * number * cells, slope_g, mask=inside)
    tl.store(coefficients + 3 * number * cells, slope_b, mask=inside)


@triton.jit
def _cell_beside(cell, down, across, rows, columns):
    # Beyond the last cell the last one stands in, so that nothing is divided by 0.
    cell = tl.minimum(cell, rows * columns - 1)
    row, column = cell // columns + down, cell % columns + across
    is_there = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return row * columns + column, is_there


@triton.jit(do_not_specialize=['rows', 'columns'])
def _mean_around(maps, means, rows, columns, BLOCK: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * rows * columns
    cell = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    for down in range(-_RADIUS, _RADIUS + 1):
        for across in tl.static_range(-_RADIUS, _RADIUS + 1):
            near, is_there = _cell_beside(cell, down, across, rows, columns)
            total += tl.load(maps + first + near, mask=is_there, other=0.0)
            count += is_there.to(tl.float32)
    tl.store(means + first + cell, total / count, mask=cell < rows * columns)


@triton.jit(do_not_specialize=[*STRIDES, *SIZES, 'number', 'classes'])
def _choose_filtered(
    coefficients,
    labels,
    picture,
    candidates,
    counts,
    result,
    image_stride,
    plane_stride,
    row_stride,
    column_stride,
    height,
    width,
    rows,
    columns,
    rows_per_pixel,
    columns_per_pixel,
    number,
    classes,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    picture += image * image_stride
    at = row * row_stride + column * column_stride
    red = tl.load(picture + at, mask=inside, other=0) / 255.0
    green = tl.load(picture + plane_stride + at, mask=inside, other=0) / 255.0
    blue = tl.load(picture + 2 * plane_stride + at, mask=inside, other=0) / 255.0

    corners, down, across = corners_around(
        row, column, rows_per_pixel, columns_per_pixel, rows, columns, columns, 1
    )

    first = image * height * width
    label = tl.load(labels + first + pixel, mask=inside, other=0)
    candidates += image * number
    counts += image * classes
    winner, best, is_candidate = _nothing_chosen(label, candidates)
    step = number * rows * columns
    coefficients += image * 4 * step
    for i in range(number):
        value = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(4):
            term = enlarged(coefficients + j * step, corners, down, across, inside)
            if j == 0:
                value += term
            elif j == 1:
                value += term * red
            elif j == 2:
                value += term * green
            else:
                value += term * blue
        winner, best, is_candidate = _choose(
            value, label, tl.load(candidates + i), counts, winner, best, is_candidate
        )
        coefficients += rows * columns
    chosen = tl.where(is_candidate, winner, label)
    tl.store(result + first + pixel, chosen, mask=inside)
