"""Results into datasets: the parts of each, and what joins them."""

import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliptrase_ros.exports import coco, fiftyone, palette, parquet, yolo
from cliptrase_ros.exports.documents import Append, read_fragments
from cliptrase_ros.exports.pictures import Wanted, write_pictures
from cliptrase_ros.exports.results import ExportError, Result, read_result
from cliptrase_ros.segmentation.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Format:
    """How a format is written.

    Attributes:
        pictures: Folder of its images, '' if it has none.
        libraries: What it needs.
    """

    write_part: Callable[[Path, str], AbstractContextManager[Append]]
    join_parts: Callable[[Iterable[Any], Vocabulary, Path], None]
    pictures: str
    libraries: tuple[str, ...] = ()


_FORMATS = {
    'coco': _Format(coco.write_part, coco.join_parts, 'images', ('pycocotools',)),
    'coco-polygons': _Format(coco.write_polygons_part, coco.join_polygons_parts, 'images'),
    'yolo': _Format(yolo.write_part, yolo.join_parts, 'images'),
    'palette': _Format(palette.write_part, palette.join_parts, 'JPEGImages'),
    'parquet': _Format(parquet.write_part, parquet.join_parts, '', ('pyarrow', 'pycocotools')),
    'fiftyone': _Format(fiftyone.write_part, fiftyone.join_parts, 'data'),
}
#: Names of all formats.
FORMATS = tuple(_FORMATS)


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that are not known, or whose library is missing. Raises ExportError."""
    for name in formats:
        if name not in _FORMATS:
            raise ExportError(f'the format {name!r} is not known; choose of {", ".join(FORMATS)}')
        libraries = _FORMATS[name].libraries
        try:
            for library in libraries:
                importlib.import_module(library)
        except ImportError as error:
            raise ExportError(
                f'the format {name} needs `pip install {" ".join(libraries)}`'
            ) from error


def write_part(result: Result, formats: Sequence[str], folder: Path) -> None:
    """Write one result's part of datasets: their files, and what is to be joined.

    The label images are read once for all formats. Files go to `folder/FORMAT/`, where they are
    final but for `parts/KEY.jsonl`, a fragment for `join_parts`. Equal results give equal files.

    Args:
        formats: Of `FORMATS`, each once.
        folder: For all formats.

    Raises:
        ExportError: As `check_formats`; the result or its input cannot be read; the input lacks
            images that were labelled.
        OSError: Nothing can be written.
    """
    check_formats(formats)
    wanted: Wanted = {}
    with ExitStack() as stack:
        adds = [
            stack.enter_context(_FORMATS[name].write_part(folder / name, result.key))
            for name in formats
        ]
        for image in read_result(result):
            for add in adds:
                add(image)
            wanted.setdefault(image.origin, []).append(image.file_name)
    pictures = [
        folder / name / _FORMATS[name].pictures for name in formats if _FORMATS[name].pictures
    ]
    if result.inputs is not None and pictures:
        write_pictures(result, wanted, pictures)


def join_parts(
    name: str, parts: Iterable[Iterable[bytes]], vocabulary: Vocabulary, folder: Path
) -> None:
    """Write the files of a dataset that are of all its parts.

    Fragments are read line by line, one after the other, and what is written goes through files
    beside it: memory does not grow with the dataset. Ids follow from the order of the parts.

    Args:
        name: Of the format.
        parts: The lines of each fragment, as an opened file gives them; none where the format has
            none.
        folder: Of the dataset.

    Raises:
        ExportError: The format is not known.
        OSError: Nothing can be written.
    """
    check_formats([name])
    folder.mkdir(parents=True, exist_ok=True)
    _FORMATS[name].join_parts(read_fragments(parts), vocabulary, folder)
