"""Palette PNGs in the folders of Pascal VOC.

A pixel's value is its class id, 255 where it is to be ignored, as in Cityscapes' trainIds: what
trainers take with as many classes as there are words. By its colour and `labelmap.txt`, CVAT and
Datumaro tell the class; unlabelled pixels are black, which is the background there.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cliptrase_ros.exports.documents import Append, fragment
from cliptrase_ros.exports.results import LabelledImage
from cliptrase_ros.photos.results import write_png
from cliptrase_ros.photos.whole_files import whole_file
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary, class_color

_PALETTE = np.array([*map(class_color, range(UNLABELLED)), (0, 0, 0)], np.uint8)


@contextmanager
def write_part(folder: Path, key: str) -> Iterator[Append]:
    """Write `SegmentationClass/NAME.png` of images."""
    with fragment(folder, key) as write:

        def add(image: LabelledImage) -> None:
            write_png(folder / 'SegmentationClass' / f'{image.name}.png', image.label, _PALETTE)
            write(image.name)

        yield add


def join_parts(parts: Iterable[str], vocabulary: Vocabulary, folder: Path) -> None:
    """Write `labelmap.txt`, and `ImageSets/Segmentation/default.txt` with all names."""
    with whole_file(folder / 'labelmap.txt') as temporary:
        taken = {entry.name for entry in vocabulary.classes}
        unlabelled = 'unlabelled' if 'background' in taken else 'background'
        lines = ['# label:color_rgb:parts:actions', f'{unlabelled}:0,0,0::']
        for entry in vocabulary.classes:
            lines.append(f'{entry.name}:{",".join(map(str, entry.color))}::')
        temporary.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')
    with (
        whole_file(folder / 'ImageSets' / 'Segmentation' / 'default.txt') as temporary,
        temporary.open('w', encoding='utf-8') as file,
    ):
        file.writelines(f'{name}\n' for name in parts)
