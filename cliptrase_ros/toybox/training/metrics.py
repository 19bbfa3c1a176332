"""Mean IoU of label images, and the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cliptrase_ros.evaluation.metrics import class_iou, confusion


def mean_iou(
    predicted: np.ndarray | Sequence[np.ndarray],
    true: np.ndarray | Sequence[np.ndarray],
    classes: int,
) -> float:
    """Mean IoU (0..1) over the classes that occur in the truth, counted over all pixels.

    predicted, true: label images with ids 0..classes-1, as one array or sequences of arrays;
    255 in the truth is ignored, 255 in the prediction is wrong. NaN where nothing is labelled.
    """
    if isinstance(predicted, np.ndarray) and isinstance(true, np.ndarray):
        predicted, true = [predicted], [true]
    counts = sum(confusion(p, t, classes) for p, t in zip(predicted, true, strict=True))
    iou = class_iou(counts)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float('nan')


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative (ties count half); NaN without either.

    scores: float (N,). positive: bool (N,).
    """
    positive = np.asarray(positive, bool)
    wins, losses = int(positive.sum()), int((~positive).sum())
    if not wins or not losses:
        return float('nan')
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    return float((rank[inverse][positive].sum() - wins * (wins + 1) / 2) / (wins * losses))
