"""Boxes of instances in space, from the depth of their pixels."""

from dataclasses import dataclass

import numpy as np

from cliptrase_ros.segmentation.instances import Instance

#: Share of an instance's pixels that must have depth, or it has no box.
MIN_MEASURED = 0.1
#: How far depth may be from what half of the pixels have, in spans of that half: Tukey's fences.
_FENCE = 1.5
# The same, as a share of the distance, at least: depth cameras are no better than that.
_LEAST_FENCE = 0.02
# Quartiles are of about so many pixels.
_SAMPLE = 4096


@dataclass(frozen=True)
class SpaceBox:
    """A box whose sides are along the axes of the optical frame (REP 103).

    Attributes:
        centre: x, y, z, metres.
        size: Along x, y, z, metres.
    """

    centre: tuple[float, float, float]
    size: tuple[float, float, float]


def box_in_space(instance: Instance, depth: np.ndarray, rays: np.ndarray) -> SpaceBox | None:
    """Find the box around what a camera sees of an instance.

    Pixels of another depth, as of the background at its edge, do not count: those farther from the
    quartiles than 1.5 times the distance between them, or 2 % of the median depth where that is
    more.

    Args:
        depth: float32 (H, W), metres, NaN where nothing was measured.
        rays: float32 (2, H, W), as `messages.rays.model_rays` has them.

    Returns:
        None where fewer than `MIN_MEASURED` of its pixels have depth and ray.
    """
    x, y, width, height = instance.box
    part = np.s_[y : y + height, x : x + width]
    mask = instance.mask
    z = depth[part][mask]
    positions = np.stack([rays[0][part][mask] * z, rays[1][part][mask] * z, z])
    positions = positions[:, np.isfinite(positions[0])]
    count = positions.shape[1]
    if count == 0 or count < MIN_MEASURED * instance.area:
        return None
    sample = positions[2, :: max(1, count // _SAMPLE)]
    low, median, high = np.percentile(sample, (25, 50, 75))
    fence = max(_FENCE * (high - low), _LEAST_FENCE * median)
    z = positions[2]
    positions = positions[:, (z >= low - fence) & (z <= high + fence)]
    least, most = positions.min(axis=1), positions.max(axis=1)
    return SpaceBox(tuple(((least + most) / 2).tolist()), tuple((most - least).tolist()))
