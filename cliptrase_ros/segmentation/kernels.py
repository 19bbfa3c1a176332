"""Functions of tensors that Triton kernels compute on CUDA, and PyTorch's operations elsewhere.

A function decorated with `on_cuda_by` is the reference: it says what is computed, on any device.
Modules named `..._kernels`, and `kernel_parts`, import Triton, which comes with PyTorch for CUDA;
nothing else imports them.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from cliptrase_ros.segmentation.device_faults import is_out_of_memory

_Arguments = ParamSpec('_Arguments')
_Result = TypeVar('_Result')

_log = logging.getLogger(__name__)

# Where kernels are used; tests add 'cpu', where Triton's interpreter runs them.
_device_types = {'cuda'}

# Whose compiler takes the kernels: that of PyTorch 2.8.
_OLDEST_TRITON = (3, 4)

#: Names of the functions that are decorated.
with_kernels: list[str] = []

# Functions whose kernels have failed, by name of module and function.
_failed: set[tuple[str, str]] = set()


def on_cuda_by(
    module: str, where: Callable[..., bool] = lambda *arguments, **named: True
) -> Callable[[Callable[_Arguments, _Result]], Callable[_Arguments, _Result]]:
    """Let a function be computed by the one of its name in a module of kernels, on CUDA.

    A kernel that cannot be compiled or fails is given up for good, with a warning. The reference is
    also taken where there is no Triton, or gradients are asked for.

    Args:
        module: Beside the function's own.
        where: Of the function's arguments: whether the kernel can take them.
    """

    def decorate(reference: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
        path = f'{reference.__module__.rpartition(".")[0]}.{module}'
        name = reference.__name__.lstrip('_')
        with_kernels.append(reference.__name__)

        @wraps(reference)
        def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
            given = (*arguments, *named.values())
            tensors = [value for value in given if isinstance(value, Tensor)]
            if (
                tensors[0].device.type not in _device_types
                or (path, name) in _failed
                or not _has_triton()
                or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
                or not where(*arguments, **named)
            ):
                return reference(*arguments, **named)
            try:
                return getattr(import_module(path), name)(*arguments, **named)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                # Triton fails in many ways, and PyTorch does without. A kernel is given up only
                # once the reference has worked: if that raises too, it is the device's fault.
                result = reference(*arguments, **named)
                _failed.add((path, name))
                _log.warning('the kernel of %s cannot be used, PyTorch stands in: %s', name, error)
                return result

        return call

    return decorate


@cache
def _has_triton() -> bool:
    """Whether there is one that compiles the kernels; where not, that is said once."""
    try:
        installed = import_module('triton').__version__
    except ImportError:
        problem = 'Triton is not installed'
    else:
        if tuple(map(int, re.findall(r'\d+', installed)[:2])) >= _OLDEST_TRITON:
            return True
        problem = f'Triton {installed} is older than 3.4'
    _log.warning('%s: PyTorch stands in for kernels of this package, slower', problem)
    return False


@dataclass(frozen=True)
class Launch:
    """What `launch` is given."""

    kernel: Any
    programs: tuple[int, ...]
    arguments: tuple
    warps: int
    fused_rounding: bool


def launch(
    kernel: Any,
    programs: tuple[int, ...],
    *arguments: object,
    warps: int = 4,
    fused_rounding: bool = True,
) -> None:
    """Start a kernel on the device of its first argument, a tensor; all kernels start here.

    Args:
        warps: Of 32 threads each, in which a program runs.
        fused_rounding: Whether a product and the sum it goes into may be rounded once instead of
            twice.
    """
    _start(Launch(kernel, programs, arguments, warps, fused_rounding))


def _start_on_device(given: Launch) -> None:
    # Triton launches on the current device.
    tensor = given.arguments[0]
    with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
        given.kernel[given.programs](
            *given.arguments, num_warps=given.warps, enable_fp_fusion=given.fused_rounding
        )


_start: Callable[[Launch], None] = _start_on_device


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Within it kernels are listed instead of started, in the whole process.

    For tensors without contents, with which everything else can be run, see `FakeTensorMode`.
    """
    global _start
    launches: list[Launch] = []
    before = _start
    _start = launches.append
    try:
        yield launches
    finally:
        _start = before


@contextmanager
def no_kernels() -> Iterator[None]:
    """Within it the references do all the work, in the whole process."""
    before = set(_device_types)
    _device_types.clear()
    try:
        yield
    finally:
        _device_types.update(before)
