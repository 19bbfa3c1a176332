"""Inputs for every function that has a kernel: what it gives must be what its reference gives.

`test_kernels.py` compares the two in Triton's interpreter, `benchmark/gpu_check.py` on a GPU.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cliptrase_ros.segmentation.method import (
    clustering,
    enlarging,
    median,
    pamr,
    refinement,
    smoothing,
)
from cliptrase_ros.segmentation.model import backbone, correlation, label_table, preprocessing
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import Framing, whole_frame_framing


@dataclass(frozen=True)
class KernelCases:
    """What a function is tried with.

    Attributes:
        function: With a kernel and a reference.
        small: Gives arguments of random, tied, degenerate and odd-sized inputs, small enough for
            the interpreter.
        large: Gives arguments as a frame of 640 x 480 at 336 makes them.
        check: Compares what the kernel gives with what the reference gives on the CPU; raises
            AssertionError.
    """

    function: Callable
    small: Callable[[torch.Generator], Iterator[tuple]]
    large: Callable[[torch.Generator], tuple]
    check: Callable[[object, object], None]


def moved(arguments: tuple, device: torch.device) -> tuple:
    """Arguments on a device, their tensors strided as they were."""
    return tuple(_moved(argument, device) for argument in arguments)


def _moved(argument: object, device: torch.device) -> object:
    if isinstance(argument, LabelTable):
        return argument.to(device)
    if isinstance(argument, nn.Module):
        return deepcopy(argument).to(device)
    if not isinstance(argument, Tensor):
        return argument
    tensor = argument
    # `to` would lay the elements of a slice one after the other.
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    elements = tensor.as_strided((stored,), (1,), 0).to(device)
    return elements.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def on_host(results: object) -> object:
    """A tensor, or a tuple of them, in host memory."""
    return tree_map(lambda tensor: tensor.cpu(), results)


def equal(found: object, expected: object) -> None:
    """To the last bit; tuples one by one."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def close(found: object, expected: object) -> None:
    """But for the order of sums; tuples one by one."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def same_choice(found: Tensor, expected: Tensor) -> None:
    """But for one pixel in 10,000, at which two values may be as good as equal."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found != expected).sum() <= expected.numel() // 10_000


def within(tolerance: float) -> Callable[[object, object], None]:
    """As `close`, where rounding counts for more."""

    def check(found: object, expected: object) -> None:
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    return check


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
    # Tokens that are alike, and opposite ones. Not bfloat16: the interpreter cannot multiply it.
    qkv[:, 1] = qkv[:, 0]
    qkv[:, -1] = -qkv[:, 0]
    return qkv.half(), heads


def _small_projections(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 2, 16, 1), (2, 34, 64, 2), (1, 70, 32, 2)):
        for denoising in (True, False):
            yield *_projections(random, *shape), denoising
    qkv, heads = _projections(random, 1, 5, 32, 2)
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


def _small_frames(antialias: bool) -> Callable[[torch.Generator], Iterator[tuple]]:
    def give(random: torch.Generator) -> Iterator[tuple]:
        for source, resized, offset, crop in (
            # Down, up, one side alone, by far, a single pixel, and crops.
            ((24, 32), (16, 21), (0, 0), (16, 21)),
            ((7, 5), (9, 16), (0, 0), (9, 16)),
            ((9, 20), (9, 11), (0, 0), (9, 11)),
            ((60, 6), (2, 6), (0, 0), (2, 6)),
            ((1, 3), (4, 1), (0, 0), (4, 1)),
            ((20, 31), (13, 20), (3, 4), (5, 12)),
            ((31, 20), (40, 26), (7, 0), (26, 26)),
        ):
            frames = _frames(2, *source, random)
            # Overshoots beyond black and white.
            frames[0] = (frames[0] > 127) * 255
            yield frames, Framing(source, resized, offset, crop, antialias)

    return give


def _frames(batch: int, height: int, width: int, random: torch.Generator) -> Tensor:
    return torch.randint(256, (batch, height, width, 3), generator=random, dtype=torch.uint8)


def _large_frames(antialias: bool) -> Callable[[torch.Generator], tuple]:
    framing = replace(whole_frame_framing((480, 640), 336, 16), antialias=antialias)
    return lambda random: (_frames(1, 480, 640, random), framing)


_MEAN, _STD = (torch.tensor(value)[:, None, None] for value in ((0.48, 0.46, 0.4), (0.27, 0.26, 1)))


