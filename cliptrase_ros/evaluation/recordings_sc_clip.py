"""Files with what published SC-CLIP gave for a picture."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cliptrase_ros.evaluation.recording_checks import (
    ArrayKinds,
    RecordingError,
    are_indices,
    check_arrays,
    check_consistent,
    is_picture,
)
from cliptrase_ros.segmentation.settings import Method, SegmentationSettings, is_too_elongated

#: Rows of a similarity that are recorded, where not all are.
SIMILARITY_ROWS = slice(None, None, 8)

#: Logits are recorded at every 16th pixel from pixel 8.
SAMPLED = slice(8, None, 16)

#: Rows of the resized picture that are recorded.
RESIZED_ROWS = slice(None, None, 32)

#: Steps of SC-CLIP of which lengths and three rows are recorded, in order.
SC_CLIP_STEPS = (
    'block11',
    'repaired11',
    'repaired9',
    'aggregated1',
    'attention1',
    'aggregated2',
    'attention2',
    'aggregated3',
    'before_ln_post',
)

#: Every array of a recording.
ARRAYS: ArrayKinds = {
    'settings': ('U', 0),
    'image': ('u', 3),
    'classes': ('U', 1),
    'query_class': ('i', 1),
    'text_features': ('f', 2),
    'resized_crc32': ('u', 0),
    'resized_rows': ('u', 3),
    'windows': ('i', 2),
    'lof_scores': ('f', 1),
    'flagged': ('i', 2),
    'repaired': ('b', 1),
    'similarity_mid': ('f', 2),
    'similarity_mid_mean': ('f', 0),
    'similarity_low_cut': ('f', 2),
    **{f'norm_{step}': ('f', 1) for step in SC_CLIP_STEPS},
    **{f'probe_{step}': ('f', 2) for step in SC_CLIP_STEPS},
    'feature_tokens': ('i', 1),
    'features': ('f', 2),
    'feature_norm': ('f', 1),
    'first_window_logits': ('f', 3),
    'logits_sampled': ('f', 3),
    'probability': ('f', 2),
    'labels': ('i', 2),
}
#: Where PAMR is on, this one as well.
PAMR_ARRAYS: ArrayKinds = {'logits_before_pamr_sampled': ('f', 3)}

#: Settings that say which blocks were used; what the engine uses depends on the model.
BLOCK_SETTINGS = ('similarity_block', 'low_block', 'fused_blocks', 'res_cls')

# What the engine has of the other settings.
_AVAILABLE = {
    'longest': (2048,),
    'mean': ([122.771, 116.746, 104.094],),
    'std': ([68.501, 66.632, 70.323],),
    'beta': (0.4,),
    'lof_neighbours': (30,),
    'lof_contamination': (0.05,),
    'pamr_steps': (0, 10),
    'pamr_dilations': ([], [8, 16]),
}

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class ScClipRecording:
    """What published SC-CLIP gave for one picture; Q phrases, N patches of the first window.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        phrases: Of all classes, in order.
        phrase_classes: The class of each.
        resolution: Shorter side fed to CLIP, pixels.
        method: With the scale, the windows, the least area and the refinement of the recording.
        min_confidence: 0..1; pixels whose class is less probable are class 0.
        blocks: Which blocks were used, and how much of [CLS] was added, as the file says it.
        steps: The other arrays, by their names in the file, see `ARRAYS`. `flagged` (windows, k)
            numbers tokens. Of the first window are `lof_scores` (N,), `repaired` (N,), the
            similarities (rows, N), `norm_` (N,) and `probe_` (3, W) of `SC_CLIP_STEPS`, `features`
            of some tokens before they are of unit length, and `first_window_logits` (Q, h, w).
    """

    image: np.ndarray
    phrases: tuple[str, ...]
    phrase_classes: tuple[int, ...]
    resolution: int
    method: Method
    min_confidence: float
    blocks: dict[str, Any]
    steps: dict[str, np.ndarray]

    @property
    def has_background(self) -> bool:
        """Whether class 0 is what is none of the others, because a threshold leads there."""
        return bool(self.min_confidence or self.method.min_area)


def sc_clip_recording(arrays: dict[str, np.ndarray]) -> ScClipRecording:
    """Make a recording of the arrays of a file; raises RecordingError without the file's name."""
    check_arrays(arrays, {'settings': ARRAYS['settings']}, 'SC-CLIP')
    settings = _settings(str(arrays['settings']))
    method = _method(settings)
    wanted = ARRAYS | (PAMR_ARRAYS if method.refinement == 'pamr' else {})
    check_arrays(arrays, wanted, 'SC-CLIP')
    steps = {name: arrays[name] for name in wanted if name != 'settings'}
    image, classes = steps.pop('image'), steps.pop('classes')
    # A line a class, its synonyms separated by comma and space.
    synonyms = [str(line).split(', ') for line in classes]
    phrases = tuple(word for words in synonyms for word in words)
    phrase_classes = tuple(number for number, words in enumerate(synonyms) for _ in words)

    patches, windows = len(steps['lof_scores']), len(steps['windows'])
    size = image.shape[:2]
    sampled = (len(phrases), *(len(range(length)[SAMPLED]) for length in size))
    similarities = {(rows, patches) for rows in (patches, len(range(patches)[SIMILARITY_ROWS]))}
    logits = steps['first_window_logits'].shape
    tokens = steps['feature_tokens']
    check_consistent(
        image=is_picture(image) and not is_too_elongated(*size),
        classes=all(phrases),
        query_class=steps['query_class'].tolist() == list(phrase_classes) != [],
        text_features=len(steps['text_features']) == len(phrases),
        windows=windows > 0 and steps['windows'].shape[1] == 4,
        flagged=len(steps['flagged']) == windows and are_indices(steps['flagged'], patches),
        repaired=len(steps['repaired']) == patches,
        similarity_mid=steps['similarity_mid'].shape in similarities,
        similarity_low_cut=steps['similarity_low_cut'].shape in similarities,
        **{f'norm_{step}': len(steps[f'norm_{step}']) == patches for step in SC_CLIP_STEPS},
        **{f'probe_{step}': len(steps[f'probe_{step}']) == 3 for step in SC_CLIP_STEPS},
        feature_tokens=are_indices(tokens, patches),
        features=steps['features'].shape == (len(tokens), steps['text_features'].shape[1]),
        feature_norm=len(steps['feature_norm']) == patches,
        first_window_logits=(logits[0], logits[1] * logits[2]) == (len(phrases), patches),
        **{
            name: steps[name].shape == sampled
            for name in ('logits_sampled', *PAMR_ARRAYS)
            if name in steps
        },
        probability=steps['probability'].shape == size,
        labels=steps['labels'].shape == size and are_indices(steps['labels'], len(classes)),
    )
    return ScClipRecording(
        image,
        phrases,
        phrase_classes,
        settings['resolution'],
        method,
        settings['prob_thd'],
        {name: settings.get(name) for name in BLOCK_SETTINGS},
        steps,
    )


