"""What a benchmark is made of: pictures with their truth."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.datasets import Dataset
from cliptrase_ros.streams.ahead import submit_ahead


class SampleError(ValueError):
    """One picture or its label image cannot be used; the message says why."""


@dataclass(frozen=True)
class Sample:
    """A picture, uint8 (H, W, 3) RGB, and what it shows.

    Attributes:
        truth: int16 (H, W), class index or a negative constant of `labels`.
    """

    image: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Benchmark:
    """A dataset whose samples can be read.

    Attributes:
        names: Of its samples.
        load: Reads the sample of a name; raises SampleError.
        root: Folder it is in; None for what is rendered.
        ids: Of the dataset `folder`, the values that stand for its classes and the background in
            label images, in the order of its file.
        unpaired: Names of images without a label image, or the other way round.
    """

    dataset: Dataset
    names: tuple[str, ...]
    load: Callable[[str], Sample]
    root: Path | None = None
    ids: tuple[int, ...] = ()
    unpaired: tuple[str, ...] = ()


def read_ahead(
    load: Callable[[str], Sample], names: Sequence[str], workers: int
) -> Generator[tuple[str, Sample | SampleError], None, None]:
    """Read samples with so many threads, in order, a few ahead of who takes them."""

    def read(name: str) -> Sample | SampleError:
        try:
            return load(name)
        except SampleError as error:
            return error

    with (
        ThreadPoolExecutor(workers) as threads,
        closing(submit_ahead(threads, read, names, 2 * workers)) as futures,
    ):
        for name, future in zip(names, futures, strict=True):
            yield name, future.result()
