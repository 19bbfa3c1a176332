"""Opening a dataset: which files there are, and pictures with their truth."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from cliptrase_ros.evaluation.datasets import DATASETS, TOYBOX, Dataset, Layout
from cliptrase_ros.evaluation.labels import BACKGROUND, CONVENTIONS, VALUES, values_table
from cliptrase_ros.photos.reading import read_photo
from cliptrase_ros.segmentation.model.preprocessing import check_aspect_ratio
from cliptrase_ros.segmentation.vocabulary import name_and_synonyms

#: Names of classes of a `folder` dataset whose pixels do not count.
NO_CLASS = ('unlabeled', 'unlabelled', 'ignore', 'ignored', 'void')


class DatasetError(ValueError):
    """The dataset is not there, or not as expected; the message says what was looked for."""


class UnreadableError(ValueError):
    """One picture or its label cannot be used; the message says why."""


@dataclass(frozen=True)
class Sample:
    """image: uint8 (H, W, 3) RGB. truth: int16 (H, W), class index or a negative of `labels`."""

    image: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Benchmark:
    """A dataset that was found. names: of its samples. load: reads one, by name.

    `load` raises UnreadableError. root: the folder it is in; None for what is rendered. ids:
    what label images of a `folder` have for its classes and the background, in the order of the
    file. alone: names of images without a label image, or the other way round.
    """

    dataset: Dataset
    names: tuple[str, ...]
    load: Callable[[str], Sample]
    root: Path | None = None
    ids: tuple[int, ...] = ()
    alone: tuple[str, ...] = ()


def open_dataset(name: str, root: Path | None, count: int | None = None) -> Benchmark:
    """Find a dataset's files.

    name: key of `DATASETS` or `TOYBOX`, or `folder`. root: the folder it is in, or
    the one above; not used for what is rendered. count: at most so many samples.
    Raises DatasetError.
    """
    if name in TOYBOX:
        from cliptrase_ros.evaluation.toybox import open_toybox

        return open_toybox(name, count)
    if root is None:
        raise DatasetError(f'{name} has to be on disk: say where with --root')
    if not root.is_dir():
        raise DatasetError(f'--root {root} is not a folder')
    benchmark = _open_folder(root) if name == 'folder' else _open_layouts(DATASETS[name], root)
    return replace(benchmark, names=benchmark.names[:count])


def read_ahead(
    benchmark: Benchmark,
    names: Iterable[str],
    workers: int,
    prepare: Callable[[Sample], Sample] = lambda sample: sample,
) -> Iterator[tuple[str, Sample | UnreadableError]]:
    """Read samples with several threads, in order, a few ahead of who takes them.

    prepare: what else is done to each sample in its thread.
    """

    def read(name: str) -> Sample | UnreadableError:
        try:
            return prepare(benchmark.load(name))
        except UnreadableError as error:
            return error

    waiting: deque[tuple[str, Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for name in names:
                waiting.append((name, pool.submit(read, name)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _open_layouts(dataset: Dataset, root: Path) -> Benchmark:
    looked_for = []
    for layout in dataset.layouts:
        for home in (*layout.homes, '.'):
            wanted, missing = _pieces(root / home, layout)
            if missing:
                looked_for.append(' with '.join(str(piece) for piece in wanted))
                continue
            names = _find_names(root / home, layout)
            if names:
                return _benchmark(dataset, root / home, layout, names)
            looked_for.append(
                f'{root / home / layout.labels}/**/*{layout.label_suffix} (no such file there)'
            )
    lines = '\n  '.join(dict.fromkeys(looked_for))
    raise DatasetError(
        f'{dataset.title} is not under {root}; looked for images and labels in\n  {lines}'
    )


def _pieces(home: Path, layout: Layout) -> tuple[list[Path], bool]:
    wanted = [home / layout.images, home / layout.labels]
    there = all(folder.is_dir() for folder in wanted)
    if layout.listing:
        wanted.append(home / layout.listing)
        there &= wanted[-1].is_file()
    return wanted, not there


def _find_names(home: Path, layout: Layout) -> list[str]:
    """Paths under the label folder without suffix, in order."""
    if layout.listing:
        return (home / layout.listing).read_text().split()
    folder = home / layout.labels
    files = (path.relative_to(folder).as_posix() for path in folder.rglob('*'))
    names = (f.removesuffix(layout.label_suffix) for f in files if f.endswith(layout.label_suffix))
    # Beside distributed maps may lie converted ones, whose names end like theirs.
    return sorted(name for name in names if not name.endswith('TrainIds'))


def _benchmark(dataset: Dataset, home: Path, layout: Layout, names: Sequence[str]) -> Benchmark:
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
    """Read a picture and its label image.

    table: int16 (65536,), what the label image's values mean. upright: read the picture as photos
    are, turned as its EXIF data say, which the published evaluation does not do. Raises
    UnreadableError.
    """
    image = _read(image_path, read_photo if upright else _read_as_published)
    try:
        check_aspect_ratio(*image.shape[:2])
    except ValueError as error:
        raise UnreadableError(f'{image_path}: {error}') from error
    values = _read(label_path, _read_values)
    if values.ndim != 2 or values.dtype.kind not in 'uib':
        raise UnreadableError(
            f'{label_path} is {values.dtype} of shape {values.shape}, not an image of class ids'
        )
    if values.shape != image.shape[:2]:
        sizes = ' and '.join(f'{a.shape[1]} x {a.shape[0]}' for a in (image, values))
        raise UnreadableError(f'{image_path} and its label {label_path.name} differ: {sizes}')
    if values.dtype.itemsize > 2 and (values.min() < 0 or values.max() >= len(table)):
        raise UnreadableError(f'{label_path} has values outside 0 to {len(table) - 1}')
    return Sample(image, table[values.astype(np.uint16)])


def _read(path: Path, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    if not path.exists():
        raise UnreadableError(f'{path} does not exist')
    try:
        return read(path)
    except Exception as error:
        # Decoders raise much besides OSError on damaged files.
        raise UnreadableError(f'{path} cannot be read: {error}') from error


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
    label_paths, image_paths = _pictures(labels), _pictures(images)
    names = sorted(set(label_paths) & set(image_paths))
    if not names:
        raise DatasetError(f'no file in {labels} has the name, without suffix, of one in {images}')
    alone = tuple(sorted(set(label_paths) ^ set(image_paths)))

    def load(name: str) -> Sample:
        return load_sample(image_paths[name], label_paths[name], table, upright=True)

    return Benchmark(dataset, tuple(names), load, root, tuple(ids), alone)


def _pictures(folder: Path) -> dict[str, Path]:
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
    """Classes of a file with lines `ID NAME`, or `NAME` alone, numbered from 0; meaning of ids."""
    entries: dict[int, str] = {}
    try:
        # Some editors put a mark of the encoding in front.
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
