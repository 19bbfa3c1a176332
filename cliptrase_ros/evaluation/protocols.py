"""What counts: which pixels of a picture are compared, and with which truth."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from cliptrase_ros.evaluation.labels import BACKGROUND, BORDER, IGNORED
from cliptrase_ros.evaluation.samples import Sample
from cliptrase_ros.segmentation.model.preprocessing import centre_crop_framing

#: `paper`: a centred square of the network's input size, pictures and truth scaled alike; borders
#: around objects are background.
#: `whole`: every pixel, at the truth's own size.
PROTOCOLS = ('paper', 'whole')


@dataclass(frozen=True)
class Protocol:
    """How pictures become pixels to compare.

    Attributes:
        side: Of the square of `paper`, pixels.
    """

    name: str
    side: int = 0

    @property
    def absent_classes_count(self) -> bool:
        """See `metrics.scores`."""
        return self.name == 'paper'

    @property
    def background_alone_counts(self) -> bool:
        """Whether a picture of nothing but background counts, which the published code skips."""
        return self.name != 'paper'

    def prepare(self, sample: Sample, classes: int, has_background: bool) -> Sample:
        """Bring picture and truth to the size at which they are compared; see `counted_truth`."""
        is_paper = self.name == 'paper'
        sample = square(sample, self.side) if is_paper else sample
        return replace(sample, truth=counted_truth(sample.truth, classes, has_background, is_paper))


def square(sample: Sample, side: int) -> Sample:
    """Scale the shorter side to `side` pixels and cut a centred square, as the paper does.

    Pictures are scaled with Pillow's antialiased bicubic filter, truth to the nearest pixel.
    """
    framing = centre_crop_framing(sample.truth.shape, side, side)
    size = framing.resized[::-1]
    image = Image.fromarray(sample.image).resize(size, Image.Resampling.BICUBIC)
    truth = Image.fromarray(sample.truth.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    top, left = framing.offset
    crop = np.s_[top : top + side, left : left + side]
    return Sample(np.asarray(image)[crop], np.asarray(truth)[crop].astype(np.int16))


def counted_truth(
    truth: np.ndarray, classes: int, has_background: bool, border_is_background: bool
) -> np.ndarray:
    """Make truth, int16 as in `Sample`, what `metrics.confusion` takes.

    Args:
        classes: Number of classes without background.
        has_background: Whether background is one class more; it does not count otherwise.
        border_is_background: Whether borders around objects are; they do not count otherwise.

    Returns:
        int16 of the same shape: 0..classes-1, `classes` for the background, or `IGNORED`.
    """
    background = classes if has_background else IGNORED
    border = background if border_is_background else IGNORED
    counted = truth.copy()
    counted[truth == BACKGROUND] = background
    counted[truth == BORDER] = border
    return counted
