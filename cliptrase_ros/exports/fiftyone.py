"""What FiftyOne imports as its `ImageSegmentationDirectory`.

Its own `FiftyOneDataset` is a dump of its database, which changes with its versions. Mask values
are class ids + 1, as FiftyOne does not show 0, in grey, as it takes a palette for colours.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cliptrase_ros.exports.documents import Append
from cliptrase_ros.exports.results import LabelledImage
from cliptrase_ros.photos.results import write_json, write_png
from cliptrase_ros.segmentation.vocabulary import Vocabulary


@contextmanager
def write_part(folder: Path, key: str) -> Iterator[Append]:
    """Write `labels/NAME.png` of images."""

    def add(image: LabelledImage) -> None:
        # 255, unlabelled, becomes 0.
        write_png(folder / 'labels' / f'{image.name}.png', image.label + np.uint8(1))

    yield add


def join_parts(parts: Iterable[dict], vocabulary: Vocabulary, folder: Path) -> None:
    """Write `mask_targets.json`, the names of values."""
    names = {str(entry.id + 1): entry.name for entry in vocabulary.classes}
    write_json(folder / 'mask_targets.json', names)
