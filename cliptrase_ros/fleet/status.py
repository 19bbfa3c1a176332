"""How far labellings are, as their storage says."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from cliptrase_ros.fleet.heartbeat import HEARTBEAT_S
from cliptrase_ros.fleet.result_store import ResultStore
from cliptrase_ros.fleet.storage import Storage, in_parallel
from cliptrase_ros.fleet.tasks import DESCRIPTION

# A worker that was silent for so many heartbeats has ended.
_SILENT = 4
_RATE_OVER_S = 3600.0


@dataclass(frozen=True)
class Status:
    """How far a labelling is.

    Attributes:
        name: Of its folder.
        words: Names of its classes.
        tasks: How many there are, as the last command that listed the inputs counted.
        others: Done and failed ones that were not among them then.
        done: Of all.
        damaged: Of those done, how many inputs miss something.
        running: At work.
        per_hour: Tasks done in the last hour, or since the first, whichever is shorter.
        gpu_hours: Spent labelling on GPUs.
        cpu_hours: Spent labelling on processors.
    """

    name: str
    words: tuple[str, ...]
    tasks: int
    others: int
    done: int
    damaged: int
    failed: int
    running: int
    images: int
    per_hour: float
    gpu_hours: float
    cpu_hours: float

    @property
    def left(self) -> int:
        """Tasks not done and not failed."""
        return max(0, self.tasks + self.others - self.done - self.failed)

    @property
    def hours_left(self) -> float | None:
        """At the rate of the last hour; None where nothing was done in it."""
        if not self.left:
            return 0.0
        return self.left / self.per_hour if self.per_hour else None


def read_status(output: str) -> Iterator[Status]:
    """The labellings below an output, read from storage alone. Raises StorageError."""
    storage = Storage(output)
    for entry in storage.entries(storage.path):
        if entry.is_folder:
            store = ResultStore(storage, entry.name)
            about = store.read(DESCRIPTION)
            if about is not None:
                yield _status_of(store, about)


def _status_of(store: ResultStore, about: dict) -> Status:
    now = time.time()
    done, recent, first = 0, 0, now
    for entry in store.markers('done'):
        done += 1
        first = min(first, entry.changed_s or now)
        recent += now - entry.changed_s < _RATE_OVER_S
    running, images, seconds = 0, 0, {'cuda': 0.0, 'cpu': 0.0}
    names = [f'workers/{entry.name}' for entry in store.markers('workers')]
    for worker in filter(None, in_parallel(store.read, names)):
        is_alive = not worker.get('ended') and now - worker.get('updated_s', 0) < (
            _SILENT * HEARTBEAT_S
        )
        running += len(worker.get('tasks', ())) if is_alive else 0
        images += worker.get('images', 0)
        device = 'cpu' if worker.get('device', 'cpu') == 'cpu' else 'cuda'
        seconds[device] += worker.get('label_s', 0.0)
    span_h = min(_RATE_OVER_S, max(1.0, now - first)) / 3600
    return Status(
        store.name,
        tuple(entry['name'] for entry in about['vocabulary']['classes']),
        about['tasks'],
        about['others'],
        done,
        len(store.keys('damaged')),
        len(store.keys('failed')),
        running,
        images,
        recent / span_h,
        seconds['cuda'] / 3600,
        seconds['cpu'] / 3600,
    )