def _small_pixels(random: torch.Generator) -> Iterator[tuple]:
    every = torch.arange(256, dtype=torch.uint8).expand(2, 3, 3, -1)
    # Of the camera's own size the picture is the frame, whose channels are interleaved.
    interleaved = _frames(2, 5, 9, random).permute(0, 3, 1, 2)[..., 1:4, :]
    for pixels in (every, interleaved):
        for dtype in (torch.float32, torch.float16):
            yield pixels, 255, _MEAN, _STD, dtype
            yield pixels, 1, 255 * _MEAN, 255 * _STD, dtype


def _large_pixels(random: torch.Generator) -> tuple:
    picture = _frames(1, 336, 448, random).permute(0, 3, 1, 2).contiguous()
    return picture, 255, _MEAN, _STD, torch.float16


def _small_rows(random: torch.Generator) -> Iterator[tuple]:
    yield (torch.randn(2, 23, 19, generator=random).mT,)
    yield (torch.ones(1, 1, 1),)
    yield (torch.rand(1, 300, 5, generator=random) + 1,)


def _large_rows(random: torch.Generator) -> tuple:
    return (torch.rand(1, 588, 588, generator=random),)


def _small_points(random: torch.Generator) -> Iterator[tuple]:
    # On a grid, where distances are exact and many are just eps.
    for batch, points, width, eps in ((2, 37, 3, 2.0), (1, 100, 2, 1.0), (1, 1, 4, 0.0)):
        yield torch.randint(-4, 5, (batch, points, width), generator=random).float(), eps, 4
    yield torch.zeros(2, 6, 6), 0.5, 7
    yield torch.rand(1, 50, 2, generator=random), 0.1, 3


def _large_points(random: torch.Generator) -> tuple:
    return torch.randint(0, 3, (1, 588, 588), generator=random).float(), 19.5, 9


def _chain(random: torch.Generator, points: int) -> Tensor:
    """Points side by side in any order."""
    return torch.randperm(points, generator=random).float()[:, None] * torch.tensor([1.0, 0.0])


def _small_clusterings(random: torch.Generator) -> Iterator[tuple]:
    """Chains of core points, noise alone, one cluster, too few steps, too many clusters."""
    for steps in (0, 3):
        yield torch.stack([_chain(random, 13), _chain(random, 13)]), 1.1, 2, steps, 32
    yield _chain(random, 9)[None], 0.5, 2, 0, 32
    yield torch.zeros(1, 7, 7), 0.5, 2, 1, 1
    yield torch.zeros(1, 1, 1), 0.5, 1, 0, 1
    plane = torch.randint(0, 5, (1, 15, 2), generator=random).float()
    clusters = int(clustering.dbscan(plane, 1.1, 2).max()) + 1
    for most in (clusters - 1, clusters):
        yield plane, 1.1, 2, 2, most


def _large_clusterings(random: torch.Generator) -> tuple:
    return _chain(random, 588)[None], 1.1, 2, 6, 32


def _small_means(random: torch.Generator) -> Iterator[tuple]:
    clusters = torch.randint(-1, 5, (2, 30), generator=random)
    # Some cluster has no member, one has all, some are more than there are maps.
    clusters[0] = torch.where(clusters[0] == 2, -1, clusters[0])
    clusters[1] = 3
    for count in (1, 4, 6):
        yield torch.randn(2, 30, 30, generator=random).mT, clusters, count
    yield torch.rand(1, 1, 1, generator=random), torch.zeros(1, 1, dtype=torch.int64), 2
    # More rows than are read at a time.
    yield torch.rand(1, 300, 3, generator=random), (torch.arange(300) % 3)[None], 3


def _large_means(random: torch.Generator) -> tuple:
    return (
        torch.rand(1, 588, 588, generator=random),
        torch.randint(-1, 10, (1, 588), generator=random),
        32,
    )


