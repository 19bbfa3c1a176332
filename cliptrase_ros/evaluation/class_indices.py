"""Class indices instead of ids, for benchmarks, which may have more classes than there are ids."""

from collections.abc import Sequence

import numpy as np
import torch

from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary


def index_table(
    segmenter: Segmenter, vocabulary: Vocabulary, background_first: bool = False
) -> LabelTable:
    """Encode any number of classes; the label of a class is its position, whatever its id.

    The background has the number of classes as its label, and pixels without a label -1.

    Args:
        background_first: The background, where there is one, is treated as the first of the
            classes: pixels that are less probable than `min_confidence` belong to it, and so do
            those of a class all of whose phrases are background words.

    Raises:
        VocabularyError: As `Segmenter.check_vocabulary` does.
    """
    background = set(vocabulary.background)
    count, unlabelled = len(vocabulary.classes), -1
    indices = list(range(count))
    if background_first and background:
        unlabelled = count
        indices = [
            count if background.issuperset(entry.phrases) else index
            for index, entry in enumerate(vocabulary.classes)
        ]
    return segmenter._label_table(vocabulary, indices, unlabelled, count, torch.int16)


def label_by_method(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    table: LabelTable,
    settings: SegmentationSettings,
    method: Method,
) -> list[np.ndarray]:
    """Label images by any method, such as one of which a step is switched off.

    Args:
        images: uint8 (H, W, 3) RGB each.
        table: From `index_table`, or that of an `EncodedVocabulary`.
        method: Instead of the one that the settings stand for.

    Returns:
        (H, W) each, labels of the table: int16 from `index_table`, uint8 ids otherwise.
    """
    labelled = segmenter._label_images(images, table, settings, method)
    return [image.label for image in labelled]
