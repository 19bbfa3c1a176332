"""Intersection over union of label images, and the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cliptrase_ros.segmentation.vocabulary import UNLABELLED


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels: int64 (classes, classes + 1), rows the truth, columns the prediction.

    predicted, true: integers of equal shape. Pixels whose truth is 255 do not count; a
    prediction that is no class (255) is counted in the last column, never right.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.shape != true.shape:
        raise ValueError(f'predicted is {predicted.shape}, true is {true.shape}')
    valid = true != UNLABELLED
    column = np.minimum(predicted[valid].astype(np.int64), classes)
    index = true[valid].astype(np.int64) * (classes + 1) + column
    return np.bincount(index, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU of each class from `confusion`, float64 0..1; NaN for a class that is not in the truth.

    A class that is predicted but nowhere true lowers the IoU of the classes it took pixels from.
    """
    right = np.diag(counts[:, :-1]).astype(np.float64)
    truth = counts.sum(1)
    union = truth + counts[:, :-1].sum(0) - right
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(truth > 0, right / union, np.nan)


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
