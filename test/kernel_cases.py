"""Inputs for every function that has a kernel: what it gives must be what its reference gives.

`test_kernels.py` compares the two in Triton's interpreter, `benchmark/gpu_check.py` on a GPU.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.method import median, pamr, refinement, smoothing


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


def equal(found: Tensor, expected: Tensor) -> None:
    """To the last bit."""
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
    for size in ((3, 3), (7, 5), (9, 12), (12, 13)):
        # Negative values and ties, in images that are not contiguous.
        images = torch.randn(2, 3, *reversed(size), generator=random).mT
        images[0, 0, :2] = 0.25
        images[0, 1] = images[0, 1].round()
        yield images, absent


def _large_medians(random: torch.Generator) -> tuple:
    return torch.rand(1, 32, 84, 112, generator=random), torch.arange(32)[None] % 2 == 1


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
    counts = refinement.count_labels(labels, classes)
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


def _small_means(random: torch.Generator) -> Iterator[tuple]:
    for shape in ((1, 3, 1, 1), (2, 2, 2, 5, 4), (1, 2, 15, 9)):
        yield (torch.randn(shape, generator=random).mT,)


def _large_means(random: torch.Generator) -> tuple:
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
        yield (refinement.enlarge(coarse, size),)


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
        same, _, _ = smoothing._compare(picture, earlier)
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
    'median_7x7': KernelCases(median.median_7x7, _small_medians, _large_medians, equal),
    'count_labels': KernelCases(refinement.count_labels, _small_labels, _large_labels, equal),
    'choose_among': KernelCases(
        refinement.choose_among, _small_maps_to_choose, _large_maps_to_choose, equal
    ),
    'cell_means': KernelCases(refinement._cell_means, _small_cells, _large_cells, close),
    # Slopes are divided by a variance of 0.001 where the picture is flat, and the covariances are
    # small differences of means.
    'regress': KernelCases(
        refinement._regress, _small_regressions, _large_regressions, within(1e-3)
    ),
    'mean_around': KernelCases(refinement._mean_around, _small_means, _large_means, close),
    'choose_filtered': KernelCases(
        refinement._choose_filtered, _small_coefficients, _large_coefficients, same_choice
    ),
    'neighbour_weights': KernelCases(
        pamr.neighbour_weights, _small_pictures, _large_pictures, close
    ),
    'pamr_step': KernelCases(pamr._step, _small_steps, _large_steps, close),
    # Where nothing looks alike, weights are told by small differences of large distances.
    'compare': KernelCases(
        smoothing._compare, _small_appearances, _large_appearances, within(1e-4)
    ),
    'blend': KernelCases(smoothing._blend, _small_blends, _large_blends, close),
}
