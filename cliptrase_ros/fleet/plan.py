"""Which tasks there are, and which of them are left to do."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cliptrase_ros.fleet.result_store import ResultStore
from cliptrase_ros.fleet.tasks import SOURCE_BYTES, Task


@dataclass
class Plan:
    """The tasks of a command, in a temporary file: they need not fit into memory.

    Attributes:
        tasks: How many there are by kind: 'recording', 'video', 'photos'.
        photos: How many there are.
        bytes: Of all inputs.
        states: How many tasks of the plan's shard are 'done', 'failed' or 'left'.
        bytes_left: Of the inputs of those left.
        damaged: How many of those done lack something.
        others: How many are done or have failed of inputs that were changed, or not asked for.
        keys: Of all tasks, those of other shards as well.
    """

    tasks: Counter = field(default_factory=Counter)
    photos: int = 0
    bytes: int = 0
    states: Counter = field(default_factory=Counter)
    bytes_left: int = 0
    damaged: int = 0
    others: int = 0
    keys: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile('w+', encoding='ascii')  # noqa: SIM115

    def __enter__(self) -> 'Plan':
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def add(self, task: Task, state: str | None) -> None:
        """Take in a task; one of no state is of another shard."""
        self.keys.add(bytes.fromhex(task.key))
        self.tasks[task.kind] += 1
        self.photos += (len(task.files) or 1) if task.kind == 'photos' else 0
        self.bytes += task.size
        if state is not None:
            self.states[state] += 1
            self.bytes_left += task.size if state == 'left' else 0
            self._file.write(f'{state} {task.to_json()}\n')

    def superseded(self, keys: set[bytes]) -> set[bytes]:
        """Those keys whose sources have changed since: the plan has others of the same sources."""
        sources = {key[:SOURCE_BYTES] for key in self.keys}
        return {key for key in keys - self.keys if key[:SOURCE_BYTES] in sources}

    def shard_tasks(self, state: str = '') -> Iterator[Task]:
        """The tasks of the plan's shard: all, or those that are 'done', 'failed' or 'left'."""
        self._file.seek(0)
        for line in self._file:
            was, _, text = line.partition(' ')
            if was == state or not state:
                yield Task.from_json(text)


def make_plan(
    found: Iterator[Task],
    store: ResultStore,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    on_task: Callable[[], object] = lambda: None,
) -> Plan:
    """Look tasks up in a store.

    Args:
        shard: Number of the shard, from 0, and of how many; each has other tasks.
        retry_failed: Whether what has failed before is left to do.
    """
    done, failed, damaged = (store.keys(of) for of in ('done', 'failed', 'damaged'))
    number, count = shard
    plan = Plan(others=len(done) + len(failed))
    for task in found:
        key = bytes.fromhex(task.key)
        state = None
        if int.from_bytes(key[-8:], 'big') % count == number:
            is_failed = key in failed and not retry_failed
            state = 'done' if key in done else 'failed' if is_failed else 'left'
        plan.add(task, state)
        plan.damaged += state == 'done' and key in damaged
        plan.others -= (key in done) + (key in failed)
        on_task()
    return plan
