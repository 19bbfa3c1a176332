"""Inputs for every function that has a kernel: what it gives must be what its reference gives.

`test_kernels.py` compares the two in Triton's interpreter, `benchmark/gpu_check.py` on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cliptrase_ros.segmentation.method import enlarging, median
from cliptrase_ros.segmentation.model import backbone, correlation, label_table
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing


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


def equal(found: object, expected: object) -> None:
    """To the last bit; tuples one by one."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def close(found: object, expected: object) -> None:
    """But for the order of sums; tuples one by one."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def _small_medians(random: torch.Generator) -> Iterator[tuple]:
    absent = torch.tensor([[False, False, True], [False, True, True]])
    for size in ((3, 3), (7, 5), (9, 12), (12, 13)):
        # Negative values and ties, in images that are not contiguous.
        images = torch.randn(2, 3, *reversed(size), generator=random).mT
        images[0, 0, :2] = 0.25
        images[0, 1] = images[0, 1].round()
        yield images, absent


def _large_medians(random: torch.Generator) -> tuple:
    return torch.rand(1, 32, 84, 112, generator=random), torch.arange(32)[None] % 2 == 1


def within_half(found: object, expected: object) -> None:
    """But for where half precision is rounded on the way."""
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def _norm(width: int, random: torch.Generator, dtype: torch.dtype) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(1 + 0.1 * torch.randn(width, generator=random))
    norm.bias.copy_(0.1 * torch.randn(width, generator=random))
    return norm


def _embedded(random: torch.Generator, batch: int, patches: int, width: int, dtype: torch.dtype):
    draw = partial(torch.randn, generator=random)
    return (
        draw(batch, patches, width).to(dtype),
        draw(width).to(dtype),
        draw(patches + 1, width).to(dtype),
        _norm(width, random, dtype),
        _norm(width, random, dtype),
    )


def _small_embedded(random: torch.Generator) -> Iterator[tuple]:
    yield _embedded(random, 1, 1, 16, torch.float16)
    yield _embedded(random, 2, 5, 24, torch.float16)
    yield _embedded(random, 2, 3, 40, torch.bfloat16)


def _added(random: torch.Generator, batch: int, tokens: int, width: int, dtype: torch.dtype):
    x, change = torch.randn(2, batch, tokens, width, generator=random).to(dtype)
    # Values of a residual stream: some channels are very large.
    x[..., 0] += 100
    return x, change, _norm(width, random, dtype)


def _small_added(random: torch.Generator) -> Iterator[tuple]:
    yield _added(random, 1, 1, 16, torch.float16)
    yield _added(random, 2, 5, 24, torch.bfloat16)
    x, change, norm = _added(random, 2, 5, 24, torch.float16)
    yield x.mT.contiguous().mT, change, norm
    yield torch.zeros_like(x), torch.zeros_like(x), norm


def _small_gelu(random: torch.Generator) -> Iterator[tuple]:
    yield (10 * torch.randn(2, 7, 33, generator=random).half(),)
    yield (torch.tensor([0.0, -0.0, 65504.0, -65504.0], dtype=torch.float16),)
    yield (torch.randn(3, 5, generator=random).bfloat16(),)


def _small_lengths(random: torch.Generator) -> Iterator[tuple]:
    yield (torch.randn(2, 5, 33, generator=random).half(),)
    yield (1e3 * torch.randn(1, 1, 64, generator=random).bfloat16(),)


def _projections(random: torch.Generator, batch: int, tokens: int, width: int, heads: int):
    qkv = torch.randn(batch, tokens, 3 * width, generator=random)
    # Tokens that are alike, and opposite ones.
    qkv[:, 1] = qkv[:, 0]
    qkv[:, -1] = -qkv[:, 0]
    return qkv.half(), heads


def _small_projections(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 2, 16, 1), (2, 34, 64, 2), (1, 70, 32, 2)):
        for denoising in (True, False):
            yield *_projections(random, *shape), denoising
    qkv, heads = _projections(random, 1, 5, 32, 2)
    # The interpreter cannot multiply matrices of bfloat16.
    qkv[:, 2] = 0
    yield qkv, heads, True


def _cosines(
    random: torch.Generator, batch: int, patches: int, phrases: int, columns: int, used: int
) -> tuple:
    """Arguments of `patch_logits`; phrases beyond the used columns are padding."""
    cosines = torch.rand(batch, patches + 1, phrases, generator=random) * 2 - 1
    # Phrases that tie.
    cosines[..., phrases // 2] = cosines[..., 0]
    column = (torch.arange(phrases) * used // max(1, phrases - 2)).clamp(max=used)
    column[column == used] = columns
    return cosines[:, 1:], cosines[:, 0], column, torch.tensor(used), columns, 100.0


def _small_cosines(random: torch.Generator) -> Iterator[tuple]:
    for sizes in ((1, 1, 1, 1, 1), (2, 5, 16, 16, 11), (1, 9, 37, 20, 20), (1, 2, 300, 290, 280)):
        cosines, of_image, *table = _cosines(random, *sizes)
        yield cosines, of_image, *table
        yield cosines, None, *table


def _exact(random: torch.Generator, *shape: int) -> Tensor:
    """Values 0..1 of which sums and products are exact in any order."""
    return torch.randint(0, 65, shape, generator=random) / 64


def _small_maps(random: torch.Generator) -> Iterator[tuple]:
    # Ties, an image of equal maps, and slots that are absent.
    maps = _exact(random, 2, 9, 3, 4).mul(4).round()
    maps[0, 6:] = -1
    maps[1] = 0.5
    yield maps, (12, 16)
    yield maps[:, 3:4], (12, 16)
    yield _exact(random, 1, 40, 1, 2), (8, 16)
    yield _exact(random, 1, 3, 1, 6), (4, 24)
    # Not contiguous, at sizes that are no multiples, of negative values.
    maps = torch.randn(2, 12, 17, generator=random).mT.unflatten(-1, (3, 4))
    for size in ((3, 4), (10, 13)):
        yield maps, size
    yield torch.randn(1, 17, 1, 1, generator=random), (1, 1)


def _large_maps(random: torch.Generator) -> tuple:
    return _exact(random, 1, 128, 21, 28), (336, 448)


def _labels_at_camera(*arguments: object) -> tuple[Tensor, Tensor]:
    *tensors, least, framing = arguments
    labels, probability, table = _with_table(*tensors)
    return enlarging.labels_at_camera(labels, probability, table, least, framing)


def _ids_and_confidence(*arguments: Tensor) -> tuple[Tensor, Tensor]:
    *tensors, least = arguments
    return enlarging.ids_and_confidence(*_with_table(*tensors), least)


def _with_table(
    labels: Tensor, probability: Tensor, foreground: Tensor, used: Tensor, ids: Tensor
) -> tuple[Tensor, Tensor, LabelTable]:
    unlabelled = -1 if ids.dtype.is_signed else 255
    return labels, probability, LabelTable(ids, ids, foreground, used, ids, unlabelled, 100.0)


def _table(columns: int, foreground: int, used: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    ids = (torch.arange(columns + 1) * 7 % 100).to(dtype)
    return torch.tensor(foreground), torch.tensor(used), ids


def _small_published(random: torch.Generator) -> Iterator[tuple]:
    for grid, framing, columns, least, dtype in (
        # The whole frame, larger and smaller than the crop, and as it is.
        ((3, 4), Framing((17, 23), (12, 16), (0, 0), (12, 16)), (8, 3, 6), 0.0, torch.uint8),
        ((3, 4), Framing((7, 5), (12, 16), (0, 0), (12, 16)), (8, 3, 4), 0.3, torch.int64),
        ((2, 3), Framing((8, 12), (8, 12), (0, 0), (8, 12)), (3, 3, 3), 0.1, torch.uint8),
        # A square from the centre: the rest is not seen.
        ((3, 3), Framing((10, 21), (12, 25), (0, 6), (12, 12)), (5, 0, 5), 0.4, torch.int16),
        ((3, 3), Framing((21, 10), (25, 12), (6, 0), (12, 12)), (5, 4, 5), 0.1, torch.uint8),
        ((1, 1), Framing((1, 1), (4, 4), (0, 0), (4, 4)), (2, 1, 2), 1.0, torch.uint8),
        # Patches of 14 pixels, and sizes that are no multiples.
        ((2, 3), Framing((11, 13), (28, 42), (0, 0), (28, 42)), (6, 3, 5), 1.0, torch.int32),
        ((2, 3), Framing((11, 13), (15, 22), (0, 0), (15, 22)), (6, 3, 5), 0.2, torch.uint8),
    ):
        count, foreground, used = columns
        labels = torch.randint(0, min(foreground + 1, used), (2, *framing.crop), generator=random)
        # Not contiguous.
        probability = _exact(random, 2, *grid, count).movedim(-1, 1)
        if foreground < used - 1:
            probability[:, foreground:] /= 4
        probability[:, used:] = 0
        table = _table(*columns, dtype)
        yield labels, probability, *table, torch.tensor(least), framing
    yield labels[:1], probability[:1].contiguous(), *table, torch.tensor(least), framing


def _large_published(random: torch.Generator) -> tuple:
    framing = Framing((480, 640), (336, 448), (0, 0), (336, 448))
    labels = torch.randint(0, 101, (1, 336, 448), generator=random)
    table = _table(128, 100, 110, torch.uint8)
    return labels, _exact(random, 1, 128, 21, 28) / 16, *table, torch.tensor(0.3), framing


def _small_pixels(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((2, 5, 7), (1, 1, 1), (1, 12, 33)):
        labels = torch.randint(0, 4, shape, generator=random)
        # Of these products with 255 some lie between two integers.
        probability = torch.randint(0, 511, shape, generator=random) / 510
        for least, dtype in ((0.0, torch.uint8), (0.5, torch.int16), (1.0, torch.int64)):
            yield labels, probability, *_table(5, 3, 5, dtype), torch.tensor(least)
        yield labels.mT, probability.mT, *_table(5, 3, 5, torch.uint8), torch.tensor(0.5)


def _large_pixels(random: torch.Generator) -> tuple:
    labels = torch.randint(0, 101, (1, 480, 640), generator=random)
    probability = _exact(random, 1, 480, 640)
    return labels, probability, *_table(128, 100, 110, torch.uint8), torch.tensor(0.3)


#: By the function's name.
CASES = {
    '_embed_tokens': KernelCases(
        backbone._embed_tokens,
        _small_embedded,
        lambda random: _embedded(random, 1, 588, 768, torch.float16),
        within_half,
    ),
    '_add_and_norm': KernelCases(
        backbone._add_and_norm,
        _small_added,
        lambda random: _added(random, 1, 589, 768, torch.float16),
        within_half,
    ),
    '_quick_gelu': KernelCases(
        backbone._quick_gelu,
        _small_gelu,
        lambda random: (torch.randn(1, 589, 3072, generator=random).half(),),
        within_half,
    ),
    '_unit_length': KernelCases(
        backbone._unit_length,
        _small_lengths,
        lambda random: (torch.randn(1, 589, 512, generator=random).half(),),
        close,
    ),
    'patch_correlation': KernelCases(
        correlation.patch_correlation,
        _small_projections,
        lambda random: (*_projections(random, 1, 589, 768, 12), True),
        close,
    ),
    'patch_logits': KernelCases(
        label_table.patch_logits,
        _small_cosines,
        lambda random: _cosines(random, 1, 588, 16, 16, 15),
        close,
    ),
    'median_7x7': KernelCases(median.median_7x7, _small_medians, _large_medians, equal),
    'largest_enlarged': KernelCases(enlarging.largest_enlarged, _small_maps, _large_maps, equal),
    'labels_at_camera': KernelCases(_labels_at_camera, _small_published, _large_published, equal),
    'ids_and_confidence': KernelCases(_ids_and_confidence, _small_pixels, _large_pixels, equal),
}
