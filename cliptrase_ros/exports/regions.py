"""Masks of classes and of their connected regions, as COCO and YOLO have them."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from cliptrase_ros.segmentation.instances import connected_regions
from cliptrase_ros.segmentation.run_lengths import find_runs
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

#: Pixels of the smallest connected region that counts as an instance; smaller ones are crumbs.
MIN_REGION_AREA = 32


@dataclass(frozen=True)
class Mask:
    """Pixels of an image.

    Attributes:
        area: Pixels, at least 1.
        box: x, y, width, height of the smallest box around them, pixels.
        counts: Lengths of alternating runs, column after column, the first of pixels outside.
        size: Height and width of the image.
    """

    area: int
    box: tuple[int, int, int, int]
    counts: tuple[int, ...]
    size: tuple[int, int]

    @property
    def rle(self) -> str:
        """`counts` in the compressed form that pycocotools reads."""
        from pycocotools.mask import frPyObjects

        uncompressed = {'size': self.size, 'counts': self.counts}
        return frPyObjects(uncompressed, *self.size)['counts'].decode('ascii')


@dataclass(frozen=True)
class Region:
    """A connected region of a class: pixels that touch at sides or corners.

    Attributes:
        outline: float64 (N, 2), N >= 4: x and y of a closed polygon, pixels, where the top left
            pixel goes from 0 to 1. It runs a quarter of a pixel inside the region's edge, so that
            it has exactly the region's pixels for a reader that takes those whose centre is inside
            as well as for one that draws lines between whole numbers. Holes are filled.
    """

    class_id: int
    mask: Mask
    outline: np.ndarray


def find_masks(values: np.ndarray) -> dict[int, Mask]:
    """Mask of every value in an image of integers, (H, W), by ascending value."""
    height, width = values.shape
    runs = find_runs(values.T)
    order = np.argsort(runs.value, kind='stable')
    value, begin = runs.value[order], runs.begin[order]
    end = begin + runs.length[order]
    column, top = np.divmod(begin, height)
    bottom = top + runs.length[order]
    starts = np.flatnonzero(np.append(True, value[1:] != value[:-1]))
    masks = {}
    for first, last in pairwise([*starts.tolist(), value.size]):
        part = slice(first, last)
        x, y = int(column[first]), int(top[part].min())
        box = (x, y, int(column[last - 1]) + 1 - x, int(bottom[part].max()) - y)
        # A run to the lower edge goes on at the upper edge of the next column: they become one.
        goes_on = begin[part][1:] == end[part][:-1]
        begins = begin[part][np.append(True, ~goes_on)]
        ends = end[part][np.append(~goes_on, True)]
        edges = np.stack([begins, ends], axis=1).ravel()
        counts = np.diff(edges, prepend=0).tolist()
        if edges[-1] < height * width:
            counts.append(int(height * width - edges[-1]))
        area = int((ends - begins).sum())
        masks[int(value[first])] = Mask(area, box, tuple(counts), (height, width))
    return masks


def find_regions(label: np.ndarray) -> list[Region]:
    """Connected regions of `MIN_REGION_AREA` or more pixels, class after class.

    Args:
        label: uint8 (H, W).
    """
    regions = connected_regions(label)
    chosen = regions.large(MIN_REGION_AREA)
    numbers = regions.draw(chosen)
    found = find_masks(numbers)
    return [
        Region(class_id, found[number], _find_outline(numbers, number, found[number].box))
        for number, class_id in enumerate(regions.value[chosen].tolist(), start=1)
    ]


def _find_outline(numbers: np.ndarray, number: int, box: tuple[int, int, int, int]) -> np.ndarray:
    x, y, width, height = box
    region = (numbers[y : y + height, x : x + width] == number).view(np.uint8)
    # OpenCV goes through centres of pixels. Those of quarters of pixels lie a quarter inside.
    quarters = region.repeat(2, axis=0).repeat(2, axis=1)
    (contour,), _ = cv2.findContours(quarters, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    # Within another quarter of a pixel no centre changes sides.
    contour = cv2.approxPolyDP(contour, 0.49, closed=True)
    return (contour[:, 0] + 0.5) / 2 + (x, y)


def class_masks(label: np.ndarray) -> dict[int, Mask]:
    """Mask of every class in a label image, uint8 (H, W), by ascending id."""
    return {value: mask for value, mask in find_masks(label).items() if value != UNLABELLED}
