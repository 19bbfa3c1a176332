"""DBSCAN over rows of the correlation, cluster maps and the vote, on the tensors' own device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.method.median import median_7x7

# The published (eps, min_samples) by number of patch tokens, for 14 x 14 and 21 x 21.
_PUBLISHED = {196: (0.7, 3), 441: (1.1, 7)}


def dbscan_parameters(patches: int) -> tuple[float, int]:
    """(eps, min_samples) for a grid of this many patches.

    The published pairs at 14 x 14 and 21 x 21; elsewhere eps grows with the square root of the
    row length, as Euclidean distances between rows do, and min_samples with the patch count.
    """
    if patches in _PUBLISHED:
        return _PUBLISHED[patches]
    return 0.05 * math.sqrt(patches), max(2, round(patches / 64))


def dbscan(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    """Batched DBSCAN with Euclidean distance, numbered as scikit-learn numbers.

    A border point joins the lowest-numbered cluster that has a core point within eps.

    Args:
        rows: float (B, N, D), B sets of N points.
        eps: Largest distance of neighbours, inclusive.
        min_samples: Neighbours, the point itself among them, that make a core point.

    Returns:
        int64 (B, N): cluster numbers from 0 in the order of each cluster's first core point; -1 for
        noise.
    """
    core, reaches_core, none = _find_core_points(rows, eps, min_samples)
    own = first_core = _own_index(core, none)
    while True:
        smallest = _smallest_reached(first_core, reaches_core, none)
        if torch.equal(torch.where(core, smallest, none), first_core):
            return _number_clusters(core, own, first_core, smallest)
        first_core = _jump(core, smallest, none)


def dbscan_bounded(rows: Tensor, eps: float, min_samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """`dbscan` in a fixed number of steps, for captured calls, which cannot wait for the device.

    Returns:
        The cluster numbers, and bool (B,), whether the steps sufficed to find them.
    """
    core, reaches_core, none = _find_core_points(rows, eps, min_samples)
    own = first_core = _own_index(core, none)
    for _ in range(steps):
        first_core = _jump(core, _smallest_reached(first_core, reaches_core, none), none)
    smallest = _smallest_reached(first_core, reaches_core, none)
    converged = (torch.where(core, smallest, none) == first_core).all(1)
    return _number_clusters(core, own, first_core, smallest), converged


# The algorithm: each core point keeps the index of a core point of its component, at first its own.
# A step takes the smallest index among the core points within eps, and then the index which that
# point keeps (the jump). When nothing changes any more, all core points of a component keep its
# smallest index.
#
# Index N means "none". Indices have 32 bits, because passes over N x N are limited by memory.
# "None" is a tensor and not a number, which would cost a kernel at every use to become one.


def _find_core_points(rows: Tensor, eps: float, min_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which are core points, bool (B, N); which of them each reaches, bool (B, N, N); "none"."""
    neighbours = _pairwise_squared_distance(rows) <= eps * eps
    core = neighbours.sum(-1) >= min_samples
    none = torch.full((), rows.shape[1], dtype=torch.int32, device=rows.device)
    return core, neighbours & core[:, None, :], none


def _own_index(core: Tensor, none: Tensor) -> Tensor:
    index = torch.arange(core.shape[1], device=core.device, dtype=none.dtype)
    return torch.where(core, index, none)


def _smallest_reached(index: Tensor, reaches: Tensor, none: Tensor) -> Tensor:
    return torch.where(reaches, index[:, None, :], none).amin(-1)


def _jump(core: Tensor, index: Tensor, none: Tensor) -> Tensor:
    # A core point reaches itself at least, so its index is below N; that of others is not used.
    target = index.clamp(max=index.shape[1] - 1).long()
    return torch.where(core, index.gather(1, target), none)


def _number_clusters(core: Tensor, own: Tensor, first_core: Tensor, smallest: Tensor) -> Tensor:
    # Cluster numbers rank the components by their first core index, so the smallest index
    # that a border point reaches is also its lowest-numbered cluster.
    points = core.shape[1]
    member_of = torch.where(core, first_core, smallest).long()
    number = (first_core == own).logical_and(core).cumsum(1) - 1
    noise = member_of == points
    return torch.where(noise, -1, number.gather(1, torch.where(noise, 0, member_of)))


def _pairwise_squared_distance(rows: Tensor) -> Tensor:
    # Distances stay the same when the mean is subtracted, and float32 loses fewer digits.
    centred = rows - rows.mean(1, keepdim=True)
    square = centred.square().sum(-1)
    return torch.baddbmm(
        square[:, :, None] + square[:, None, :], centred, centred.mT, alpha=-2
    ).clamp(min=0)


def cluster_maps(
    correlation: Tensor, clusters: Tensor, grid: tuple[int, int], count: int
) -> Tensor:
    """Where each cluster lies: the mean of its members' correlation rows, enlarged and smoothed.

    Args:
        correlation: float (B, N, N), not below -1.
        clusters: int64 (B, N), less than count, -1 = noise.
        grid: (h, w) with h w = N.
        count: Of maps, the largest number of clusters in an image at least.

    Returns:
        float (B, count, 4 h, 4 w) after bilinear enlargement and a 7 x 7 median. Maps of clusters
        that an image does not have, the last ones, are -1: no mean of correlations is smaller.
    """
    number = torch.arange(count, device=clusters.device)
    members = (clusters[:, None, :] == number[:, None]).to(correlation.dtype)
    size = members.sum(-1, keepdim=True)
    mean_rows = members @ correlation / size.clamp(min=1)
    maps = F.interpolate(
        mean_rows.unflatten(-1, grid), scale_factor=4, mode='bilinear', align_corners=False
    )
    return median_7x7(maps, size[..., 0] == 0)


def vote(
    labels: Tensor,
    regions: Tensor,
    count: int,
    classes: int,
    applies: Tensor,
    min_agreement: float = 0.0,
) -> Tensor:
    """Give each region the label most of its pixels have.

    The lowest label wins a tie.

    Args:
        labels: int64 (B, H, W), 0..classes-1.
        regions: int64 (B, H, W), 0..count-1, each pixel's cluster.
        count: Of regions.
        classes: Number of labels there may be.
        applies: bool (B,); an image where it is False keeps its labels.
        min_agreement: 0..1; a region in which the winner holds a smaller share keeps its labels.

    Returns:
        int64 (B, H, W).
    """
    batch = labels.shape[0]
    image = torch.arange(batch, device=labels.device)[:, None, None]
    region = image * count + regions
    counts = _histogram(region * classes + labels, batch * count * classes).view(-1, classes)
    votes, winner = counts.max(-1)
    agrees = votes >= min_agreement * counts.sum(-1)
    decided = agrees[region] & applies[:, None, None]
    return torch.where(decided, winner[region], labels)


def _histogram(index: Tensor, bins: int) -> Tensor:
    # torch.bincount would wait for the device to know the largest index.
    ones = torch.ones((), dtype=torch.int32, device=index.device).expand(index.numel())
    return ones.new_zeros(bins).scatter_add_(0, index.flatten(), ones)
