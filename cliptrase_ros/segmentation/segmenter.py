"""Images and a vocabulary to label images: the one entry point of the engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import preprocessing
from .backbone import DenseBackbone
from .clustering import cluster_maps, dbscan, dbscan_parameters, vote
from .correlation import denoise_correlation
from .preprocessing import Framing
from .text import TextEncoder
from .vocabulary import UNLABELLED, Vocabulary
from .weights import load_model, select_device

#: `paper`: exactly the published method. `robot`: whole frame, a vote only where a region agrees.
PRESETS = ('paper', 'robot')

#: Number formats of the image tower.
PRECISIONS = ('float32', 'float16', 'bfloat16')

#: Shorter side fed to CLIP, pixels.
RESOLUTION_RANGE = (64, 1024)

#: Preset `robot`: share of a region's pixels that the winning label must already hold.
ROBOT_MIN_AGREEMENT = 0.7


@dataclass(frozen=True)
class SegmentationSettings:
    """How images are segmented.

    preset: one of `PRESETS`. resolution: shorter side fed to CLIP, pixels, rounded to whole
    patches. min_confidence: 0..1, pixels below it become `UNLABELLED`. image_prior: multiply
    the logits by those of the [CLS] token (the paper does on VOC20). Raises ValueError.
    """

    preset: str = 'robot'
    resolution: int = 336
    min_confidence: float = 0.0
    image_prior: bool = False

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f'preset is {self.preset!r}; it must be one of {", ".join(PRESETS)}')
        low, high = RESOLUTION_RANGE
        if not low <= self.resolution <= high:
            raise ValueError(f'resolution is {self.resolution}; it must be {low} to {high} pixels')
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f'min_confidence is {self.min_confidence}; it must be 0 to 1')


@dataclass(frozen=True)
class EncodedVocabulary:
    """A vocabulary with the features of its phrases, ready for `Segmenter.segment`.

    features: float32 (P, D), unit length, by `vocabulary.phrases`.
    columns: int64 (P,), the label column a phrase belongs to: its class's position, or one
    column for each background phrase after those.
    """

    vocabulary: Vocabulary
    features: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, inseparable from the vocabulary they speak of.

    label: uint8 (H, W), class ids of the vocabulary, 255 = unlabelled.
    confidence: uint8 (H, W), 0..255 for a probability of 0..1 of the label that was chosen,
    also where `label` is 255 because of it.
    """

    label: np.ndarray
    confidence: np.ndarray
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Trace:
    """Every stage of the method for B images of N = h w patches and C label columns.

    tokens: float32 (B, 1 + N, D). correlation: float32 (B, N, N), denoised.
    patch_logits: float32 (B, C, h, w), without the image prior. clusters: int64 (B, N), -1 = noise.
    raw_labels, labels: int64 (B, H, W), before and after the vote; the value `foreground`
    stands for every background column.
    """

    tokens: Tensor
    correlation: Tensor
    patch_logits: Tensor
    clusters: Tensor
    raw_labels: Tensor
    labels: Tensor


def trace(
    backbone: DenseBackbone,
    pixels: Tensor,
    features: Tensor,
    columns: Tensor,
    logit_scale: float,
    foreground: int,
    preset: str = 'paper',
    image_prior: bool = False,
) -> Trace:
    """Run the method on normalised network input.

    pixels: float (B, 3, H, W) in the backbone's dtype. features: float32 (P, D) of phrases.
    columns: int64 (P,), the label column of each phrase; of one column's phrases the largest
    logit counts. logit_scale: the factor on cosines. foreground: columns before the background.
    Labels have the size of the input.
    """
    dense = backbone(pixels)
    size = pixels.shape[-2:]
    tokens = dense.tokens.float()
    correlation = denoise_correlation(dense.correlation)

    token_logits = _column_logits(tokens, features, columns) * logit_scale
    patch_logits = token_logits[:, 1:].mT.unflatten(-1, dense.grid)
    if image_prior:
        label_logits = patch_logits * token_logits[:, 0, :, None, None]
    else:
        label_logits = patch_logits
    raw_labels = _largest(_enlarge(label_logits, size)).clamp(max=foreground)

    clusters = dbscan(correlation, *dbscan_parameters(correlation.shape[-1]))
    count = clusters.amax(1) + 1
    if preset == 'paper':
        applies, min_agreement = count > 0, 0.0
    else:
        applies, min_agreement = count > 1, ROBOT_MIN_AGREEMENT
    labels = raw_labels
    if applies.any():
        regions = _largest(_enlarge(cluster_maps(correlation, clusters, dense.grid), size))
        labels = vote(raw_labels, regions, foreground + 1, applies, min_agreement)
    return Trace(tokens, correlation, patch_logits, clusters, raw_labels, labels)


def _column_logits(tokens: Tensor, features: Tensor, columns: Tensor) -> Tensor:
    cosines = tokens @ features.mT
    count = int(columns[-1]) + 1
    if count == len(columns):
        return cosines
    target = cosines.new_full((*cosines.shape[:-1], count), -torch.inf)
    return target.scatter_reduce(-1, columns.expand_as(cosines), cosines, 'amax')


def _enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    # Contiguous, because the kernel for other layouts rounds differently.
    return F.interpolate(maps.contiguous(), size=tuple(size), mode='bilinear', align_corners=False)


def _largest(maps: Tensor) -> Tensor:
    # max() over a strided dimension is several times faster than argmax(), with equal indices.
    return maps.max(1).indices


