"""What an error says about the device, and how to let go of the memory that it holds."""

import gc
import re
import traceback
from collections.abc import Iterator

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has too little memory: a smaller batch may help, or waiting.

    So it is as well where the lack of memory led to the error that was raised last.
    """
    return any(map(_tells_lack_of_memory, _with_contexts(error)))


def is_device_lost(error: BaseException) -> bool:
    """Whether a device does not work any more: every later call in this process fails as well."""
    lost = getattr(torch, 'AcceleratorError', ())
    return isinstance(error, RuntimeError) and (
        isinstance(error, lost)
        or re.search(r'CUDA error|_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)', str(error))
        is not None
    )


def give_memory_back() -> None:
    """Collect garbage, and give what is free of the device's memory to whoever asks for it."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.empty_cache()
    except RuntimeError:
        # Of a device that is lost nothing can be had back.
        return


def release_frames(error: BaseException) -> None:
    """Empty the frames of the stack that an error holds, whose variables hold tensors."""
    for one in _with_contexts(error):
        traceback.clear_frames(one.__traceback__)


def describe(error: BaseException) -> str:
    """Kinds and first lines of an error and of those during whose handling it was raised."""
    return '; after '.join(
        f'{type(one).__name__}: {_first_line(one)[:200]}' for one in _with_contexts(error)
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition('\n')[0]


def _tells_lack_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and re.search(r'CUDA error: out of memory|_STATUS_ALLOC_FAILED', str(error)) is not None
    )


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    met = []
    while error is not None and error not in met:
        yield error
        met.append(error)
        error = error.__cause__ or error.__context__
