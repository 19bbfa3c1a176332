"""From maps of patches to labels of pixels."""

import pytest
import torch
import torch.nn.functional as F

from cliptrase_ros.segmentation.method import enlarging
from cliptrase_ros.segmentation.method.enlarging import label_probability, largest_enlarged
from cliptrase_ros.segmentation.model.label_table import label_table


def random_maps(kind, batch, count, grid):
    generator = torch.Generator().manual_seed(0)
    if kind == 'noise':
        return torch.randn(batch, count, *grid, generator=generator)
    if kind == 'levels':
        # Ties between patches, and all along edges between them.
        return torch.randint(-3, 3, (batch, count, *grid), generator=generator).float()
    # As of pictures: few maps are large in one place. Some are there twice.
    small = [max(1, side // 4) for side in grid]
    maps = torch.randn(batch, count, *small, generator=generator) ** 3
    maps = F.interpolate(maps, size=grid, mode='bicubic')
    maps[:, count // 2 :] = maps[:, : count - count // 2].clone()
    # Columns that are padding, and logarithms of nothing.
    maps[:, 1], maps[:, 2] = -1e6, -85.0
    return maps


@pytest.mark.parametrize('kind', ['noise', 'levels', 'picture'])
@pytest.mark.parametrize(
    ('batch', 'count', 'grid', 'scale'),
    [
        (1, 70, (21, 37), 16),
        (2, 40, (21, 21), 16),
        (1, 34, (84, 148), 4),
        (1, 40, (14, 16), 14),
        (1, 33, (7, 20), 32),
        (1, 40, (1, 30), 16),
        (1, 40, (30, 1), 16),
        (1, 40, (37, 8), 16),
        (1, 40, (5, 9), 8),
    ],
)
def test_the_largest_of_many_maps_is_that_of_all_enlarged(kind, batch, count, grid, scale):
    maps = random_maps(kind, batch, count, grid)
    size = tuple(scale * side for side in grid)
    enlarged = F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
    assert torch.equal(largest_enlarged(maps, size), enlarged.max(1).indices)


def test_the_largest_is_found_at_sizes_that_are_no_multiples():
    maps = random_maps('picture', 2, 70, (9, 13))
    enlarged = F.interpolate(maps, size=(150, 210), mode='bilinear', align_corners=False)
    assert torch.equal(largest_enlarged(maps, (150, 210)), enlarged.max(1).indices)


def test_of_many_maps_few_are_enlarged(monkeypatch):
    values = []

    def enlarge(maps, size):
        values.append(maps.shape[1] * size[0] * size[1])
        return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)

    monkeypatch.setattr(enlarging, 'enlarge', enlarge)
    largest_enlarged(random_maps('picture', 1, 200, (21, 37)), (336, 592))
    assert sum(values) < 200 * 336 * 592 / 2
    # All that are enlarged at a time, in a tile.
    assert max(values) < 5 * 336 * 592


def test_what_is_no_number_does_not_stop_it():
    maps = random_maps('picture', 1, 40, (21, 37))
    maps[0, 7, 10, 20] = torch.nan
    labels = largest_enlarged(maps, (336, 592))
    without = largest_enlarged(maps.nan_to_num(), (336, 592))
    far = torch.ones(336, 592, dtype=torch.bool)
    far[9 * 16 : 12 * 16, 19 * 16 : 22 * 16] = False
    assert torch.equal(labels[0, far], without[0, far])


def test_confidence_is_the_probability_of_the_label_with_background_as_one(device):
    features = torch.zeros(5, 1, device=device)
    table = label_table(features, range(5), [7, 3, 9], 255, 255, 100.0)
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 4, (2, 24, 30), generator=torch.Generator().manual_seed(1))
    probability = logits.softmax(1)
    probability = torch.cat([probability[:, :3], probability[:, 3:].sum(1, keepdim=True)], 1)
    enlarged = F.interpolate(probability, size=(24, 30), mode='bilinear', align_corners=False)
    expected = enlarged.gather(1, labels[:, None])[:, 0]
    found = label_probability(logits.softmax(1).to(device), labels.to(device), table)
    torch.testing.assert_close(found.cpu(), expected)
