"""The 7 x 7 median: as a network of PyTorch's operations, and as the kernel for GPUs."""

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from cliptrase_ros.segmentation.method.median import median_7x7


@pytest.mark.parametrize('size', [(56, 84), (7, 5), (4, 4)])
def test_borders_are_mirrored_as_scipy_does(size):
    maps = np.random.RandomState(2).rand(1, 3, *size).astype(np.float32)
    expected = [median_filter(m, size=7) for m in maps[0]]
    medians = median_7x7(torch.from_numpy(maps), torch.zeros(1, 3, dtype=torch.bool))
    np.testing.assert_array_equal(medians[0], expected)


def test_absent_images_are_below_all_others():
    absent = torch.tensor([[False, True], [True, False]])
    medians = median_7x7(torch.rand(2, 2, 8, 9), absent)
    assert (medians[absent] == -1).all() and (medians[~absent] >= 0).all()
