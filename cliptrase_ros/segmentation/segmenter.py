"""Images and a vocabulary to label images: the one entry point of the engine."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cliptrase_ros.segmentation.method.sam import MaskSource, Sam, vote_in_masks
from cliptrase_ros.segmentation.method.smoothing import (
    FrameHistory,
    HistoryKey,
    split_history,
    stack_histories,
)
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import LabelTable, label_table
from cliptrase_ros.segmentation.model.preprocessing import Framing, check_aspect_ratio, framing_of
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.model.text_cache import default_folder
from cliptrase_ros.segmentation.model.weights import (
    LoadedModel,
    load_model,
    select_device,
    weights_digest,
)
from cliptrase_ros.segmentation.process_settings import limit_threads, no_cudnn_attention
from cliptrase_ros.segmentation.run.graphs import (
    LARGEST_BATCH,
    FixedCalls,
    GraphQueue,
    HostLabels,
    PendingLabels,
    batches,
)
from cliptrase_ros.segmentation.run.pipeline import Pipeline
from cliptrase_ros.segmentation.settings import (
    PRECISIONS,
    Method,
    ModelSettings,
    SegmentationSettings,
)
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary


@dataclass(frozen=True, eq=False)
class EncodedVocabulary:
    """A vocabulary with the features of its phrases, ready for `Segmenter.segment`.

    Attributes:
        table: Label columns, one a class and one a background phrase, on the model's device.
    """

    vocabulary: Vocabulary
    table: LabelTable


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, inseparable from the vocabulary they speak of.

    Attributes:
        label: uint8 (H, W), class ids of the vocabulary, 255 where a pixel is unlabelled.
        confidence: uint8 (H, W), 0..255 for a probability of 0..1 of the label that was chosen,
            also where `label` is 255 because it was too low.
        history: For `Segmenter.segment` of the camera's next image, with `smoothing`; else None.
        scores: float32 (K, h, w), 0..1, with the setting `scores`; else None. How probable each
            class (in order), then each background phrase, is at the patches of the image: what
            labels are made from. With a softmax at patches they add up to 1.
        seen: Rows and columns of the image that these patches cover; the network sees nothing else.
    """

    label: np.ndarray
    confidence: np.ndarray
    vocabulary: Vocabulary
    history: FrameHistory | None = field(default=None, repr=False, compare=False)
    scores: np.ndarray | None = field(default=None, repr=False, compare=False)
    seen: tuple[slice, slice] = field(default=(slice(None), slice(None)), compare=False)


