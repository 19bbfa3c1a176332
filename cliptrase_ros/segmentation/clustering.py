"""DBSCAN over rows of the correlation, cluster maps and the vote, on the tensors' own device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .median import median_7x7

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
    batch, points, _ = rows.shape
    neighbours = _pairwise_squared_distance(rows) <= eps * eps
    core = neighbours.sum(-1) >= min_samples

    # Each core point ends at the smallest core index of its component: take the neighbours'
    # minimum, then jump along the indices found, until nothing changes. Index N means "none".
    none = torch.full((), points, device=rows.device)
    index = torch.arange(points, device=rows.device).expand(batch, points)
    reaches_core = neighbours & core[:, None, :]
    first_core = torch.where(core, index, none)
    while True:
        before = first_core
        smallest = _smallest_reached(first_core, reaches_core, none)
        first_core = torch.where(core, smallest, none)
        target = torch.where(core, first_core, 0)
        first_core = torch.where(core, first_core.gather(1, target), none)
        if torch.equal(first_core, before):
            break

    # Cluster numbers rank the components by their first core index, so the smallest index
    # that a border point reaches is also its lowest-numbered cluster.
    member_of = torch.where(core, first_core, smallest)
    is_first = core & (first_core == index)
    number = is_first.cumsum(1) - 1
    noise = member_of == points
    return torch.where(noise, -1, number.gather(1, torch.where(noise, 0, member_of)))


def _pairwise_squared_distance(rows: Tensor) -> Tensor:
    # Distances do not change when a common row is subtracted, but float32 loses fewer digits.
    centred = rows - rows.mean(1, keepdim=True)
    square = centred.square().sum(-1)
    return torch.baddbmm(
        square[:, :, None] + square[:, None, :], centred, centred.mT, alpha=-2
    ).clamp(min=0)


def _smallest_reached(value: Tensor, reaches: Tensor, none: Tensor) -> Tensor:
    return torch.where(reaches, value[:, None, :], none).amin(-1)


def cluster_maps(correlation: Tensor, clusters: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where each cluster lies: the mean of its members' correlation rows, enlarged and smoothed.

    correlation: float (B, N, N), denoised. clusters: int64 (B, N), -1 = noise.
    grid: (h, w) with h w = N.
    Returns float (B, K, 4 h, 4 w), K the largest number of clusters in the batch, after bilinear
    enlargement and a 7 x 7 median; -1, less than any mean of a correlation that is not negative,
    for the clusters an image does not have.
    """
    count = int(clusters.max()) + 1
    members = F.one_hot(clusters + 1, count + 1)[..., 1:].to(correlation.dtype).mT
    size = members.sum(-1, keepdim=True)
    mean_rows = members @ correlation / size.clamp(min=1)
    maps = F.interpolate(
        mean_rows.unflatten(-1, grid), scale_factor=4, mode='bilinear', align_corners=False
    )
    return median_7x7(maps).masked_fill(size[..., None] == 0, -1.0)


def vote(
    labels: Tensor, regions: Tensor, classes: int, applies: Tensor, min_agreement: float = 0.0
) -> Tensor:
    """Give each region the label most of its pixels have.

    labels: int64 (B, H, W), 0..classes-1. regions: int64 (B, H, W), each pixel's cluster.
    classes: number of labels. applies: bool (B,); an image where it is False keeps its labels.
    min_agreement: 0..1; a region in which the winner holds a smaller share keeps its labels.
    Returns int64 (B, H, W). The lowest label wins a tie.
    """
    batch = labels.shape[0]
    regions_per_image = int(regions.max()) + 1
    image = torch.arange(batch, device=labels.device)[:, None, None]
    region = image * regions_per_image + regions
    counts = torch.bincount(
        (region * classes + labels).flatten(), minlength=batch * regions_per_image * classes
    ).view(-1, classes)
    votes, winner = counts.max(-1)
    agrees = votes >= min_agreement * counts.sum(-1)
    decided = agrees[region] & applies[:, None, None]
    return torch.where(decided, winner[region], labels)