def _small_votes(random: torch.Generator) -> Iterator[tuple]:
    # Noise, of few classes and of more than are looked at at a time, each image its own; one image
    # is spared. Regions are views, as the flags are.
    absent = torch.tensor([[False, True], [False, False]])
    for classes in (1, 3, 200):
        labels = torch.randint(0, classes, (2, 9, 17), generator=random)
        regions = torch.randint(0, 3, (2, 17, 9), generator=random).mT
        for min_agreement in (0.0, 0.4):
            yield labels, regions, 3, classes, absent[:, 1], min_agreement
    # Ties, and a share that is just enough.
    labels = torch.tensor([5, 2, 2, 5, 4, 1, 4, 4]).expand(1, 2, 8)
    regions = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(1, 2, 8)
    for min_agreement in (0.5, 0.75, 0.76):
        yield labels, regions, 2, 6, absent[1:, 0], min_agreement
    # One region, in several programs.
    labels = torch.randint(0, 2, (1, 30, 20), generator=random)
    yield labels, torch.zeros_like(labels), 1, 2, absent[1:, 1], 0.5


def _large_votes(random: torch.Generator) -> tuple:
    squares = torch.randint(0, 170, (2, 1, 6, 8), generator=random).repeat_interleave(56, 2)
    labels, regions = squares.repeat_interleave(56, 3).unbind(0)
    return labels % 17, regions % 10, 32, 17, torch.tensor([False]), 0.7


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


