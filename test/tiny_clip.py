"""A CLIP small enough for tests, and how open_clip comes to know it."""

import json

TINY_CONFIG = {
    'embed_dim': 32,
    'quick_gelu': True,
    'vision_cfg': {
        'image_size': 64,
        'layers': 3,
        'width': 64,
        'head_width': 32,
        'patch_size': 16,
    },
    'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 2},
}


def add_architecture(folder, name, config):
    """Make a model configuration known to open_clip by a name, by a file in a folder."""
    # Not before threads are limited, see conftest.py.
    import open_clip

    path = folder / f'{name}.json'
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
