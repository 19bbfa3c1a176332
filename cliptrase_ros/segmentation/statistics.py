"""What a label image holds: classes, areas, confidences."""

from dataclasses import dataclass

import numpy as np

from cliptrase_ros.segmentation.run_lengths import Runs, find_runs
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


def classes_present(segmentation: Segmentation, runs: Runs | None = None) -> list[ClassPresence]:
    """Every class with a pixel in the label image, by ascending id; never `UNLABELLED`.

    runs: of the label image, where they are known.
    """
    runs = runs or find_runs(segmentation.label)
    # A run is no longer than a row, so that 32 bits hold its sum.
    of_run = np.add.reduceat(segmentation.confidence.ravel(), runs.begin, dtype=np.uint32)
    area = np.bincount(runs.value, runs.length, minlength=256)
    total = np.bincount(runs.value, of_run, minlength=256)
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
