"""From maps of patches to labels of pixels: which map is largest there, and how probable it is."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing, to_camera_size

# Maps enlarged at a time, to bound memory; of no more it does not pay to look for candidates. The
# result does not depend on it.
_MAPS_AT_ONCE = 32

# Height and width of the tiles that a CPU enlarges one after the other, about, pixels: small enough
# for few maps to be candidates in one.
_TILE_SIZE = (64, 256)
# Images of which height and width add up to no more than this PyTorch enlarges by another
# algorithm, whose rounding depends on the number of maps. No tile of a wider image is that small.
_SMALL_IMAGE = 128
# More than what rounding adds to the difference of interpolated values, of the largest value.
_ROUNDING = 2e-6
# At these it is exact which patches a pixel lies between and where, so that a tile has the same
# numbers for it as the image.
_EXACT_SCALES = frozenset({2, 4, 8, 16, 32, 64})


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, K, h, w), bilinearly at a larger size (H, W)."""
    # Contiguous, because the kernel for other layouts rounds differently.
    return F.interpolate(maps.contiguous(), size=tuple(size), mode='bilinear', align_corners=False)


@on_cuda_by('enlarging_kernels')
def largest_enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Which of K maps, enlarged bilinearly, is largest at each pixel, the first of equal ones.

    On a CPU, of many maps only those that may be the largest somewhere in a tile are enlarged
    there. The result is that of enlarging all, to the last bit.

    Args:
        maps: float32 (B, K, h, w).
        size: (H, W), larger.

    Returns:
        int64 (B, H, W), 0..K-1.
    """
    is_small = sum(size) <= _SMALL_IMAGE or maps.shape[1] <= _MAPS_AT_ONCE
    if maps.device.type != 'cpu' or is_small:
        return largest_of_all(maps, size)
    result = maps.new_empty(len(maps), *size, dtype=torch.int64)
    for image, largest in zip(maps, result, strict=True):
        _write_largest(image, largest)
    return result


def largest_of_all(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`largest_enlarged` with work that does not depend on values, as CUDA graphs need it."""
    best = None
    for number, part in enumerate(maps.split(_MAPS_AT_ONCE, 1)):
        # max() over a strided dimension is several times faster than argmax(), with equal indices.
        value, index = enlarge(part, size).max(1)
        if best is None:
            best, largest = value, index
        else:
            largest = torch.where(value > best, index.add_(number * _MAPS_AT_ONCE), largest)
            best = torch.maximum(value, best)
    return largest


def _write_largest(maps: Tensor, result: Tensor) -> None:
    """Write `largest_enlarged` of one image's maps (K, h, w) to the result (H, W), tile by tile."""
    grid, size = maps.shape[1:], result.shape
    lead = _largest_lead(maps)
    # Tiles overlap: where they make more work than the image at once, that is the only tile.
    plans = [
        [(rows, columns, _candidates(lead, rows, columns)) for rows, columns in tiles]
        for tiles in (_tiles(grid, size), [_whole_image(grid, size)])
    ]
    for rows, columns, candidates in min(plans, key=_work):
        part = maps[:, rows.patches, columns.patches].index_select(0, candidates)
        largest = largest_of_all(part[None], (rows.length, columns.length))[0]
        result[rows.pixels, columns.pixels] = candidates.take(largest[rows.inner, columns.inner])


def _largest_lead(maps: Tensor) -> Tensor:
    """How far each of maps (K, h, w) may exceed all others between neighbouring patches, at most.

    Returns:
        float32 (K, h - 1, w - 1), each for two by two patches (of a single row or column, for what
        there is); negative where the map is not the largest anywhere.
    """
    # A bilinear value lies between the least and the largest of its four.
    high = low = maps
    for dim in (1, 2):
        length = maps.shape[dim] - 1
        if length > 0:
            high = torch.maximum(high.narrow(dim, 0, length), high.narrow(dim, 1, length))
            low = torch.minimum(low.narrow(dim, 0, length), low.narrow(dim, 1, length))
    return high - low.amax(0) + _ROUNDING * maps.abs().amax()


@dataclass(frozen=True)
class _Span:
    """A part of a line of patches that is enlarged on its own.

    Attributes:
        patches: What is enlarged.
        length: What it is enlarged to, pixels.
        inner: Of these, those that are what they are when the whole line is enlarged.
        pixels: Where these lie in the line.
    """

    patches: slice
    length: int
    inner: slice
    pixels: slice

    @property
    def pairs(self) -> slice:
        """The neighbouring patches in it, in what `_largest_lead` returns."""
        return slice(self.patches.start, max(self.patches.stop - 1, self.patches.start + 1))


_Tile = tuple[_Span, _Span]


def _candidates(lead: Tensor, rows: _Span, columns: _Span) -> Tensor:
    """The maps that may be the largest somewhere in a tile: int64 (n,), ascending."""
    most = lead[:, rows.pairs, columns.pairs].amax((1, 2))
    # NaN is no reason to leave one out.
    return (~(most < 0)).nonzero()[:, 0]


def _work(plan: list[tuple[_Span, _Span, Tensor]]) -> int:
    return sum(rows.length * columns.length * len(number) for rows, columns, number in plan)


