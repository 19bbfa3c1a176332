"""DBSCAN, means of clusters and the vote as Triton kernels: one where PyTorch needs several.

What needs the results of all other programs stands in the next kernel. Triton 3.4 and newer compile
them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.method.kernel_parts import count_each

# Stands for no region and no bin of a histogram: larger than all.
_NONE = tl.constexpr(2**31 - 1)

# Sizes of what a program handles at a time: four rows of N points, or a few columns in which it
# goes over all rows. Most grids have no more than 1024 points.
_ROWS, _POINTS = 4, 1024
_MEMBERS, _OTHERS = 16, 256
_COLUMNS, _TALL = 16, 256
# Pixels of a program of one warp, so that a reduction needs no shared memory.
_PIXELS, _CLASSES = 256, 128


def centred(rows: Tensor) -> Tensor:
    """`clustering._centred` on CUDA."""
    rows = rows.contiguous()
    batch, points, width = rows.shape
    result = torch.empty_like(rows)
    programs = (batch, triton.cdiv(width, _COLUMNS))
    launch(_centre, programs, rows, result, points, width, _TALL, _COLUMNS)
    return result


def core_points(rows: Tensor, eps: float, min_samples: int) -> tuple[Tensor, Tensor]:
    """`clustering._core_points` on CUDA."""
    batch, points, _ = rows.shape
    products = torch.bmm(rows, rows.mT)
    neighbours = torch.empty_like(products, dtype=torch.bool)
    core = neighbours.new_empty(batch, points)
    programs = (batch, triton.cdiv(points, _ROWS))
    given = (products, neighbours, core, points, eps * eps, min_samples)
    launch(_find_neighbours, programs, *given, _ROWS, _POINTS)
    return neighbours, core


def rounds(neighbours: Tensor, core: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`clustering._rounds` on CUDA."""
    batch, points = core.shape
    programs = (batch, triton.cdiv(points, _ROWS))
    first_core = core.new_empty((batch, points), dtype=torch.int32)
    reached = torch.empty_like(first_core)
    # What is handed on in each round is found by atomic minima, from "none" on.
    kept = first_core.new_full((count + 1, batch, points), points)
    given = (neighbours, core, kept, first_core, reached)
    for number in range(count + 1):
        launch(_round, programs, *given, number, points, _ROWS, _POINTS)
    return first_core, reached


