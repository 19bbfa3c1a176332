"""The CLIPtrase engine: arrays and tensors in, arrays out. Nothing here imports ROS.

What others use is exported here; docs/python.md has examples.
"""

import importlib
from typing import TYPE_CHECKING, Any

from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    UNLABELLED,
    Vocabulary,
    VocabularyClass,
    VocabularyError,
    parse_vocabulary,
)

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.model.weights import ModelError
    from cliptrase_ros.segmentation.overlay import draw_overlay
    from cliptrase_ros.segmentation.segmenter import (
        EncodedVocabulary,
        Segmentation,
        Segmenter,
        load_segmenter,
    )
    from cliptrase_ros.segmentation.statistics import (
        ClassPresence,
        class_mask,
        classes_present,
        score_image,
    )

__all__ = [
    'DEFAULT_BACKGROUND',
    'UNLABELLED',
    'ClassPresence',
    'EncodedVocabulary',
    'ModelError',
    'ModelSettings',
    'Segmentation',
    'SegmentationSettings',
    'Segmenter',
    'Vocabulary',
    'VocabularyClass',
    'VocabularyError',
    'class_mask',
    'classes_present',
    'draw_overlay',
    'load_segmenter',
    'parse_vocabulary',
    'score_image',
]

# Imported on first use, because PyTorch takes seconds: settings and vocabularies do not need it.
_MODULES = {
    'ClassPresence': 'statistics',
    'EncodedVocabulary': 'segmenter',
    'ModelError': 'model.weights',
    'Segmentation': 'segmenter',
    'Segmenter': 'segmenter',
    'class_mask': 'statistics',
    'classes_present': 'statistics',
    'draw_overlay': 'overlay',
    'load_segmenter': 'segmenter',
    'score_image': 'statistics',
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
