"""What the method does with an image: the choices that a preset stands for."""

from dataclasses import dataclass

from cliptrase_ros.segmentation.model.preprocessing import (
    Framing,
    centre_crop_framing,
    whole_frame_framing,
)

#: Framings by name; see `preprocessing`.
_FRAMINGS = {'centre': centre_crop_framing, 'whole': whole_frame_framing}


@dataclass(frozen=True)
class Method:
    """Every choice that changes labels; equal methods give equal labels of the same pixels.

    frame: `centre`, a centred square, or `whole`, the whole image at its own aspect ratio.
    recovery: tokens of the last block attend to tokens like themselves, not as in plain CLIP.
    clustering: regions of patches that correlate alike vote for one label.
    denoising: what the [CLS] token correlates with is removed before clustering.
    image_prior: multiply the logits by those of the [CLS] token (the paper does on VOC20).
    propagation: patches that correlate share their class probabilities; see `propagation`.
    fewest_clusters: an image with fewer keeps its labels as they are before the vote.
    min_agreement: 0..1; share of a region's pixels that the winning label must already hold.
    window, stride: pixels of the scaled image; what patches show comes from squares of this side
    that slide over it, clusters from the whole of it, scaled down to the window. 0 = no windows.
    smoothing: 0..1; share of what a patch was in the frame before, if it looks like it did.
    refine_edges: move the boundaries of labels to edges of the picture; see `refinement`.
    """

    frame: str
    recovery: bool = True
    clustering: bool = True
    denoising: bool = True
    image_prior: bool = False
    propagation: bool = False
    fewest_clusters: int = 1
    min_agreement: float = 0.0
    window: int = 0
    stride: int = 0
    smoothing: float = 0.0
    refine_edges: bool = False

    def framing(self, source: tuple[int, int], resolution: int, patch_size: int) -> Framing:
        """What the network sees of an image of this (height, width)."""
        return _FRAMINGS[self.frame](source, resolution, patch_size)


#: `paper`: exactly the published method. `robot`: whole frame, a vote only where a region agrees.
#: `plus`: whole frame, probabilities shared among patches that correlate instead of a vote.
PRESETS = {
    'paper': Method('centre'),
    'robot': Method('whole', fewest_clusters=2, min_agreement=0.7),
    'plus': Method('whole', clustering=False, propagation=True),
}
