"""Times and memory."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.autograd import DeviceType

from cliptrase_ros.segmentation.run.pipeline import STAGES


def interleaved(
    functions: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in turn, so that drift meets all alike: milliseconds of each run of each."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            synchronise(device)
            if run:  # the first one warms up
                taken[name].append(1e3 * (time.perf_counter() - begin))
    return taken


def device_ms(
    functions: dict[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, list[float]]:
    """Time functions in turn by the device's clock: milliseconds of each run of each.

    On CUDA all runs are queued before the first is waited for, so that what the host takes to
    launch them does not count; on a CPU by the clock.
    """
    if device.type != 'cuda':
        return interleaved(functions, runs, device)
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in functions}
    for run in range(runs + 1):
        for name, function in functions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            if run:  # the first one warms up
                events[name].append((begin, end))
    synchronise(device)
    return {n: [begin.elapsed_time(end) for begin, end in pairs] for n, pairs in events.items()}


def stages_ms(function: Callable[[], object], runs: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each stage of the pipeline, as PyTorch's profiler sees them.

    On CUDA it is the time of the kernels that each stage launches.
    """
    on_cuda = device.type == 'cuda'
    # Above every level of the profiler's library, so that it does not log each start and stop.
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')
    if on_cuda:
        # CUDA graphs do not bear that CUPTI is torn down after a profile and initialised again.
        os.environ.setdefault('TEARDOWN_CUPTI', '0')
        os.environ.setdefault('DISABLE_CUPTI_LAZY_REINIT', '1')
    seen: dict[str, list[float]] = {}
    for _ in range(runs):
        if on_cuda:
            activity = torch.profiler.ProfilerActivity
            profile = torch.profiler.profile(activities=[activity.CPU, activity.CUDA])
        else:
            profile = torch.autograd.profiler.profile(use_kineto=False)
        with profile:
            function()
            synchronise(device)
        for event in profile.key_averages():
            if event.key in STAGES and event.device_type == DeviceType.CPU:
                us = event.device_time_total if on_cuda else event.cpu_time_total
                seen.setdefault(event.key, []).append(us / 1e3)
    return {name: statistics.median(seen[name]) for name in STAGES if name in seen}


class PeakMemory:
    """The most memory in use since it was made.

    On CUDA, what PyTorch holds of the device; on a CPU, the whole process, where Linux tells it.
    """

    def __init__(self, device: torch.device):
        self._device = device
        if device.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                Path('/proc/self/clear_refs').write_text('5')

    def megabytes(self) -> float | None:
        """So far; None where it cannot be told."""
        if self._device.type == 'cuda':
            return torch.cuda.max_memory_reserved(self._device) / 2**20
        with suppress(OSError):
            for line in Path('/proc/self/status').read_text().splitlines():
                if line.startswith('VmHWM:'):
                    return int(line.split()[1]) / 2**10
        return None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with the number of threads in use."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                name = line.partition(':')[2].strip()
                break
    threads = torch.get_num_threads()
    return f'{name}, {threads} of {os.cpu_count()} cores'