def _confidence(patch_logits: Tensor, labels: Tensor, foreground: int) -> Tensor:
    """Probability of each pixel's label: patch probabilities, interpolated. float (B, H, W).

    The background columns count as one, as their labels do.
    """
    probability = patch_logits.softmax(1)
    background = probability[:, foreground:].sum(1, keepdim=True)
    probability = torch.cat([probability[:, :foreground], background], 1)
    return _enlarge(probability, labels.shape[-2:]).gather(1, labels[:, None])[:, 0]


class Segmenter:
    """Segments images into the classes of a vocabulary with a frozen CLIP model."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = 'cpu',
        precision: str = 'float32',
        name: str = '',
    ):
        """Take over an open_clip CLIP model.

        mean, std: of its training pixels, RGB, for values 0..1. precision: of the image tower,
        `float32`, `float16` or `bfloat16`; correlation, clusters and logits are float32 always.
        name: the model's, for people. Raises UnsupportedModelError.
        """
        self.device = torch.device(device)
        self.name = name
        self._dtype = getattr(torch, precision)
        model = model.eval().requires_grad_(False).to(self.device)
        self._text = TextEncoder(model, tokenizer)
        self._logit_scale = float(model.logit_scale.exp())
        self._backbone = DenseBackbone(model.visual.to(self._dtype))
        self._mean = torch.tensor(mean, device=self.device)[:, None, None]
        self._std = torch.tensor(std, device=self.device)[:, None, None]

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise VocabularyError for a phrase the text tower cannot read. Takes milliseconds."""
        self._text.check(vocabulary.phrases)

    def encode_vocabulary(self, vocabulary: Vocabulary) -> EncodedVocabulary:
        """Encode every phrase not met before. Raises VocabularyError as `check_vocabulary` does."""
        self.check_vocabulary(vocabulary)
        columns = [column for column, c in enumerate(vocabulary.classes) for _ in c.phrases]
        first_background = len(vocabulary.classes)
        columns += range(first_background, first_background + len(vocabulary.background))
        return EncodedVocabulary(
            vocabulary,
            self._text.encode(vocabulary.phrases),
            torch.tensor(columns, device=self.device),
        )

    def segment(
        self,
        images: Sequence[np.ndarray],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings | None = None,
    ) -> list[Segmentation]:
        """Segment images, those of equal size as one batch.

        images: uint8 (H, W, 3) RGB each. Returns one Segmentation an image, in order.
        Raises ValueError for an array of another shape or dtype.
        """
        settings = settings or SegmentationSettings()
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            _check_image(image)
            by_size.setdefault(image.shape[:2], []).append(position)
        results: list[Segmentation | None] = [None] * len(images)
        for positions in by_size.values():
            batch = self._segment_batch([images[p] for p in positions], vocabulary, settings)
            for position, segmentation in zip(positions, batch, strict=True):
                results[position] = segmentation
        return results

    @torch.inference_mode()
    def _segment_batch(
        self,
        images: Sequence[np.ndarray],
        encoded: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> list[Segmentation]:
        framing = self._framing(images[0].shape[:2], settings)
        pixels = self.normalise(preprocessing.network_input(images, framing, self.device))
        foreground = len(encoded.vocabulary.classes)
        result = trace(
            self._backbone,
            pixels,
            encoded.features,
            encoded.columns,
            self._logit_scale,
            foreground,
            settings.preset,
            settings.image_prior,
        )
        confidence = _confidence(result.patch_logits, result.labels, foreground)
        ids = torch.from_numpy(np.append(encoded.vocabulary.ids, np.uint8(UNLABELLED)))
        label = ids.to(self.device)[result.labels]
        label = label.masked_fill(confidence < settings.min_confidence, UNLABELLED)
        label = preprocessing.to_camera_size(label, framing, outside=UNLABELLED)
        confidence = preprocessing.to_camera_size(
            confidence.mul(255).round().byte(), framing, outside=0
        )
        return [
            Segmentation(one_label, one_confidence, encoded.vocabulary)
            for one_label, one_confidence in zip(
                label.cpu().numpy(), confidence.cpu().numpy(), strict=True
            )
        ]

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to the image tower's dtype, normalised."""
        return pixels.float().div_(255).sub_(self._mean).div_(self._std).to(self._dtype)

    def _framing(self, source: tuple[int, int], settings: SegmentationSettings) -> Framing:
        frame = {
            'paper': preprocessing.centre_crop_framing,
            'robot': preprocessing.whole_frame_framing,
        }[settings.preset]
        return frame(tuple(source), settings.resolution, self._backbone.patch_size)


def load_segmenter(
    model: str = 'ViT-B-16-quickgelu',
    pretrained: str = 'openai',
    device: str = 'auto',
    precision: str = 'auto',
    cache_dir: str | None = None,
) -> Segmenter:
    """Load a model and make a Segmenter of it.

    model, pretrained, cache_dir: see `weights.load_model`. device: see `weights.select_device`.
    precision: `float32`, `float16`, `bfloat16`, or `auto`: float16 on CUDA, else float32.
    Raises weights.ModelError; ValueError for a device or precision that does not exist.
    """
    selected = select_device(device)
    if precision == 'auto':
        precision = 'float16' if selected.type == 'cuda' else 'float32'
    if precision not in PRECISIONS:
        raise ValueError(
            f'precision is {precision!r}; it must be auto or one of {", ".join(PRECISIONS)}'
        )
    loaded = load_model(model, pretrained, cache_dir)
    return Segmenter(
        loaded.model,
        loaded.tokenizer,
        loaded.mean,
        loaded.std,
        selected,
        precision,
        loaded.name,
    )


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f'an image must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}'
        )
    height, width = image.shape[:2]
    if max(height, width) > preprocessing.MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f'an image of {width} x {height} pixels is too elongated to segment; the longer side '
            f'may be {preprocessing.MAX_ASPECT_RATIO} times the shorter one'
        )
