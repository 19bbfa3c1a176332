"""Edge-aware refinement: the boundaries of labels move to where the picture has edges."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.method.enlarging import enlarge

# Only the boundaries of an image's most frequent labels move, so many at most; the number is fixed
# so that time does not depend on the vocabulary.
_MOST_LABELS = 12
# The filter works on cells, two along a patch; its neighbourhoods reach three cells to each side.
_CELLS_PER_PATCH = 2
_RADIUS = 3
# Below this variance of colours 0..1 the picture counts as flat; a camera's noise has less.
_FLAT_VARIANCE = 1e-3


def refine_edges(labels: Tensor, picture: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """Move the boundaries of labels to edges of the picture, about two patches away at most.

    Where each label is, 1 or 0, is filtered with the picture as guide (the fast guided filter,
    He and Sun, arXiv 1505.00996, with colour), and the label with the largest result wins. Nothing
    waits for the device.

    Args:
        labels: int64 (B, H, W), 0..classes-1.
        picture: uint8 (B, 3, H, W) RGB.
        grid: (h, w), patches of the picture.
        classes: Number of labels there may be.

    Returns:
        int64 (B, H, W).
    """
    candidates = most_frequent(labels, classes)
    cells = (_CELLS_PER_PATCH * grid[0], _CELLS_PER_PATCH * grid[1])
    filtered = _guided_filter(candidates.where.float(), picture.float() / 255, cells)
    return choose_among(candidates, filtered, labels)


@dataclass(frozen=True)
class Candidates:
    """The labels of an image that have the most pixels, K of them, at most 12.

    Attributes:
        labels: int64 (B, K).
        occur: bool (B, K), whether they have any pixels.
        where: bool (B, K, H, W), which pixels they have.
    """

    labels: Tensor
    occur: Tensor
    where: Tensor


def most_frequent(labels: Tensor, classes: int) -> Candidates:
    """The most frequent of labels, int64 (B, H, W) of 0..classes-1."""
    pixels, candidates = count_labels(labels, classes).topk(min(_MOST_LABELS, classes), dim=1)
    return Candidates(candidates, pixels > 0, labels[:, None] == candidates[:, :, None, None])


def choose_among(candidates: Candidates, maps: Tensor, labels: Tensor) -> Tensor:
    """Give each pixel the candidate whose map is largest; pixels of other labels keep theirs.

    Args:
        candidates: From `most_frequent` of the labels.
        maps: float32 (B, K, H, W), of the candidates.
        labels: int64 (B, H, W), as they are before.
    """
    best = maps.masked_fill(~candidates.occur[:, :, None, None], -torch.inf).max(1).indices
    winner = candidates.labels.gather(1, best.flatten(1)).view_as(labels)
    return torch.where(candidates.where.any(1), winner, labels)


def count_labels(labels: Tensor, classes: int) -> Tensor:
    """How many pixels of an image (B, H, W) each label has: float32 (B, classes)."""
    count = labels.new_zeros(len(labels), classes, dtype=torch.float32)
    ones = torch.ones((), device=labels.device).expand(len(labels), labels[0].numel())
    return count.scatter_add_(1, labels.flatten(1), ones)


def _guided_filter(maps: Tensor, guide: Tensor, cells: tuple[int, int]) -> Tensor:
    """Filter maps (B, K, H, W) with a colour guide (B, 3, H, W), 0..1.

    The regression is done on the cells, and only its coefficients are enlarged to pixels.
    """
    small_guide = F.interpolate(guide, size=cells, mode='area')
    small_maps = F.interpolate(maps, size=cells, mode='area')
    guide_mean, maps_mean = _mean_around(small_guide), _mean_around(small_maps)

    # Regression of each map on the three colours around each cell: slope = covariance / variance.
    products = _mean_around((small_guide[:, None] * small_maps[:, :, None]).flatten(1, 2))
    covariance = products.unflatten(1, (-1, 3)) - guide_mean[:, None] * maps_mean[:, :, None]
    squares = _mean_around((small_guide[:, None] * small_guide[:, :, None]).flatten(1, 2))
    variance = squares.unflatten(1, (3, 3)) - guide_mean[:, None] * guide_mean[:, :, None]
    flat = _FLAT_VARIANCE * torch.eye(3, device=guide.device)[:, :, None, None]
    slope = torch.einsum('bkihw,bijhw->bkjhw', covariance, _inverse(variance + flat))
    offset = maps_mean - (slope * guide_mean[:, None]).sum(2)

    size = guide.shape[-2:]
    result = enlarge(_mean_around(offset), size)
    for colour in range(3):
        result += enlarge(_mean_around(slope[:, :, colour]), size) * guide[:, colour, None]
    return result


def _mean_around(maps: Tensor) -> Tensor:
    # One dimension after the other; beyond the border there is nothing to average.
    side = 2 * _RADIUS + 1
    for kernel, padding in (((side, 1), (_RADIUS, 0)), ((1, side), (0, _RADIUS))):
        maps = F.avg_pool2d(maps, kernel, 1, padding, count_include_pad=False)
    return maps


def _inverse(matrix: Tensor) -> Tensor:
    """Inverses of symmetric (B, 3, 3, H, W), without torch.linalg's checks, which wait for CUDA."""
    rows = matrix.unbind(1)
    adjugate = torch.stack(
        [torch.linalg.cross(rows[(i + 1) % 3], rows[(i + 2) % 3], dim=1) for i in range(3)], 1
    )
    determinant = (rows[0] * adjugate[:, 0]).sum(1)
    return adjugate / determinant[:, None, None]
