"""A batch: inputs and words in, results in storage out."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from cliptrase_ros.fleet.engines import Slot
from cliptrase_ros.fleet.labelling import Labelling
from cliptrase_ros.fleet.plan import Plan
from cliptrase_ros.fleet.result_store import ResultStore, utc_now
from cliptrase_ros.fleet.tasks import DESCRIPTION, Outcome, Task
from cliptrase_ros.fleet.work import Work

#: After so many tasks in a row that storage or machines did not let be done, others are not begun.
MOST_UNFINISHED = 10


@dataclass
class Summary:
    """What came of a batch.

    Attributes:
        states: How many tasks are 'done', 'failed' or 'unfinished'.
        images: How many were labelled.
        failed: (input, why) of tasks that cannot be done.
        unfinished: (input, why) of tasks that are left because of something else.
        was_stopped: Whether too many in a row were, for the others to be begun.
        damaged: (input, what is missing of it) of tasks that were.
    """

    states: Counter = field(default_factory=Counter)
    images: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    unfinished: list[tuple[str, str]] = field(default_factory=list)
    was_stopped: bool = False
    damaged: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)


def describe(store: ResultStore, labelling: Labelling, plan: Plan) -> None:
    """Write what is labelled as what, and how much there is of it."""
    store.write(
        DESCRIPTION,
        {
            **labelling.describe(),
            'tasks': plan.tasks.total(),
            'others': plan.others,
            'kinds': dict(plan.tasks),
            'photos': plan.photos,
            'bytes': plan.bytes,
            'listed': utc_now(),
        },
    )


def label(
    plan: Plan,
    store: ResultStore,
    slots: Sequence[Slot],
    on_progress: Callable[[int, int, int], object] = lambda tasks, images, workers: None,
) -> Summary:
    """Have slots label what is left of a plan.

    Args:
        on_progress: Called every second, and at the end, with the number of tasks that are done or
            have failed, of images that were labelled, and of workers that are there.

    Raises:
        EngineError: No worker can be started.
    """
    summary = Summary()
    images = _ImageCounter()
    in_a_row = 0

    def note(task: Task, outcome: Outcome) -> None:
        nonlocal in_a_row
        summary.states[outcome.state] += 1
        in_a_row = in_a_row + 1 if outcome.state == 'unfinished' else 0
        summary.images += outcome.images
        if outcome.state == 'failed':
            store.mark_failed(task, outcome.reason)
            summary.failed.append((task.shown_source, outcome.reason))
        elif outcome.state == 'unfinished':
            summary.unfinished.append((task.shown_source, outcome.reason))
            if in_a_row == MOST_UNFINISHED:
                summary.was_stopped = True
                work.stop()
        elif outcome.damage:
            summary.damaged.append((task.shown_source, outcome.damage))

    def tick(ready: Sequence[Slot]) -> None:
        images.ask(ready)
        on_progress(summary.states.total(), images.total, len(ready))

    work = Work(slots, 'run', plan.shard_tasks('left'), plan.states['left'], note, tick)
    work.run()
    return summary


class _ImageCounter:
    """Counts images by asking workers, whose own counts begin anew where one is replaced.

    Attributes:
        total: Images labelled so far.
    """

    def __init__(self):
        self.total = 0
        self._asked: dict[int, Future] = {}
        self._last: Counter[int] = Counter()

    def ask(self, slots: Sequence[Slot]) -> None:
        """Take in what slots answer, and ask them again."""
        for slot in slots:
            asked = self._asked.get(id(slot))
            if asked is not None and not asked.done():
                continue
            if asked is not None and not asked.exception():
                count, last = asked.result(), self._last[id(slot)]
                self.total += count - last if count >= last else count
                self._last[id(slot)] = count
            self._asked[id(slot)] = slot.call('progress')
