"""What an error says about the device, and how to let go of the memory that it holds."""

import gc
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress

import torch

#: Held while a CUDA graph is captured, and for whatever concerns a device as a whole: waiting for
#: it, or giving its memory back, breaks a capture in another thread.
whole_device = threading.RLock()

# The allocator, the runtime, the driver, Triton and NVIDIA's libraries each have their own words.
# A library that "was not initialised" has mostly had no memory for its handle.
_LACK_OF_MEMORY = re.compile(
    r'(CUDA|cuDNN|Triton).*out of memory|_OUT_OF_MEMORY|_ALLOC(ATION)?_FAILED'
    r'|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED'
)

# Messages of a device that is in order, but on which this program can never run anything.
_UNFIT = re.compile(
    r'no kernel image is available|device kernel image is invalid|ARCH_MISMATCH'
    r'|unsupported toolchain|no CUDA-capable device|driver version is insufficient'
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device has too little memory, so that a smaller batch may help, or waiting.

    It counts as well if the error was raised while such an error was handled.
    """
    return any(map(_lacks_memory, _with_contexts(error)))


def is_device_lost(error: BaseException, device: torch.device) -> bool:
    """Whether the device does not work any more, so that later calls in this process fail as well.

    Most errors do not tell, so the device is asked, which waits for all its work.
    """
    return isinstance(error, RuntimeError) and (
        _UNFIT.search(str(error)) is not None or _still_raises(device)
    )


def give_memory_back() -> None:
    """Collect garbage, and give the device's memory that PyTorch keeps but does not use back."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return
    # A lost device raises, and has nothing to give back.
    with whole_device, suppress(RuntimeError):
        torch.cuda.empty_cache()


def release_frames(error: BaseException) -> None:
    """Clear the local variables in an error's traceback, which keep tensors alive."""
    for raised in _with_contexts(error):
        traceback.clear_frames(raised.__traceback__)


def describe(error: BaseException) -> str:
    """Type and first line of an error, and of those during whose handling it was raised."""
    return '; after '.join(
        f'{type(raised).__name__}: {first_line(raised)[:200]}' for raised in _with_contexts(error)
    )


def first_line(error: BaseException) -> str:
    """First line of an error's message, '' where it has none."""
    return str(error).strip().partition('\n')[0]


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _LACK_OF_MEMORY.search(str(error)) is not None
    )


def _still_raises(device: torch.device) -> bool:
    if device.type != 'cuda' or not torch.cuda.is_initialized():
        return False
    # The first wait may only report what happened before.
    _raises_at_wait(device)
    return _raises_at_wait(device)


def _raises_at_wait(device: torch.device) -> bool:
    try:
        with whole_device:
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    """An error, and those during whose handling it was raised, latest first."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        yield cause
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
