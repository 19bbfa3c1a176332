"""The rendered toy rooms as benchmarks: nothing on disk, a sample is a room's seed."""

import numpy as np

from cliptrase_ros.evaluation.datasets import TOYBOX, Dataset
from cliptrase_ros.evaluation.labels import IGNORED
from cliptrase_ros.evaluation.samples import Benchmark, Sample
from cliptrase_ros.segmentation.vocabulary import UNLABELLED
from cliptrase_ros.toybox.scenes import CLASSES
from cliptrase_ros.toybox.sequences import photograph_room


def open_toybox(name: str, count: int) -> Benchmark:
    """Make a benchmark of so many rendered rooms, one picture each; `name` is a key of `TOYBOX`."""
    split, difficulty = TOYBOX[name]

    def load(seed: str) -> Sample:
        photo = photograph_room(int(seed), split, difficulty)
        truth = np.where(photo.label == UNLABELLED, IGNORED, photo.label.astype(np.int16))
        return Sample(photo.image, truth)

    dataset = Dataset(name, f'Toybox, {split}, {difficulty}', tuple(c.name for c in CLASSES))
    return Benchmark(dataset, tuple(map(str, range(count))), load)
