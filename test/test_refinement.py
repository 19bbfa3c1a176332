"""Labels whose boundaries follow the picture."""

import pytest
import torch

from cliptrase_ros.segmentation.method.refinement import refine_edges

GRID = (6, 8)
HEIGHT, WIDTH = 96, 128


@pytest.fixture(scope='module')
def refine(device):
    """`refine_edges` on the device, of tensors in host memory."""

    def refine(labels, pictures, grid, classes):
        return refine_edges(labels.to(device), pictures.to(device), grid, classes).cpu()

    return refine


def picture(edge, contrast=200):
    """Dark left of the column `edge`, bright right of it, with some noise."""
    noise = torch.randint(0, 20, (1, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(0))
    return (noise + contrast * (torch.arange(WIDTH) >= edge)).byte()


def halves(boundary, left=0, right=1):
    column = torch.where(torch.arange(WIDTH) < boundary, left, right)
    return column.expand(1, HEIGHT, WIDTH).clone()


def test_a_boundary_moves_to_the_edge_it_is_near(refine):
    refined = refine(halves(54), picture(64), GRID, 2)
    assert (refined == halves(64)).float().mean() > 0.995


def test_a_boundary_far_from_any_edge_stays(refine):
    refined = refine(halves(32), picture(120), GRID, 2)
    assert (refined[..., :100] == halves(32)[..., :100]).float().mean() > 0.98


def test_without_any_edge_labels_stay(refine):
    plain = torch.full((1, 3, HEIGHT, WIDTH), 90, dtype=torch.uint8)
    for labels in (halves(60), torch.zeros(1, HEIGHT, WIDTH, dtype=torch.int64)):
        assert (refine(labels, plain, GRID, 2) == labels).float().mean() > 0.99


def test_the_size_of_the_vocabulary_does_not_matter(refine):
    labels = halves(54, 7, 200)
    small = refine(halves(54), picture(64), GRID, 2)
    large = refine(labels, picture(64), GRID, 256)
    assert torch.equal(torch.where(small == 0, 7, 200), large)


def test_labels_too_rare_for_a_slot_keep_their_pixels(refine):
    # Thirty vertical stripes: more labels than are filtered.
    labels = halves(64, 30, 31)
    labels[:, 40:56] = torch.arange(WIDTH) // 4 % 30
    refined = refine(labels, picture(60), GRID, 32)
    assert set(refined.unique().tolist()) <= set(labels.unique().tolist())
    kept = [(refined == label)[labels == label].all() for label in range(30)]
    assert sum(kept) >= 20


def test_each_image_of_a_batch_is_refined_as_alone(refine):
    labels = torch.cat([halves(54), halves(70, 1, 2), halves(20)])
    pictures = torch.cat([picture(64), picture(60), picture(64, contrast=0)])
    together = refine(labels, pictures, GRID, 3)
    for index in range(3):
        alone = refine(labels[index, None], pictures[index, None], GRID, 3)
        assert torch.equal(together[index], alone[0])


def test_a_patch_size_that_cells_do_not_divide(refine):
    size = (5 * 14, 7 * 14)
    labels = torch.zeros(1, *size, dtype=torch.int64)
    labels[..., 50:] = 1
    shades = torch.zeros(1, 3, *size, dtype=torch.uint8)
    shades[..., 42:] = 200
    refined = refine(labels, shades, (5, 7), 2)
    assert (refined == (torch.arange(size[1]) >= 42)).float().mean() > 0.97
