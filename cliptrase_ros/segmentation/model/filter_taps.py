"""Weights of Pillow's bicubic and OpenCV's bilinear filter, as their fixed-point numbers.

Both libraries scale pictures of 8 bits with integers: who has their weights, and rounds where they
do, has their very pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.segmentation.memo import constant

#: Binary places of the weights.
BICUBIC_PLACES, BILINEAR_PLACES = 22, 11


@dataclass(frozen=True)
class Taps:
    """Which pixels along a line count in each of N, and how much.

    Attributes:
        first: int32 (N,), the first of them. Beyond the line's ends the pixels there count.
        weights: int32 (T, N), of that pixel and those after it.
        span: From the first pixel that counts in any to the one after the last.
    """

    first: Tensor
    weights: Tensor
    span: tuple[int, int]


@constant
def bicubic_taps(source: int, resized: int, offset: int, crop: int, device: torch.device) -> Taps:
    """How Pillow scales a line: antialiased, with Keys's cubic of a = -0.5.

    Args:
        source, resized: Pixels before and after.
        offset, crop: Of those after, the first that is wanted, and how many are.
    """
    scale = source / resized
    stretch = max(scale, 1.0)
    centre = (np.arange(offset, offset + crop) + 0.5) * scale
    first = (centre - 2 * stretch + 0.5).astype(np.int32).clip(0)
    end = (centre + 2 * stretch + 0.5).astype(np.int32).clip(max=source)
    tap = np.arange((end - first).max(), dtype=np.int32)[:, None]
    distance = np.abs((tap + first - centre + 0.5) * (1 / stretch))
    # Operations are in Pillow's order, lest a weight be rounded the other way.
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    weights = np.select([first + tap >= end, distance < 1, distance < 2], [0, near, far])
    # One after the other; sum() adds in another order.
    weights /= weights.cumsum(0)[-1]
    fixed = np.trunc(weights * (1 << BICUBIC_PLACES) + np.copysign(0.5, weights))
    return _on_device(first, fixed, (int(first[0]), int(end[-1])), device)


@constant
def bilinear_taps(
    source: int, resized: int, offset: int, crop: int, across: bool, device: torch.device
) -> Taps:
    """How OpenCV scales a line, from the two pixels around; see `bicubic_taps`.

    Args:
        across: Whether the line is a row of the picture. Beyond its ends one pixel has all the
            weight; at those of a column the same pixel counts twice, and is rounded twice.
    """
    centre = (np.arange(offset, offset + crop) + 0.5) * (1 / (resized / source)) - 0.5
    position = centre.astype(np.float32)
    first = np.floor(position).astype(np.int32)
    after = position - first.astype(np.float32)
    if across:
        after[(first < 0) | (first >= source - 1)] = 0
        first = first.clip(0, source - 1)
    weights = np.stack([1 - after, after]) * np.float32(1 << BILINEAR_PLACES)
    span = (max(int(first[0]), 0), min(int(first[-1]) + 2, source))
    return _on_device(first, weights.round(), span, device)


def _on_device(
    first: np.ndarray, weights: np.ndarray, span: tuple[int, int], device: torch.device
) -> Taps:
    first, weights = (
        torch.tensor(values.astype(np.int32), device=device) for values in (first, weights)
    )
    return Taps(first, weights, span)
