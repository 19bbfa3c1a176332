"""What workers run on: processes of this machine, or actors of a Ray cluster."""

import atexit
import contextlib
import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.managers import BaseManager
from typing import Any, Protocol

from cliptrase_ros.fleet.labelling import Job

#: Tasks that a worker has at a time: one is labelled, the other fetched or stored meanwhile.
TASKS_AT_A_TIME = 2

_GOODBYE_S = 10.0
# Processor cores of a worker on a cluster: one computes or feeds the GPU, one fetches and stores.
_RAY_THREADS = 2

#: Methods of `Worker` that are called from elsewhere.
_METHODS = ('ready', 'progress', 'run', 'export', 'close')


class EngineError(Exception):
    """No workers can be had; the message says why."""


class Slot(Protocol):
    """Where a worker is: a process or an actor; one that ended is replaced by another."""

    def start(self) -> Future:
        """Start a worker, ending the one before; the future says when it is there."""

    def call(self, method: str, *arguments: Any) -> Future:
        """Call a method of the worker, in a thread of its own."""

    def stop(self) -> None:
        """End the worker at once."""


def _say_goodbye(slots: Sequence[Slot]) -> None:
    """Let workers end in order."""
    calls = []
    for slot in slots:
        # One that has ended already, or never began.
        with contextlib.suppress(Exception):
            calls.append(slot.call('close'))
    wait(calls, _GOODBYE_S)


class _Manager(BaseManager):
    """A process with objects that threads of another process call, each in its own thread."""


def _make_worker(job: Job) -> Any:
    # After all else that is done at the end of the process: PyTorch would abort it, and say so,
    # where a thread still computes, as after Ctrl-C.
    atexit.register(os._exit, 0)
    # PyTorch is for the processes that compute.
    from cliptrase_ros.fleet.worker import Worker

    return Worker(job)


_Manager.register('Worker', _make_worker, exposed=_METHODS)


@dataclass
class LocalSlot:
    """A worker in a process of this machine."""

    job: Job
    threads: ThreadPoolExecutor
    is_over: threading.Event
    _manager: _Manager | None = None
    _worker: Any = None

    def start(self) -> Future:
        """See `Slot`."""
        return self.threads.submit(self._start)

    def call(self, method: str, *arguments: Any) -> Future:
        """See `Slot`."""
        return self.threads.submit(getattr(self._worker, method), *arguments)

    def stop(self) -> None:
        """See `Slot`."""
        if self._manager is not None:
            self._manager.shutdown()
        self._manager = self._worker = None

    def _start(self) -> None:
        self.stop()
        # A forked process cannot use the GPU, and has the locks of threads that it lacks. A socket
        # in the folder for temporary files could have too long a path.
        manager = _Manager(('127.0.0.1', 0), ctx=multiprocessing.get_context('spawn'))
        manager.start(end_with_parent)
        self._manager = manager
        if self.is_over.is_set():
            self.stop()  # instead of loading a model that nobody wants any more
        else:
            self._worker = manager.Worker(self.job)


def end_with_parent() -> None:
    """End this process when the one that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()

    def wait_for_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


@contextlib.contextmanager
def local_slots(job: Job, count: int | None, gpus: int) -> Iterator[list[Slot]]:
    """Slots for workers in processes of this machine; they end with the block.

    Args:
        count: How many; None for one for each GPU, or one.
        gpus: How many this machine has.
    """
    devices = [job.device]
    if job.device in ('auto', 'cuda'):
        devices = [f'cuda:{number}' for number in range(gpus)] or devices
    count = count or len(devices)
    # The cores that this process may use are fewer than the machine's on many clusters.
    job = replace(job, threads=job.threads or max(1, len(os.sched_getaffinity(0)) // count))
    is_over = threading.Event()
    with ThreadPoolExecutor(count * (TASKS_AT_A_TIME + 2)) as threads:
        slots = [
            LocalSlot(replace(job, device=devices[number % len(devices)]), threads, is_over)
            for number in range(count)
        ]
        try:
            yield slots
            _say_goodbye(slots)
        finally:
            is_over.set()
            for slot in slots:
                slot.stop()


@dataclass
class RaySlot:
    """A worker as an actor of a Ray cluster."""

    job: Job
    actor_class: Any
    _actor: Any = None

    def start(self) -> Future:
        """See `Slot`."""
        self.stop()
        self._actor = self.actor_class.remote(self.job)
        return self.call('ready')

    def call(self, method: str, *arguments: Any) -> Future:
        """See `Slot`."""
        return getattr(self._actor, method).remote(*arguments).future()

    def stop(self) -> None:
        """See `Slot`."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None


def _room(nodes: Sequence[dict[str, float]], threads: int, with_gpu: bool) -> int:
    """How many workers find room on nodes: what one needs must be on one of them."""
    return sum(
        int(min(node.get('CPU', 0) // threads, node.get('GPU', 0) if with_gpu else math.inf))
        for node in nodes
    )


@contextlib.contextmanager
def ray_slots(job: Job, count: int | None, address: str) -> Iterator[list[Slot]]:
    """Slots for workers as actors of a Ray cluster; they end with the block.

    Args:
        count: How many; None for as many as the cluster has GPUs, or processors for.
        address: `auto` for the cluster that this machine is of, `local` for one of its own, or an
            address as Ray has it.

    Raises:
        EngineError: There is no Ray, or no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise EngineError("--ray needs Ray: pip install 'ray>=2.40'") from error
    job = replace(job, threads=job.threads or _RAY_THREADS)
    try:
        ray.init(address, log_to_driver=False, logging_level='ERROR')
    except Exception as error:
        raise EngineError(f'Ray at {address!r} cannot be reached: {error}') from error
    try:
        nodes = [node['Resources'] for node in ray.nodes() if node['Alive']]
        gpus = sum(node.get('GPU', 0) for node in nodes)
        with_gpu = job.device.startswith('cuda') or (job.device == 'auto' and gpus > 0)
        count = count or _room(nodes, job.threads, with_gpu)
        if not count:
            raise EngineError(
                f'no node of the Ray cluster has the {job.threads} CPUs'
                f'{" and the GPU" if with_gpu else ""} that a worker needs; give fewer --threads, '
                'or --workers to wait for such a node'
            )
        # More workers than GPUs share them, each GPU among as many.
        share = 1 / math.ceil(max(1, count / (gpus or count))) if with_gpu else 0
        from cliptrase_ros.fleet.worker import Worker

        actor_class = ray.remote(Worker).options(
            num_cpus=job.threads, num_gpus=share, max_concurrency=TASKS_AT_A_TIME + 2
        )
        slots = [RaySlot(job, actor_class) for _ in range(count)]
        yield slots
        _say_goodbye(slots)
    finally:
        ray.shutdown()
