"""Tasks to workers, a few at a time; again where a worker or the storage failed them."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from cliptrase_ros.fleet.engines import TASKS_AT_A_TIME, EngineError, Slot
from cliptrase_ros.fleet.tasks import Outcome, Task

#: How often a task is tried in a run, and how often a worker is started that does no task.
MOST_TRIES = 3

_TICK_S = 1.0


@dataclass
class _SlotState:
    """A slot, and what it is at.

    Attributes:
        is_suspicious: Something failed here. It takes no new tasks, and those that failed one at a
            time, so that the one that ends workers is known.
    """

    slot: Slot
    is_ready: bool = False
    is_suspicious: bool = False
    failed_starts: int = 0
    calls: dict[Future, Task] = field(default_factory=dict)


class Work:
    """Tasks that slots are to do."""

    def __init__(
        self,
        slots: Sequence[Slot],
        method: str,
        tasks: Iterator[Task],
        count: int,
        on_outcome: Callable[[Task, Outcome], object],
        on_tick: Callable[[Sequence[Slot]], object] = lambda slots: None,
    ):
        """Take over slots and tasks.

        Args:
            method: Of `Worker`; takes a task and whether it is its last try, and returns an
                `Outcome`.
            tasks: Taken one by one, when a slot has room.
            count: How many tasks there are at most.
            on_outcome: Called for every task, with the state 'done', 'failed' where it ended
                workers by itself as well, or 'unfinished' where other things were in its way.
            on_tick: Called every second, and at the end, with the slots that are ready.
        """
        self._states = [_SlotState(slot) for slot in slots]
        self._method = method
        self._tasks = tasks
        self._left = count
        self._on_outcome = on_outcome
        self._on_tick = on_tick
        self._starts: dict[Future, _SlotState] = {}
        self._suspects: deque[Task] = deque()
        self._tries: Counter[str] = Counter()
        self._last_error: BaseException | None = None
        self._is_stopped = False

    def run(self) -> None:
        """Have all tasks done. Raises EngineError where no worker can be started."""
        for state in self._states:
            self._start(state)
        next_tick_s = 0.0
        while True:
            self._hand_out()
            calls = {future: state for state in self._states for future in state.calls}
            has_ended = not calls and not self._left and not self._suspects
            if has_ended or time.monotonic() >= next_tick_s:
                next_tick_s = time.monotonic() + _TICK_S
                self._on_tick([state.slot for state in self._states if state.is_ready])
            if has_ended:
                return
            if not self._states:
                raise EngineError(f'no worker can be started: {_last_line(self._last_error)}')
            done, _ = wait([*calls, *self._starts], _TICK_S, FIRST_COMPLETED)
            for future in done:
                if future in self._starts:
                    self._note_start(self._starts.pop(future), future)
                # Calls of a worker that has just been found ended are gone already.
                elif future in calls[future].calls:
                    self._note_call(calls[future], future)

    def stop(self) -> None:
        """Begin no more tasks, and none once more."""
        self._is_stopped = True
        self._left = 0
        self._suspects.clear()

    def _start(self, state: _SlotState) -> None:
        state.is_ready = False
        self._starts[state.slot.start()] = state

    def _hand_out(self) -> None:
        for state in self._states:
            if state.is_ready and not state.calls:
                if self._suspects and (state.is_suspicious or not self._left):
                    state.is_suspicious = True
                    self._call(state, self._suspects.popleft())
                else:
                    state.is_suspicious = False
                    self._call_next(state)
        idle = sum(not state.calls for state in self._states)
        for state in self._states:
            # Fetched ahead, a task waits for its turn: not where an idle slot could begin it.
            takes_more = state.is_ready and not state.is_suspicious and state.calls
            while takes_more and len(state.calls) < TASKS_AT_A_TIME and self._left > idle:
                self._call_next(state)

    def _call_next(self, state: _SlotState) -> None:
        task = next(self._tasks, None) if self._left else None
        # Another command may have done some of them meanwhile.
        self._left = self._left - 1 if task else 0
        if task:
            self._call(state, task)

    def _call(self, state: _SlotState, task: Task) -> None:
        is_last_try = self._tries[task.key] == MOST_TRIES - 1
        state.calls[state.slot.call(self._method, task, is_last_try)] = task

    def _note_start(self, state: _SlotState, start: Future) -> None:
        self._last_error = start.exception()
        if self._last_error is None:
            state.is_ready = True
            return
        state.failed_starts += 1
        if state.failed_starts < MOST_TRIES:
            self._start(state)
        else:
            self._states.remove(state)

    def _note_call(self, state: _SlotState, call: Future) -> None:
        task = state.calls.pop(call)
        error = call.exception()
        if error is None:
            state.failed_starts = 0
            outcome = call.result()
            if outcome.state == 'again':
                state.is_suspicious = True
                self._try_again(task, Outcome('unfinished', outcome.reason))
            else:
                self._on_outcome(task, outcome)
            return
        # The worker has ended, or says that it can go on no more. Which of its tasks is to blame is
        # known only where there was one.
        others = list(state.calls.values())
        state.calls.clear()
        state.is_suspicious = True
        if others:
            self._suspects += [task, *others]
        else:
            self._try_again(task, Outcome('failed', f'the worker ended: {_last_line(error)}'))
        self._start(state)

    def _try_again(self, task: Task, otherwise: Outcome) -> None:
        """Have a task done again; after the last try, this is what came of it."""
        self._tries[task.key] += 1
        if self._tries[task.key] < MOST_TRIES and not self._is_stopped:
            self._suspects.append(task)
        else:
            self._on_outcome(task, otherwise)


def _last_line(error: BaseException | None) -> str:
    """What an error says, without the trace of another process before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(' -')]
    return lines[-1] if lines else type(error).__name__