def numbers_within(
    core: Tensor, first_core: Tensor, reached: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """`clustering._numbers_within` on CUDA."""
    batch, points = core.shape
    clusters = torch.empty_like(first_core, dtype=torch.int64)
    suffices = core.new_empty(batch)
    programs = (batch, triton.cdiv(points, _MEMBERS))
    given = (core, first_core, reached, clusters, suffices, points, most)
    launch(_number, programs, *given, _MEMBERS, _OTHERS)
    return clusters, suffices


def mean_rows(correlation: Tensor, clusters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`clustering._mean_rows` on CUDA."""
    correlation, clusters = correlation.contiguous(), clusters.contiguous()
    batch, points, width = correlation.shape
    means = correlation.new_empty(batch, count, width)
    absent = correlation.new_empty((batch, count), dtype=torch.bool)
    programs = (batch, count, triton.cdiv(width, _COLUMNS))
    given = (correlation, clusters, means, absent, points, width)
    launch(_average_rows, programs, *given, _TALL, _COLUMNS)
    return means, absent


def vote(
    labels: Tensor,
    regions: Tensor,
    count: int,
    classes: int,
    spared: Tensor,
    min_agreement: float = 0.0,
) -> Tensor:
    """`clustering.vote` on CUDA."""
    labels, regions = labels.contiguous(), regions.contiguous()
    pixels = labels[0].numel()
    programs = (len(labels), triton.cdiv(pixels, _PIXELS))
    votes = labels.new_zeros((len(labels), count, classes), dtype=torch.int32)
    result = torch.empty_like(labels)
    given = (labels, regions, spared, votes, spared.stride(0), pixels, count, classes)
    launch(_count, programs, *given, _PIXELS, warps=1)
    launch(_decide, programs, *given, result, min_agreement, _PIXELS, _CLASSES, warps=1)
    return result


# One compilation serves all sizes. An image's place in a batch has 64 bits: 32 count the entries of
# one image, but not those of many large ones.


@triton.jit(do_not_specialize=['points', 'width'])
def _centre(rows, result, points, width, TALL: tl.constexpr, COLUMNS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    rows += image * points * width
    result += image * points * width
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TALL, COLUMNS), tl.float32)
    for first in range(0, points, TALL):
        row = first + tl.arange(0, TALL)
        inside = (row < points)[:, None] & (column < width)[None, :]
        total += tl.load(rows + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    mean = tl.sum(total, 0) / points
    for first in range(0, points, TALL):
        row = first + tl.arange(0, TALL)
        inside = (row < points)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        value = tl.load(rows + place, mask=inside, other=0.0)
        tl.store(result + place, value - mean[None, :], mask=inside)


@triton.jit(do_not_specialize=['points', 'min_samples'])
def _find_neighbours(
    products,
    neighbours,
    core,
    points,
    squared_eps,
    min_samples,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    products += image * points * points
    neighbours += image * points * points
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    # Squares are the products of rows with themselves, so that equal rows have no distance.
    square = tl.load(products + row * (points + 1), mask=row < points, other=0.0)
    count = tl.zeros((ROWS, POINTS), tl.int32)
    for first in range(0, points, POINTS):
        point = first + tl.arange(0, POINTS)
        other_square = tl.load(products + point * (points + 1), mask=point < points, other=0.0)
        inside = (row < points)[:, None] & (point < points)[None, :]
        place = row[:, None] * points + point[None, :]
        product = tl.load(products + place, mask=inside, other=0.0)
        squared_distance = square[:, None] + other_square[None, :] - 2 * product
        near = (squared_distance <= squared_eps) & inside
        tl.store(neighbours + place, near, mask=inside)
        count += near.to(tl.int32)
    is_core = tl.sum(count, 1) >= min_samples
    tl.store(core + image * points + row, is_core, mask=row < points)


# The parts of a round in another order, so that what a program needs of others was finished in the
# kernel before: points first take the index that is kept by the point whose index they keep, and
# hand on last.
@triton.jit(do_not_specialize=['number', 'points'])
def _round(
    neighbours,
    core,
    kept,
    first_core,
    reached,
    number,
    points,
    ROWS: tl.constexpr,
    POINTS: tl.constexpr,
):
    image, batch = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    neighbours += image * points * points
    core += image * points
    kept_before = kept + ((number - 1) * batch + image) * points
    kept_after = kept + (number * batch + image) * points
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    smallest = tl.zeros((ROWS, POINTS), tl.int32) + points
    for first in range(0, points, POINTS):
        point = first + tl.arange(0, POINTS)
        index = _first_core(core, kept_before, number, point, points)
        inside = (row < points)[:, None] & (point < points)[None, :]
        near = tl.load(neighbours + row[:, None] * points + point[None, :], mask=inside, other=0)
        smallest = tl.minimum(smallest, tl.where(near != 0, index[None, :], points))
    own = _first_core(core, kept_before, number, row, points)
    is_core = own < points
    # A core point reaches itself, whatever rounding makes of the distance.
    found = tl.minimum(tl.min(smallest, 1), own)
    tl.store(first_core + image * points + row, tl.where(is_core, own, row), mask=row < points)
    tl.store(reached + image * points + row, found, mask=row < points)
    tl.atomic_min(kept_after + row, found, mask=is_core, sem='relaxed')
    # What is no news need not be handed on, and a component hands all to the same few points.
    tl.atomic_min(kept_after + own, found, mask=is_core & (found < own), sem='relaxed')


@triton.jit
def _first_core(core, kept, number, point, points):
    """What core points take; "none" for others, and for points that there are not."""
    if number == 0:
        is_core = tl.load(core + point, mask=point < points, other=0)
        index = tl.where(is_core != 0, point, points)
    else:
        named = tl.load(kept + point, mask=point < points, other=points)
        index = tl.load(kept + named, mask=named < points, other=points)
    return index


@triton.jit(do_not_specialize=['points', 'most'])
def _number(
    core,
    first_core,
    reached,
    clusters,
    suffices,
    points,
    most,
    MEMBERS: tl.constexpr,
    OTHERS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    core += image * points
    first_core += image * points
    reached += image * points
    member = tl.program_id(1) * MEMBERS + tl.arange(0, MEMBERS)
    inside = member < points
    # Only noise is a member of "none".
    member_of = tl.where(
        tl.load(core + member, mask=inside, other=0) != 0,
        tl.load(first_core + member, mask=inside, other=points),
        tl.load(reached + member, mask=inside, other=points),
    )
    up_to = tl.zeros((MEMBERS, OTHERS), tl.int32)
    found = tl.zeros((OTHERS,), tl.int32)
    news = tl.zeros((OTHERS,), tl.int32)
    for start in range(0, points, OTHERS):
        point = start + tl.arange(0, OTHERS)
        is_core = tl.load(core + point, mask=point < points, other=0) != 0
        index = tl.load(first_core + point, mask=point < points, other=points)
        smallest = tl.load(reached + point, mask=point < points, other=points)
        is_first = is_core & (index == point)
        up_to += (is_first[None, :] & (point[None, :] <= member_of[:, None])).to(tl.int32)
        found += is_first.to(tl.int32)
        news += (is_core & (smallest != index)).to(tl.int32)
    number = tl.where(member_of < points, tl.sum(up_to, 1) - 1, -1)
    tl.store(clusters + image * points + member, number.to(tl.int64), mask=inside)
    # Every program has looked at all points; the first speaks for the image.
    if tl.program_id(1) == 0:
        tl.store(suffices + image, (tl.sum(news, 0) == 0) & (tl.sum(found, 0) <= most))


@triton.jit(do_not_specialize=['points', 'width'])
def _average_rows(
    correlation,
    clusters,
    means,
    absent,
    points,
    width,
    TALL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    cluster = tl.program_id(1)
    place = image * tl.num_programs(1) + cluster
    correlation += image * points * width
    clusters += image * points
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((TALL, COLUMNS), tl.float32)
    members = tl.zeros((TALL,), tl.int32)
    for first in range(0, points, TALL):
        row = first + tl.arange(0, TALL)
        is_member = tl.load(clusters + row, mask=row < points, other=-1) == cluster
        members += is_member.to(tl.int32)
        # Only rows of members are read, so that all programs together read each once.
        wanted = is_member[:, None] & (column < width)[None, :]
        total += tl.load(correlation + row[:, None] * width + column[None, :], mask=wanted, other=0)
    size = tl.sum(members, 0)
    mean = tl.sum(total, 0) / tl.maximum(size, 1)
    tl.store(means + place * width + column, mean, mask=column < width)
    if tl.program_id(2) == 0:
        tl.store(absent + place, size == 0)


@triton.jit(do_not_specialize=['stride', 'pixels', 'count', 'classes'])
def _count(labels, regions, spared, votes, stride, pixels, count, classes, PIXELS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    if tl.load(spared + image * stride):
        return
    labels += image * pixels
    regions += image * pixels
    votes += image * count * classes
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < pixels
    region = tl.load(regions + pixel, mask=inside, other=0).to(tl.int32)
    label = tl.load(labels + pixel, mask=inside, other=0).to(tl.int32)
    # Neighbouring pixels mostly have the same region and label.
    place = tl.where(inside, region * classes + label, _NONE)
    count_each(votes, place, _NONE)


@triton.jit(do_not_specialize=['stride', 'pixels', 'count', 'classes'])
def _decide(
    labels,
    regions,
    spared,
    votes,
    stride,
    pixels,
    count,
    classes,
    result,
    min_agreement,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    labels += image * pixels
    regions += image * pixels
    votes += image * count * classes
    result += image * pixels
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    # An image that is spared has no pixels in regions.
    votes_count = (pixel < pixels) & (tl.load(spared + image * stride) == 0)
    region = tl.load(regions + pixel, mask=votes_count, other=_NONE).to(tl.int32)
    label = tl.load(labels + pixel, mask=pixel < pixels, other=0)
    # Each program decides for the few regions that its pixels are in.
    smallest = tl.min(region, 0)
    while smallest != _NONE:
        winner, agrees = _winner(votes + smallest * classes, classes, min_agreement, CLASSES)
        is_same = region == smallest
        if agrees:
            label = tl.where(is_same, winner.to(label.dtype), label)
        region = tl.where(is_same, _NONE, region)
        smallest = tl.min(region, 0)
    tl.store(result + pixel, label, mask=pixel < pixels)


@triton.jit
def _winner(votes, classes, min_agreement, CLASSES: tl.constexpr):
    """The lowest label with most votes, and whether its share suffices."""
    most, total, winner = -1, 0, 0
    for first in range(0, classes, CLASSES):
        label = first + tl.arange(0, CLASSES)
        count = tl.load(votes + label, mask=label < classes, other=0)
        largest = tl.max(count, 0)
        lowest = tl.min(tl.where(count == largest, label, classes), 0)
        winner = tl.where(largest > most, lowest, winner)
        most = tl.maximum(most, largest)
        total += tl.sum(count, 0)
    return winner, most.to(tl.float32) >= min_agreement * total.to(tl.float32)
