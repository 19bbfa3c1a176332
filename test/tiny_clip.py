"""A CLIP small enough for tests."""

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
