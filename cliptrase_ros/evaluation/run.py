"""Running a benchmark: read, label, count; a run that was cut short goes on where it stopped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.metrics import confusion
from cliptrase_ros.evaluation.protocols import Protocol
from cliptrase_ros.evaluation.samples import Benchmark, Sample, SampleError, read_ahead
from cliptrase_ros.photos.whole_files import whole_file

#: Seconds between two notes of what is done.
NOTE_EVERY_S = 20.0

#: Labels pictures, uint8 (H, W, 3) RGB each; gives for each integers (H, W), class index or the
#: number of classes for the background.
LabelFunction = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class ResumeError(ValueError):
    """What an earlier run left cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Progress:
    """What was counted so far.

    Attributes:
        counts: By method, int64 (classes, classes + 1), see `metrics.confusion`; with a background
            it is the last class.
        done: Names of samples that are counted, left out or unreadable.
        left_out: How many showed nothing but background and do not count.
        unreadable: Reasons, by name.
    """

    counts: Mapping[str, np.ndarray]
    done: tuple[str, ...] = ()
    left_out: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> int:
        """How many samples are in the counts."""
        return len(self.done) - self.left_out - len(self.unreadable)


class Notes:
    """Progress on disk, valid for one description of a run."""

    def __init__(self, path: Path, description: Mapping):
        """Nothing is read or written yet.

        Args:
            path: NumPy's .npz.
            description: JSON values; everything that makes a difference to the counts.
        """
        self.path = path
        self._description = json.loads(json.dumps(description))

    def load(self) -> Progress | None:
        """Read what an earlier run noted; None where none did.

        Raises:
            ResumeError: The notes are damaged, or of a run of another description.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                noted = json.loads(str(archive['progress']))
                counts = {name: archive[f'counts {name}'] for name in noted['methods']}
        except Exception as error:
            # NumPy and the modules below it raise nearly anything over damaged files.
            raise ResumeError(
                f'{self.path}, which an earlier run left, is damaged ({error}); delete it'
            ) from error
        different = sorted(
            key
            for key in {*noted['settings'], *self._description}
            if noted['settings'].get(key) != self._description.get(key)
        )
        if different:
            raise ResumeError(
                f'{self.path} is of a run that was cut short and differed in '
                f'{", ".join(different)}; delete it, or write to another --output'
            )
        return Progress(counts, tuple(noted['done']), noted['left_out'], noted['unreadable'])

    def save(self, progress: Progress) -> None:
        """Write everything, so that a reader finds the old notes or the new."""
        noted = {
            'settings': self._description,
            'methods': list(progress.counts),
            'done': progress.done,
            'left_out': progress.left_out,
            'unreadable': dict(progress.unreadable),
        }
        arrays = {f'counts {name}': counts for name, counts in progress.counts.items()}
        with whole_file(self.path) as temporary, temporary.open('wb') as file:
            np.savez_compressed(file, progress=np.array(json.dumps(noted)), **arrays)

    def remove(self) -> None:
        """Remove the notes: everything is done."""
        self.path.unlink(missing_ok=True)


def run_benchmark(
    benchmark: Benchmark,
    methods: Mapping[str, LabelFunction],
    protocol: Protocol,
    notes: Notes,
    batch: int = 1,
    workers: int = 2,
    step: Callable[[int], object] = lambda count: None,
) -> Progress:
    """Label every sample with every method and count.

    Notes are kept whatever ends the run; after a whole run they are still there.

    Args:
        notes: The run goes on behind what they hold.
        batch: Samples labelled together.
        workers: Threads that read.
        step: Told how many samples are done, those of an earlier run first.

    Raises:
        ResumeError: The notes cannot be used.
        OSError: The notes cannot be written.
    """
    dataset = benchmark.dataset
    classes, has_background = len(dataset.classes), bool(dataset.background)
    size = classes + has_background
    progress = notes.load() or Progress(
        {name: np.zeros((size, size + 1), np.int64) for name in methods}
    )
    step(len(progress.done))
    done = set(progress.done)
    remaining = [name for name in benchmark.names if name not in done]

    def load(name: str) -> Sample:
        return protocol.prepare(benchmark.load(name), classes, has_background)

    noted_at = time.monotonic()
    samples = read_ahead(load, remaining, workers)
    waiting: list[tuple[str, Sample]] = []
    try:
        for name, sample in samples:
            if isinstance(sample, SampleError):
                progress = replace(
                    progress,
                    done=(*progress.done, name),
                    unreadable={**progress.unreadable, name: str(sample)},
                )
                step(1)
            else:
                waiting.append((name, sample))
            if len(waiting) == batch or name == remaining[-1]:
                progress = _count(progress, waiting, methods, classes, protocol)
                step(len(waiting))
                waiting = []
            if time.monotonic() - noted_at > NOTE_EVERY_S:
                notes.save(progress)
                noted_at = time.monotonic()
    finally:
        samples.close()
        notes.save(progress)
    return progress


def _count(
    progress: Progress,
    samples: Sequence[tuple[str, Sample]],
    methods: Mapping[str, LabelFunction],
    background: int,
    protocol: Protocol,
) -> Progress:
    """Progress with these samples in it.

    A new object, so that Ctrl-C, wherever it comes, never finds a sample half counted.
    """
    kept = [
        sample
        for _, sample in samples
        if protocol.background_alone_counts or (sample.truth != background).any()
    ]
    counts = dict(progress.counts)
    for method, label_images in methods.items() if kept else ():
        labels = label_images([sample.image for sample in kept])
        size = len(counts[method])
        counts[method] = counts[method] + sum(
            confusion(label, sample.truth, size) for label, sample in zip(labels, kept, strict=True)
        )
    return replace(
        progress,
        counts=counts,
        done=(*progress.done, *(name for name, _ in samples)),
        left_out=progress.left_out + len(samples) - len(kept),
    )
