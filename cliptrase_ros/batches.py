"""Many images through the engine, where one that fails must not take others with it."""

from collections.abc import Sequence

import numpy as np

from cliptrase_ros.segmentation.segmenter import (
    EncodedVocabulary,
    Segmentation,
    SegmentationSettings,
    Segmenter,
)


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
) -> list[Segmentation | Exception]:
    """Segment images as one batch; where that fails, one by one.

    images: uint8 (H, W, 3) RGB each. Returns, for each, its segmentation or what was raised.
    """
    if not images:
        return []
    try:
        return list(segmenter.segment(images, vocabulary, settings))
    except Exception as error:
        if len(images) == 1:
            return [error]
    return [segment_each(segmenter, [image], vocabulary, settings)[0] for image in images]


class RateLimit:
    """At most so many images a second, by the images' own times."""

    def __init__(self, rate: float):
        """Take every image if `rate` (images a second) is 0."""
        self._period_ns = round(1e9 / rate) if rate else 0
        self._due_ns: int | None = None

    def takes(self, stamp_ns: int) -> bool:
        """Whether the image of this time is taken; counts it if so."""
        if self._period_ns == 0:
            return True
        due = self._due_ns
        # Times that jump back (recordings that were joined) begin anew.
        if due is not None and due - self._period_ns <= stamp_ns < due:
            return False
        late = None if due is None else stamp_ns - due
        start = due if late is not None and 0 <= late < self._period_ns else stamp_ns
        self._due_ns = start + self._period_ns
        return True
