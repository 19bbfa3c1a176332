"""Self-calibration of CLIP (SC-CLIP, arXiv 2411.15869): outliers, repair, aggregation.

Functions of the patch tokens of B windows, float32 (B, N, W) each, N = h w patches of W channels.
No shape depends on values, and nothing waits for the device. Where paper and published code differ,
these do what the code does.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A token is compared with so many others like it.
_NEIGHBOURS = 30

# Stands for the squared distance of tokens that are the same.
_LEAST_DISTANCE = 1e-12

# Cosines below this do not count when tokens are aggregated.
_LEAST_SIMILARITY = 0.4

# How sharply attention follows similarity above the window's mean.
_CONTRAST = 3.0


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a tower are looked at, by number from 1.

    Attributes:
        similar: The one whose similarity tells what tokens attend to.
        low: The early one whose similarity tells what the result is averaged over.
        fused: Those whose sum goes through the last block's attention as well.
        cls_share: How much of the [CLS] token is added to what the last block gives.
    """

    similar: int
    low: int
    fused: range
    cls_share: float


# As published for ViT-B/16 and ViT-L/14, which have so many blocks.
_BLOCKS = {12: Blocks(9, 4, range(4, 11), 0.3), 24: Blocks(17, 7, range(9, 20), 0.1)}


def blocks_for(depth: int) -> Blocks:
    """The blocks for a tower of any depth; where none are published, as deep as in ViT-B/16."""
    if depth in _BLOCKS:
        return _BLOCKS[depth]
    published = _BLOCKS[12]
    numbers = (published.similar, published.low, published.fused[0], published.fused[-1])
    similar, low, first, last = (max(1, round(number * depth / 12)) for number in numbers)
    return Blocks(similar, low, range(first, last + 1), published.cls_share)


def outlier_scores(patches: Tensor, is_exact: bool = True) -> Tensor:
    """How far each token is from those like it, relative to how far these are from theirs.

    With r_i the squared distance of token i to the farthest of the 30 nearest others, or of all
    where there are fewer, its score is r_i times the mean of their 1 / r_j: the local outlier
    factor of the published code, whose reach is the token's own.

    Args:
        is_exact: Whether the tower computes in float32. Distances are then products of float64;
            half precision does not need it, and some GPUs compute float64 slowly.

    Returns:
        float32 (B, N); NaN for a single token, which has no others.
    """
    distance = _squared_distances(patches.double() if is_exact else patches)
    nearest = distance.topk(min(_NEIGHBOURS + 1, distance.shape[-1]), largest=False)
    reach = nearest.values[..., -1].clamp(min=_LEAST_DISTANCE)
    others = nearest.indices[..., 1:]
    of_others = reach.reciprocal()[:, None].expand_as(distance).gather(2, others)
    return reach * of_others.mean(-1)


def flag_outliers(scores: Tensor) -> Tensor:
    """Flag scores above the 0.95 quantile of their window: bool (B, N).

    These are the N - 1 - floor(0.95 (N - 1)) largest. Where N - 1 is a multiple of 20, the quantile
    is one of the scores; in the published code rounding then decides whether that one is above
    itself, here it is not.
    """
    others = scores.shape[1] - 1
    count = others - 19 * others // 20
    largest = scores.topk(count, dim=1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, largest, True)


def repairable(flagged: Tensor, grid: tuple[int, int]) -> Tensor:
    """Which flagged tokens have one that is not among their 8 neighbours: bool (B, N)."""
    return flagged & (_sum_around((~flagged).float().unsqueeze(-1), grid)[..., 0] > 0)


def repair(patches: Tensor, flagged: Tensor, grid: tuple[int, int]) -> Tensor:
    """Replace flagged tokens by the mean of those of their 8 neighbours that are not flagged.

    One whose neighbours are all flagged stays as it is.
    """
    kept = (~flagged).float().unsqueeze(-1)
    neighbours = _sum_around(kept, grid)
    mean = _sum_around(patches * kept, grid) / neighbours.clamp(min=1)
    return torch.where(flagged.unsqueeze(-1) & (neighbours > 0), mean, patches)


def similarity(patches: Tensor) -> Tensor:
    """Cosines of all tokens with all: (B, N, N)."""
    unit = F.normalize(patches, dim=-1)
    return unit @ unit.mT


def without_low(cosines: Tensor) -> Tensor:
    """Cosines of which those below 0.4 are 0."""
    return cosines.masked_fill(cosines < _LEAST_SIMILARITY, 0)


def aggregate(patches: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of all tokens for each; weights (B, N, N), rows of any sum."""
    return (weights / (weights.sum(-1, keepdim=True) + 1e-6)) @ patches


def attention_to_similar(cosines: Tensor) -> Tensor:
    """What tokens attend to by similarity alone: (B, N, N), rows add up to 1.

    Only those that are at least as similar as the mean of the window count.
    """
    above = _CONTRAST * (cosines - cosines.mean((1, 2), keepdim=True))
    less = above < 0
    # A token is as similar to itself as can be, however the mean is rounded.
    less.diagonal(dim1=1, dim2=2).fill_(False)
    return above.masked_fill(less, -torch.inf).softmax(-1)


def _squared_distances(patches: Tensor) -> Tensor:
    """float32 (B, N, N); by products, which in float32 cancel for tokens that are alike."""
    # Distances stay the same when the mean is subtracted, and fewer digits cancel.
    patches = patches - patches.mean(1, keepdim=True)
    products = patches @ patches.mT
    squares = products.diagonal(dim1=1, dim2=2)
    return (squares[:, :, None] + squares[:, None] - 2 * products).float()


def _sum_around(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sums over the 3 x 3 around each token, nothing beyond the border: like values (B, N, W)."""
    on_grid = values.mT.unflatten(-1, grid)
    return F.avg_pool2d(on_grid, 3, 1, 1, divisor_override=1).flatten(2).mT
