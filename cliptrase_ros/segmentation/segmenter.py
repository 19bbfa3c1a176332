"""Images and a vocabulary to label images: the one entry point of the engine."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from cliptrase_ros.segmentation.method.sam import MaskSource, Sam, vote_in_masks
from cliptrase_ros.segmentation.method.smoothing import FrameHistory, HistoryKey, gather, separate
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
from cliptrase_ros.segmentation.process_settings import no_cudnn_attention
from cliptrase_ros.segmentation.run.graphs import (
    LARGEST_BATCH,
    CudaGraphs,
    FixedCalls,
    HostLabels,
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

#: Of a pixel without a label, in what `Segmenter.label_indices` gives.
NO_INDEX = -1


@dataclass(frozen=True, eq=False)
class EncodedVocabulary:
    """A vocabulary with the features of its phrases, ready for `Segmenter.segment`.

    table: its label columns, one a class and one a background phrase, on the model's device.
    """

    vocabulary: Vocabulary
    table: LabelTable

    def to(self, device: torch.device) -> 'EncodedVocabulary':
        """The same vocabulary for a segmenter on another device."""
        return replace(self, table=self.table.to(device))


@dataclass(frozen=True)
class Segmentation:
    """Labels of one image, inseparable from the vocabulary they speak of.

    label: uint8 (H, W), class ids of the vocabulary, 255 = unlabelled.
    confidence: uint8 (H, W), 0..255 for a probability of 0..1 of the label that was chosen,
    also where `label` is 255 because of it.
    history: for `Segmenter.segment` of the camera's next image, with `smoothing`; else None.
    """

    label: np.ndarray
    confidence: np.ndarray
    vocabulary: Vocabulary
    history: FrameHistory | None = field(default=None, repr=False, compare=False)


class Segmenter:
    """Segments images into the classes of a vocabulary with a frozen CLIP model.

    For one thread at a time. On CUDA every kind of call (size, settings, number of images) is
    captured as a graph when it has come several times; `warm_up` does so beforehand.

    fixed_calls: the graphs; None, as on a CPU, labels without them.
    """

    fixed_calls: FixedCalls | None

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = 'cpu',
        precision: str = 'float32',
        name: str = '',
        text_cache: Path | None = None,
        mask_source: MaskSource | None = None,
    ):
        """Take over an open_clip CLIP model.

        mean, std: of its training pixels, RGB, for values 0..1. precision: of the image tower,
        `float32`, `float16` or `bfloat16`; correlation, clusters and logits are float32 always.
        name: the model's, for people. text_cache: folder in which features of phrases are kept;
        None for none. mask_source: for refinement `sam`. Raises UnsupportedModelError.
        """
        self.mask_source = mask_source
        self.device = _with_index(torch.device(device))
        self.name = name
        dtype = getattr(torch, precision)
        model = model.eval().requires_grad_(False)
        self._logit_scale = float(model.logit_scale.exp())
        model = model.to(self.device)
        self._loaded = LoadedModel(model, tokenizer, tuple(mean), tuple(std), name)
        self._text_cache = text_cache
        self._text = TextEncoder(model, tokenizer, text_cache)
        self.pipeline = Pipeline(
            DenseBackbone(model.visual.to(dtype)),
            torch.tensor(mean, device=self.device)[:, None, None],
            torch.tensor(std, device=self.device)[:, None, None],
            dtype,
        )
        on_cuda = self.device.type == 'cuda'
        self.fixed_calls = FixedCalls(self.pipeline, CudaGraphs(self.device)) if on_cuda else None

    def to(self, device: str, precision: str = 'auto') -> 'Segmenter':
        """A segmenter with the same model on another device, in place of this one.

        The model itself moves, and a SAM with it, so this segmenter must not be used any more.
        Weights that were rounded to half precision stay rounded. device, precision: as
        `load_segmenter` takes them.
        """
        selected = select_device(device)
        _check_precision(precision)
        if self.fixed_calls is not None:
            self.fixed_calls.clear()
        if isinstance(self.mask_source, Sam):
            self.mask_source.to(selected)
        return _segmenter(self._loaded, selected, precision, self._text_cache, self.mask_source)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise VocabularyError for a phrase the text tower cannot read. Takes milliseconds."""
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
        """Encode every phrase not met before. Raises VocabularyError as `check_vocabulary` does."""
        return EncodedVocabulary(
            vocabulary,
            self._label_table(vocabulary, vocabulary.ids, UNLABELLED, UNLABELLED, torch.uint8),
        )

    def index_table(self, vocabulary: Vocabulary) -> LabelTable:
        """Label columns for `label_indices`, of any number of classes.

        Ids do not count: a class's label is its position, int16; the background's is the number
        of classes. Raises VocabularyError as `check_vocabulary` does.
        """
        count = len(vocabulary.classes)
        return self._label_table(vocabulary, range(count), NO_INDEX, count, torch.int16)

    def _label_table(
        self,
        vocabulary: Vocabulary,
        ids: Sequence[int],
        unlabelled: int,
        background: int,
        dtype: torch.dtype,
    ) -> LabelTable:
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
        settings: SegmentationSettings,
        vocabulary: EncodedVocabulary,
    ) -> None:
        """Make ready for images like these, so that the first of them is not slower than others.

        sizes: (height, width) of images, pixels. batch: most images of one size in one call.
        On CUDA it captures the graphs of such calls, for any vocabulary of about this size. Raises
        torch.OutOfMemoryError where the batch is too large for the device.
        """
        for size in sizes:
            for count in self._counts(batch):
                if self.fixed_calls is not None:
                    self.fixed_calls.announce(size, count)
                self.make_ready(size, count, settings, vocabulary)

    @torch.inference_mode()
    def make_ready(
        self,
        size: tuple[int, int],
        count: int,
        settings: SegmentationSettings,
        vocabulary: EncodedVocabulary,
    ) -> None:
        """Make ready for so many images of a size in one call; see `warm_up`."""
        if self.fixed_calls is not None:
            framing, table = self._framing(size, settings, settings.method), vocabulary.table
            self.fixed_calls.make(count, framing, settings.method, table.to(self.device))
        self.segment([np.zeros((*size, 3), np.uint8)] * count, vocabulary, settings)

    def unready(
        self,
        sizes: Iterable[tuple[int, int]],
        batch: int,
        settings: SegmentationSettings,
        vocabulary: EncodedVocabulary,
    ) -> list[tuple[tuple[int, int], int]]:
        """What to `make_ready` before labels are made with these settings and words.

        sizes, batch: as for `warm_up`. What is ready for other settings and words counts as well.
        Returns (size, count) of each call; none where there are no graphs.
        """
        if self.fixed_calls is None:
            return []
        wanted = [(size, count) for size in sizes for count in self._counts(batch)]
        return [
            (size, count)
            for size, count in dict.fromkeys([*self.fixed_calls.served, *wanted])
            if self.fixed_calls.lacks(
                count,
                self._framing(size, settings, settings.method),
                settings.method,
                vocabulary.table,
            )
        ]

    def segment(
        self,
        images: Sequence[np.ndarray],
        vocabulary: EncodedVocabulary,
        settings: SegmentationSettings | None = None,
        before: Sequence[FrameHistory | None] = (),
    ) -> list[Segmentation]:
        """Segment images, those of equal size as one batch.

        images: uint8 (H, W, 3) RGB each. before: with `smoothing`, for each the memory of the
        same camera's image before, None where there is none; one of another vocabulary, size or
        settings is left out of account. Returns one Segmentation an image, in order.
        Raises ValueError for an array of another shape or dtype, torch.OutOfMemoryError where the
        device has too little memory for them.
        """
        settings = settings or SegmentationSettings()
        return [
            Segmentation(label, confidence, vocabulary.vocabulary, memory)
            for label, confidence, memory in self._run(
                images, vocabulary.table, settings, settings.method, before
            )
        ]

    def label_indices(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        settings: SegmentationSettings,
        method: Method | None = None,
    ) -> list[np.ndarray]:
        """Label images for benchmarks, whose classes may be more than ids are.

        images: as for `segment`. table: from `index_table`. method: instead of the one that the
        settings stand for. Returns int16 (H, W) each: positions of classes, the number of
        classes for the background, `NO_INDEX` where there is no label.
        """
        method = method or settings.method
        return [label for label, _, _ in self._run(images, table, settings, method)]

    @torch.inference_mode()
    def _run(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        settings: SegmentationSettings,
        method: Method,
        before: Sequence[FrameHistory | None] = (),
    ) -> list[tuple[np.ndarray, np.ndarray, FrameHistory | None]]:
        """Label, confidence and memory of each image."""
        if settings.refinement == 'sam' and self.mask_source is None:
            raise ValueError(
                "refinement is 'sam', but no SAM was loaded; give the folder of one as sam_model"
            )
        before = before or [None] * len(images)
        if len(before) != len(images):
            raise ValueError(f'{len(before)} histories for {len(images)} images')
        by_size: dict[tuple[int, int], list[int]] = {}
        for position, image in enumerate(images):
            _check_image(image)
            by_size.setdefault(image.shape[:2], []).append(position)
        running = [
            (
                batch,
                self._start(
                    [images[p] for p in batch], table, settings, method, [before[p] for p in batch]
                ),
            )
            for positions in by_size.values()
            for batch in self._batches(positions)
        ]
        results = [None] * len(images)
        for batch, finish in running:
            labelled = finish()
            histories = labelled.histories or [None] * len(batch)
            for position, *result in zip(
                batch, labelled.label, labelled.confidence, histories, strict=True
            ):
                results[position] = tuple(result)
        if settings.refinement == 'sam':
            masks = self.mask_source(images)
            return [
                (*vote_in_masks(label, confidence, some), memory)
                for (label, confidence, memory), some in zip(results, masks, strict=True)
            ]
        return results

    def _counts(self, batch: int) -> list[int]:
        """Images of one call, for up to so many at a time."""
        counts = [1]
        while self.fixed_calls is not None and 2 * counts[-1] <= min(batch, LARGEST_BATCH):
            counts.append(2 * counts[-1])
        return counts

    def _batches(self, positions: list[int]) -> Iterator[list[int]]:
        if self.fixed_calls is None:
            yield positions
            return
        remaining = iter(positions)
        for size in batches(len(positions)):
            yield list(islice(remaining, size))

    def _framing(
        self, source: tuple[int, int], settings: SegmentationSettings, method: Method
    ) -> Framing:
        return framing_of(
            method.frame, tuple(source), settings.resolution, self.pipeline.backbone.patch_size
        )

    def _start(
        self,
        images: Sequence[np.ndarray],
        table: LabelTable,
        settings: SegmentationSettings,
        method: Method,
        before: Sequence[FrameHistory | None],
    ) -> Callable[[], HostLabels]:
        """Begin to label images of one size; what is returned waits for the labels."""
        framing = self._framing(images[0].shape[:2], settings, method)
        kind = None
        if method.smoothing:
            kind = HistoryKey(table.words_digest, framing, method, self.device)
        table = table.to(self.device)

        def label_exactly(some: Sequence[int]) -> HostLabels:
            frames = torch.from_numpy(np.stack([images[i] for i in some])).to(self.device)
            min_confidence = torch.tensor(settings.min_confidence, device=self.device)
            memory = None
            if method.smoothing:
                nothing = self.pipeline.no_history(1, framing, table)
                memory = gather([before[i] for i in some], kind, nothing)
            # Photos of many sizes come this way. What is captured comes again and again.
            with no_cudnn_attention if self.device.type == 'cuda' else nullcontext():
                labelled = self.pipeline(
                    frames, framing, table, min_confidence, method, before=memory
                )
            return HostLabels(
                *(tensor.cpu().numpy() for tensor in labelled.tensors),
                labelled.history and separate(labelled.history, kind),
            )

        call = None
        if self.fixed_calls is not None:
            call = self.fixed_calls.get(len(images), framing, method, table)
        if call is None:
            labelled = label_exactly(range(len(images)))
            return lambda: labelled
        pending = call.start(images, table, settings.min_confidence, before, kind)

        def finish() -> HostLabels:
            labelled = pending.result()
            left = np.flatnonzero(~labelled.exact)
            if len(left):
                again = label_exactly(left)
                labelled.label[left], labelled.confidence[left] = again.label, again.confidence
                for i, memory in zip(left, again.histories or (), strict=False):
                    labelled.histories[i] = memory
            return labelled

        return finish


