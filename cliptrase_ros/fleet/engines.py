"""What workers run on: processes of this machine, or actors of a Ray cluster."""

import atexit
import contextlib
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from multiprocessing.managers import BaseManager
from typing import Any, Protocol

from cliptrase_ros.fleet.labelling import Job

#: Tasks that a worker has at a time: one is labelled, the other fetched or stored meanwhile.
TASKS_AT_A_TIME = 2

_GOODBYE_S = 10.0

#: Methods of `Worker` that are called from elsewhere.
_METHODS = ('ready', 'progress', 'run', 'export', 'close')


class EngineError(Exception):
    """No workers can be had; the message says why."""


class Member(Protocol):
    """Where a worker is: a process or an actor; one that ended is replaced by another."""

    def start(self) -> Future:
        """Start a worker, ending the one before; the future says when it is there."""

    def call(self, method: str, *arguments: Any) -> Future:
        """Call a method of the worker, in a thread of its own."""

    def stop(self) -> None:
        """End the worker at once."""


def _say_goodbye(members: Sequence[Member]) -> None:
    """Let workers end in order."""
    calls = []
    for member in members:
        # One that has ended already, or never began.
        with contextlib.suppress(Exception):
            calls.append(member.call('close'))
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
class LocalMember:
    """A worker in a process of this machine."""

    job: Job
    threads: ThreadPoolExecutor
    _manager: _Manager | None = None
    _worker: Any = None

    def start(self) -> Future:
        """See `Member`."""
        return self.threads.submit(self._start)

    def call(self, method: str, *arguments: Any) -> Future:
        """See `Member`."""
        return self.threads.submit(getattr(self._worker, method), *arguments)

    def stop(self) -> None:
        """See `Member`."""
        if self._manager is not None:
            self._manager.shutdown()
        self._manager = self._worker = None

    def _start(self) -> None:
        self.stop()
        # A forked process cannot use the GPU, and has the locks of threads that it lacks.
        manager = _Manager(ctx=multiprocessing.get_context('spawn'))
        manager.start()
        self._manager = manager
        self._worker = manager.Worker(self.job)


@contextlib.contextmanager
def local_members(job: Job, count: int, devices: list[str]) -> Iterator[list[Member]]:
    """Places for workers in processes of this machine; they end with the block.

    Args:
        devices: Where workers compute, in turn.
    """
    with ThreadPoolExecutor(count * (TASKS_AT_A_TIME + 2)) as threads:
        members = [
            LocalMember(replace(job, device=devices[number % len(devices)]), threads)
            for number in range(count)
        ]
        try:
            yield members
            _say_goodbye(members)
        finally:
            for member in members:
                member.stop()


@dataclass
class RayMember:
    """A worker as an actor of a Ray cluster."""

    job: Job
    actor_class: Any
    _actor: Any = None

    def start(self) -> Future:
        """See `Member`."""
        self.stop()
        self._actor = self.actor_class.remote(self.job)
        return self.call('ready')

    def call(self, method: str, *arguments: Any) -> Future:
        """See `Member`."""
        return getattr(self._actor, method).remote(*arguments).future()

    def stop(self) -> None:
        """See `Member`."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
        self._actor = None


@contextlib.contextmanager
def ray_members(job: Job, count: int | None, address: str) -> Iterator[list[Member]]:
    """Places for workers as actors of a Ray cluster; they end with the block.

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
    try:
        ray.init(address, log_to_driver=False, logging_level='ERROR')
    except Exception as error:
        raise EngineError(f'Ray at {address!r} cannot be reached: {error}') from error
    try:
        resources = ray.cluster_resources()
        cpus, gpus = resources.get('CPU', 0), resources.get('GPU', 0)
        if job.device == 'cpu' or (job.device == 'auto' and not gpus):
            gpus = 0
        count = count or int(gpus or cpus // job.threads)
        if not count:
            raise EngineError(
                f'the Ray cluster has {cpus:g} CPUs, and a worker needs {job.threads}; give '
                '--workers to wait for more'
            )
        # More workers than GPUs share them, each GPU among as many.
        share = 1 / math.ceil(max(1, count / gpus)) if gpus else 0
        from cliptrase_ros.fleet.worker import Worker

        actor_class = ray.remote(Worker).options(
            num_cpus=job.threads, num_gpus=share, max_concurrency=TASKS_AT_A_TIME + 2
        )
        members = [RayMember(job, actor_class) for _ in range(count)]
        yield members
        _say_goodbye(members)
    finally:
        ray.shutdown()
