"""Frames are scaled to the pixels that PIL and OpenCV give them, on any device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from cliptrase_ros.segmentation.model.preprocessing import (
    Framing,
    centre_crop_framing,
    mmcv_framing,
    network_input,
    resize_bicubic,
    resize_bilinear,
    whole_frame_framing,
)

FRAMINGS = [
    *(centre_crop_framing(size, 224, 16) for size in ((480, 640), (641, 333), (224, 301))),
    *(whole_frame_framing(size, 96, 16) for size in ((97, 1001), (50, 77), (3000, 180))),
    *(mmcv_framing(size, 112, 16) for size in ((375, 500), (300, 112), (56, 99))),
    # Shrunk by more than a hundred.
    Framing((1800, 40), (16, 33), (0, 0), (16, 33)),
]


def frames(height, width):
    blocks = np.random.RandomState(0).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    noise = np.random.RandomState(1).randint(0, 256, (height, width, 3))
    smooth = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
    mixed = 0.7 * smooth + 0.3 * noise
    # In the second one the bicubic filter overshoots.
    return torch.from_numpy(np.stack([mixed, 255 * (mixed > 127)]).astype(np.uint8))


@pytest.mark.parametrize('framing', FRAMINGS, ids=str)
@pytest.mark.parametrize('antialias', [True, False], ids=['pil', 'opencv'])
def test_on_any_device_the_pixels_are_those_of_the_library(framing, antialias, device):
    framing = replace(framing, antialias=antialias)
    pictures = frames(*framing.source)
    expected = network_input(pictures, framing)
    found = (resize_bicubic if antialias else resize_bilinear)(pictures.to(device), framing)
    assert torch.equal(found.cpu(), expected)


def test_pixels_are_those_of_one_call_of_pil():
    framing = centre_crop_framing((480, 640), 224, 16)
    (picture, _) = frames(*framing.source)
    resized = Image.fromarray(picture.numpy()).resize((298, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(resized.crop((37, 0, 37 + 224, 224)))).permute(2, 0, 1)
    assert torch.equal(network_input(picture[None], framing)[0], expected)
