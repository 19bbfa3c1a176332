"""Inputs for every function that has a kernel: what it gives must be what its reference gives.

`test_kernels.py` compares the two in Triton's interpreter, `benchmark/gpu_check.py` on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cliptrase_ros.segmentation.method import median


@dataclass(frozen=True)
class KernelCases:
    """What a function is tried with.

    Attributes:
        function: With a kernel and a reference.
        small: Gives arguments of random, tied, degenerate and odd-sized inputs, small enough for
            the interpreter.
        large: Gives arguments as a frame of 640 x 480 at 336 makes them.
        check: Compares what kernel and reference give; raises AssertionError.
    """

    function: Callable
    small: Callable[[torch.Generator], Iterator[tuple]]
    large: Callable[[torch.Generator], tuple]
    check: Callable[[object, object], None]


def moved(arguments: tuple, device: torch.device) -> tuple:
    """Arguments on a device, their tensors strided as they were."""
    return tuple(_moved(a, device) if isinstance(a, Tensor) else a for a in arguments)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    # `to` would lay the elements of a slice one after the other.
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    elements = tensor.as_strided((stored,), (1,), 0).to(device)
    return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def equal(found: Tensor, expected: Tensor) -> None:
    """To the last bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def close(found: object, expected: object) -> None:
    """But for the order of sums; tuples one by one."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def _small_medians(random: torch.Generator) -> Iterator[tuple]:
    absent = torch.tensor([[False, False, True], [False, True, True]])
    for size in ((3, 3), (7, 5), (9, 31), (12, 13)):
        # Negative values and ties, and one mostly flat, in images that are not contiguous.
        images = torch.randn(2, 3, *reversed(size), generator=random).mT
        images[0, 0, :2] = 0.25
        images[0, 1] = images[0, 1].round()
        images[1, 0] = images[1, 0].clamp(min=0)
        yield images, absent


def _large_medians(random: torch.Generator) -> tuple:
    return torch.rand(1, 32, 84, 112, generator=random), torch.arange(32)[None] % 2 == 1


#: By the function's name.
CASES = {
    'median_7x7': KernelCases(median.median_7x7, _small_medians, _large_medians, equal),
}
