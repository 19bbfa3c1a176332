"""Many images through the engine, where one that fails must not take others with it."""

from collections.abc import Sequence

import numpy as np

from cliptrase_ros.segmentation.method.smoothing import FrameHistory
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings


def default_batch(segmenter: Segmenter) -> int:
    """Images a batch: 8 on a GPU; 1 on a CPU.

    There a batch takes as long as its images one by one, and the first would wait for the last.
    """
    return 1 if segmenter.device.type == 'cpu' else 8


def segment_each(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    vocabulary: EncodedVocabulary,
    settings: SegmentationSettings,
    before: Sequence[FrameHistory | None] = (),
) -> list[Segmentation | Exception]:
    """Segment images as one batch; where that fails, one by one.

    images: uint8 (H, W, 3) RGB each. before: see `Segmenter.segment`. Returns, for each, its
    segmentation or what was raised.
    """
    if not images:
        return []
    try:
        return list(segmenter.segment(images, vocabulary, settings, before))
    except Exception as error:
        if len(images) == 1:
            return [error]
    return [
        segment_each(segmenter, [image], vocabulary, settings, [memory])[0]
        for image, memory in zip(images, before or [None] * len(images), strict=True)
    ]
