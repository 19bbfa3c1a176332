"""What `import cliptrase_ros` gives: a model, the classes it looks for, a result for each image.

It keeps words and their ids from one call to the next. What is handed to each call instead, for
nodes and programs with several cameras, is in `cliptrase_ros.segmentation`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cliptrase_ros.photos.reading import UnreadableError, read_photo, rgb_pixels
from cliptrase_ros.segmentation.model.weights import ModelError
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import (
    EncodedVocabulary,
    Segmentation,
    Segmenter,
    check_image,
    load_segmenter,
)
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings, settings_of
from cliptrase_ros.segmentation.statistics import classes_present, score_column, score_image
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    VocabularyClass,
    VocabularyError,
    clean_phrase,
    parse_vocabulary,
)
from cliptrase_ros.streams.fault_tolerance import default_batch

__all__ = ['ImageLike', 'Model', 'ModelError', 'Result', 'VocabularyError', 'load']

#: uint8 (H, W, 3) RGB, the path of a photo, or a PIL image.
ImageLike: TypeAlias = np.ndarray | Image.Image | str | os.PathLike[str]


def load(
    model: str = ModelSettings.model,
    pretrained: str = ModelSettings.pretrained,
    device: str = ModelSettings.device,
    precision: str = ModelSettings.precision,
    cache_dir: str = ModelSettings.cache_dir,
    threads: int = ModelSettings.threads,
    sam_model: str = ModelSettings.sam_model,
    spin_ms: float = ModelSettings.spin_ms,
) -> 'Model':
    """Load a model.

    Args:
        model: An architecture as open_clip names it, `toybox` for the small model that comes with
            this package, or `local-dir:FOLDER` for a model of your own.
        pretrained: Weights: a tag open_clip knows for the architecture, or a local file.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, `float16`, `bfloat16`, or `auto`: float16 on CUDA, else float32.
        cache_dir: Folder for downloaded weights and encoded phrases; '' for the usual ones.
        threads: Of PyTorch and OpenCV in the whole process; 0 leaves them as they are.
        sam_model: Folder of a SAM, for refinement `sam`; '' for none.
        spin_ms: How long a call on CUDA polls for labels before it sleeps, 0 to 10 milliseconds.

    Raises:
        ModelError: The model cannot be had; the message says what to do.
        ValueError: For a value out of range, or a device that does not exist.
    """
    settings = ModelSettings(
        model, pretrained, sam_model, device, precision, threads, spin_ms, cache_dir
    )
    return Model(load_segmenter(**{**vars(settings), 'threads': threads or None}))


class Model:
    """A frozen CLIP and the classes it looks for; `load` makes one.

    For one thread at a time: a program with several threads loads one for each, or holds a lock.

    Attributes:
        segmenter: The engine itself.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        """Make a model of an engine, which several models may share."""
        self.segmenter = segmenter
        self._words: EncodedVocabulary | None = None

    def __repr__(self) -> str:
        names = ', '.join(entry.name for entry in self.classes)
        return f'<Model {self.segmenter.name} on {self.segmenter.device}: {names or "no classes"}>'

    @property
    def classes(self) -> tuple[VocabularyClass, ...]:
        """The classes that were set, in their order."""
        return self._words.vocabulary.classes if self._words else ()

    def set_classes(
        self,
        classes: str | Sequence[str],
        background: str | Sequence[str] = DEFAULT_BACKGROUND,
    ) -> None:
        """Choose what to look for; a class that was there before keeps its id and colour.

        Args:
            classes: `'road; person = pedestrian, worker'`, or a list with an entry a class.
            background: Phrases for everything else, whose pixels become 255, unlabelled:
                `'sky; building'`, or a list; empty for none.

        Raises:
            VocabularyError: For words that cannot be used; the classes stay as they were.
        """
        previous = self._words.vocabulary if self._words else None
        vocabulary = parse_vocabulary(classes, background, previous)
        self._words = self.segmenter.encode_vocabulary(vocabulary)

    @overload
    def __call__(self, image: ImageLike, **settings: Any) -> 'Result': ...

    @overload
    def __call__(self, image: Sequence[ImageLike], **settings: Any) -> list['Result']: ...

    def __call__(
        self, image: ImageLike | Sequence[ImageLike], **settings: Any
    ) -> 'Result | list[Result]':
        """Label an image, or a list of images.

        Args:
            image: A path, whose photo is turned upright as its EXIF data say; or pixels, which are
                taken as they are. Lists are read and labelled in batches: 8 on a GPU, 1 on a CPU.
            **settings: Those of `SegmentationSettings`, for instance `resolution=448`; for this
                call alone.

        Raises:
            RuntimeError: No classes were set.
            TypeError: For what is no image, or a setting that does not exist.
            ValueError: For an array of another shape or dtype, a photo that cannot be read, or a
                setting out of range.
            FileNotFoundError: For a path where nothing is.
        """
        chosen = _make_settings(settings)
        if self._words is None:
            raise RuntimeError("no classes were set; call set_classes('road; person') first")
        if isinstance(image, str | bytes) or not isinstance(image, Sequence):
            return self._label([_read_pixels(image)], self._words, chosen)[0]
        batch = default_batch(self.segmenter)
        results = []
        for first in range(0, len(image), batch):
            pixels = []
            for position in range(first, min(first + batch, len(image))):
                try:
                    pixels.append(_read_pixels(image[position]))
                except (OSError, TypeError, ValueError) as error:
                    raise type(error)(f'image {position} of the list: {error}') from error
            results += self._label(pixels, self._words, chosen)
        return results

    def _label(
        self,
        images: Sequence[np.ndarray],
        words: EncodedVocabulary,
        settings: SegmentationSettings,
    ) -> list['Result']:
        return [Result(labelled) for labelled in self.segmenter.segment(images, words, settings)]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The labels of one image; it does not change, and its arrays cannot be written to.

    Attributes:
        segmentation: What the engine gave.
    """

    segmentation: Segmentation

    def __post_init__(self) -> None:
        for array in (self.label, self.confidence, self.segmentation.scores):
            if array is not None:
                array.flags.writeable = False

    def __repr__(self) -> str:
        height, width = self.label.shape
        present = ', '.join(entry.entry.name for entry in classes_present(self.segmentation))
        return f'<Result of {width} x {height} pixels: {present or "all unlabelled"}>'

    @property
    def label(self) -> NDArray[np.uint8]:
        """uint8 (H, W): the id of each pixel's class, 255 = unlabelled."""
        return self.segmentation.label

    @property
    def confidence(self) -> NDArray[np.uint8]:
        """uint8 (H, W): how probable each pixel's label is, 0..255 for 0..1."""
        return self.segmentation.confidence

    @property
    def classes(self) -> tuple[VocabularyClass, ...]:
        """The classes that were looked for, in their order, with `id`, `name` and `color`."""
        return self.segmentation.vocabulary.classes

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Where a class is, bool (H, W).

        Args:
            name: Of the class, or one of its synonyms; case makes no difference.

        Raises:
            ValueError: There is no such class.
        """
        phrase = clean_phrase(str(name)).casefold()
        for entry in self.classes:
            if phrase in map(str.casefold, entry.phrases):
                return self.label == entry.id
        names = ', '.join(entry.name for entry in self.classes)
        raise ValueError(f'there is no class {name!r}; the classes are {names}')

    def score(self, name: str) -> NDArray[np.uint8]:
        """How probable a phrase is at each pixel, uint8 (H, W), 0..255 for 0..1.

        Of a result that was made with `scores=True`. 0 where the model saw nothing.

        Args:
            name: Of a class, one of its synonyms, or a background phrase; case makes no difference.

        Raises:
            ValueError: There is no such phrase, or the result was made without scores.
        """
        phrase, vocabulary = clean_phrase(str(name)), self.segmentation.vocabulary
        if score_column(vocabulary, phrase) is None:
            phrases = ', '.join(vocabulary.phrases)
            raise ValueError(f'there is no phrase {name!r}; there are {phrases}')
        return score_image(self.segmentation, phrase)

    def overlay(self, image: ImageLike) -> NDArray[np.uint8]:
        """The image under the colours of its classes, with a legend: uint8 (H, W, 3) RGB.

        Args:
            image: The one that was labelled, which a result does not keep.

        Raises:
            ValueError: For an image of another size.
        """
        pixels = _read_pixels(image)
        if pixels.shape != (*self.label.shape, 3):
            raise ValueError(
                f'the image is of shape {pixels.shape}, and the labels of {self.label.shape}'
            )
        return draw_overlay(pixels, self.label, self.segmentation.vocabulary)


def _make_settings(chosen: dict[str, Any]) -> SegmentationSettings:
    known = {field.name for field in fields(SegmentationSettings)}
    for name in chosen:
        if name not in known:
            names = (declared.name for declared in settings_of(SegmentationSettings))
            usable = ', '.join(usable for usable in names if usable != 'smoothing')
            raise TypeError(f'there is no setting {name!r}; there are {usable}')
    settings = SegmentationSettings(**chosen)
    if settings.smoothing:
        raise ValueError(
            'smoothing needs the history of the frame before, which a Model does not keep; hand it '
            'to Segmenter.segment, as docs/python.md shows'
        )
    return settings


def _read_pixels(image: ImageLike) -> np.ndarray:
    if isinstance(image, np.ndarray):
        check_image(image)
        return image
    if isinstance(image, Image.Image):
        try:
            return rgb_pixels(image)
        except UnreadableError as error:
            raise ValueError(f'the image cannot be read: {error}') from error
    if not isinstance(image, str | os.PathLike):
        raise TypeError(
            'an image is a uint8 array of shape (H, W, 3), the path of a photo or a PIL image, and '
            f'several are a list or tuple of these; this is of type {type(image).__name__}'
        )
    path = Path(image)
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist')
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; give a list of its photos, such as sorted(folder.glob('*.jpg'))"
        )
    try:
        return read_photo(path)
    except UnreadableError as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
