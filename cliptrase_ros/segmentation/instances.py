"""Instances of classes in one image: connected regions, each with its box, area and confidence."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from cliptrase_ros.segmentation.run_lengths import Runs, connect_runs, find_runs, sum_runs
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, VocabularyClass

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import Segmentation


@dataclass(frozen=True)
class Regions:
    """The N connected regions of a label image: pixels of one value, touching at sides or corners.

    Attributes:
        of_run: int64 (R,), the number of each run's region, 0..N-1, in the order of their first
            pixels.
        value: (N,), the label.
        area: int64 (N,), pixels.
    """

    runs: Runs
    of_run: np.ndarray
    value: np.ndarray
    area: np.ndarray

    def large(self, least: float) -> np.ndarray:
        """Numbers of the regions of classes with so many pixels or more, by ascending class id."""
        chosen = np.flatnonzero((self.area >= least) & (self.value != UNLABELLED))
        return chosen[np.argsort(self.value[chosen], kind='stable')]

    def draw(self, chosen: np.ndarray) -> np.ndarray:
        """An image of unsigned integers, (H, W): 1 in the region chosen first, 2 in the next ..."""
        names = np.zeros(self.area.size, np.min_scalar_type(chosen.size))
        names[chosen] = np.arange(1, chosen.size + 1)
        return np.repeat(names[self.of_run], self.runs.length).reshape(-1, self.runs.width)


def connected_regions(label: np.ndarray) -> Regions:
    """Find the connected regions of a label image, uint8 (H, W), of all values at once."""
    runs = find_runs(label)
    of_run = connect_runs(runs)
    area = np.bincount(of_run, runs.length).astype(np.int64)
    value = np.empty(area.size, runs.value.dtype)
    value[of_run] = runs.value
    return Regions(runs, of_run, value, area)


@dataclass(frozen=True)
class Instance:
    """A connected region of a class.

    Attributes:
        area: Pixels, at least 1.
        box: x, y, width, height of the smallest box around it, pixels.
        confidence: Mean over its pixels, 0..1.
        number: Its value in `numbers`.
        numbers: Unsigned integers (H, W), one image for all instances, which share it.
    """

    entry: VocabularyClass
    area: int
    box: tuple[int, int, int, int]
    confidence: float
    number: int
    numbers: np.ndarray = field(repr=False, compare=False)

    @property
    def mask(self) -> np.ndarray:
        """Where it is inside its box: bool (height, width)."""
        x, y, width, height = self.box
        return self.numbers[y : y + height, x : x + width] == self.number


def count_instances(regions: Regions, min_area: float) -> dict[int, int]:
    """How many instances `find_instances` finds, by class id; without those it finds none of."""
    found = regions.value[regions.large(_least(regions, min_area))]
    ids, counts = np.unique(found, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def find_instances(
    segmentation: 'Segmentation', min_area: float, regions: Regions | None = None
) -> list[Instance]:
    """Find the instances of all classes, class after class by ascending id.

    Args:
        min_area: Of the smallest that counts, a share of the image's pixels, 0..1.
        regions: Of the label image, where they are known already.
    """
    regions = regions or connected_regions(segmentation.label)
    chosen = regions.large(_least(regions, min_area))
    if not chosen.size:
        return []
    # The runs of one after the other, each in the order of the image.
    runs, place = regions.runs, np.full(regions.area.size, chosen.size)
    place[chosen] = np.arange(chosen.size)
    place_of_run = place[regions.of_run]
    order = np.argsort(place_of_run, kind='stable')[: np.count_nonzero(place_of_run < chosen.size)]
    first = np.flatnonzero(np.diff(place_of_run[order], prepend=-1))
    last = np.append(first[1:], order.size) - 1
    row, column = np.divmod(runs.begin[order], runs.width)
    left = np.minimum.reduceat(column, first)
    right = np.maximum.reduceat(column + runs.length[order], first)
    top, bottom = row[first], row[last] + 1
    area = regions.area[chosen]
    total = np.add.reduceat(sum_runs(runs, segmentation.confidence)[order], first, dtype=np.int64)
    entries = {entry.id: entry for entry in segmentation.vocabulary.classes}
    numbers = regions.draw(chosen)
    described = zip(
        regions.value[chosen].tolist(),
        area.tolist(),
        np.stack([left, top, right - left, bottom - top], axis=1).tolist(),
        (total / (255.0 * area)).tolist(),
        strict=True,
    )
    return [
        Instance(entries[class_id], pixels, tuple(box), confidence, number, numbers)
        for number, (class_id, pixels, box, confidence) in enumerate(described, start=1)
    ]


def _least(regions: Regions, min_area: float) -> float:
    """Pixels of the smallest region that is an instance."""
    return min_area * int(regions.area.sum())
