"""Opening a dataset by its name: pictures and label images on disk, or rendered rooms."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cliptrase_ros.evaluation.datasets import DATASETS, TOYBOX, Dataset, Layout
from cliptrase_ros.evaluation.labels import BACKGROUND, CONVENTIONS, VALUES, values_table
from cliptrase_ros.evaluation.samples import Benchmark, Sample, SampleError
from cliptrase_ros.evaluation.toybox import open_toybox
from cliptrase_ros.photos.reading import read_photo
from cliptrase_ros.segmentation.model.preprocessing import check_aspect_ratio
from cliptrase_ros.segmentation.vocabulary import name_and_synonyms

#: Names of classes of a `folder` dataset whose pixels do not count.
NO_CLASS = ('unlabeled', 'unlabelled', 'ignore', 'ignored', 'void')


class DatasetError(ValueError):
    """The dataset is not there, or not as expected; the message says what was looked for."""


def open_dataset(name: str, root: Path | None, count: int | None = None) -> Benchmark:
    """Find a dataset's samples.

    Args:
        name: Key of `DATASETS` or `TOYBOX`, or `folder` for a folder of one's own.
        root: Folder it is in, or the one above; not used for what is rendered.
        count: Most samples; None for all, or for 100 rendered rooms, of which there is no end.

    Raises:
        DatasetError: The dataset is not there, or not as expected.
    """
    if name in TOYBOX:
        return open_toybox(name, count or 100)
    if root is None:
        raise DatasetError(f'{name} has to be on disk: say where with --root')
    if not root.is_dir():
        raise DatasetError(f'--root {root} is not a folder')
    benchmark = _open_folder(root) if name == 'folder' else _open_layouts(DATASETS[name], root)
    return replace(benchmark, names=benchmark.names[:count])


def _open_layouts(dataset: Dataset, root: Path) -> Benchmark:
    looked_for = []
    for layout in dataset.layouts:
        for home in (root / folder for folder in (*layout.homes, '.')):
            images, labels = home / layout.images, home / layout.labels
            listing = home / layout.listing if layout.listing else None
            if not (images.is_dir() and labels.is_dir() and (listing is None or listing.is_file())):
                looked_for.append(' with '.join(map(str, filter(None, (images, labels, listing)))))
                continue
            names = listing.read_text().split() if listing else _find_names(labels, layout)
            if names:
                return _open_pairs(dataset, home, layout, names)
            looked_for.append(f'{labels}/**/*{layout.label_suffix} (no such file there)')
    lines = '\n  '.join(dict.fromkeys(looked_for))
    raise DatasetError(
        f'{dataset.title} is not under {root}; looked for images and labels in\n  {lines}'
    )


def _find_names(labels: Path, layout: Layout) -> list[str]:
    """Paths of the label images under their folder, without suffix, in order."""
    files = (path.relative_to(labels).as_posix() for path in labels.rglob('*'))
    names = (f.removesuffix(layout.label_suffix) for f in files if f.endswith(layout.label_suffix))
    # Beside distributed maps may lie converted ones, whose names end like theirs.
    return sorted(name for name in names if not name.endswith('TrainIds'))


def _open_pairs(dataset: Dataset, home: Path, layout: Layout, names: list[str]) -> Benchmark:
    images, labels = home / layout.images, home / layout.labels
    table = CONVENTIONS[layout.convention]

    def load(name: str) -> Sample:
        return load_sample(
            images / f'{name}{layout.image_suffix}', labels / f'{name}{layout.label_suffix}', table
        )

    return Benchmark(dataset, tuple(names), load, home)


def load_sample(
    image_path: Path, label_path: Path, table: np.ndarray, upright: bool = False
) -> Sample:
    """Read a picture and its label image, of integers, of equal size.

    Args:
        table: int16 (65536,), what the label image's values mean.
        upright: Read the picture as photos are, turned as its EXIF data say. The published
            evaluation does not do so.

    Raises:
        SampleError: One of them cannot be used.
    """
    image = _read(image_path, read_photo if upright else _read_as_published)
    try:
        check_aspect_ratio(*image.shape[:2])
    except ValueError as error:
        raise SampleError(f'{image_path}: {error}') from error
    values = _read(label_path, _read_values)
    if values.ndim != 2 or values.dtype.kind not in 'uib':
        raise SampleError(
            f'{label_path} is {values.dtype} of shape {values.shape}, not an image of class ids'
        )
    if values.shape != image.shape[:2]:
        sizes = ' and '.join(f'{a.shape[1]} x {a.shape[0]}' for a in (image, values))
        raise SampleError(f'{image_path} and its label {label_path.name} differ: {sizes}')
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() >= len(table)):
        raise SampleError(f'{label_path} has values outside 0 to {len(table) - 1}')
    return Sample(image, table[values.astype(np.uint16)])


def _read(path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    if not path.exists():
        raise SampleError(f'{path} does not exist')
    try:
        return read(path)
    except Exception as error:
        # Decoders raise nearly anything over damaged files.
        raise SampleError(f'{path} cannot be read: {error}') from error


def _read_as_published(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert('RGB'))


def _read_values(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def _open_folder(root: Path) -> Benchmark:
    classes_file, images, labels = root / 'classes.txt', root / 'images', root / 'labels'
    missing = [p for p in (classes_file, images, labels) if not p.exists()]
    if missing:
        raise DatasetError(
            f'a folder to evaluate has images/, labels/ and classes.txt; there is no '
            f'{" and no ".join(str(path) for path in missing)}'
        )
    dataset, ids = _read_classes(classes_file)
    table = values_table(ids)
    label_paths, image_paths = _find_pictures(labels), _find_pictures(images)
    names = sorted(set(label_paths) & set(image_paths))
    if not names:
        raise DatasetError(f'no file in {labels} has the name, without suffix, of one in {images}')
    unpaired = tuple(sorted(set(label_paths) ^ set(image_paths)))

    def load(name: str) -> Sample:
        return load_sample(image_paths[name], label_paths[name], table, upright=True)

    return Benchmark(dataset, tuple(names), load, root, tuple(ids), unpaired)


def _find_pictures(folder: Path) -> dict[str, Path]:
    """Pictures of a folder by name without suffix. Raises DatasetError where two share one."""
    suffixes = Image.registered_extensions()
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith('.'):
            continue
        if path.stem in found:
            raise DatasetError(f'{found[path.stem]} and {path.name} differ in their suffix alone')
        found[path.stem] = path
    return found


def _read_classes(path: Path) -> tuple[Dataset, dict[int, int]]:
    """The dataset of a file with lines `ID NAME`, or `NAME` alone, which are numbered from 0.

    Also returned is the truth that each id stands for.
    """
    entries: dict[int, str] = {}
    try:
        # Some editors write a byte order mark first.
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise DatasetError(f'{path} is not UTF-8 text: {error}') from error
    for line in filter(None, map(str.strip, text.splitlines())):
        numbered = re.fullmatch(r'(\d+)[\s,;:=]+(\S.*)', line)
        value, name = (int(numbered[1]), numbered[2]) if numbered else (len(entries), line)
        if value in entries or value >= VALUES:
            raise DatasetError(f"{path}: the id of {line!r} is another class's, or over 65535")
        entries[value] = name
    classes, meaning, background = [], {}, ()
    for value, name in entries.items():
        phrase, synonyms = name_and_synonyms(name)
        if phrase.casefold() in NO_CLASS:
            continue
        if phrase.casefold() == 'background':
            background = tuple(filter(None, synonyms)) or ('background',)
            meaning[value] = BACKGROUND
        else:
            meaning[value] = len(classes)
            classes.append(name)
    if not classes:
        raise DatasetError(f'{path} names no class; write a line `ID NAME` for each')
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DatasetError(f'{path} has the class {twice!r} twice')
    return Dataset('folder', path.parent.name, tuple(classes), background), meaning