def load_segmenter(
    model: str = ModelSettings.model,
    pretrained: str = ModelSettings.pretrained,
    device: str = ModelSettings.device,
    precision: str = ModelSettings.precision,
    cache_dir: str | None = None,
    threads: int | None = None,
    sam_model: str = ModelSettings.sam_model,
) -> Segmenter:
    """Load a model and make a Segmenter of it.

    model, pretrained, cache_dir: see `weights.load_model`. device: see `weights.select_device`.
    precision: `float32`, `float16`, `bfloat16`, or `auto`: float16 on CUDA, else float32.
    Features of phrases are kept on disk, see `text_cache.default_folder`.
    threads: of PyTorch and OpenCV in the whole process, see `limit_threads`; None leaves them as
    they are.
    sam_model: folder of a SAM for refinement `sam`, see `sam.Sam`; '' for none.
    Raises weights.ModelError; sam.SamError; ValueError for a device or precision that does not
    exist.
    """
    selected = select_device(device)
    _check_precision(precision)
    if threads is not None:
        limit_threads(threads)
    loaded = load_model(model, pretrained, cache_dir)
    mask_source = Sam(sam_model, selected) if sam_model else None
    return _segmenter(loaded, selected, precision, default_folder(cache_dir), mask_source)


def limit_threads(threads: int) -> None:
    """Set how many threads PyTorch and OpenCV compute with, in the whole process.

    threads: at least 1. Raises ValueError.
    """
    if threads < 1:
        raise ValueError(f'threads is {threads}; it must be at least 1')
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def threads_beside_others() -> int:
    """How many threads leave one of the processor's cores to others, or what OMP_NUM_THREADS says.

    PyTorch's own default takes every core, and its threads wait for the slowest of them: one other
    process on one core then costs several times what that core is worth.
    """
    if 'OMP_NUM_THREADS' in os.environ:
        # PyTorch has followed it already.
        return torch.get_num_threads()
    return max(1, _usable_cores() - 1)


def _usable_cores() -> int:
    # Which cores a process may use is known on Linux only.
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _segmenter(
    loaded: LoadedModel,
    device: torch.device,
    precision: str,
    text_cache: Path | None,
    mask_source: MaskSource | None,
) -> Segmenter:
    _check_precision(precision)
    if precision == 'auto':
        precision = 'float16' if device.type == 'cuda' else 'float32'
    return Segmenter(
        loaded.model,
        loaded.tokenizer,
        loaded.mean,
        loaded.std,
        device,
        precision,
        loaded.name,
        text_cache,
        mask_source,
    )


def _check_precision(precision: str) -> None:
    if precision not in ('auto', *PRECISIONS):
        raise ValueError(
            f'precision is {precision!r}; it must be auto or one of {", ".join(PRECISIONS)}'
        )


def _with_index(device: torch.device) -> torch.device:
    if device.type == 'cuda' and device.index is None:
        return torch.device('cuda', torch.cuda.current_device())
    return device


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f'an image must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}'
        )
    check_aspect_ratio(*image.shape[:2])
