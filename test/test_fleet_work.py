"""Tasks to workers that end, fail or never start; and the room that workers have on disk."""

import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliptrase_ros.fleet import work
from cliptrase_ros.fleet.engines import TASKS_AT_A_TIME, EngineError
from cliptrase_ros.fleet.scratch import Scratch, ScratchError
from cliptrase_ros.fleet.tasks import Outcome, Task
from cliptrase_ros.fleet.work import MOST_TRIES, Work

GIB = 1 << 30


def make_tasks(count):
    return [
        Task(f'{n:032x}', 'recording', f'{n}.mcap', f'/in/{n}.mcap', (), 1) for n in range(count)
    ]


class WorkerEnded(Exception):
    pass


class StubSlot:
    """A slot whose worker answers when the world has it answer."""

    def __init__(self, world, starts=()):
        self.world = world
        self.starts = starts
        self.started = 0
        self.ready = False
        self.open = {}
        self.done = []
        self.last_tries = Counter()

    def start(self):
        future = Future()
        how = self.starts[self.started] if self.started < len(self.starts) else 'works'
        self.started += 1
        self.ready = False
        # Whatever the worker before was asked is lost with it.
        self.open = {}
        if how != 'never':
            self.world.events.append((self, future, how))
        return future

    def call(self, method, task, is_last_try):
        assert method == 'run' and self.ready
        self.last_tries[task.key] += is_last_try
        future = Future()
        self.open[future] = task
        assert len(self.open) <= TASKS_AT_A_TIME
        self.world.events.append((self, future, task))
        return future


class World:
    """Slots and what becomes of tasks; one thing at a time happens, in an order by chance."""

    def __init__(self, monkeypatch, starts, seed=0, killers=(), again=None):
        self.events = []
        self.slots = [StubSlot(self, how) for how in starts]
        self.random = random.Random(seed)
        self.killers = killers
        # How often a task is to be done again, by key.
        self.again = Counter(again or {})
        self.runs = Counter()
        self.outcomes = []
        self.most_open = Counter()
        monkeypatch.setattr(work, 'wait', self.wait)
        # After every event.
        monkeypatch.setattr(work, '_TICK_S', 0.0)

    def wait(self, futures, timeout, when):
        assert self.events, 'everything waits, and nothing goes on'
        for slot in self.slots:
            self.most_open[slot] = max(self.most_open[slot], len(slot.open))
        slot, future, what = self.events.pop(self.random.randrange(len(self.events)))
        if not isinstance(what, Task):
            if what == 'works':
                slot.ready = True
                future.set_result(None)
            else:
                future.set_exception(RuntimeError(what))
        elif future in slot.open:
            self.run(slot, future, what)
        return {future for future in futures if future.done()}, set()

    def run(self, slot, future, task):
        self.runs[task.key] += 1
        if task.key in self.killers:
            for lost in slot.open:
                lost.set_exception(WorkerEnded('killed'))
            slot.open, slot.ready = {}, False
            return
        del slot.open[future]
        if self.again[task.key]:
            self.again[task.key] -= 1
            future.set_result(Outcome('again', 'the storage is slow'))
        else:
            slot.done.append(task)
            future.set_result(Outcome('done'))

    def do(self, tasks, count=None, on_tick=lambda slots: None):
        def note(task, outcome):
            self.outcomes.append((task, outcome))

        count = len(tasks) if count is None else count
        Work(self.slots, 'run', iter(tasks), count, note, on_tick).run()
        return self.outcomes

    def done(self):
        return Counter(task for task, outcome in self.outcomes if outcome.state == 'done')

    def failed(self):
        return {task: outcome.reason for task, outcome in self.outcomes if outcome.state != 'done'}


@settings(max_examples=150)
@given(
    st.integers(0, 25),
    st.lists(st.lists(st.sampled_from(['works', 'no room']), max_size=2), min_size=1, max_size=4),
    st.sets(st.integers(0, 24), max_size=3),
    st.dictionaries(st.integers(0, 24), st.integers(1, MOST_TRIES), max_size=4),
    st.integers(0, 2**16),
)
def test_whatever_happens_good_tasks_are_done_once_and_bad_ones_named(
    count, starts, killers, again, seed
):
    tasks = make_tasks(count)
    keys = [f'{n:032x}' for n in range(25)]
    again = {keys[number]: often for number, often in again.items() if number not in killers}
    with pytest.MonkeyPatch.context() as patch:
        world = World(patch, starts, seed, {keys[number] for number in killers}, again)
        world.do(tasks)
    bad = {keys[n] for n in killers} | {key for key, often in again.items() if often == MOST_TRIES}
    assert world.done() == Counter(task for task in tasks if task.key not in bad)
    failed = world.failed()
    assert set(failed) == {task for task in tasks if task.key in bad}
    for task, reason in failed.items():
        is_killer = task.key in world.killers
        assert reason == ('the worker ended: killed' if is_killer else 'the storage is slow')
        # Once among others, before it is known which of them it was.
        assert MOST_TRIES <= world.runs[task.key] <= MOST_TRIES + is_killer
        assert sum(slot.last_tries[task.key] for slot in world.slots) == 1
    assert len(world.outcomes) == count
    # Others are at most begun again.
    assert all(
        world.runs[task.key] == 1 + world_again
        for task, world_again in [
            (task, again.get(task.key, 0)) for task in tasks if task.key not in bad
        ]
    )


