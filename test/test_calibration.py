"""The steps of SC-CLIP against plain loops over tokens."""

import numpy as np
import open_clip
import pytest
import torch
from reference_weights import MODEL_CONFIG, reference_clip

from cliptrase_ros.segmentation.model import calibration
from cliptrase_ros.segmentation.model.backbone import DenseBackbone

GRID = (5, 8)


def tokens(windows, count, width=24, seed=0):
    return torch.randn(windows, count, width, generator=torch.Generator().manual_seed(seed))


def scores_by_loop(patches, neighbours):
    """Of one window, (N, W), as the published formula says."""
    distance = ((patches[:, None] - patches[None]) ** 2).sum(-1)
    order = np.argsort(distance, axis=1)[:, 1 : neighbours + 1]
    reach = np.array([row[nearest[-1]] for row, nearest in zip(distance, order, strict=True)])
    return np.array([reach[i] * np.mean(1 / reach[order[i]]) for i in range(len(patches))])


@pytest.mark.parametrize(('count', 'neighbours'), [(40, 30), (31, 30), (12, 11), (2, 1)])
def test_outlier_scores(device, count, neighbours):
    patches = tokens(2, count)
    found = calibration.outlier_scores(patches.to(device)).cpu()
    for scores, window in zip(found, patches, strict=True):
        expected = scores_by_loop(window.double().numpy(), neighbours)
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_outlier_scores_without_float64(device):
    """Of tokens as towers make them, with channels that are large in all of them."""
    patches = tokens(2, 196).to(device)
    patches[..., :2] += 30
    found = calibration.outlier_scores(patches, is_exact=False)
    torch.testing.assert_close(found, calibration.outlier_scores(patches), rtol=1e-4, atol=0)


@pytest.mark.parametrize('count', [2, 3, 50, 196])
@pytest.mark.parametrize('seed', range(5))
def test_tokens_that_are_all_alike(device, count, seed):
    """Their scores are finite, and each attends to something however the mean is rounded."""
    alike = tokens(1, 1, seed=seed).expand(1, count, -1).to(device)
    assert calibration.outlier_scores(alike).isfinite().all()
    attention = calibration.attention_to_similar(calibration.similarity(alike))
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))


# 441 - 1 is a multiple of 20: the quantile is the 23rd largest score itself.
@pytest.mark.parametrize(
    ('count', 'flagged'), [(1, 0), (2, 1), (30, 2), (196, 10), (400, 20), (441, 22), (588, 30)]
)
def test_how_many_are_outliers(device, count, flagged):
    scores = torch.randn(3, count, generator=torch.Generator().manual_seed(0)).to(device)
    found = calibration.flag_outliers(scores)
    assert found.sum(1).tolist() == [flagged] * 3
    if count not in (1, 441):
        assert torch.equal(found, scores > scores.quantile(0.95, 1, keepdim=True))


def test_outliers_become_the_mean_of_neighbours_that_are_none(device):
    patches = tokens(1, 40)
    flagged = torch.zeros(GRID, dtype=torch.bool)
    flagged[0, 0] = flagged[2, 6] = flagged[2, 7] = True
    # A whole corner: the outermost has no neighbour that is not flagged.
    flagged[3:, :2] = True
    found = calibration.repair(patches.to(device), flagged.view(1, -1).to(device), GRID).cpu()
    on_grid, repaired = patches.view(*GRID, -1), found.view(*GRID, -1)
    for row, column in np.ndindex(GRID):
        around = [
            on_grid[r, c]
            for r in range(max(row - 1, 0), min(row + 2, GRID[0]))
            for c in range(max(column - 1, 0), min(column + 2, GRID[1]))
            if not flagged[r, c]
        ]
        expected = on_grid[row, column]
        if flagged[row, column] and around:
            expected = torch.stack(around).mean(0)
        np.testing.assert_allclose(repaired[row, column], expected, atol=1e-6)
    assert torch.equal(repaired[4, 0], on_grid[4, 0])
    repairable = calibration.repairable(flagged.view(1, -1), GRID)[0].view(GRID)
    assert torch.equal(repairable, (repaired != on_grid).any(-1))


