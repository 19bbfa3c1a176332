"""Edge-aware refinement: the boundaries of labels move to where the picture has edges."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.method.enlarging import enlarge

#: Only the boundaries of an image's most frequent labels move, so many at most; the number is fixed
#: so that time does not depend on the vocabulary.
MOST_LABELS = 12
# The filter works on cells, two along a patch.
_CELLS_PER_PATCH = 2
#: Neighbourhoods reach so many cells to each side.
RADIUS = 3
#: Below this variance of colours 0..1 the picture counts as flat; a camera's noise has less.
FLAT_VARIANCE = 1e-3


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
    counts = count_labels(labels, classes)
    candidates = most_frequent(counts)
    cells = (_CELLS_PER_PATCH * grid[0], _CELLS_PER_PATCH * grid[1])
    # The regression is done on the cells, and only its coefficients are enlarged to pixels.
    coefficients = _mean_around(_regress(*_cell_means(labels, picture, candidates, cells)))
    return _choose_filtered(coefficients, labels, picture, candidates, counts)


@on_cuda_by('refinement_kernels')
def count_labels(labels: Tensor, classes: int) -> Tensor:
    """How many pixels of an image (B, H, W) each label has: float32 (B, classes)."""
    count = labels.new_zeros(len(labels), classes, dtype=torch.float32)
    ones = torch.ones((), device=labels.device).expand(len(labels), labels[0].numel())
    return count.scatter_add_(1, labels.flatten(1), ones)


def most_frequent(counts: Tensor) -> Tensor:
    """The labels that have the most pixels, 12 at most, of `count_labels`: int64 (B, K)."""
    return counts.topk(min(MOST_LABELS, counts.shape[1]), dim=1).indices


@on_cuda_by('refinement_kernels')
def choose_among(maps: Tensor, labels: Tensor, candidates: Tensor, counts: Tensor) -> Tensor:
    """Give each pixel the candidate whose map is largest; pixels of other labels keep theirs.

    Args:
        maps: float32 (B, K, H, W), of the candidates.
        labels: int64 (B, H, W), as they are before.
        candidates: int64 (B, K), from `most_frequent`.
        counts: float32 (B, C), of the labels. Candidates that have no pixels get none.
    """
    occur = counts.gather(1, candidates) > 0
    best = maps.masked_fill(~occur[:, :, None, None], -torch.inf).max(1).indices
    winner = candidates.gather(1, best.flatten(1))
    is_candidate = torch.zeros_like(counts, dtype=torch.bool).scatter_(1, candidates, True)
    flat = labels.flatten(1)
    return torch.where(is_candidate.gather(1, flat), winner, flat).view_as(labels)


@on_cuda_by('refinement_kernels')
def _cell_means(
    labels: Tensor, picture: Tensor, candidates: Tensor, cells: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Average over the pixels of each cell.

    Args:
        labels: int64 (B, H, W).
        picture: uint8 (B, 3, H, W).
        candidates: int64 (B, K).
        cells: (h, w).

    Returns:
        The colours, float32 (B, 3, h, w), 0..1, and each candidate's share of the pixels, float32
        (B, K, h, w).
    """
    where = labels[:, None] == candidates[:, :, None, None]
    colours = F.interpolate(picture.float() / 255, size=cells, mode='area')
    return colours, F.interpolate(where.float(), size=cells, mode='area')


@on_cuda_by('refinement_kernels')
def _regress(colours: Tensor, shares: Tensor) -> Tensor:
    """Regress each candidate's share on the three colours around each cell, see `_cell_means`.

    Returns:
        float32 (B, 4, K, h, w): the offset, then the slope for each colour.
    """
    colours_mean, shares_mean = _mean_around(colours), _mean_around(shares)
    # slope = covariance / variance
    products = _mean_around((colours[:, None] * shares[:, :, None]).flatten(1, 2))
    covariance = products.unflatten(1, (-1, 3)) - colours_mean[:, None] * shares_mean[:, :, None]
    squares = _mean_around((colours[:, None] * colours[:, :, None]).flatten(1, 2))
    variance = squares.unflatten(1, (3, 3)) - colours_mean[:, None] * colours_mean[:, :, None]
    flat = FLAT_VARIANCE * torch.eye(3, device=colours.device)[:, :, None, None]
    slope = torch.einsum('bkihw,bijhw->bkjhw', covariance, _inverse(variance + flat))
    offset = shares_mean - (slope * colours_mean[:, None]).sum(2)
    return torch.stack([offset, *slope.unbind(2)], 1)


@on_cuda_by('refinement_kernels')
def _mean_around(maps: Tensor) -> Tensor:
    """Average maps (B, ..., h, w) around each cell."""
    # One dimension after the other; beyond the border there is nothing to average.
    side, means = 2 * RADIUS + 1, maps.flatten(1, -3)
    for kernel, padding in (((side, 1), (RADIUS, 0)), ((1, side), (0, RADIUS))):
        means = F.avg_pool2d(means, kernel, 1, padding, count_include_pad=False)
    return means.view(maps.shape)


def _inverse(matrix: Tensor) -> Tensor:
    """Inverses of symmetric (B, 3, 3, H, W), without torch.linalg's checks, which wait for CUDA."""
    rows = matrix.unbind(1)
    adjugate = torch.stack(
        [torch.linalg.cross(rows[(i + 1) % 3], rows[(i + 2) % 3], dim=1) for i in range(3)], 1
    )
    determinant = (rows[0] * adjugate[:, 0]).sum(1)
    return adjugate / determinant[:, None, None]


@on_cuda_by('refinement_kernels')
def _choose_filtered(
    coefficients: Tensor, labels: Tensor, picture: Tensor, candidates: Tensor, counts: Tensor
) -> Tensor:
    """Enlarge the coefficients of `_regress`, apply them to the colours, and choose.

    The other arguments and the result as in `choose_among` and `refine_edges`.
    """
    size, colours = labels.shape[-2:], picture.float() / 255
    filtered = enlarge(coefficients[:, 0], size)
    for colour in range(3):
        filtered += enlarge(coefficients[:, 1 + colour], size) * colours[:, colour, None]
    return choose_among(filtered, labels, candidates, counts)
