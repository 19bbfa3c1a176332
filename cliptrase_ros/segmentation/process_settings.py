"""Settings of PyTorch that hold for the whole process: changed while the engine needs it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class _Changed:
    """A setting that is changed as long as any thread is within.

    change: makes the change and returns what puts back what was there before.
    """

    def __init__(self, change: Callable[[], Callable[[], None]]):
        self._change = change
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._put_back = self._change()
            self._users += 1

    def __exit__(self, *error) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._put_back()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Within it products of float32 numbers have float32's precision, whatever the program set.

    That is TF32 on CUDA (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, which NVIDIA's containers set, asks
    for it too), bfloat16 in oneDNN on a CPU, and autocast. Also a decorator.
    """
    # Autocast is each thread's own.
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
    settings = _precisions()
    found = [setting.fp32_precision for setting, _ in settings]
    # What equals the setting above it follows it, and has to follow it again.
    before = [
        'none' if value == above.fp32_precision else value
        for value, (_, above) in zip(found, settings, strict=True)
    ]
    if settings and not {'tf32', 'bf16'} & set(found):
        return lambda: None
    _set_precisions(['ieee'] * len(settings))
    # The older interface: where the two disagree, whoever reads it gets an error.
    matmul = torch.get_float32_matmul_precision()
    if matmul != 'highest':
        torch.set_float32_matmul_precision('highest')

    def put_back() -> None:
        if matmul != 'highest':
            torch.set_float32_matmul_precision(matmul)
        _set_precisions(before)

    return put_back


def _set_precisions(values: list[str]) -> None:
    for value, (setting, _) in zip(values, _precisions(), strict=True):
        setting.fp32_precision = value


def _precisions() -> tuple:
    """Pairs of the settings that the engine depends on, and those above them.

    PyTorch before 2.9 has none of them.
    """
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
    # A program that wants no other kind keeps it.
    if not (
        backends.cudnn_sdp_enabled()
        and backends.flash_sdp_enabled()
        and backends.mem_efficient_sdp_enabled()
    ):
        return lambda: None
    backends.enable_cudnn_sdp(False)
    return lambda: backends.enable_cudnn_sdp(True)


_full_precision = _Changed(_ask_for_full_precision)

#: Within it attention on CUDA is not cuDNN's, which makes a plan for each new number of images and
#: patches.
no_cudnn_attention = _Changed(_turn_off_cudnn_attention)
