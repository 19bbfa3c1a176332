"""Segmentation metrics, all from one confusion matrix."""

from dataclasses import dataclass

import numpy as np


def confusion(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each true class by the class that was predicted for them.

    Args:
        predicted: Integers. What is none of 0..classes-1 is never right.
        true: Integers of the same shape. Pixels of none of 0..classes-1 do not count.

    Returns:
        int64 (classes, classes + 1): rows are the truth, columns the prediction, the last one
        predictions that are no class.

    Raises:
        ValueError: The shapes differ.
    """
    predicted, true = np.asarray(predicted), np.asarray(true)
    if predicted.shape != true.shape:
        raise ValueError(f'predicted is {predicted.shape}, true is {true.shape}')
    valid = (true >= 0) & (true < classes)
    column = predicted[valid].astype(np.int64)
    column[(column < 0) | (column > classes)] = classes
    index = true[valid].astype(np.int64) * (classes + 1) + column
    return np.bincount(index, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, from the sum of `confusion` over images.

    A class that is predicted but nowhere true lowers the IoU of the classes it took pixels from.

    Returns:
        float64 (classes,), 0..1; NaN for a class that is nowhere in the truth.
    """
    right, truth, predicted = _marginals(counts)
    return _ratio(right, truth + predicted - right, truth > 0)


@dataclass(frozen=True)
class Scores:
    """The four figures of the field, 0..1; NaN where no pixel counts.

    Attributes:
        pixel_accuracy: Share of right pixels.
        mean_accuracy: Mean over classes of the share of their pixels that was found.
        frequency_weighted_iou: IoU weighted by the classes' true pixels.
        mean_iou: Mean IoU of the classes that occur in the truth.
    """

    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    mean_iou: float


def scores(counts: np.ndarray, absent_classes_count: bool = False) -> Scores:
    """Scores of the sum of `confusion` over images.

    Args:
        absent_classes_count: A class that occurs nowhere in the truth has accuracy 0 in the mean
            accuracy, as the published figures have it, instead of being left out.
    """
    right, truth, _ = _marginals(counts)
    total = truth.sum()
    if total == 0:
        return Scores(*[float('nan')] * 4)
    present = truth > 0
    iou = class_iou(counts)[present]
    accuracy = _ratio(right, truth, present)[present]
    return Scores(
        pixel_accuracy=float(right.sum() / total),
        mean_accuracy=float(accuracy.sum() / (len(truth) if absent_classes_count else len(iou))),
        frequency_weighted_iou=float((truth[present] / total) @ iou),
        mean_iou=float(iou.mean()),
    )


def _marginals(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right, true and predicted pixels of each class, float64."""
    right = np.diag(counts[:, :-1]).astype(np.float64)
    return right, counts.sum(1).astype(np.float64), counts[:, :-1].sum(0).astype(np.float64)


def _ratio(part: np.ndarray, whole: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=defined)