def _whole_image(grid: Sequence[int], size: Sequence[int]) -> _Tile:
    return _whole_line(grid[0], size[0]), _whole_line(grid[1], size[1])


def _whole_line(patches: int, pixels: int) -> _Span:
    return _Span(slice(0, patches), pixels, slice(0, pixels), slice(0, pixels))


def _tiles(grid: Sequence[int], size: Sequence[int]) -> Iterable[_Tile]:
    """Tiles that make up an image of (h, w) patches and (H, W) pixels; one where it must be."""
    scales = [pixels / patches for patches, pixels in zip(grid, size, strict=True)]
    if size[1] <= _SMALL_IMAGE or not _EXACT_SCALES.issuperset(scales):
        return [_whole_image(grid, size)]
    rows, columns = map(_cut, grid, size, _TILE_SIZE)
    return product(rows, columns)


def _cut(patches: int, pixels: int, longest: int) -> list[_Span]:
    """Cut a line at centres of patches into equal parts, about as long as they may be."""
    count = min(math.ceil(pixels / longest), patches - 1)
    if count <= 1:
        return [_whole_line(patches, pixels)]
    scale, spans = pixels // patches, []
    for first, last in pairwise(i * (patches - 1) // count for i in range(count + 1)):
        # Pixels beyond the centres of the outermost patches have no others to lie between.
        origin = first * scale
        begin = origin + scale // 2 if first > 0 else 0
        end = last * scale + scale // 2 if last < patches - 1 else pixels
        inner = slice(begin - origin, end - origin)
        length = (last + 1 - first) * scale
        spans.append(_Span(slice(first, last + 1), length, inner, slice(begin, end)))
    return spans


@on_cuda_by('enlarging_kernels')
def labels_at_camera(
    labels: Tensor,
    probability: Tensor,
    table: LabelTable,
    min_confidence: Tensor,
    framing: Framing,
) -> tuple[Tensor, Tensor]:
    """What is published of labels at the network's pixels.

    Args:
        labels: int64 (B, H, W) of the framing's crop, up to `LabelTable.foreground`.
        probability: float32 (B, C, h, w), 0..1, of patches, see `label_probability`.
        min_confidence: float32 (), 0..1; less probable pixels become unlabelled.

    Returns:
        Ids of the table and uint8 confidence 0..255, both of the framing's source size;
        `unlabelled` and 0 where the network saw nothing.
    """
    label, confidence = ids_and_confidence(
        labels, label_probability(probability, labels, table), table, min_confidence
    )
    return (
        to_camera_size(label, framing, outside=table.unlabelled),
        to_camera_size(confidence, framing, outside=0),
    )


@on_cuda_by('enlarging_kernels')
def ids_and_confidence(
    labels: Tensor, probability: Tensor, table: LabelTable, min_confidence: Tensor
) -> tuple[Tensor, Tensor]:
    """What is published of labels, int64 (B, H, W), and their probability, float32, 0..1.

    Args:
        min_confidence: float32 (), 0..1; less probable pixels become unlabelled.

    Returns:
        Ids of the table and uint8 confidence 0..255, (B, H, W) both.
    """
    ids = table.ids_of(labels, probability, min_confidence)
    return ids, probability.mul(255).round().byte()


def label_probability(probability: Tensor, labels: Tensor, table: LabelTable) -> Tensor:
    """Interpolate the probability of each pixel's label.

    Args:
        probability: float32 (B, C, h, w), 0..1, of patches. The background columns count as one,
            as they do in `labels`.
        labels: int64 (B, H, W), up to `LabelTable.foreground`.

    Returns:
        float32 (B, H, W), 0..1.
    """
    column = torch.arange(probability.shape[1], device=probability.device)[:, None, None]
    is_background = column >= table.foreground
    background = (probability * is_background).sum(1, keepdim=True)
    return _enlarged_at(torch.where(is_background, background, probability), labels)


def _enlarged_at(maps: Tensor, which: Tensor) -> Tensor:
    """Enlarge maps (B, K, h, w) bilinearly, at each pixel only the one `which` (B, H, W) names."""
    height, width = maps.shape[-2:]
    top, bottom, down = _bilinear_positions(which.shape[-2], height, maps.device)
    left, right, across = _bilinear_positions(which.shape[-1], width, maps.device)
    flat, first = maps.flatten(1), which * (height * width)

    def pick(rows: Tensor, columns: Tensor) -> Tensor:
        index = first + (rows[:, None] * width + columns)
        return flat.gather(1, index.flatten(1)).view(which.shape)

    upper = torch.lerp(pick(top, left), pick(top, right), across)
    lower = torch.lerp(pick(bottom, left), pick(bottom, right), across)
    return torch.lerp(upper, lower, down[:, None])


@constant
def _bilinear_positions(
    target: int, source: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `target` pixels the two of `source` it lies between, and how far along."""
    pixel = torch.arange(target, device=device)
    position = ((pixel + 0.5) * (source / target) - 0.5).clamp(min=0)
    before = position.long().clamp(max=source - 1)
    return before, (before + 1).clamp(max=source - 1), position - before
