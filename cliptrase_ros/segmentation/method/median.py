"""The 7 x 7 median as a network of elementwise minima and maxima.

Selecting among 49 values pixel by pixel defeats vector units; a fixed sequence of minima and
maxima of whole images does not, and gives the very same value.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import torch
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by

#: Pixels along a side of the neighbourhood.
SIDE = 7
_RANK = SIDE * SIDE // 2


@on_cuda_by('median_kernels', where=lambda images, absent: min(images.shape[-2:]) >= SIDE // 2)
def median_7x7(images: Tensor, absent: Tensor) -> Tensor:
    """Median of every pixel's 7 x 7 neighbourhood; -1 throughout images that are absent.

    Args:
        images: float32 (..., H, W). Borders are mirrored with the edge sample repeated.
        absent: bool (...).

    Returns:
        float32 (..., H, W).
    """
    height, width = images.shape[-2:]
    rows, columns = (_mirrored(length, images.device) for length in (height, width))
    padded = images[..., rows, :][..., columns]
    # Each column of seven is sorted once for the seven neighbourhoods that share it.
    column = [padded[..., y : y + height, :] for y in range(SIDE)]
    for low, high in sorting_network(SIDE):
        a, b = column[low], column[high]
        column[low], column[high] = torch.minimum(a, b), torch.maximum(a, b)

    wires = [column[rank][..., x : x + width] for rank in range(SIDE) for x in range(SIDE)]
    exchanges, median = selection_network()
    for low, high, low_is_needed, high_is_needed in exchanges:
        a, b = wires[low], wires[high]
        if low_is_needed:
            wires[low] = torch.minimum(a, b)
        if high_is_needed:
            wires[high] = torch.maximum(a, b)
    return wires[median].masked_fill(absent[..., None, None], -1.0)


def _mirrored(length: int, device: torch.device) -> Tensor:
    border = SIDE // 2
    position = torch.arange(-border, length + border, device=device) % (2 * length)
    return torch.minimum(position, 2 * length - 1 - position)


@cache
def selection_network() -> tuple[tuple[tuple[int, int, bool, bool], ...], int]:
    """Exchanges that bring the median of a neighbourhood with sorted columns to one wire.

    Wire rank * 7 + x holds the value of that rank in column x.

    Returns:
        For each exchange (low wire, high wire, whether the smaller value is used later, whether
        the larger one is), and the wire that ends with the median.
    """
    # Sorting each rank across the columns leaves a matrix whose rows and columns are sorted. Only
    # 29 of its places can hold the median: at every other place more than 24 values are certainly
    # larger, or more than 24 certainly smaller, and there are as many of one kind as of the other.
    exchanges = [
        (rank * SIDE + low, rank * SIDE + high)
        for rank in range(SIDE)
        for low, high in sorting_network(SIDE)
    ]
    candidates = [
        i * SIDE + j
        for i in range(SIDE)
        for j in range(SIDE)
        if (i + 1) * (j + 1) - 1 <= _RANK and (SIDE - i) * (SIDE - j) - 1 <= _RANK
    ]
    exchanges += [
        (candidates[low], candidates[high]) for low, high in sorting_network(len(candidates))
    ]
    median = candidates[len(candidates) // 2]
    return tuple(reversed(list(_used(reversed(exchanges), median)))), median


def _used(
    exchanges: Iterable[tuple[int, int]], result: int
) -> Iterator[tuple[int, int, bool, bool]]:
    """Those exchanges, from the last one back, that the wire of the result depends on."""
    needed = {result}
    for low, high in exchanges:
        uses = (low in needed, high in needed)
        if any(uses):
            needed |= {low, high}
            yield (low, high, *uses)


def sorting_network(length: int) -> Iterator[tuple[int, int]]:
    """Exchanges that sort any sequence of this length (Batcher's merge exchange)."""
    largest = 1 << (length - 1).bit_length() - 1
    stride = largest
    while stride:
        remainder, distance, step = 0, stride, largest
        while True:
            for i in range(length - distance):
                if i & stride == remainder:
                    yield i, i + distance
            if step == stride:
                break
            distance, remainder, step = step - stride, stride, step // 2
        stride //= 2
