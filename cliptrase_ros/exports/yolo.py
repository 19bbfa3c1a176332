"""YOLO segmentation: a text file for each image, a polygon a line; class numbers are class ids.

Holes are filled. A region that fills the hole of another is drawn over it by trainers, which draw
small ones last.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from cliptrase_ros.exports.documents import Append
from cliptrase_ros.exports.results import LabelledImage
from cliptrase_ros.photos.whole_files import whole_file
from cliptrase_ros.segmentation.vocabulary import Vocabulary


@contextmanager
def write_part(folder: Path, key: str) -> Iterator[Append]:
    """Write `labels/NAME.txt` of images."""

    def add(image: LabelledImage) -> None:
        height, width = image.label.shape
        lines = []
        for region in image.regions:
            numbers = (region.outline / (width, height)).ravel().tolist()
            lines.append(' '.join([f'{region.class_id}', *(f'{number:.6f}' for number in numbers)]))
        with whole_file(folder / 'labels' / f'{image.name}.txt') as temporary:
            temporary.write_text(''.join(f'{line}\n' for line in lines), encoding='ascii')

    yield add


def join_parts(parts: Iterable[dict], vocabulary: Vocabulary, folder: Path) -> None:
    """Write `data.yaml`."""
    names = {entry.id: entry.name for entry in vocabulary.classes}
    # Trainers want both; what is for validation only the user can tell.
    content = {'train': 'images', 'val': 'images', 'names': names}
    with whole_file(folder / 'data.yaml') as temporary:
        temporary.write_text(
            yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding='utf-8'
        )
