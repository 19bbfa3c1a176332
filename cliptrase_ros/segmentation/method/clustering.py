"""DBSCAN over rows of the correlation, cluster maps and the vote, on the tensors' own device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
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
    neighbours, core = _core_points(_centred(rows), eps, min_samples)
    reaches = _reached_core_points(neighbours, core)
    own, none = _indices(core)
    first_core = own
    while True:
        reached = _smallest_reached(reaches, first_core, none)
        found = torch.where(core, reached, first_core)
        if torch.equal(found, first_core):
            return _numbers(core, own, first_core, reached)
        first_core = _hand_on(first_core, found)


def dbscan_bounded(
    rows: Tensor, eps: float, min_samples: int, rounds: int, most: int
) -> tuple[Tensor, Tensor]:
    """`dbscan` in a fixed number of rounds, for captured calls, which cannot wait for the device.

    Args:
        rounds: How many, see below.
        most: Clusters that an image may have.

    Returns:
        The cluster numbers, and bool (B,), whether the rounds sufficed to find them and there are
        no more than `most`.
    """
    neighbours, core = _core_points(_centred(rows), eps, min_samples)
    first_core, reached = _rounds(neighbours, core, rounds)
    return _numbers_within(core, first_core, reached, most)


# The algorithm (FastSV, arXiv 1910.05971): each core point keeps the index of a core point of its
# component, at first its own. A round has three parts:
#   a core point finds the smallest index among the core points within eps, and keeps that;
#   it hands that to the point whose index it kept before, which keeps the smallest it is handed;
#   it takes the index that is kept by the point whose index it keeps now.
# When a round finds nothing new, all core points of a component keep its smallest index. Photos
# take 3 rounds at most, flat images 4, 400 points at random in a plane 6, chains of as many in any
# order 8.
#
# Indices have 32 bits, because passes over N x N are limited by memory. Index N means "none"; a
# point that is no core point keeps its own, which nobody asks for.


@on_cuda_by('clustering_kernels')
def _centred(rows: Tensor) -> Tensor:
    # Distances stay the same when the mean is subtracted, and float32 loses fewer digits.
    return rows - rows.mean(1, keepdim=True)


@on_cuda_by('clustering_kernels')
def _core_points(rows: Tensor, eps: float, min_samples: int) -> tuple[Tensor, Tensor]:
    """Which points are within eps of each, bool (B, N, N), and which are core points, (B, N)."""
    square = rows.square().sum(-1)
    squared_distance = square[:, :, None] + square[:, None, :]
    squared_distance.baddbmm_(rows, rows.mT, alpha=-2)
    neighbours = squared_distance <= eps * eps
    return neighbours, neighbours.sum(-1, dtype=torch.int32) >= min_samples


@on_cuda_by('clustering_kernels')
def _rounds(neighbours: Tensor, core: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """After so many: the index each point keeps, and the smallest within eps; int32 (B, N)."""
    reaches = _reached_core_points(neighbours, core)
    first_core, none = _indices(core)
    for _ in range(rounds):
        reached = _smallest_reached(reaches, first_core, none)
        first_core = _hand_on(first_core, torch.where(core, reached, first_core))
    return first_core, _smallest_reached(reaches, first_core, none)


def _reached_core_points(neighbours: Tensor, core: Tensor) -> Tensor:
    reaches = neighbours & core[:, None, :]
    # A core point reaches itself, whatever rounding makes of the distance.
    reaches.diagonal(dim1=1, dim2=2).copy_(core)
    return reaches


def _indices(core: Tensor) -> tuple[Tensor, Tensor]:
    """Each point's own, (B, N), and "none", which as a number would become a tensor at each use."""
    index = torch.arange(core.shape[1] + 1, dtype=torch.int32, device=core.device)
    return index[:-1].expand_as(core), index[-1]


def _smallest_reached(reaches: Tensor, index: Tensor, none: Tensor) -> Tensor:
    return torch.where(reaches, index[:, None, :], none).amin(-1)


def _hand_on(before: Tensor, found: Tensor) -> Tensor:
    kept = found.scatter_reduce(1, before.long(), found, 'amin')
    return kept.gather(1, kept.long())


def _numbers(core: Tensor, own: Tensor, first_core: Tensor, reached: Tensor) -> Tensor:
    # Cluster numbers rank the components by their first core index, so the smallest index
    # that a border point reaches is also its lowest-numbered cluster.
    member_of = torch.where(core, first_core, reached).long()
    number = (first_core == own).logical_and(core).cumsum(1) - 1
    last = core.shape[1] - 1
    return number.gather(1, member_of.clamp(max=last)).masked_fill(member_of > last, -1)


@on_cuda_by('clustering_kernels')
def _numbers_within(
    core: Tensor, first_core: Tensor, reached: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    own, _ = _indices(core)
    clusters = _numbers(core, own, first_core, reached)
    converged = (torch.where(core, reached, first_core) == first_core).all(1)
    return clusters, converged & (clusters.amax(1) < most)


def cluster_maps(
    correlation: Tensor, clusters: Tensor, grid: tuple[int, int], count: int
) -> tuple[Tensor, Tensor]:
    """Where each cluster lies: the mean of its members' correlation rows, enlarged and smoothed.

    Args:
        correlation: float (B, N, N), not below -1.
        clusters: int64 (B, N), -1 = noise; those from `count` on have no map.
        grid: (h, w) with h w = N.
        count: Of maps.

    Returns:
        float (B, count, 4 h, 4 w) after bilinear enlargement and a 7 x 7 median, and bool
        (B, count), which clusters an image does not have, the last ones. Their maps are -1: no mean
        of correlations is smaller.
    """
    means, absent = _mean_rows(correlation, clusters, count)
    maps = F.interpolate(
        means.unflatten(-1, grid), scale_factor=4, mode='bilinear', align_corners=False
    )
    return median_7x7(maps, absent), absent


@on_cuda_by('clustering_kernels')
def _mean_rows(correlation: Tensor, clusters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean of each cluster's rows, (B, count, N), 0 where it has none; where that is."""
    number = torch.arange(count, device=clusters.device)
    members = (clusters[:, None, :] == number[:, None]).to(correlation.dtype)
    size = members.sum(-1, keepdim=True)
    return members @ correlation / size.clamp(min=1), size[..., 0] == 0


@on_cuda_by('clustering_kernels')
def vote(
    labels: Tensor,
    regions: Tensor,
    count: int,
    classes: int,
    spared: Tensor,
    min_agreement: float = 0.0,
) -> Tensor:
    """Give each region the label most of its pixels have.

    The lowest label wins a tie.

    Args:
        labels: int64 (B, H, W), 0..classes-1.
        regions: int64 (B, H, W), 0..count-1, each pixel's cluster.
        count: Of regions.
        classes: Number of labels there may be.
        spared: bool (B,); an image where it is True keeps its labels.
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
    decided = agrees[region] & ~spared[:, None, None]
    return torch.where(decided, winner[region], labels)


def _histogram(index: Tensor, bins: int) -> Tensor:
    # torch.bincount would wait for the device to know the largest index.
    ones = torch.ones((), dtype=torch.int32, device=index.device).expand(index.numel())
    return ones.new_zeros(bins).scatter_add_(0, index.flatten(), ones)
