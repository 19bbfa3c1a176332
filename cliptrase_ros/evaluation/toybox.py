"""The rendered toy rooms as benchmarks: nothing on disk, a sample is a room's seed."""

import numpy as np

from cliptrase_ros.evaluation.datasets import TOYBOX, Dataset
from cliptrase_ros.evaluation.labels import IGNORED
from cliptrase_ros.evaluation.reading import Benchmark, Sample
from cliptrase_ros.segmentation.vocabulary import UNLABELLED
from cliptrase_ros.toybox.scenes import CLASSES, sample_room
from cliptrase_ros.toybox.sequences import photograph

#: Rooms rendered where nobody says how many.
DEFAULT_COUNT = 100

#: Seconds of the camera's tour by which one room's picture is later than the one before.
_LATER_S = 7.3


def open_toybox(name: str, count: int | None = None) -> Benchmark:
    """Benchmark of `count` rooms, one picture each. name: key of `TOYBOX`."""
    split, difficulty, (height, width) = TOYBOX[name]

    def load(seed: str) -> Sample:
        room = sample_room(int(seed), split, difficulty)
        frame = photograph(room, _LATER_S * int(seed), height, width)
        truth = np.where(frame.label == UNLABELLED, IGNORED, frame.label.astype(np.int16))
        return Sample(frame.image, truth)

    dataset = Dataset(name, f'Toybox, {split}, {difficulty}', tuple(c.name for c in CLASSES))
    return Benchmark(dataset, tuple(str(seed) for seed in range(count or DEFAULT_COUNT)), load)
