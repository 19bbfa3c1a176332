"""Tasks to workers, a few at a time; again where a worker or the storage failed them."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from cliptrase_ros.fleet.engines import TASKS_AT_A_TIME, EngineError, Member
from cliptrase_ros.fleet.tasks import Outcome, Task

#: How often a task is tried in a run, and how often a worker is started that does no task.
MOST_TRIES = 3

_TICK_S = 1.0


@dataclass
class _Place:
    """A member, and what it is at.

    Attributes:
        is_suspicious: Something failed here. It takes no new tasks, and those that failed one at a
            time, so that the one that ends workers is known.
    """

    member: Member
    is_ready: bool = False
    is_suspicious: bool = False
    failed_starts: int = 0
    calls: dict[Future, Task] = field(default_factory=dict)


class Work:
    """Tasks that members are to do."""

    def __init__(
        self,
        members: Sequence[Member],
        method: str,
        tasks: Iterator[Task],
        count: int,
        on_outcome: Callable[[Task, Outcome], object],
        on_tick: Callable[[Sequence[Member]], object] = lambda members: None,
    ):
        """Take over members and tasks.

        Args:
            method: Of `Worker`; takes a task and whether it is its last try, and returns an
                `Outcome`.
            tasks: Taken one by one, when a member has room.
            count: How many tasks there are at most.
            on_outcome: Called for every task, with the state 'done', 'failed' where it ended
                workers by itself as well, or 'unfinished' where other things were in its way.
            on_tick: Called every second, and at the end, with the members that are ready.
        """
        self._places = [_Place(member) for member in members]
        self._method = method
        self._tasks = tasks
        self._left = count
        self._on_outcome = on_outcome
        self._on_tick = on_tick
        self._starts: dict[Future, _Place] = {}
        self._suspects: deque[Task] = deque()
        self._tries: Counter[str] = Counter()
        self._last_error: BaseException | None = None

    def run(self) -> None:
        """Have all tasks done. Raises EngineError where no worker can be started."""
        for place in self._places:
            self._start(place)
        next_tick_s = 0.0
        while True:
            self._hand_out()
            calls = {future: place for place in self._places for future in place.calls}
            has_ended = not calls and not self._left and not self._suspects
            if has_ended or time.monotonic() >= next_tick_s:
                next_tick_s = time.monotonic() + _TICK_S
                self._on_tick([place.member for place in self._places if place.is_ready])
            if has_ended:
                return
            if not self._places:
                raise EngineError(f'no worker can be started: {_last_line(self._last_error)}')
            done, _ = wait([*calls, *self._starts], _TICK_S, FIRST_COMPLETED)
            for future in done:
                if future in self._starts:
                    self._note_start(self._starts.pop(future), future)
                # Calls of a worker that has just been found ended are gone already.
                elif future in calls[future].calls:
                    self._note_call(calls[future], future)

    def stop(self) -> None:
        """Begin no more tasks."""
        self._left = 0
        self._suspects.clear()

    def _start(self, place: _Place) -> None:
        place.is_ready = False
        self._starts[place.member.start()] = place

    def _hand_out(self) -> None:
        for place in self._places:
            if place.is_ready and not place.calls:
                if self._suspects and (place.is_suspicious or not self._left):
                    place.is_suspicious = True
                    self._call(place, self._suspects.popleft())
                else:
                    place.is_suspicious = False
                    self._call_next(place)
        idle = sum(not place.calls for place in self._places)
        for place in self._places:
            # Fetched ahead, a task waits for its turn: not where an idle member could begin it.
            takes_more = place.is_ready and not place.is_suspicious and place.calls
            while takes_more and len(place.calls) < TASKS_AT_A_TIME and self._left > idle:
                self._call_next(place)

    def _call_next(self, place: _Place) -> None:
        task = next(self._tasks, None) if self._left else None
        # Another command may have done some of them meanwhile.
        self._left = self._left - 1 if task else 0
        if task:
            self._call(place, task)

    def _call(self, place: _Place, task: Task) -> None:
        is_last_try = self._tries[task.key] == MOST_TRIES - 1
        place.calls[place.member.call(self._method, task, is_last_try)] = task

    def _note_start(self, place: _Place, start: Future) -> None:
        self._last_error = start.exception()
        if self._last_error is None:
            place.is_ready = True
            return
        place.failed_starts += 1
        if place.failed_starts < MOST_TRIES:
            self._start(place)
        else:
            self._places.remove(place)

    def _note_call(self, place: _Place, call: Future) -> None:
        task = place.calls.pop(call)
        error = call.exception()
        if error is None:
            place.failed_starts = 0
            outcome = call.result()
            if outcome.state == 'again':
                place.is_suspicious = True
                self._try_again(task, Outcome('unfinished', outcome.reason))
            else:
                self._on_outcome(task, outcome)
            return
        # The worker has ended, or says that it can go on no more. Which of its tasks is to blame is
        # known only where there was one.
        others = list(place.calls.values())
        place.calls.clear()
        place.is_suspicious = True
        if others:
            self._suspects += [task, *others]
        else:
            self._try_again(task, Outcome('failed', f'the worker ended: {_last_line(error)}'))
        self._start(place)

    def _try_again(self, task: Task, otherwise: Outcome) -> None:
        """Have a task done again; after the last try, this is what came of it."""
        self._tries[task.key] += 1
        if self._tries[task.key] < MOST_TRIES:
            self._suspects.append(task)
        else:
            self._on_outcome(task, otherwise)


def _last_line(error: BaseException | None) -> str:
    """What an error says, without the trace of another process before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(' -')]
    return lines[-1] if lines else type(error).__name__
