"""Many words, few of them there: classes that an image does not show are left out of its labels."""

import torch
from torch import Tensor

from cliptrase_ros.segmentation.model.label_table import NO_COSINE, LabelTable

# Stands for a sum of probabilities that is 0.
_LEAST_SUM = 1e-37


def present_columns(probability: Tensor, table: LabelTable, least: float) -> Tensor:
    """Which label columns stay: classes that a patch shows, and the background in any case.

    Args:
        probability: float32 (B, C, h, w), 0..1, of patches.
        least: 0..1; a class stays where one of the patches has at least this probability.

    Returns:
        bool (B, C); False for columns that are padding.
    """
    column = torch.arange(probability.shape[1], device=probability.device)
    shown = probability.flatten(2).amax(2) >= least
    return torch.where(column < table.foreground, shown, column < table.used)


def among_present(probability: Tensor, present: Tensor) -> Tensor:
    """Probabilities of patches (B, C, h, w) if it can only be a column that is present (B, C).

    By a softmax it is what a vocabulary without the other columns would give.
    """
    kept = probability * present[:, :, None, None]
    return kept / kept.sum(1, keepdim=True).clamp(min=_LEAST_SUM)


def without_absent(values: Tensor, present: Tensor, scale: float = 1.0) -> Tensor:
    """Cosines, or logits of this scale, (B, K, h, w): very low where not present (B, K)."""
    # Finite, because interpolation multiplies it by zero.
    return values.masked_fill(~present[:, :, None, None], NO_COSINE * scale)


def unlabel_where_nothing_is_left(
    label: Tensor, confidence: Tensor, present: Tensor, unlabelled: int
) -> tuple[Tensor, Tensor]:
    """Labels and confidence (B, H, W): none in images that show no column (B, C)."""
    nothing = ~present.any(1)[:, None, None]
    return label.masked_fill(nothing, unlabelled), confidence.masked_fill(nothing, 0)
