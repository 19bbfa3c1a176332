"""Running a benchmark: read, label, count; a run that was cut short goes on where it stopped."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.metrics import confusion
from cliptrase_ros.evaluation.protocols import Protocol, counted_truth
from cliptrase_ros.evaluation.reading import Benchmark, UnreadableError, read_ahead

#: Seconds between two notes of what is done.
NOTE_EVERY_S = 20.0

#: Labels pictures: uint8 (H, W, 3) RGB each, to integers (H, W), class index or the number of
#: classes for the background.
Labeller = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class ResumeError(ValueError):
    """What an earlier run left cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Progress:
    """What was counted so far.

    counts: by method, int64 (classes, classes + 1), see `metrics.confusion`; with a background
    it is the last class. done: names of samples that are counted, left out or unreadable.
    left_out: how many showed nothing but background. unreadable: name -> reason.
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
    """Progress on disk, valid for one set of settings."""

    def __init__(self, path: Path, settings: Mapping):
        """settings: JSON values; everything that makes a difference to the counts."""
        self.path = path
        self._settings = json.loads(json.dumps(settings))

    def load(self) -> Progress | None:
        """What an earlier run noted; None where none did. Raises ResumeError."""
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                noted = json.loads(str(archive['progress']))
                counts = {name: archive[f'counts {name}'] for name in noted['methods']}
        except Exception as error:
            # zipfile, zlib and NumPy raise much besides OSError and ValueError on a damaged file.
            raise ResumeError(
                f'{self.path}, which an earlier run left, is damaged ({error}); delete it'
            ) from error
        different = sorted(
            key
            for key in {*noted['settings'], *self._settings}
            if noted['settings'].get(key) != self._settings.get(key)
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
            'settings': self._settings,
            'methods': list(progress.counts),
            'done': progress.done,
            'left_out': progress.left_out,
            'unreadable': dict(progress.unreadable),
        }
        arrays = {f'counts {name}': counts for name, counts in progress.counts.items()}
        partial = self.path.with_suffix('.writing')
        with partial.open('wb') as file:
            np.savez_compressed(file, progress=np.array(json.dumps(noted)), **arrays)
        partial.replace(self.path)

    def remove(self) -> None:
        """Remove the notes: everything is done."""
        self.path.unlink(missing_ok=True)


def run_benchmark(
    benchmark: Benchmark,
    methods: Mapping[str, Labeller],
    protocol: Protocol,
    notes: Notes,
    batch: int = 1,
    workers: int = 2,
    step: Callable[[int], object] = lambda count: None,
) -> Progress:
    """Label every sample with every method and count.

    batch: samples labelled together. workers: threads that read. step: told how many samples are
    done, those of an earlier run first. Raises ResumeError, and OSError where the notes cannot be
    written. Notes are kept whatever ends the run; after a whole run they are still there.
    """
    dataset = benchmark.dataset
    classes, has_background = len(dataset.classes), bool(dataset.background)
    size = classes + has_background
    progress = notes.load()
    if progress is None:
        progress = Progress({name: np.zeros((size, size + 1), np.int64) for name in methods})
    step(len(progress.done))
    done = set(progress.done)
    remaining = [name for name in benchmark.names if name not in done]
    noted = time.monotonic()
    samples = read_ahead(benchmark, remaining, workers, protocol.prepare)
    try:
        waiting: list[tuple[str, np.ndarray, np.ndarray]] = []
        for position, (name, sample) in enumerate(samples):
            if isinstance(sample, UnreadableError):
                progress = replace(
                    progress,
                    done=(*progress.done, name),
                    unreadable={**progress.unreadable, name: str(sample)},
                )
                step(1)
            else:
                truth = counted_truth(
                    sample.truth, classes, has_background, protocol.border_is_background
                )
                waiting.append((name, sample.image, truth))
            if len(waiting) == batch or position == len(remaining) - 1:
                progress = _counted(progress, waiting, methods, classes, protocol)
                step(len(waiting))
                waiting = []
            if time.monotonic() - noted > NOTE_EVERY_S:
                notes.save(progress)
                noted = time.monotonic()
    finally:
        samples.close()
        notes.save(progress)
    return progress


def _counted(
    progress: Progress,
    samples: Sequence[tuple[str, np.ndarray, np.ndarray]],
    methods: Mapping[str, Labeller],
    classes: int,
    protocol: Protocol,
) -> Progress:
    # A new object, so that Ctrl-C, wherever it comes, never finds a sample half counted.
    # In the published evaluation a crop of nothing but background does not count.
    kept = [s for s in samples if protocol.name != 'paper' or (s[2] != classes).any()]
    counts = dict(progress.counts)
    for method, labeller in methods.items() if kept else ():
        labels = labeller([image for _, image, _ in kept])
        size = len(counts[method])
        counts[method] = counts[method] + sum(
            confusion(label, truth, size) for label, (_, _, truth) in zip(labels, kept, strict=True)
        )
    return replace(
        progress,
        counts=counts,
        done=(*progress.done, *(name for name, _, _ in samples)),
        left_out=progress.left_out + len(samples) - len(kept),
    )