def test_aggregation_and_attention_by_similarity(device):
    patches = tokens(1, 20, width=3)
    cosines = calibration.similarity(patches.to(device)).cpu()[0].double().numpy()
    unit = patches[0].double() / patches[0].double().norm(dim=1, keepdim=True)
    np.testing.assert_allclose(cosines, unit @ unit.T, atol=1e-6)

    weights = np.where(cosines < 0.4, 0, cosines)
    expected = weights @ patches[0].double().numpy() / (weights.sum(1, keepdims=True) + 1e-6)
    found = calibration.aggregate(
        patches, calibration.without_low(torch.tensor(cosines[None]).float())
    )
    np.testing.assert_allclose(found[0], expected, atol=1e-5)

    above = np.where(cosines < cosines.mean(), 0, np.exp(3 * (cosines - cosines.mean())))
    attention = calibration.attention_to_similar(torch.tensor(cosines[None]).float())
    np.testing.assert_allclose(attention[0], above / above.sum(1, keepdims=True), atol=1e-6)


@pytest.fixture(scope='module')
def backbone(device):
    return DenseBackbone(reference_clip().requires_grad_(False).visual.to(device))


def test_windows_of_a_batch_do_not_see_each_other(backbone, device):
    pixels = torch.randn(3, 3, 80, 128, generator=torch.Generator().manual_seed(0)).to(device)
    together = backbone(pixels, 'calibrated').tokens
    assert together.shape == (3, 1 + 40, 64)
    for window, found in zip(pixels, together, strict=True):
        alone = backbone(window[None], 'calibrated').tokens[0]
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_what_exceeds_whole_patches_is_not_looked_at(backbone, device):
    pixels = torch.randn(1, 3, 90, 139, generator=torch.Generator().manual_seed(0)).to(device)
    dense, cropped = backbone(pixels, 'calibrated'), backbone(pixels[..., :80, :128], 'calibrated')
    assert dense.grid == (5, 8)
    assert torch.equal(dense.tokens, cropped.tokens)


@pytest.mark.parametrize('size', [(16, 16), (16, 48), (64, 64)])
def test_a_window_of_a_few_patches(backbone, device, size):
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = backbone(pixels, 'calibrated').tokens
    assert tokens.isfinite().all()
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones_like(tokens[..., 0]))


@pytest.mark.parametrize('patch_size', [14, 32])
@pytest.mark.parametrize('layers', [3, 4, 24])
def test_towers_of_other_patches_and_depths(device, patch_size, layers):
    vision = MODEL_CONFIG['vision_cfg'] | {'patch_size': patch_size, 'layers': layers}
    torch.manual_seed(0)
    clip = open_clip.model.CLIP(**MODEL_CONFIG | {'vision_cfg': vision}).eval()
    backbone = DenseBackbone(clip.requires_grad_(False).visual.to(device))
    pixels = torch.randn(1, 3, 100, 140, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = backbone(pixels, 'calibrated').tokens
    grid = 100 // patch_size, 140 // patch_size
    assert tokens.shape == (1, 1 + grid[0] * grid[1], 64)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones_like(tokens[..., 0]))


def test_blocks_for_towers_of_any_depth():
    small, large = calibration.blocks_for(12), calibration.blocks_for(24)
    assert (small.similar, small.low, [*small.fused]) == (9, 4, [4, 5, 6, 7, 8, 9, 10])
    assert (large.similar, large.low, large.fused[0], large.fused[-1]) == (17, 7, 9, 19)
    assert (small.cls_share, large.cls_share) == (0.3, 0.1)
    for depth in range(3, 40):
        use = calibration.blocks_for(depth)
        assert 1 <= use.low < use.similar < depth
        assert 1 <= use.fused[0] < use.fused[-1] < depth or depth < 5
