"""The rendered toy rooms as a benchmark: nothing on disk, a sample is a room's seed."""

import numpy as np

from cliptrase_ros.evaluation.datasets import Dataset
from cliptrase_ros.evaluation.labels import IGNORED
from cliptrase_ros.evaluation.reading import Benchmark, Sample
from cliptrase_ros.segmentation.vocabulary import UNLABELLED
from cliptrase_ros.toybox.evaluate import make_scenes
from cliptrase_ros.toybox.scenes import CLASSES

#: Splits of rooms by benchmark: rooms that training never saw; the same with colours on shapes
#: that training never saw together.
SPLITS = {'toybox': 'held_out', 'toybox-unseen': 'unseen_combinations'}

#: Rooms rendered where nobody says how many.
DEFAULT_COUNT = 100


def open_toybox(name: str, count: int | None = None) -> Benchmark:
    """Benchmark of `count` rooms. name: key of `SPLITS`."""
    split = SPLITS[name]
    names = tuple(toy_class.name for toy_class in CLASSES)

    def load(seed: str) -> Sample:
        (scene,) = make_scenes(1, split, first_seed=int(seed))
        truth = scene.label.astype(np.int16)
        return Sample(scene.image, np.where(scene.label == UNLABELLED, IGNORED, truth))

    dataset = Dataset(name, f'Toybox, {split.replace("_", " ")}', names)
    return Benchmark(dataset, tuple(str(seed) for seed in range(count or DEFAULT_COUNT)), load)
