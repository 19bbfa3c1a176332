"""Pixel-adaptive mask refinement (PAMR, arXiv 2005.08104): pixels of like colour share labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.method.enlarging import enlarge
from cliptrase_ros.segmentation.method.refinement import choose_among, count_labels, most_frequent

# Neighbours stand so many pixels away, in eight directions.
_DISTANCES = (8, 16)
#: Rows down and columns to the right of each neighbour.
OFFSETS = [
    (down, right)
    for distance in _DISTANCES
    for down in (-distance, 0, distance)
    for right in (-distance, 0, distance)
    if down or right
]
_BORDER = max(_DISTANCES)
_STEPS = 10
#: A neighbour's weight falls to 1 / e where its colours differ, on average over the three channels,
#: by this share of their standard deviation around the pixel.
TOLERANCE = 0.1

# Values of shifted pictures at a time, to bound memory: 64 MiB, of which a few are needed.
_VALUES_AT_ONCE = 1 << 24


@on_cuda_by('pamr_kernels')
def neighbour_weights(picture: Tensor) -> Tensor:
    """How much each of 16 neighbours counts for a pixel, by its colours.

    Args:
        picture: float or uint8 (B, 3, H, W), of any scale.

    Returns:
        float32 (B, 16, H, W), with the sum 1 over neighbours.
    """
    height, width = picture.shape[-2:]
    rows = max(1, _VALUES_AT_ONCE // (width * len(OFFSETS)))
    frames = []
    for frame in picture.float().split(1):
        padded = _pad(frame)
        bands = [
            _weights(padded[:, :, top : top + min(rows, height - top) + 2 * _BORDER])
            for top in range(0, height, rows)
        ]
        frames.append(torch.cat(bands, 2))
    return torch.cat(frames)


def refine(maps: Tensor, weights: Tensor) -> Tensor:
    """Let each pixel take the weighted mean of its neighbours in every map, ten times.

    Args:
        maps: float32 (B, K, H, W), each refined by itself.
        weights: From `neighbour_weights`.
    """
    if maps.device.type == 'cpu':
        # One map at a time stays in the cache.
        return torch.cat([_refine(part, weights) for part in maps.split(1, 1)], 1)
    return _refine(maps, weights)


def refine_present(largest: Tensor, maps: Tensor, picture: Tensor) -> Tensor:
    """Which map is largest once those that are largest anywhere are refined.

    Of an image's maps the 12 that are largest at the most pixels take part, whatever their number,
    so that time does not grow with it; pixels of others stay.

    Args:
        largest: int64 (B, H, W), which map is largest, enlarged bilinearly.
        maps: float32 (B, C, h, w).
        picture: uint8 (B, 3, H, W) RGB.

    Returns:
        int64 (B, H, W).
    """
    counts = count_labels(largest, maps.shape[1])
    candidates = most_frequent(counts)
    chosen = maps.gather(1, candidates[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    refined = refine(enlarge(chosen, largest.shape[-2:]), neighbour_weights(picture))
    return choose_among(refined, largest, candidates, counts)


def _weights(padded: Tensor) -> Tensor:
    """Of a padded picture (1, 3, h, w)."""
    difference = 0.0
    for channel in padded.split(1, 1):
        around = torch.cat(_shifted(channel), 1)
        itself = channel[..., _BORDER:-_BORDER, _BORDER:-_BORDER]
        # The published code counts the pixel itself twice, once for each distance.
        spread = torch.cat([around, itself, itself], 1).std(1, keepdim=True)
        difference = difference + (around - itself).abs() / (1e-8 + TOLERANCE * spread)
    return (-difference / padded.shape[1]).softmax(1)


def _refine(maps: Tensor, weights: Tensor) -> Tensor:
    for _ in range(_STEPS):
        maps = _step(maps, weights)
    return maps


@on_cuda_by('pamr_kernels')
def _step(maps: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of each pixel's neighbours in every map, see `refine`."""
    total = torch.zeros_like(maps)
    for weight, shifted in zip(weights.unbind(1), _shifted(_pad(maps)), strict=True):
        total.addcmul_(weight[:, None], shifted)
    return total


def _pad(maps: Tensor) -> Tensor:
    """Beyond the border of maps (B, K, H, W) is the nearest pixel."""
    return F.pad(maps, (_BORDER, _BORDER, _BORDER, _BORDER), mode='replicate')


def _shifted(padded: Tensor) -> list[Tensor]:
    """Padded maps as seen from each neighbour, without the border."""
    height, width = (side - 2 * _BORDER for side in padded.shape[-2:])
    return [
        padded[..., _BORDER + y : _BORDER + y + height, _BORDER + x : _BORDER + x + width]
        for y, x in OFFSETS
    ]
