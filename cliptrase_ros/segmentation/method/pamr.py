"""Pixel-adaptive mask refinement (PAMR, arXiv 2005.08104): pixels of like colour share labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.method.refinement import most_frequent

# Neighbours stand so many pixels away, in eight directions.
_DISTANCES = (8, 16)
_OFFSETS = [
    (down, right)
    for distance in _DISTANCES
    for down in (-distance, 0, distance)
    for right in (-distance, 0, distance)
    if down or right
]
_STEPS = 10
# Share of the standard deviation of colours around a pixel by which a neighbour's differs for its
# weight to fall by e.
_TOLERANCE = 0.1


def neighbour_weights(picture: Tensor) -> Tensor:
    """How much each of 16 neighbours counts for a pixel, by its colours.

    Args:
        picture: float (B, 3, H, W).

    Returns:
        float32 (B, 16, H, W), with the sum 1 over neighbours.
    """
    difference = picture.new_zeros((), dtype=torch.float32)
    for itself in picture.float().split(1, 1):
        around = torch.cat(_shifted(itself), 1)
        # The published code counts the pixel itself twice, once for each distance.
        spread = torch.cat([around, itself, itself], 1).std(1, keepdim=True)
        difference = difference + (around - itself).abs() / (1e-8 + _TOLERANCE * spread)
    return (difference / -3).softmax(1)


def refine(maps: Tensor, weights: Tensor) -> Tensor:
    """Let each pixel take the weighted mean of its neighbours in every map, ten times.

    Args:
        maps: float32 (B, K, H, W), each refined by itself.
        weights: From `neighbour_weights`.
    """
    # On a CPU one map at a time stays in the cache.
    return torch.cat([_refine(part, weights) for part in maps.split(_maps_at_once(maps), 1)], 1)


def refine_present(largest: Tensor, maps: Tensor, picture: Tensor) -> Tensor:
    """Which map is largest once those that are largest anywhere are refined.

    Of an image's maps the 12 that are largest at the most pixels take part, whatever their number,
    so that time does not grow with it; pixels of others stay. Nothing waits for the device.

    Args:
        largest: int64 (B, H, W), which map is largest, enlarged bilinearly.
        maps: float32 (B, C, h, w).
        picture: uint8 (B, 3, H, W) RGB.

    Returns:
        int64 (B, H, W).
    """
    candidates, occurs = most_frequent(largest, maps.shape[1])
    chosen = maps.gather(1, candidates[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    enlarged = F.interpolate(chosen, size=largest.shape[-2:], mode='bilinear', align_corners=False)
    refined = refine(enlarged, neighbour_weights(picture))
    refined = refined.masked_fill(~occurs[:, :, None, None], -torch.inf)
    winner = candidates.gather(1, refined.max(1).indices.flatten(1)).view_as(largest)
    takes_part = (largest[:, None] == candidates[:, :, None, None]).any(1)
    return torch.where(takes_part, winner, largest)


def _refine(maps: Tensor, weights: Tensor) -> Tensor:
    for _ in range(_STEPS):
        total = torch.zeros_like(maps)
        for weight, shifted in zip(weights.unbind(1), _shifted(maps), strict=True):
            total.addcmul_(weight[:, None], shifted)
        maps = total
    return maps


def _shifted(maps: Tensor) -> list[Tensor]:
    """Maps (B, K, H, W) as seen from each neighbour; beyond the border is the nearest pixel."""
    height, width = maps.shape[-2:]
    border = max(_DISTANCES)
    padded = F.pad(maps, (border, border, border, border), mode='replicate')
    return [
        padded[..., border + down : border + down + height, border + right : border + right + width]
        for down, right in _OFFSETS
    ]


def _maps_at_once(maps: Tensor) -> int:
    return 1 if maps.device.type == 'cpu' else maps.shape[1]
