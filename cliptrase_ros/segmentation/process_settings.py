"""Settings of PyTorch and OpenCV that hold for the whole process."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import torch


def limit_threads(threads: int) -> None:
    """Set how many threads PyTorch and OpenCV compute with.

    Raises:
        ValueError: For less than 1.
    """
    if threads < 1:
        raise ValueError(f'threads is {threads}; it must be at least 1')
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def threads_beside_others() -> int:
    """How many threads leave one of the processor's cores to others, or what OMP_NUM_THREADS says.

    PyTorch's own default takes every core, and its threads wait for the slowest of them: one other
    process on one core then costs several times what that core is worth.
    """
    if 'OMP_NUM_THREADS' in os.environ:
        # PyTorch has followed it already.
        return torch.get_num_threads()
    # Which cores a process may use is known on Linux only.
    on_linux = hasattr(os, 'sched_getaffinity')
    cores = len(os.sched_getaffinity(0)) if on_linux else os.cpu_count() or 1
    return max(1, cores - 1)


class _WhileInUse:
    """A context manager that changes a setting as long as any thread is within it.

    Args:
        change: Makes the change; returns a function that undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]):
        self._change = change
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._undo = self._change()
            self._users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._undo()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it products of float32 numbers have float32's precision, whatever the program set.

    A program may have asked for TF32 on CUDA (so does TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which
    NVIDIA's containers set), for bfloat16 in oneDNN on a CPU, or for autocast. Also a decorator.
    """
    # Each thread has its own autocast.
    cast = [device for device in ('cpu', 'cuda') if torch.is_autocast_enabled(device)]
    try:
        for device in cast:
            torch.set_autocast_enabled(device, False)
        with _full_precision:
            yield
    finally:
        for device in cast:
            torch.set_autocast_enabled(device, True)


def _ask_for_full_precision() -> Callable[[], None]:
    settings = _precision_settings()
    values = [setting.fp32_precision for setting, _ in settings]
    # A value that equals its parent's is inherited ('none'), and has to be inherited again.
    before = [
        'none' if value == parent.fp32_precision else value
        for value, (_, parent) in zip(values, settings, strict=True)
    ]
    if settings and not {'tf32', 'bf16'} & set(values):
        return lambda: None
    _set_precisions(['ieee'] * len(settings))
    # The older interface has to agree, or reading it raises.
    matmul = torch.get_float32_matmul_precision()
    if matmul != 'highest':
        torch.set_float32_matmul_precision('highest')

    def undo() -> None:
        if matmul != 'highest':
            torch.set_float32_matmul_precision(matmul)
        _set_precisions(before)

    return undo


def _set_precisions(values: list[str]) -> None:
    for value, (setting, _) in zip(values, _precision_settings(), strict=True):
        setting.fp32_precision = value


def _precision_settings() -> tuple:
    """Pairs of a setting that the engine depends on and its parent; none before PyTorch 2.9."""
    backends = torch.backends
    if not hasattr(backends, 'fp32_precision'):
        return ()
    return (
        (backends.cuda.matmul, backends.cudnn),
        (backends.mkldnn.matmul, backends.mkldnn),
        (backends.mkldnn.conv, backends.mkldnn),
    )


def _turn_off_cudnn_attention() -> Callable[[], None]:
    backends = torch.backends.cuda
    # A program that has switched the others off wants cuDNN's, and keeps it.
    if not (
        backends.cudnn_sdp_enabled()
        and backends.flash_sdp_enabled()
        and backends.mem_efficient_sdp_enabled()
    ):
        return lambda: None
    backends.enable_cudnn_sdp(False)
    return lambda: backends.enable_cudnn_sdp(True)


_full_precision = _WhileInUse(_ask_for_full_precision)

#: Within it attention on CUDA is not cuDNN's, which spends time on a plan for each new number of
#: images and patches.
no_cudnn_attention = _WhileInUse(_turn_off_cudnn_attention)
