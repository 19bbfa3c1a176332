"""What an error says about the device, and how to let go of the memory that it holds."""

import gc
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress

import torch

#: Held while a CUDA graph is captured, and by whatever concerns a device as a whole: waiting for
#: it or giving its memory back ends a capture in another thread.
whole_device = threading.RLock()

# The allocator, the runtime, the driver, Triton and NVIDIA's libraries each have their own words.
# A library that cannot be initialised has had no memory for its handle more often than not.
_LACK_OF_MEMORY = re.compile(
    r'(CUDA|cuDNN|Triton).*out of memory|_OUT_OF_MEMORY|_ALLOC(ATION)?_FAILED'
    r'|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED'
)

# The device goes on, but nothing that this program does on it ever works.
_UNFIT = re.compile(
    r'no kernel image is available|device kernel image is invalid|ARCH_MISMATCH'
    r'|unsupported toolchain|no CUDA-capable device|driver version is insufficient'
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has too little memory: a smaller batch may help, or waiting.

    So it is as well where the lack of memory led to the error that was raised last.
    """
    return any(map(_tells_lack_of_memory, _with_contexts(error)))


def is_device_lost(error: BaseException, device: torch.device) -> bool:
    """Whether a device does not work any more: every later call in this process fails as well.

    Most errors do not tell, so the device is asked; this waits for all its work.
    """
    return isinstance(error, RuntimeError) and (
        _UNFIT.search(str(error)) is not None or _still_raises(device)
    )


def give_memory_back() -> None:
    """Collect garbage, and give what is free of the device's memory to whoever asks for it."""
    gc.collect()
    if not torch.cuda.is_initialized():
        return
    # Of a device that is lost nothing can be had back.
    with whole_device, suppress(RuntimeError):
        torch.cuda.empty_cache()


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
        isinstance(error, RuntimeError) and _LACK_OF_MEMORY.search(str(error)) is not None
    )


def _still_raises(device: torch.device) -> bool:
    if device.type != 'cuda' or not torch.cuda.is_initialized():
        return False
    # The first wait may be told of what has happened before.
    _raises(device)
    return _raises(device)


def _raises(device: torch.device) -> bool:
    try:
        with whole_device:
            torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _with_contexts(error: BaseException) -> Iterator[BaseException]:
    met = []
    while error is not None and error not in met:
        yield error
        met.append(error)
        error = error.__cause__ or error.__context__
