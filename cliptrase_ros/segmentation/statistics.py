"""What a result holds: classes, areas, confidences; masks and scores of one class."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from cliptrase_ros.segmentation.run_lengths import Runs, find_runs, sum_runs
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary, VocabularyClass

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import Segmentation


@dataclass(frozen=True)
class ClassPresence:
    """One class present in one image.

    Attributes:
        area: Pixels, at least 1.
        confidence: Mean over them, 0..1.
    """

    entry: VocabularyClass
    area: int
    confidence: float


def classes_present(segmentation: 'Segmentation', runs: Runs | None = None) -> list[ClassPresence]:
    """Every class with a pixel in the label image, by ascending id; never `UNLABELLED`.

    Args:
        runs: Of the label image, where they are known already.
    """
    runs = runs or find_runs(segmentation.label)
    area = np.bincount(runs.value, runs.length, minlength=256)
    total = np.bincount(runs.value, sum_runs(runs, segmentation.confidence), minlength=256)
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


def class_mask(segmentation: 'Segmentation', name: str) -> np.ndarray:
    """Where the class of a name is, for mask images.

    Args:
        name: Of the class; case makes no difference.

    Returns:
        uint8 (H, W), 255 where the class is, 0 elsewhere; 0 throughout for a class that the
        vocabulary does not have.
    """
    for entry in segmentation.vocabulary.classes:
        if entry.name.casefold() == name.casefold():
            return np.where(segmentation.label == entry.id, np.uint8(255), np.uint8(0))
    return np.zeros_like(segmentation.label)


def score_image(segmentation: 'Segmentation', name: str) -> np.ndarray:
    """How probable a class or background phrase is at each pixel; of a result with scores.

    Args:
        name: Of the class, one of its synonyms, or a background phrase; case makes no difference.

    Returns:
        uint8 (H, W), 255 for a probability of 1; 0 where the network saw nothing, and throughout
        for a name that the vocabulary does not have.

    Raises:
        ValueError: The image was labelled without the setting `scores`.
    """
    if segmentation.scores is None:
        raise ValueError('the result has no scores; segment with SegmentationSettings(scores=True)')
    image = np.zeros_like(segmentation.label)
    column = score_column(segmentation.vocabulary, name)
    if column is not None:
        seen = image[segmentation.seen]
        # Bilinearly, as the maps that labels are made from.
        enlarged = cv2.resize(segmentation.scores[column], seen.shape[::-1])
        np.copyto(seen, cv2.convertScaleAbs(enlarged, alpha=255))
    return image


def score_column(vocabulary: Vocabulary, name: str) -> int | None:
    """The index in `Segmentation.scores` of what `score_image` takes; None where there is none."""
    phrases = [entry.phrases for entry in vocabulary.classes]
    phrases += [(phrase,) for phrase in vocabulary.background]
    wanted = name.casefold()
    for column, names in enumerate(phrases):
        if wanted in (phrase.casefold() for phrase in names):
            return column
    return None
