"""DBSCAN over rows of the correlation, cluster maps and the vote, on the tensors' own device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.method.median import median_7x7

#: The published (eps, min_samples) by number of patch tokens, for 14 x 14 and 21 x 21.
PUBLISHED_DBSCAN = {196: (0.7, 3), 441: (1.1, 7)}


def dbscan_parameters(patches: int) -> tuple[float, int]:
    """(eps, min_samples) for a grid of this many patches.

    The published pairs at 14 x 14 and 21 x 21; elsewhere eps grows with the square root of the
    row length, as Euclidean distances between rows do, and min_samples with the patch count.
    """
    if patches in PUBLISHED_DBSCAN:
        return PUBLISHED_DBSCAN[patches]
    return 0.05 * math.sqrt(patches), max(2, round(patches / 64))


def dbscan(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    """Batched DBSCAN with Euclidean distance, numbered as scikit-learn numbers.

    rows: float (B, N, D), B sets of N points. eps: largest distance of neighbours, inclusive.
    min_samples: neighbours, the point itself among them, that make a core point.
    Returns int64 (B, N): cluster numbers from 0 in the order of each cluster's first core point;
    -1 for noise. A border point joins the lowest-numbered cluster with a core point within eps.
    """
    core, reaches_core, none = _core_points(rows, eps, min_samples)
    own = first_core = _own_index(core, none)
    while True:
        smallest = _smallest_reached(first_core, reaches_core, none)
        if torch.equal(torch.where(core, smallest, none), first_core):
            return _numbered(core, own, first_core, smallest)
        first_core = _jumped(core, smallest, none)


def dbscan_bounded(rows: Tensor, eps: float, min_samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """`dbscan` in a fixed number of steps.

    Returns the cluster numbers, and bool (B,), whether the steps sufficed to find them.
    """
    core, reaches_core, none = _core_points(rows, eps, min_samples)
    own = first_core = _own_index(core, none)
    for _ in range(steps):
        first_core = _jumped(core, _smallest_reached(first_core, reaches_core, none), none)
    smallest = _smallest_reached(first_core, reaches_core, none)
    converged = (torch.where(core, smallest, none) == first_core).all(1)
    return _numbered(core, own, first_core, smallest), converged


# Each core point ends at the smallest core index of its component: take the minimum of the core
# points within eps, then jump along the indices found, until nothing changes. Index N means
# "none". 32 bits, because these passes over N x N are limited by memory. "None" is one tensor: as
# a number, it would be made into one at every use, by one kernel more.


def _core_points(rows: Tensor, eps: float, min_samples: int) -> tuple[Tensor, Tensor, Tensor]:
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


def _jumped(core: Tensor, index: Tensor, none: Tensor) -> Tensor:
    # A core point reaches itself at least; where the others go does not matter.
    target = index.clamp(max=index.shape[1] - 1).long()
    return torch.where(core, index.gather(1, target), none)


def _numbered(core: Tensor, own: Tensor, first_core: Tensor, smallest: Tensor) -> Tensor:
    # Cluster numbers rank the components by their first core index, so the smallest index
    # that a border point reaches is also its lowest-numbered cluster.
    points = core.shape[1]
    member_of = torch.where(core, first_core, smallest).long()
    number = (first_core == own).logical_and(core).cumsum(1) - 1
    noise = member_of == points
    return torch.where(noise, -1, number.gather(1, torch.where(noise, 0, member_of)))


def _pairwise_squared_distance(rows: Tensor) -> Tensor:
    # Distances do not change when a common row is subtracted, but float32 loses fewer digits.
    centred = rows - rows.mean(1, keepdim=True)
    square = centred.square().sum(-1)
    return torch.baddbmm(
        square[:, :, None] + square[:, None, :], centred, centred.mT, alpha=-2
    ).clamp(min=0)


def cluster_maps(
    correlation: Tensor, clusters: Tensor, grid: tuple[int, int], count: int
) -> Tensor:
    """Where each cluster lies: the mean of its members' correlation rows, enlarged and smoothed.

    correlation: float (B, N, N), not below -1. clusters: int64 (B, N), less than count, -1 = noise.
    grid: (h, w) with h w = N.
    Returns float (B, count, 4 h, 4 w) after bilinear enlargement and a 7 x 7 median; -1, no
    more than any mean of correlations, for the clusters an image does not have, the last ones.
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

    labels: int64 (B, H, W), 0..classes-1. regions: int64 (B, H, W), 0..count-1, each pixel's
    cluster. applies: bool (B,); an image where it is False keeps its labels.
    min_agreement: 0..1; a region in which the winner holds a smaller share keeps its labels.
    Returns int64 (B, H, W). The lowest label wins a tie.
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
