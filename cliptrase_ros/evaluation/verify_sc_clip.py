"""Recorded steps of published SC-CLIP, compared one by one with those of the engine."""

import json
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.evaluation.recording_checks import RecordingError
from cliptrase_ros.evaluation.recordings_sc_clip import (
    RESIZED_ROWS,
    SAMPLED,
    SC_CLIP_STEPS,
    SIMILARITY_ROWS,
    ScClipRecording,
)
from cliptrase_ros.segmentation.method.sliding import WINDOWS_AT_ONCE, cut_windows
from cliptrase_ros.segmentation.model.backbone import Calibration, DenseBackbone
from cliptrase_ros.segmentation.model.calibration import blocks_for, repairable
from cliptrase_ros.segmentation.model.label_table import LabelTable, label_table
from cliptrase_ros.segmentation.model.preprocessing import framing_of, network_input
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.run.pipeline import Pipeline
from cliptrase_ros.segmentation.run.pixels import PhraseMaps, label_pixels, phrase_maps
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

#: Share of labels that has to be equal in half precision.
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
    return _Bar((f'norm_{name}', f'probe_{name}'), within=5e-6, relative=True)


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
        different: How many numbers differ by more than they may.
        share: Of numbers that do not, 0..1.
        equal: Whether that share suffices in float32.
    """

    largest: float
    different: int
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


# Numbers divided by lengths of 0, in a file that is wrong, are no numbers, and differ.
@np.errstate(divide='ignore', invalid='ignore')
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


def _check_blocks(backbone: DenseBackbone, recording: ScClipRecording) -> None:
    depth = len(backbone.visual.transformer.resblocks)
    use = blocks_for(depth)
    ours = (use.similar, use.low, [*use.fused], use.cls_share)
    for (name, recorded), value in zip(recording.blocks.items(), ours, strict=True):
        if recorded != value:
            raise RecordingError(
                f'the recording says {name} {json.dumps(recorded)}, where the engine has {value} '
                f'for an image tower of {depth} blocks'
            )


def _engine_steps(
    pipeline: Pipeline, text: TextEncoder, recording: ScClipRecording
) -> dict[str, np.ndarray]:
    """What the engine gives of everything that is recorded, by the same names."""
    size, method = recording.image.shape[:2], recording.method
    device, backbone = pipeline.mean.device, pipeline.backbone
    framing = framing_of(method.frame, size, recording.resolution, backbone.patch_size)
    # On the host, where OpenCV gives the published pixels.
    picture = network_input(torch.from_numpy(recording.image)[None], framing)
    pixels = pipeline.normalise(picture.to(device), method.frame)
    resized = picture[0].permute(1, 2, 0).contiguous().numpy()

    text_features = text.encode(recording.phrases)
    recorded = recording.steps['text_features']
    if text_features.shape != recorded.shape:
        raise RecordingError(
            f'the recording has text features of {recorded.shape[1]} numbers, the model of '
            f'{text_features.shape[1]}: it was made with another architecture'
        )
    table = sc_clip_table(recording).to(device)
    maps = phrase_maps(backbone, pixels, table, method, size)
    column, probability = label_pixels(maps, table, method)
    ids = table.ids_of(column, probability, recording.min_confidence)
    steps = {
        'resized_crc32': zlib.crc32(resized.tobytes()),
        'resized_rows': resized[RESIZED_ROWS],
        'text_features': text_features,
        'first_window_logits': maps.cosines[0],
        'logits_before_pamr_sampled': _sampled(replace(maps, neighbour_weights=None)),
        'logits_sampled': _sampled(maps),
        'probability': probability[0],
        'labels': ids[0],
        **_window_steps(pipeline, pixels, maps, recording),
    }
    return {name: _on_host(step) for name, step in steps.items()}


def _window_steps(
    pipeline: Pipeline, pixels: Tensor, maps: PhraseMaps, recording: ScClipRecording
) -> dict[str, Tensor]:
    """What windows go through on their way to features: the first one, if nothing else is said."""
    backbone = pipeline.backbone
    height, width = maps.window
    corners = maps.corners or [(0, 0)]
    windows = cut_windows(pixels, corners, maps.window, 1)
    parts = windows.split(WINDOWS_AT_ONCE)
    calibration = backbone.calibrate(parts[0])
    flagged = [calibration.flagged, *(backbone.calibrate(part).flagged for part in parts[1:])]
    patches = calibration.scores.shape[1]
    recorded = len(recording.steps['lof_scores'])
    if patches != recorded:
        raise RecordingError(
            f'the recording has windows of {recorded} patches, the model {patches}: it was made '
            'with another architecture, or with other settings than it says'
        )
    tokens = torch.from_numpy(recording.steps['feature_tokens']).long()
    features = backbone(windows[:1], recording.method.features).tokens[0, 1:]
    return {
        'windows': torch.tensor([(y, x, y + height, x + width) for y, x in corners]),
        'lof_scores': calibration.scores[0],
        # As numbers of tokens; there are equally many in every window.
        'flagged': torch.cat(flagged).nonzero()[:, 1].view(len(windows), -1),
        'repaired': repairable(calibration.flagged, backbone.grid(windows))[0],
        'similarity_mid': _rows(calibration.similarity, recording.steps['similarity_mid']),
        'similarity_mid_mean': calibration.similarity[0].mean(),
        'similarity_low_cut': _rows(
            calibration.low_similarity, recording.steps['similarity_low_cut']
        ),
        'unit_features': features[tokens.to(features.device)],
        **_lengths_and_probes(calibration),
    }


def _rows(similarity: Tensor, recorded: np.ndarray) -> Tensor:
    """Of a similarity (B, N, N) the rows of the first window that were recorded."""
    return similarity[0] if len(recorded) == recorded.shape[1] else similarity[0, SIMILARITY_ROWS]


def _lengths_and_probes(calibration: Calibration) -> dict[str, Tensor]:
    steps = dict(
        zip(
            SC_CLIP_STEPS,
            (
                calibration.before_last[0, 1:],
                calibration.repaired[0],
                calibration.repaired_similar[0],
                calibration.aggregated[0],
                calibration.attended[0, 0],
                calibration.low_aggregated[0, 0],
                calibration.attended[1, 0],
                calibration.low_aggregated[1, 0],
                calibration.output[0],
            ),
            strict=True,
        )
    )
    patches = calibration.scores.shape[1]
    probes = [0, patches // 2, patches - 1]
    return {
        **{f'norm_{name}': step.norm(dim=-1) for name, step in steps.items()},
        **{f'probe_{name}': step[probes] for name, step in steps.items()},
    }


def _sampled(maps: PhraseMaps) -> Tensor:
    """Logits of the first frame at every so many pixels: (P, rows, columns)."""
    return torch.cat([part[0, :, SAMPLED, SAMPLED] for _, part in maps.parts()])


def _on_host(step: Tensor | np.ndarray | int) -> np.ndarray:
    if isinstance(step, Tensor):
        step = step.cpu()
        return step.float().numpy() if step.is_floating_point() else step.numpy()
    return np.asarray(step)


def _compare(pairs: list[tuple[np.ndarray, np.ndarray]], bar: _Bar) -> Stage:
    """Compare pairs of ours and what was recorded."""
    if any(ours.shape != recorded.shape for ours, recorded in pairs):
        return Stage(np.inf, sum(ours.size for ours, _ in pairs), 0.0, False)
    differences = []
    for ours, recorded in pairs:
        difference = np.abs(ours.astype(np.float64) - recorded)
        differences.append(difference / np.abs(recorded).max() if bar.relative else difference)
    difference = np.concatenate([part.ravel() for part in differences])
    different = int((~(difference <= bar.within)).sum())
    share = 1 - different / max(1, difference.size)
    return Stage(float(difference.max(initial=0)), different, share, share >= bar.share)
