"""What `min_presence` is worth where most words of a vocabulary are not in the picture.

`python benchmark/presence.py` labels pictures of toybox rooms, which show a few of its 48 classes,
by the words of what is there alone, which nobody knows beforehand, by all 48, and by all 48 with
`min_presence`. It prints mean IoU in percent and, for each picture, how many words it was labelled
by, how many of its labels are not there, and how many of what is there got no label.
"""

import argparse
from collections.abc import Iterator

import numpy as np

from cliptrase_ros.evaluation.metrics import confusion, scores
from cliptrase_ros.evaluation.toybox import open_toybox
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.scenes import CLASSES

LEVELS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
NAMES = [entry.name for entry in CLASSES]


def label(
    segmenter: Segmenter, image: np.ndarray, words: list[int], settings: SegmentationSettings
) -> tuple[np.ndarray, int]:
    """Label by some of the classes; returns their indices, and how many were not left out."""
    vocabulary = parse_vocabulary([NAMES[index] for index in words], background=())
    (result,) = segmenter.segment([image], segmenter.encode_vocabulary(vocabulary), settings)
    indices = np.full(256, -1)
    indices[vocabulary.ids] = words
    kept = (result.scores.max((1, 2)) >= settings.min_presence).sum()
    return indices[result.label], int(kept)


def measure(segmenter: Segmenter, name: str, count: int, preset: str) -> Iterator[tuple]:
    """For each way to label: its name, mean IoU, and a picture's words, false ones, missed ones."""
    benchmark = open_toybox(name, count)
    ways = ['its own words', *LEVELS]
    counts = {way: np.zeros((len(NAMES), len(NAMES) + 1), np.int64) for way in ways}
    totals = {way: np.zeros(3) for way in ways}
    for sample in map(benchmark.load, benchmark.names):
        there = [index for index in range(len(NAMES)) if (sample.truth == index).any()]
        for way in ways:
            is_oracle = isinstance(way, str)
            settings = SegmentationSettings(
                preset, scores=True, min_presence=0.0 if is_oracle else way
            )
            chosen = there if is_oracle else list(range(len(NAMES)))
            labels, kept = label(segmenter, sample.image, chosen, settings)
            counts[way] += confusion(labels, sample.truth, len(NAMES))
            labelled = set(np.unique(labels).tolist()) - {-1}
            totals[way] += kept, len(labelled.difference(there)), len(set(there) - labelled)
    for way in ways:
        yield way, 100 * scores(counts[way]).mean_iou, *(totals[way] / count)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rooms', type=int, default=100)
    parser.add_argument('--preset', default='robot')
    arguments = parser.parse_args()
    segmenter = load_segmenter('toybox', device='cpu')
    for name in ('toybox', 'toybox-hard'):
        print(f'{name:16}   mIoU  words  false missed')
        for way, iou, *words in measure(segmenter, name, arguments.rooms, arguments.preset):
            print(f'{way:<16} {iou:6.1f}' + ''.join(f' {number:6.1f}' for number in words))


if __name__ == '__main__':
    main()
