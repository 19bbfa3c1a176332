"""Resizing where PIL does not do it: as PyTorch's filter does, at any scale."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cliptrase_ros.segmentation.model.preprocessing import (
    _LARGEST_SCALE,
    _resize_by_products,
    resize,
)


def frame(height, width):
    blocks = np.random.RandomState(0).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    noise = np.random.RandomState(1).randint(0, 256, (height, width, 3))
    smooth = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    return (0.7 * smooth + 0.3 * noise).astype(np.uint8)


def batch(*size):
    return torch.from_numpy(frame(*size))[None].permute(0, 3, 1, 2).float()


def by_torch(images, size):
    return F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)


@pytest.mark.parametrize(
    ('source', 'size'), [((1000, 1500), (16, 24)), ((777, 1003), (7, 300)), ((1600, 60), (16, 60))]
)
def test_products_resize_as_pil_does(source, size):
    found = _resize_by_products(batch(*source), size)
    assert (found - by_torch(batch(*source), size)).abs().max() < 0.01
    picture = Image.fromarray(frame(*source)).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = found[0].permute(1, 2, 0).round().clamp(0, 255).numpy()
    difference = np.abs(pixels - np.asarray(picture, np.float32))
    # PIL rounds between the two passes.
    assert difference.max() <= 1 and (difference > 0).mean() < 0.03


def test_frames_that_the_filter_has_no_room_for_are_resized_by_products():
    small, large = batch(8 * _LARGEST_SCALE, 64), batch(8 * _LARGEST_SCALE + 1, 64)
    assert torch.equal(resize(small, (8, 8)), by_torch(small, (8, 8)))
    assert torch.equal(resize(large, (8, 8)), _resize_by_products(large, (8, 8)))
    # What the filter takes of the 48 KiB of shared memory that blocks of 32 threads have on CUDA:
    # weights along a row for each thread, those along a column, and as many values for each.
    taps = 2 * math.ceil(2 * _LARGEST_SCALE) + 1
    assert 4 * taps * (32 + 1 + 32) < 48 * 1024
