"""Probabilities shared among patches that correlate."""

import torch

from cliptrase_ros.segmentation.method.propagation import propagate

GRID = (4, 6)
PATCHES = 24


def two_things():
    """Correlation of a left and a right half that have nothing in common."""
    left = torch.arange(PATCHES) % 6 < 3
    return (left[:, None] == left).float()[None], left.view(GRID)


def test_a_patch_in_doubt_follows_those_it_correlates_with():
    correlation, left = two_things()
    probability = torch.stack([left.float(), 1 - left.float()])[None] * 0.8 + 0.1
    probability[0, :, 1, 1] = torch.tensor([0.45, 0.55])
    shared = propagate(probability, correlation)
    assert torch.equal(shared.max(1).indices[0] == 0, left)
    torch.testing.assert_close(shared.sum(1), torch.ones(1, *GRID))


def test_the_strength_of_the_correlation_does_not_matter():
    correlation, left = two_things()
    noise = torch.rand(1, 3, *GRID, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        propagate(noise.softmax(1), correlation), propagate(noise.softmax(1), 0.1 * correlation)
    )


def test_without_any_structure_all_patches_agree():
    noise = torch.rand(2, 3, *GRID, generator=torch.Generator().manual_seed(0)).softmax(1)
    shared = propagate(noise, torch.zeros(2, PATCHES, PATCHES))
    mean = noise.mean((2, 3), keepdim=True).expand_as(shared)
    torch.testing.assert_close(shared, mean)
