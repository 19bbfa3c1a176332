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
    area = np.bincount(label, minlength=256)
    total = np.bincount(label, weights=segmentation.confidence.ravel(), minlength=256)
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
