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


def outlier_clip() -> torch.nn.Module:
    """The same with what makes each step of SC-CLIP count."""
    model = reference_clip()
    # In place: these tensors are the parameters.
    state = model.state_dict()
    # Blocks add less, so that patches and words differ by what they show and say.
    for name, value in state.items():
        if name.endswith(('out_proj.weight', 'c_proj.weight')):
            value *= 0.3
    # Start and end of every prompt say less still, and so do positions in it.
    state['token_embedding.weight'][[49406, 49407]] *= 0.02
    state['positional_embedding'] *= 0.02
    # Outliers: a corner of 2 x 2 patches, one of which has no other neighbours, and two more.
    state['visual.ln_pre.weight'][0] = 5
    state['visual.positional_embedding'][[1, 2, 15, 16, 66, 131], 0] = 10
    # What patches attend to outweighs the [CLS] token that is added.
    state['visual.transformer.resblocks.11.attn.out_proj.weight'] *= 20
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
