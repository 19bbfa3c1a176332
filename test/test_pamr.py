"""Pixel-adaptive mask refinement against plain loops over pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cliptrase_ros.segmentation.method import pamr

OFFSETS = [
    (d * y, d * x) for d in (8, 16) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)
]


def picture(height=20, width=26, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def weights_by_loop(image):
    """(16, H, W) of an image (3, H, W), as the published formula says."""
    _, height, width = image.shape
    result = np.empty((16, height, width))
    for row, column in np.ndindex(height, width):
        around = np.stack(
            [
                image[:, np.clip(row + y, 0, height - 1), np.clip(column + x, 0, width - 1)]
                for y, x in OFFSETS
            ]
        )
        itself = image[:, row, column]
        spread = np.std([*around, itself, itself], axis=0, ddof=1)
        energy = -(np.abs(around - itself) / (1e-8 + 0.1 * spread)).mean(1)
        result[:, row, column] = np.exp(energy) / np.exp(energy).sum()
    return result


def refine_by_loop(maps, weights):
    for _ in range(10):
        padded = np.pad(maps, ((0, 0), (16, 16), (16, 16)), mode='edge')
        height, width = maps.shape[1:]
        maps = sum(
            weight * padded[:, 16 + y : 16 + y + height, 16 + x : 16 + x + width]
            for weight, (y, x) in zip(weights, OFFSETS, strict=True)
        )
    return maps


def test_maps_are_refined_as_published(device):
    image = picture()
    maps = torch.rand(1, 3, 20, 26, generator=torch.Generator().manual_seed(1))
    weights = pamr.neighbour_weights(image.to(device))
    expected = weights_by_loop(image[0].double().numpy())
    np.testing.assert_allclose(weights[0].cpu(), expected, atol=1e-5)
    refined = pamr.refine(maps.to(device), weights)[0].cpu()
    np.testing.assert_allclose(
        refined, refine_by_loop(maps[0].double().numpy(), expected), atol=1e-5
    )


def test_weights_made_in_bands_are_those_made_at_once(device, monkeypatch):
    image = picture().to(device)
    expected = pamr.neighbour_weights(image)
    monkeypatch.setattr(pamr, '_VALUES_AT_ONCE', 7 * 16 * 26)
    torch.testing.assert_close(pamr.neighbour_weights(image), expected, atol=1e-6, rtol=0)


def test_images_of_a_batch_do_not_see_each_other(device):
    images = torch.cat([picture(seed=0), picture(seed=1)]).to(device)
    maps = torch.rand(2, 3, 20, 26, generator=torch.Generator().manual_seed(1)).to(device)
    together = pamr.refine(maps, pamr.neighbour_weights(images))
    for index in range(2):
        one = slice(index, index + 1)
        alone = pamr.refine(maps[one], pamr.neighbour_weights(images[one]))
        torch.testing.assert_close(together[one], alone)


@pytest.mark.parametrize('size', [(1, 1), (5, 40), (64, 64)])
def test_a_flat_picture_of_any_size(device, size):
    flat = torch.full((1, 3, *size), 90.0, device=device)
    weights = pamr.neighbour_weights(flat)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 16))
    maps = torch.full((1, 2, *size), 0.3, device=device)
    torch.testing.assert_close(pamr.refine(maps, weights), maps)


def edge_picture(edge):
    """Dark left of the column `edge`, bright right of it, with some noise."""
    noise = torch.randint(0, 20, (1, 3, 96, 128), generator=torch.Generator().manual_seed(0))
    return (noise + 200 * (torch.arange(128) >= edge)).byte()


def largest(maps, size=(96, 128)):
    return F.interpolate(maps, size=size, mode='bilinear').argmax(1)


def refine_present(maps, picture_, device):
    found = pamr.refine_present(largest(maps).to(device), maps.to(device), picture_.to(device))
    return found.cpu()


def two_halves(maps=2, left=0, right=1):
    """Maps that are largest left and right of column 56."""
    small = torch.zeros(1, maps, 6, 8)
    small[:, left], small[:, right] = torch.linspace(1.0, 0.0, 8), torch.linspace(0.1, 1.1, 8)
    return small


def test_a_boundary_of_labels_moves_to_the_edge_it_is_near(device):
    before, after = largest(two_halves()), refine_present(two_halves(), edge_picture(68), device)
    right = (torch.arange(128) >= 68).expand(1, 96, 128)
    assert ((before == 1) == right).float().mean() < 0.95
    assert ((after == 1) == right).float().mean() > 0.99


def test_present_maps_refined_are_all_maps_refined(device):
    """As long as no more than 12 are largest anywhere."""
    maps = torch.rand(1, 8, 6, 8, generator=torch.Generator().manual_seed(0))
    enlarged = F.interpolate(maps.to(device), size=(96, 128), mode='bilinear')
    picture_ = edge_picture(60).to(device)
    expected = pamr.refine(enlarged, pamr.neighbour_weights(picture_)).argmax(1).cpu()
    assert torch.equal(refine_present(maps, edge_picture(60), device), expected)


def test_maps_that_are_largest_nowhere_change_nothing(device):
    small = refine_present(two_halves(), edge_picture(64), device)
    many = two_halves(256, 7, 200)
    many[:, :7] = many[:, 8:200] = many[:, 201:] = -1
    found = refine_present(many, edge_picture(64), device)
    assert torch.equal(torch.where(small == 0, 7, 200), found)


def test_pixels_of_the_thirteenth_map_stay(device):
    # Of 20 maps each is largest somewhere, the later ones at fewer pixels.
    maps = torch.rand(1, 20, 6, 8, generator=torch.Generator().manual_seed(0))
    maps -= torch.linspace(0, 0.3, 20)[:, None, None]
    before, after = largest(maps), refine_present(maps, edge_picture(60), device)
    pixels = before.flatten().bincount(minlength=20)
    rare = (pixels > 0) & (pixels < pixels.sort(descending=True).values[11])
    assert rare.any()
    assert torch.equal(after[rare[before]], before[rare[before]])
    assert not torch.equal(after, before)
