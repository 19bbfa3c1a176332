"""COCO: instances and panoptic segmentation.

Instances have an annotation for each connected region of a class. In the panoptic segmentation
there is a segment for each class of an image, its pixels in a PNG: a semantic segmentation knows no
things, so all categories are stuff. Category ids are class ids + 1, as COCO's begin at 1. The files
are called as COCO's own are, of a split `default`, as CVAT and Datumaro have it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cliptrase_ros.exports.documents import Append, document, fragment
from cliptrase_ros.exports.results import LabelledImage
from cliptrase_ros.photos.results import write_png
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary

_INSTANCES = 'annotations/instances_default.json'
_PANOPTIC = 'annotations/panoptic_default'


@contextmanager
def write_part(folder: Path, key: str) -> Iterator[Append]:
    """Write images with exact masks, and their panoptic PNG."""
    with fragment(folder, key) as write:

        def add(image: LabelledImage) -> None:
            _write_panoptic(folder / _PANOPTIC / f'{image.name}.png', image.label)
            segments = [
                {'id': class_id + 1, 'category_id': class_id + 1, 'iscrowd': 0}
                | {'area': mask.area, 'bbox': mask.box, 'score': image.confidence[class_id]}
                for class_id, mask in image.masks.items()
            ]
            panoptic = {'file_name': f'{image.name}.png', 'segments_info': segments}
            write(_describe(image, polygons=False) | {'panoptic': panoptic})

        yield add


@contextmanager
def write_polygons_part(folder: Path, key: str) -> Iterator[Append]:
    """Write images with polygons, in which holes are filled."""
    with fragment(folder, key) as write:
        yield lambda image: write(_describe(image, polygons=True))


def _describe(image: LabelledImage, polygons: bool) -> dict:
    height, width = image.label.shape
    described = {'file_name': image.file_name, 'height': height, 'width': width}
    described |= {'source': image.source, 'topic': image.topic, 'stamp_ns': image.stamp_ns}
    annotations = []
    for region in image.regions:
        if polygons:
            segmentation = [region.outline.ravel().tolist()]
        else:
            segmentation = {'size': (height, width), 'counts': region.mask.rle}
        annotations.append(
            {'category_id': region.class_id + 1, 'segmentation': segmentation, 'iscrowd': 0}
            | {'area': region.mask.area, 'bbox': region.mask.box}
            | {'score': image.confidence[region.class_id]}
        )
    present = {key: value for key, value in described.items() if value is not None}
    return {'image': present, 'annotations': annotations}


def _write_panoptic(path: Path, label: np.ndarray) -> None:
    # The id of a segment is R + 256 G + 65536 B; 0 is void.
    pixels = np.zeros((*label.shape, 3), np.uint8)
    pixels[..., 0] = np.where(label == UNLABELLED, 0, label + np.uint8(1))
    write_png(path, pixels)


def join_parts(parts: Iterable[dict], vocabulary: Vocabulary, folder: Path) -> None:
    """Write `annotations/instances_default.json` and `panoptic_default.json`."""
    stuff = [
        category | {'isthing': 0, 'color': entry.color}
        for category, entry in zip(_categories(vocabulary), vocabulary.classes, strict=True)
    ]
    lists = ('images', 'annotations')
    with (
        document(folder / f'{_PANOPTIC}.json', _head(stuff), lists) as (add_image, add_segments),
        document(folder / _INSTANCES, _head(_categories(vocabulary)), lists) as instances,
    ):
        for image, part in _number(parts, *instances):
            add_image(image)
            add_segments({'image_id': image['id'], **part['panoptic']})


def join_polygons_parts(parts: Iterable[dict], vocabulary: Vocabulary, folder: Path) -> None:
    """Write `annotations/instances_default.json`."""
    head = _head(_categories(vocabulary))
    with document(folder / _INSTANCES, head, ('images', 'annotations')) as instances:
        for _ in _number(parts, *instances):
            pass


def _number(
    parts: Iterable[dict], add_image: Append, add_annotation: Append
) -> Iterator[tuple[dict, dict]]:
    """Add images and annotations with ids, from 1, and give each image with what is known of it."""
    annotation_id = 0
    for image_id, part in enumerate(parts, start=1):
        image = {'id': image_id, **part['image']}
        add_image(image)
        for annotation in part['annotations']:
            annotation_id += 1
            add_annotation({'id': annotation_id, 'image_id': image_id, **annotation})
        yield image, part


def _categories(vocabulary: Vocabulary) -> list[dict]:
    return [
        {'id': entry.id + 1, 'name': entry.name, 'supercategory': ''}
        for entry in vocabulary.classes
    ]


def _head(categories: list[dict]) -> dict:
    return {'info': {}, 'licenses': [], 'categories': categories}
