"""A small CLIP with deterministic weights that mean nothing but make implementations comparable."""

import zlib

import numpy as np
import open_clip
import torch

MODEL_CONFIG = {
    'embed_dim': 64,
    'quick_gelu': True,
    'vision_cfg': {
        'image_size': 224,
        'layers': 12,
        'width': 128,
        'head_width': 64,
        'patch_size': 16,
    },
    'text_cfg': {
        'context_length': 77,
        'vocab_size': 49408,
        'width': 64,
        'heads': 1,
        'layers': 2,
    },
}


def reference_clip() -> torch.nn.Module:
    """open_clip CLIP of `MODEL_CONFIG`; each tensor depends on its name and shape alone."""
    model = open_clip.model.CLIP(**MODEL_CONFIG).eval()
    state = {
        name: torch.from_numpy(_tensor(name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    # RandomState's stream is frozen for good, unlike that of the newer generators.
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name == 'logit_scale':
        value = np.log(100.0) * np.ones(shape)
    elif '.ln_' in name or name.startswith('ln_'):
        value = 0.1 * noise + name.endswith('weight')
    elif name.endswith('bias') or 'embedding' in name:
        value = 0.05 * noise
    else:
        value = noise * np.prod(shape[1:]) ** -0.5
    return np.asarray(value, np.float32)