def _settings(text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise RecordingError(f'has settings that are no JSON: {error}') from error
    method = settings.get('method') if isinstance(settings, dict) else None
    if method != 'SC-CLIP':
        raise RecordingError(
            f'is a recording of {method or "an unnamed method"}, which this engine has not; it '
            'verifies recordings of CLIPtrase and of SC-CLIP'
        )
    for name, only in _AVAILABLE.items():
        if settings.get(name) not in only:
            has = ' or '.join(map(json.dumps, only))
            raise RecordingError(
                f'says {name} {json.dumps(settings.get(name))}; this engine has {has}'
            )
    return settings


def _method(settings: dict[str, Any]) -> Method:
    steps, dilations = settings['pamr_steps'], settings['pamr_dilations']
    if steps and not dilations:
        raise RecordingError(f'says pamr_steps {steps} and no pamr_dilations')
    crop = settings.get('slide_crop')
    is_whole = _is_number(crop) and crop <= 0
    try:
        declared = SegmentationSettings(
            preset='sc_clip',
            resolution=settings.get('resolution'),
            min_confidence=settings.get('prob_thd'),
            window=0 if is_whole else crop,
            stride=settings.get('slide_stride'),
            # The published code refines windows alone.
            refinement='pamr' if steps and not is_whole else 'none',
        )
    except ValueError as error:
        raise RecordingError(
            'has a resolution, prob_thd, slide_crop or slide_stride that this engine has not: '
            f'{error}'
        ) from error
    scale, area = settings.get('logit_scale'), settings.get('area_thd')
    if not _is_number(scale) or scale <= 0:
        raise RecordingError(f'says logit_scale {json.dumps(scale)}; it must be a number above 0')
    if area is not None and not (_is_number(area) and 0 <= area <= 1):
        raise RecordingError(f'says area_thd {json.dumps(area)}; it must be null or 0 to 1')
    return replace(declared.method, logit_scale=scale, min_area=area or 0.0)


def _is_number(value: Any) -> bool:
    # JSON as Python reads it has NaN, infinity, and whole numbers of any length.
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= _LARGEST