def _small_probabilities(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((2, 5, 7), (1, 1, 1), (1, 12, 33)):
        labels = torch.randint(0, 4, shape, generator=random)
        # Of these products with 255 some lie between two integers.
        probability = torch.randint(0, 511, shape, generator=random) / 510
        for least, dtype in ((0.0, torch.uint8), (0.5, torch.int16), (1.0, torch.int64)):
            yield labels, probability, *_table(5, 3, 5, dtype), torch.tensor(least)
        yield labels.mT, probability.mT, *_table(5, 3, 5, torch.uint8), torch.tensor(0.5)


def _large_probabilities(random: torch.Generator) -> tuple:
    labels = torch.randint(0, 101, (1, 480, 640), generator=random)
    probability = _exact(random, 1, 480, 640)
    return labels, probability, *_table(128, 100, 110, torch.uint8), torch.tensor(0.3)


def _areas(random: torch.Generator, batch: int, size: tuple[int, int], classes: int) -> Tensor:
    """Labels of areas with straight borders."""
    coarse = torch.randint(0, classes, (batch, 1, 4, 5), generator=random)
    return F.interpolate(coarse.float(), size)[:, 0].long()


def _picture(random: torch.Generator, batch: int, size: tuple[int, int]) -> Tensor:
    """Noise that is flat on the left, part of a picture as cameras have it in memory."""
    height, width = size
    frames = torch.randint(
        0, 256, (batch, height + 3, width + 3, 3), generator=random, dtype=torch.uint8
    )
    picture = frames.permute(0, 3, 1, 2)[..., 1:-2, 2:-1]
    picture[..., : width // 2] = 90
    return picture


def _small_labels(random: torch.Generator) -> Iterator[tuple]:
    for batch, size, classes in ((1, (1, 1), 1), (2, (31, 35), 5), (1, (20, 52), 300)):
        yield torch.randint(0, min(classes, 20), (batch, *size), generator=random), classes
        yield _areas(random, batch, size[::-1], classes).mT, classes


def _large_labels(random: torch.Generator) -> tuple:
    return _areas(random, 1, (336, 448), 17), 17


def _choices(random: torch.Generator, batch: int, size: tuple[int, int], classes: int) -> tuple:
    """Labels, candidates and counts."""
    labels = _areas(random, batch, size, classes)
    counts = torch.stack([image.flatten().bincount(minlength=classes) for image in labels]).float()
    return labels, refinement.most_frequent(counts), counts


def _small_maps_to_choose(random: torch.Generator) -> Iterator[tuple]:
    # One class; some that occur nowhere; more than are candidates.
    for batch, size, classes in ((1, (5, 7), 1), (2, (9, 15), 8), (1, (24, 31), 40)):
        labels, candidates, counts = _choices(random, batch, size, classes)
        maps = torch.randn(*candidates.shape, *size, generator=random)
        yield maps, labels, candidates, counts
        yield maps.round(), labels, candidates, counts


def _large_maps_to_choose(random: torch.Generator) -> tuple:
    labels, candidates, counts = _choices(random, 1, (336, 448), 17)
    return torch.rand(1, 12, 336, 448, generator=random), labels, candidates, counts


def _small_cells(random: torch.Generator) -> Iterator[tuple]:
    # Cells that divide the pixels, that do not, that are large, and that are smaller than pixels.
    for batch, size, cells, classes in (
        (2, (16, 24), (4, 3), 5),
        (1, (13, 29), (3, 4), 40),
        (1, (70, 31), (2, 1), 3),
        (1, (3, 5), (4, 6), 1),
    ):
        labels, candidates, _ = _choices(random, batch, size, classes)
        yield labels, _picture(random, batch, size), candidates, cells


def _large_cells(random: torch.Generator) -> tuple:
    labels, candidates, _ = _choices(random, 1, (336, 448), 17)
    return labels, _picture(random, 1, (336, 448)).contiguous(), candidates, (42, 56)


def _small_regressions(random: torch.Generator) -> Iterator[tuple]:
    for number, cells in ((1, (9, 15)), (2, (2, 4))):
        colours = torch.rand(3, 3, *cells, generator=random)
        shares = torch.rand(3, number, *cells, generator=random)
        # Grey, and flat.
        colours[1] = colours[1, 0]
        colours[2] = 0.4
        yield colours, shares.round(decimals=1)


def _large_regressions(random: torch.Generator) -> tuple:
    return torch.rand(1, 3, 42, 56, generator=random), torch.rand(1, 12, 42, 56, generator=random)


def _small_around(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 3, 1, 1), (2, 2, 2, 5, 4), (1, 2, 15, 9)):
        yield (torch.randn(shape, generator=random).mT,)


def _large_around(random: torch.Generator) -> tuple:
    return (torch.randn(1, 4, 12, 42, 56, generator=random),)


def _small_coefficients(random: torch.Generator) -> Iterator[tuple]:
    for batch, size, cells, classes in (
        (2, (16, 24), (4, 6), 5),
        (1, (13, 29), (3, 4), 40),
        (1, (3, 5), (4, 6), 1),
    ):
        labels, candidates, counts = _choices(random, batch, size, classes)
        shape = (batch, 4, candidates.shape[1], *cells)
        picture = _picture(random, batch, size)
        coefficients = torch.randn(shape, generator=random)
        yield coefficients, labels, picture, candidates, counts
        # Candidates 0 and 1 are equal everywhere: the first wins.
        tied = coefficients.clone()
        tied[:, :, :2] = 2
        yield tied, labels, picture, candidates, counts


def _large_coefficients(random: torch.Generator) -> tuple:
    labels, candidates, counts = _choices(random, 1, (336, 448), 17)
    picture = _picture(random, 1, (336, 448)).contiguous()
    coefficients = torch.randn(1, 4, 12, 42, 56, generator=random)
    return coefficients, labels, picture, candidates, counts


def _small_pictures(random: torch.Generator) -> Iterator[tuple]:
    # Smaller than neighbours are far, and larger.
    for batch, size in ((1, (1, 1)), (2, (5, 20)), (1, (18, 35))):
        yield (_picture(random, batch, size),)
        # What the network sees, enlarged: some of it flat, but for rounding.
        coarse = torch.randn(batch, 3, 3, 4, generator=random)
        coarse[..., 1:] = -0.7
        yield (enlarging.enlarge(coarse, size),)


def _large_pictures(random: torch.Generator) -> tuple:
    return (torch.randn(1, 3, 480, 640, generator=random),)


def _small_steps(random: torch.Generator) -> Iterator[tuple]:
    for batch, number, size in ((1, 1, (1, 1)), (2, 3, (5, 20)), (1, 4, (18, 35))):
        weights = torch.randn(batch, 16, *size, generator=random).softmax(1)
        yield torch.rand(batch, number, *size[::-1], generator=random).mT, weights


def _large_steps(random: torch.Generator) -> tuple:
    weights = torch.rand(1, 16, 480, 640, generator=random)
    return torch.rand(1, 16, 480, 640, generator=random), weights / 8


def _small_appearances(random: torch.Generator) -> Iterator[tuple]:
    # Patches that divide the picture, that do not, and fewer than are looked at.
    for size, grid in (((16, 24), (2, 3)), ((17, 29), (2, 2)), ((6, 7), (1, 2))):
        picture, earlier = _picture(random, 2, size), torch.zeros(2, 12, *grid)
        cells = [2 * side for side in grid]
        same = F.pixel_unshuffle(F.interpolate(picture.float() / 255, cells, mode='area'), 2)
        # Of one image nothing is known, and what is seen of the other has moved.
        earlier[1] = (same + 0.03 * torch.randn(same.shape, generator=random)).roll(1, 3)[1]
        yield picture, earlier


def _large_appearances(random: torch.Generator) -> tuple:
    picture = _picture(random, 1, (336, 448)).contiguous()
    return picture, torch.rand(1, 12, 21, 28, generator=random)


def _blends(random: torch.Generator, batch: int, classes: int, grid: tuple[int, int]) -> tuple:
    probability, earlier = torch.randn(2, batch, classes, *grid, generator=random).softmax(2)
    weights = torch.randn(batch, 25, *grid, generator=random).softmax(1)
    return probability, earlier, weights.unflatten(1, (5, 5))


def _small_blends(random: torch.Generator) -> Iterator[tuple]:
    for classes, grid in ((1, (1, 1)), (2, (11, 13))):
        blends = _blends(random, 2, classes, grid)
        alike = torch.rand(2, *grid, generator=random) / 2 + 0.25
        # A first frame beside one of the same scene, which shows another one after it.
        for known in ([False, True], [True, True]):
            yield *blends, alike, torch.tensor(known), 0.7
            alike = alike * torch.tensor([1.0, 0.2])[:, None, None]


def _large_blends(random: torch.Generator) -> tuple:
    alike = torch.rand(1, 21, 28, generator=random)
    return *_blends(random, 1, 17, (21, 28)), alike, torch.ones(1, dtype=torch.bool), 0.5


#: By the function's name.
CASES = {
    '_embed_tokens': KernelCases(
        backbone._embed_tokens,
        _small_embedded,
        lambda random: _embedded(random, 1, 588, 768, torch.float16),
        within(1e-2),
    ),
    '_add_and_norm': KernelCases(
        backbone._add_and_norm,
        _small_added,
        lambda random: _added(random, 1, 589, 768, torch.float16),
        within(1e-2),
    ),
    '_quick_gelu': KernelCases(
        backbone._quick_gelu,
        _small_gelu,
        lambda random: (torch.randn(1, 589, 3072, generator=random).half(),),
        within(1e-2),
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
    'resize_bicubic': KernelCases(
        preprocessing.resize_bicubic, _small_frames(True), _large_frames(True), equal
    ),
    'resize_bilinear': KernelCases(
        preprocessing.resize_bilinear, _small_frames(False), _large_frames(False), equal
    ),
    'normalise': KernelCases(preprocessing.normalise, _small_pixels, _large_pixels, equal),
    '_centred': KernelCases(clustering._centred, _small_rows, _large_rows, close),
    '_core_points': KernelCases(clustering._core_points, _small_points, _large_points, equal),
    'dbscan_bounded': KernelCases(
        clustering.dbscan_bounded, _small_clusterings, _large_clusterings, equal
    ),
    '_mean_rows': KernelCases(clustering._mean_rows, _small_means, _large_means, close),
    'vote': KernelCases(clustering.vote, _small_votes, _large_votes, equal),
    'largest_enlarged': KernelCases(enlarging.largest_enlarged, _small_maps, _large_maps, equal),
    'labels_at_camera': KernelCases(_labels_at_camera, _small_published, _large_published, equal),
    'ids_and_confidence': KernelCases(
        _ids_and_confidence, _small_probabilities, _large_probabilities, equal
    ),
    'count_labels': KernelCases(refinement.count_labels, _small_labels, _large_labels, equal),
    'choose_among': KernelCases(
        refinement.choose_among, _small_maps_to_choose, _large_maps_to_choose, equal
    ),
    '_cell_means': KernelCases(refinement._cell_means, _small_cells, _large_cells, close),
    # Slopes are divided by a variance of 0.001 where the picture is flat, and the covariances are
    # small differences of means.
    '_regress': KernelCases(
        refinement._regress, _small_regressions, _large_regressions, within(1e-3)
    ),
    '_mean_around': KernelCases(refinement._mean_around, _small_around, _large_around, close),
    '_choose_filtered': KernelCases(
        refinement._choose_filtered, _small_coefficients, _large_coefficients, same_choice
    ),
    'neighbour_weights': KernelCases(
        pamr.neighbour_weights, _small_pictures, _large_pictures, close
    ),
    '_step': KernelCases(pamr._step, _small_steps, _large_steps, close),
    # Where nothing looks alike, weights are told by small differences of large distances.
    '_compare': KernelCases(
        smoothing._compare, _small_appearances, _large_appearances, within(1e-4)
    ),
    '_blend': KernelCases(smoothing._blend, _small_blends, _large_blends, close),
}
