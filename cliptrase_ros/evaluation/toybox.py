"""The rendered toy rooms as benchmarks: nothing on disk, a sample is a room's seed."""

import numpy as np

from cliptrase_ros.evaluation.datasets import TOYBOX, Dataset
from cliptrase_ros.evaluation.labels import IGNORED
from cliptrase_ros.evaluation.samples import Benchmark, Sample
from cliptrase_ros.segmentation.vocabulary import UNLABELLED
from cliptrase_ros.toybox.scenes import CLASSES
from cliptrase_ros.toybox.sequences import photograph_room

#: Rooms rendered where nobody says how many.
DEFAULT_COUNT = 100


def open_toybox(name: str, count: int | None = None) -> Benchmark:
    """Make a benchmark of rendered rooms, one picture each.

    Args:
        name: Key of `TOYBOX`.
        count: Number of rooms; None for `DEFAULT_COUNT`.
    """
    split, difficulty = TOYBOX[name]

    def load(seed: str) -> Sample:
        photograph = photograph_room(int(seed), split, difficulty)
        label = photograph.label
        return Sample(
            photograph.image, np.where(label == UNLABELLED, IGNORED, label.astype(np.int16))
        )

    dataset = Dataset(name, f'Toybox, {split}, {difficulty}', tuple(c.name for c in CLASSES))
    return Benchmark(dataset, tuple(str(seed) for seed in range(count or DEFAULT_COUNT)), load)