def test_members_that_cannot_start_leave_the_work_to_others(monkeypatch):
    world = World(monkeypatch, [['no room'] * 9, [], ['no room'] * 9])
    tasks = make_tasks(10)
    world.do(tasks)
    assert world.done() == Counter(tasks)
    assert [slot.started for slot in world.slots] == [MOST_TRIES, 1, MOST_TRIES]
    assert len(world.slots[1].done) == 10


def test_no_member_can_start(monkeypatch):
    world = World(monkeypatch, [['the model is gone'] * 9] * 2)
    with pytest.raises(EngineError, match=r'^no worker can be started: the model is gone$'):
        world.do(make_tasks(3))
    assert not world.outcomes


def test_start_that_never_completes_does_not_keep_the_others(monkeypatch):
    """As of a worker that waits for room in a cluster."""
    world = World(monkeypatch, [['never'], []])
    world.do(make_tasks(5))
    assert len(world.slots[1].done) == 5


@pytest.mark.parametrize(('count', 'each'), [(3, [1, 1, 1]), (2, [0, 1, 1]), (4, [1, 1, 2])])
def test_few_tasks_are_spread_over_members(monkeypatch, count, each):
    """What waits behind another task could be begun by a slot that has none."""
    world = World(monkeypatch, [[], [], []])
    # All are there before the first answers.
    world.events.sort(key=lambda event: isinstance(event[2], Task))
    world.random.randrange = lambda n: 0
    world.do(make_tasks(count))
    assert sorted(len(slot.done) for slot in world.slots) == each
    assert max(world.most_open.values()) == max(each)


def test_members_have_a_task_in_reserve(monkeypatch):
    world = World(monkeypatch, [[], []])
    world.do(make_tasks(20))
    assert list(world.most_open.values()) == [TASKS_AT_A_TIME] * 2


def test_members_that_are_ready_are_looked_at(monkeypatch):
    world = World(monkeypatch, [['never'], []])
    seen = []
    world.do(make_tasks(2), on_tick=seen.append)
    assert seen[0] == [] and seen[-1] == [world.slots[1]]


def test_tasks_that_another_command_did_meanwhile(monkeypatch):
    world = World(monkeypatch, [[], []])
    tasks = make_tasks(6)
    world.do(tasks, count=20)
    assert world.done() == Counter(tasks)
    assert World(monkeypatch, [[]]).do([], count=4) == []


def test_room_is_shared_out(tmp_path):
    scratch = Scratch(tmp_path, 10 / GIB)
    came, go_on = threading.Event(), threading.Event()

    def second():
        with scratch.room(5):
            came.set()
            go_on.wait()

    with ThreadPoolExecutor() as threads:
        with scratch.room(6):
            with scratch.room(4):
                pass
            waiting = threads.submit(second)
            assert not came.wait(0.1)
        assert came.wait(10)
        with scratch.room(5):
            pass
        go_on.set()
        waiting.result()
    with (
        pytest.raises(ScratchError, match='it has 1.0 GiB, and --scratch-gib leaves 0.0'),
        scratch.room(GIB),
    ):
        pass
    with scratch.room(10):
        pass
    scratch.close()
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_processes_are_deleted_and_others_not(tmp_path):
    script = (
        'import sys; from pathlib import Path; from cliptrase_ros.fleet.scratch import Scratch\n'
        'scratch = Scratch(Path(sys.argv[1]), 1); (scratch.path / "input").write_text("")\n'
        'print(scratch.path, flush=True); sys.stdin.read()'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        folder = process.stdout.readline().strip()
        others = tmp_path / 'cliptrase-batch-of-somebody'
        others.mkdir()
        living = Scratch(tmp_path, 1)
        assert {str(path) for path in tmp_path.iterdir()} == {folder, str(others), str(living.path)}
        process.kill()
        process.wait()
    latest = Scratch(tmp_path, 1)
    assert set(tmp_path.iterdir()) == {others, living.path, latest.path}
    with latest.folder() as inside:
        assert inside.parent == latest.path
    assert not inside.exists()
    living.close()
    latest.close()
    assert list(tmp_path.iterdir()) == [others]


def test_new_folders_are_not_taken_for_abandoned_ones(tmp_path):
    """However many workers start at once."""

    def start(_):
        scratch = Scratch(tmp_path, 1)
        with scratch.folder():
            pass
        return scratch

    with ThreadPoolExecutor(8) as threads:
        scratches = list(threads.map(start, range(60)))
    assert sorted(tmp_path.iterdir()) == sorted(scratch.path for scratch in scratches)
    for scratch in scratches:
        scratch.close()
