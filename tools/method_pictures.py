"""Draw the pictures of docs/method.md: `python tools/method_pictures.py`."""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from cliptrase_ros.evaluation.class_indices import label_by_method
from cliptrase_ros.evaluation.measure import ABLATION, make_vocabulary
from cliptrase_ros.evaluation.reading import open_dataset
from cliptrase_ros.explain import Tile, draw_panel, explain, label_tiles, tiles
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

#: The room, and a pixel (x, y) of its picture on the thing that is explained.
ROOM, PIXEL = '1', (160, 150)
SETTINGS = SegmentationSettings(preset='robot', resolution=336)
CAPTIONS = ('last block as it is', 'like attends to like', 'regions vote', '[CLS] removed before')


def main() -> None:
    """Write method_patches.jpg and method_steps.jpg."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=Path('docs/images'), metavar='FOLDER')
    output = parser.parse_args().output
    benchmark = open_dataset('toybox', None)
    sample = benchmark.load(ROOM)
    segmenter = load_segmenter('toybox', device='cpu')
    names = benchmark.dataset.classes
    # What is there comes first: colours of small ids differ most.
    order = sorted(range(len(names)), key=lambda index: -np.count_nonzero(sample.truth == index))
    ordered = replace(benchmark.dataset, classes=tuple(names[index] for index in order))
    encoded = segmenter.encode_vocabulary(make_vocabulary(ordered))

    explanation = explain(segmenter, sample.image, PIXEL, SETTINGS)
    plain, method = tiles(explanation)
    before, after, classes = label_tiles(segmenter, explanation, encoded, SETTINGS)
    rows = [('Plain CLIP', [*plain, before]), ('CLIPtrase', [*method, after])]
    _save(draw_panel(rows, classes), output / 'method_patches.jpg')

    truth = np.full_like(sample.truth, UNLABELLED, np.uint8)
    for position, index in enumerate(order):
        truth[sample.truth == index] = position
    labels = {('Truth', 'as rendered'): truth}
    for (name, off), caption in zip(ABLATION.items(), CAPTIONS, strict=True):
        one = replace(SETTINGS.method, **off)
        (label,) = label_by_method(segmenter, [sample.image], encoded.table, SETTINGS, one)
        labels[name, caption] = label
    drawn = [
        Tile(name, caption, draw_overlay(sample.image, label, encoded.vocabulary, legend=False))
        for (name, caption), label in labels.items()
    ]
    present = np.unique(np.stack(list(labels.values())))
    classes = [entry for entry in encoded.vocabulary.classes if entry.id in present]
    _save(draw_panel([('Labels, step by step', drawn)], classes), output / 'method_steps.jpg')


def _save(panel: np.ndarray, path: Path) -> None:
    Image.fromarray(panel).save(path, quality=88, subsampling=0)
    print(path)


if __name__ == '__main__':
    main()
