"""What is measured: a CLIP model with random weights, frames like a camera's, words."""

import zlib
from collections.abc import Callable

import cv2
import numpy as np
import open_clip
import torch
from torch import nn

ARCHITECTURE = 'ViT-B-16-quickgelu'

VOCABULARY = 'road; person; car; tree; building; grass; dog; chair; table; bottle; door; sign'
BACKGROUND = ('sky', 'wall', 'floor')

#: Number of classes of the vocabulary, without the background.
CLASSES = len(VOCABULARY.split(';'))


def vocabulary_of(classes: int) -> str:
    """The vocabulary, with made-up words added until it has so many classes."""
    return '; '.join([VOCABULARY, *(f'thing {i}' for i in range(CLASSES, classes))])


def random_clip(architecture: str = ARCHITECTURE) -> nn.Module:
    """A CLIP on the CPU whose weights mean nothing but keep signals at their scale.

    A freshly made open_clip model answers nearly the same to everything; here patches, clusters
    and labels differ as they do with trained weights. The same on every machine.
    """
    model = open_clip.CLIP(**open_clip.get_model_config(architecture)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if name == 'logit_scale':
            noise = torch.full(parameter.shape, float(np.log(100.0)))
        elif 'ln_' in name:
            noise = 0.1 * noise + float(name.endswith('weight'))
        elif name.endswith('bias') or 'embedding' in name:
            noise = 0.05 * noise
        else:
            noise = noise * max(1, parameter[0].numel()) ** -0.5
        parameter.copy_(noise)
    return model


def bare_encoder(
    architecture: str, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """open_clip's own `encode_image` for network inputs of this (height, width)."""
    config = open_clip.get_model_config(architecture)
    config['vision_cfg'] = {**config['vision_cfg'], 'image_size': size}
    model = open_clip.CLIP(**config).eval()
    return model.requires_grad_(False).to(device, dtype).encode_image


def camera_frame(seed: int, height: int, width: int) -> np.ndarray:
    """A frame with large and small regions, edges, shading and noise: uint8 (H, W, 3) RGB."""
    rng = np.random.default_rng(seed)
    frame = np.zeros((height, width, 3), np.float32)
    for cells, share in ((3, 0.5), (8, 0.3), (30, 0.2)):
        blocks = rng.uniform(0, 255, (cells, cells * width // height + 1, 3)).astype(np.float32)
        sharp = cv2.INTER_NEAREST if cells < 30 else cv2.INTER_CUBIC
        frame += share * cv2.resize(blocks, (width, height), interpolation=sharp)
    frame += np.linspace(-30, 30, height, dtype=np.float32)[:, None, None]
    frame += rng.normal(0, 4, frame.shape).astype(np.float32)
    return frame.clip(0, 255).astype(np.uint8)
