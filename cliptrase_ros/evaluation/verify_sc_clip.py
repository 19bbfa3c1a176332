"""Recorded steps of published SC-CLIP, compared one by one with those of the engine."""

import zlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.evaluation.recordings import (
    RESIZED_ROWS,
    SAMPLED,
    SC_CLIP_STEPS,
    SIMILARITY_ROWS,
    RecordingError,
    ScClipRecording,
)
from cliptrase_ros.segmentation.model.backbone import Calibration, DenseBackbone, calibration_blocks
from cliptrase_ros.segmentation.model.calibration import repairable
from cliptrase_ros.segmentation.model.label_table import LabelTable, label_table
from cliptrase_ros.segmentation.model.preprocessing import framing_of, network_input
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.run.pipeline import Pipeline
from cliptrase_ros.segmentation.run.pixels import PhraseMaps, label_pixels, phrase_maps
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

#: Share of labels that has to be equal in half precision. Where PAMR and `area_thd` come together,
#: half precision breaks the published code itself, and nothing is to be compared with.
SC_CLIP_HALF_PRECISION_SHARE = 0.99


@dataclass(frozen=True)
class _Bar:
    """Which arrays of a recording a stage compares, and how near they have to be.

    Attributes:
        arrays: Their names.
        within: Most that a number may differ by.
        relative: Whether that is meant as a share of the array's largest number.
        share: Of the numbers that has to be as near. Numbers at pixels or of pairs of patches are
            many, and a few lie within rounding of a threshold.
    """

    arrays: tuple[str, ...]
    within: float = 1e-5
    relative: bool = False
    share: float = 1.0


def _step(name: str) -> _Bar:
    return _Bar((f'norm_{name}', f'probe_{name}'), relative=True)


# What is recorded in half precision has three digits.
_BARS = {
    'picture': _Bar(('resized_crc32', 'resized_rows'), within=0),
    'text features': _Bar(('text_features',)),
    'windows': _Bar(('windows',), within=0),
    'block11': _step('block11'),
    'outlier scores': _Bar(('lof_scores',), relative=True),
    'outliers': _Bar(('flagged',), within=0),
    'repaired': _Bar(('repaired',), within=0),
    'repaired11': _step('repaired11'),
    'repaired9': _step('repaired9'),
    'similarity': _Bar(('similarity_mid',), within=5e-4, share=0.9999),
    'mean similarity': _Bar(('similarity_mid_mean',)),
    'aggregated1': _step('aggregated1'),
    'attention1': _step('attention1'),
    'low similarity': _Bar(('similarity_low_cut',), within=5e-4, share=0.9999),
    'aggregated2': _step('aggregated2'),
    'attention2': _step('attention2'),
    'aggregated3': _step('aggregated3'),
    'before ln_post': _step('before_ln_post'),
    'features': _Bar(('unit_features',)),
    'window logits': _Bar(('first_window_logits',)),
    'logits before PAMR': _Bar(('logits_before_pamr_sampled',), share=0.999),
    'logits': _Bar(('logits_sampled',), share=0.999),
    'probability': _Bar(('probability',), within=5e-4, share=0.999),
    'labels': _Bar(('labels',), within=0, share=0.9999),
}


@dataclass(frozen=True)
class Stage:
    """How far the engine agrees with a recording at one stage.

    Attributes:
        largest: Largest difference; infinite where there are more or fewer numbers.
        share: Of the numbers that differ by no more than they may, 0..1; 1 only where all do.
        equal: Whether that share suffices in float32.
    """

    largest: float
    share: float
    equal: bool


@dataclass(frozen=True)
class ScClipAgreement:
    """How far the engine agrees with a recording of SC-CLIP, by the names of stages, in order."""

    stages: dict[str, Stage]

    @property
    def first_difference(self) -> str | None:
        """The first stage that is not equal; None where all are."""
        return next((name for name, stage in self.stages.items() if not stage.equal), None)


@exact_float32()
def compare_sc_clip(
    pipeline: Pipeline, text: TextEncoder, recording: ScClipRecording
) -> ScClipAgreement:
    """Run SC-CLIP on a recording's picture.

    Raises:
        RecordingError: The recording was made with another architecture or other blocks.
    """
    _check_blocks(pipeline.backbone, recording)
    recorded = dict(recording.steps)
    tokens = recorded['feature_tokens']
    lengths = recorded['feature_norm'][tokens, None]
    recorded['unit_features'] = recorded['features'] / lengths
    ours = _engine_steps(pipeline, text, recording)
    return ScClipAgreement(
        {
            name: _compare([(ours[array], recorded[array]) for array in bar.arrays], bar)
            for name, bar in _BARS.items()
            if bar.arrays[0] in recorded
        }
    )


def sc_clip_table(recording: ScClipRecording) -> LabelTable:
    """Label columns of a recording's phrases, on the host; ids are numbers of classes.

    Where pixels may fall back to class 0, its phrases are background.
    """
    classes = max(recording.phrase_classes) + 1
    columns, ids = recording.phrase_classes, range(classes)
    if recording.has_background:
        first = recording.phrase_classes.count(0)
        columns = (
            *(classes - 1 + number for number in range(first)),
            *(number - 1 for number in recording.phrase_classes[first:]),
        )
        ids = range(1, classes)
    # The method has a scale of its own.
    features = torch.from_numpy(recording.steps['text_features'])
    unlabelled = 0 if recording.has_background else UNLABELLED
    return label_table(features, columns, ids, unlabelled, 0, 1.0, torch.int64)
