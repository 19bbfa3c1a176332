"""What a label image holds: classes, areas, confidences."""

from dataclasses import dataclass

import numpy as np

from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, VocabularyClass


@dataclass(frozen=True)
class ClassPresence:
    """One class present in one image.

    entry: the class. area: pixels, at least 1. confidence: mean over them, 0..1.
    """

    entry: VocabularyClass
    area: int
    confidence: float


def classes_present(segmentation: Segmentation) -> list[ClassPresence]:
    """Every class with a pixel in the label image, by ascending id; never `UNLABELLED`."""
    label = segmentation.label.ravel()
    # Over runs of one label, of which there are few, and not over pixels.
    begin = np.append(0, np.flatnonzero(label[1:] != label[:-1]) + 1)
    of_run = np.add.reduceat(segmentation.confidence.ravel(), begin, dtype=np.int64)
    labels = label[begin]
    area = np.bincount(labels, np.diff(begin, append=label.size), minlength=256)
    total = np.bincount(labels, of_run, minlength=256)
    entries = {entry.id: entry for entry in segmentation.vocabulary.classes}
    return [
        ClassPresence(
            entries[class_id],
            int(area[class_id]),
            float(total[class_id] / area[class_id] / 255.0),
        )
        for class_id in np.flatnonzero(area).tolist()
        if class_id != UNLABELLED
    ]


def class_mask(segmentation: Segmentation, name: str) -> np.ndarray:
    """Mask of the class of a name: uint8 (H, W), 255 where it is, 0 elsewhere.

    Zero everywhere if the vocabulary has no such class. Case makes no difference.
    """
    for entry in segmentation.vocabulary.classes:
        if entry.name.casefold() == name.casefold():
            return np.where(segmentation.label == entry.id, np.uint8(255), np.uint8(0))
    return np.zeros_like(segmentation.label)