@dataclass(frozen=True)
class _LabelledImage:
    """What is made of one image; each as `Segmentation` has it."""

    label: np.ndarray
    confidence: np.ndarray
    history: FrameHistory | None
    scores: np.ndarray | None
    seen: tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Images of one size to be labelled in one call, and how.

    Attributes:
        positions: Of the images among all that were handed over.
        histories: Of the frame before each.
        key: Of these frames, where the method smooths; else None.
        table: Without padding, on the segmenter's device.
    """

    positions: Sequence[int]
    images: Sequence[np.ndarray]
    histories: Sequence[FrameHistory | None]
    key: HistoryKey | None
    framing: Framing
    method: Method
    table: LabelTable
    min_confidence: float

    def part(self, indices: Sequence[int]) -> '_Batch':
        """Some of the images, by their index in this batch."""
        return replace(
            self,
            positions=[self.positions[i] for i in indices],
            images=[self.images[i] for i in indices],
            histories=[self.histories[i] for i in indices],
        )


class Segmenter:
    """Segments images into the classes of a vocabulary with a frozen CLIP model.

    For one thread at a time. On CUDA every kind of call (size, settings, number of images) is
    captured as a graph when it has come several times; `warm_up` does so beforehand.

    Attributes:
        fixed_calls: The graphs; None, as on a CPU, labels without them.
        mask_source: Masks for refinement `sam`.
    """

    fixed_calls: FixedCalls | None

    def __init__(
        self,
        loaded: LoadedModel,
        device: torch.device | str = 'cpu',
        precision: str = 'float32',
        text_cache: Path | None = None,
        mask_source: MaskSource | None = None,
        spin_ms: float = ModelSettings.spin_ms,
    ):
        """Take over a model, which moves to the device.

        Args:
            precision: Of the image tower: `float32`, `float16` or `bfloat16`. Correlation, clusters
                and logits are always float32.
            text_cache: Folder in which features of phrases are kept.
            spin_ms: See `ModelSettings`.

        Raises:
            UnsupportedModelError: The image tower is not a plain vision transformer.
        """
        self.mask_source = mask_source
        self.device = _with_index(torch.device(device))
        self.name = loaded.name
        self._loaded = loaded
        self._text_cache = text_cache
        self._spin_ms = spin_ms
        dtype = getattr(torch, precision)
        model = loaded.model.eval().requires_grad_(False)
        self._logit_scale = float(model.logit_scale.exp())
        model.to(self.device)
        self._text = TextEncoder(model, loaded.tokenizer, text_cache)
        self.pipeline = Pipeline(
            DenseBackbone(model.visual.to(dtype)),
            torch.tensor(loaded.mean, device=self.device)[:, None, None],
            torch.tensor(loaded.std, device=self.device)[:, None, None],
        )
        self.fixed_calls = None
        if self.device.type == 'cuda':
            self.fixed_calls = FixedCalls(self.pipeline, GraphQueue(self.device, spin_ms))

    def to(self, device: str, precision: str = 'auto') -> 'Segmenter':
        """Move the model itself, and a SAM with it; this segmenter must not be used any more.

        Weights that were rounded to half precision stay rounded. See `load_segmenter`.
        """
        selected = select_device(device)
        precision = _resolve_precision(precision, selected)
        if self.fixed_calls is not None:
            self.fixed_calls.clear()
        if isinstance(self.mask_source, Sam):
            self.mask_source.to(selected)
        return Segmenter(
            self._loaded,
            selected,
            precision,
            self._text_cache,
            self.mask_source,
            self._spin_ms,
        )

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise VocabularyError for a phrase the text tower cannot read; takes milliseconds."""
        self._text.check(vocabulary.phrases)

    def missing_phrases(self, vocabulary: Vocabulary) -> list[str]:
        """Phrases that `encode_vocabulary` will have to encode: not remembered, nor on disk."""
        return self._text.missing(vocabulary.phrases)

    @property
    def model(self) -> nn.Module:
        """The CLIP model itself; its image tower is in the segmenter's precision."""
        return self._loaded.model

    @cached_property
    def weights_digest(self) -> str:
        """A name for the model's weights in their precision; takes seconds for a large model."""
        return weights_digest(self.model)

    @property
    def phrases_at_once(self) -> int:
        """How many phrases to encode in one go where other work waits: about 0.1 s of it."""
        return 1 if self.device.type == 'cpu' else 12

    def encode_vocabulary(self, vocabulary: Vocabulary) -> EncodedVocabulary:
        """Encode every phrase not met before; raises VocabularyError as `check_vocabulary` does."""
        ids = vocabulary.ids.tolist()
        table = self._label_table(vocabulary, ids, UNLABELLED, UNLABELLED, torch.uint8)
        return EncodedVocabulary(vocabulary, table)

    def _label_table(
        self,
        vocabulary: Vocabulary,
        ids: Sequence[int],
        unlabelled: int,
        background: int,
        dtype: torch.dtype,
    ) -> LabelTable:
        """Label columns with ids for the classes, and for what has no label or is background.

        `evaluation.class_indices` uses this too, for ids that are no class ids.
        """
        self.check_vocabulary(vocabulary)
        columns = [column for column, c in enumerate(vocabulary.classes) for _ in c.phrases]
        first_background = len(vocabulary.classes)
        columns += range(first_background, first_background + len(vocabulary.background))
        features = self._text.encode(vocabulary.phrases)
        return label_table(features, columns, ids, unlabelled, background, self._logit_scale, dtype)

    def warm_up(
        self,
        sizes: Iterable[tuple[int, int]],
        batch: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
        """Make ready for images like these, so that the first of them is not slower than others.

        On CUDA it captures the graphs of such calls, for any vocabulary of about this size.

        Args:
            sizes: (height, width) of images, pixels.
            batch: Most images of one size in one call.

        Raises:
            torch.OutOfMemoryError: The batch is too large for the device.
        """
        for size in sizes:
            for count in self._batch_sizes(batch):
                if self.fixed_calls is not None:
                    self.fixed_calls.reserve(size, count)
                self.make_ready(size, count, vocabulary, settings)

    @torch.inference_mode()
    def make_ready(
        self,
        size: tuple[int, int],
        count: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> None:
        """Make ready for so many images of a size in one call; see `warm_up`."""
        if self.fixed_calls is not None:
            framing, table = self._framing(size, settings, settings.method), vocabulary.table
            self.fixed_calls.prepare(count, framing, settings.method, table.to(self.device))
        self.segment([np.zeros((*size, 3), np.uint8)] * count, vocabulary, settings)

    def missing_calls(
        self,
        sizes: Iterable[tuple[int, int]],
        batch: int,
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> list[tuple[tuple[int, int], int]]:
        """What to `make_ready` before labels are made with these settings and words.

        These are the calls that are ready for other settings or words, and those for images of
        these sizes, up to `batch` at a time; see `warm_up`.

        Returns:
            Size (height, width) and number of images of each call; none where there are no graphs.
        """
        if self.fixed_calls is None:
            return []
        wanted = [(size, count) for size in sizes for count in self._batch_sizes(batch)]
        method = settings.method
        return [
            (size, count)
            for size, count in dict.fromkeys([*self.fixed_calls.sizes, *wanted])
            if self.fixed_calls.is_missing(
                count, self._framing(size, settings, method), method, vocabulary.table
            )
        ]

    def segment(
        self,
        images: Sequence[np.ndarray],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings | None = None,
        histories: Sequence[FrameHistory | None] = (),
    ) -> list[Segmentation]:
        """Segment images, those of equal size as one batch.

        Args:
            images: uint8 (H, W, 3) RGB each.
            vocabulary: From `encode_vocabulary`.
            histories: With `smoothing`, for each image the `Segmentation.history` of the same
                camera's image before, None where there is none. One of another vocabulary, size or
                settings is not used.

        Raises:
            ValueError: For an array of another shape or dtype.
            torch.OutOfMemoryError: The device has too little memory for them.
        """
        settings = settings or SegmentationSettings()
        labelled = self._label_images(
            images, vocabulary.table, settings, settings.method, histories
        )
        return [
            Segmentation(
                image.label,
                image.confidence,
                vocabulary.vocabulary,
                image.history,
                image.scores,
                image.seen,
            )
            for image in labelled
        ]

    @torch.inference_mode()
    def _label_images(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        settings: SegmentationSettings,
        method: Method,
        histories: Sequence[FrameHistory | None] = (),
    ) -> list[_LabelledImage]:
        """Label images.

        `evaluation.class_indices` uses this too, for methods and tables that `segment` has not.
        """
        mask_source = self.mask_source if settings.refinement == 'sam' else None
        if settings.refinement == 'sam' and mask_source is None:
            raise ValueError(
                "refinement is 'sam', but no SAM was loaded; give the folder of one as sam_model"
            )
        histories = histories or (None,) * len(images)
        if len(histories) != len(images):
            raise ValueError(f'{len(histories)} histories for {len(images)} images')
        started = [
            (batch, self._start(batch))
            for batch in self._make_batches(images, table, settings, method, histories)
        ]
        labelled: dict[int, _LabelledImage] = {}
        for batch, labels in started:
            if isinstance(labels, PendingLabels):
                labels = self._finish(batch, labels)
            seen, nothing = batch.framing.seen, (None,) * len(batch.images)
            histories = labels.histories or nothing
            scores = nothing if labels.scores is None else labels.scores
            for position, label, confidence, history, maps in zip(
                batch.positions, labels.label, labels.confidence, histories, scores, strict=True
            ):
                labelled[position] = _LabelledImage(label, confidence, history, maps, seen)
        in_order = [labelled[position] for position in range(len(images))]
        if mask_source is None:
            return in_order
        voted = []
        for image, masks in zip(in_order, mask_source(images), strict=True):
            label, confidence = vote_in_masks(image.label, image.confidence, masks)
            voted.append(replace(image, label=label, confidence=confidence))
        return voted

    def _make_batches(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        settings: SegmentationSettings,
        method: Method,
        histories: Sequence[FrameHistory | None],
    ) -> list[_Batch]:
        """Sort images by their size; where there are graphs, into batches that these take."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            check_image(image)
            by_size.setdefault(image.shape[:2], []).append(position)
        table_here = table.to(self.device)
        made = []
        for size, positions in by_size.items():
            framing, key = self._framing(size, settings, method), None
            if method.smoothing:
                key = HistoryKey(table.words_digest, framing, method, self.device)
            remaining = iter(positions)
            counts = [len(positions)] if self.fixed_calls is None else batches(len(positions))
            for count in counts:
                chosen = list(islice(remaining, count))
                made.append(
                    _Batch(
                        chosen,
                        [images[position] for position in chosen],
                        [histories[position] for position in chosen],
                        key,
                        framing,
                        method,
                        table_here,
                        settings.min_confidence,
                    )
                )
        return made

    def _start(self, batch: _Batch) -> PendingLabels | HostLabels:
        """Begin to label a batch through its graph, or label it at once where it has none."""
        call = None
        if self.fixed_calls is not None:
            call = self.fixed_calls.get(len(batch.images), batch.framing, batch.method, batch.table)
        if call is None:
            return self._label_eagerly(batch)
        return call.start(
            batch.images, batch.table, batch.min_confidence, batch.histories, batch.key
        )

    def _finish(self, batch: _Batch, pending: PendingLabels) -> HostLabels:
        """Wait for labels, and label again what exceeded the bounds of a graph."""
        labels = pending.result()
        inexact = np.flatnonzero(~labels.exact).tolist()
        if inexact:
            exact = self._label_eagerly(batch.part(inexact))
            labels.label[inexact], labels.confidence[inexact] = exact.label, exact.confidence
            if labels.scores is not None:
                labels.scores[inexact] = exact.scores
            if labels.histories is not None and exact.histories is not None:
                for index, history in zip(inexact, exact.histories, strict=True):
                    labels.histories[index] = history
        return labels

    def _label_eagerly(self, batch: _Batch) -> HostLabels:
        """Label without a graph, with exact clusters."""
        frames = torch.from_numpy(np.stack(batch.images)).to(self.device)
        min_confidence = torch.tensor(batch.min_confidence, device=self.device)
        history, new_histories = None, None
        if batch.key is not None:
            empty = self.pipeline.empty_history(1, batch.framing, batch.table)
            history = stack_histories(batch.histories, batch.key, empty)
        # Photos of many sizes are labelled here, and cuDNN would make a plan for each size. What is
        # captured comes again and again.
        with no_cudnn_attention if self.device.type == 'cuda' else nullcontext():
            labelled = self.pipeline(
                frames,
                batch.framing,
                batch.table,
                min_confidence,
                batch.method,
                history=history,
            )
        if batch.key is not None and labelled.history is not None:
            new_histories = split_history(labelled.history, batch.key)
        arrays = [tensor.cpu().numpy() for tensor in labelled.tensors]
        return HostLabels.of(arrays, new_histories)

    def _batch_sizes(self, most: int) -> list[int]:
        """Numbers of images of the calls that up to so many images at a time are labelled in."""
        most = 1 if self.fixed_calls is None else min(most, LARGEST_BATCH)
        return [1 << power for power in range(most.bit_length())]

    def _framing(
        self, size: tuple[int, int], settings: SegmentationSettings, method: Method
    ) -> Framing:
        patch_size = self.pipeline.backbone.patch_size
        return framing_of(method.frame, size, settings.resolution, patch_size)


def load_segmenter(
    model: str = ModelSettings.model,
    pretrained: str = ModelSettings.pretrained,
    device: str = ModelSettings.device,
    precision: str = ModelSettings.precision,
    cache_dir: str | None = None,
    threads: int | None = None,
    sam_model: str = ModelSettings.sam_model,
    spin_ms: float = ModelSettings.spin_ms,
) -> Segmenter:
    """Load a model and make a Segmenter of it.

    Features of phrases are kept on disk, see `text_cache.default_folder`.

    Args:
        model, pretrained, cache_dir: See `weights.load_model`.
        device: See `weights.select_device`.
        precision: `float32`, `float16`, `bfloat16`, or `auto`: float16 on CUDA, else float32.
        threads: See `limit_threads`; None leaves them as they are.
        sam_model: Folder of a SAM for refinement `sam`, see `sam.Sam`; '' for none.
        spin_ms: See `ModelSettings`.

    Raises:
        weights.ModelError: The model cannot be loaded.
        sam.SamError: The SAM cannot be loaded.
        ValueError: The device or precision does not exist.
    """
    selected = select_device(device)
    precision = _resolve_precision(precision, selected)
    if threads is not None:
        limit_threads(threads)
    loaded = load_model(model, pretrained, cache_dir)
    mask_source = Sam(sam_model, selected) if sam_model else None
    return Segmenter(loaded, selected, precision, default_folder(cache_dir), mask_source, spin_ms)


def _resolve_precision(precision: str, device: torch.device) -> str:
    if precision == 'auto':
        return 'float16' if device.type == 'cuda' else 'float32'
    if precision not in PRECISIONS:
        raise ValueError(
            f'precision is {precision!r}; it must be auto or one of {", ".join(PRECISIONS)}'
        )
    return precision


def _with_index(device: torch.device) -> torch.device:
    if device.type == 'cuda' and device.index is None:
        return torch.device('cuda', torch.cuda.current_device())
    return device


def check_image(image: np.ndarray) -> None:
    """Raise ValueError for what is no uint8 (H, W, 3), or too elongated."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f'an image must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}'
        )
    check_aspect_ratio(*image.shape[:2])
