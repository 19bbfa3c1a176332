"""The engine against recorded outputs of the published code, on a small model."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_weights import reference_clip

from cliptrase_ros.evaluation.recordings import read_recording
from cliptrase_ros.evaluation.verify import on_host, recording_table, tied
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.run.pipeline import Bounds, trace
from cliptrase_ros.segmentation.settings import PRESETS

CASES = sorted((Path(__file__).parent / 'golden').glob('small_*.npz'))
CLIP_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
CLIP_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]


@pytest.fixture(scope='module')
def clip(device):
    return reference_clip().requires_grad_(False).to(device)


@pytest.fixture(scope='module')
def half(clip):
    half = copy.deepcopy(clip)
    half.visual.half()
    return half


def label_columns(clip, golden):
    return recording_table(golden, float(clip.logit_scale.exp()))


def traced(clip, golden, copies=1, bounds=None):
    weight = clip.visual.conv1.weight
    method = replace(PRESETS['paper'], image_prior=golden.mode == 'image_prior')
    pixels = torch.from_numpy(golden.input).permute(2, 0, 1)[None].float() / 255
    pixels = ((pixels - CLIP_MEAN) / CLIP_STD).expand(copies, -1, -1, -1)
    with torch.inference_mode():
        table = label_columns(clip, golden).to(weight.device)
        return on_host(trace(DenseBackbone(clip.visual), pixels.to(weight), table, method, bounds))


def assert_labels_equal(result, golden, clip, device):
    """Of every image; on another device than the recordings' ties may fall the other way."""
    ties = torch.zeros_like(result.labels, dtype=torch.bool)
    if device.type != 'cpu':
        ties = tied(golden, result, label_columns(clip, golden))
    for stage in ('clusters', 'raw_labels', 'labels'):
        found = getattr(result, stage)
        expected = torch.from_numpy(getattr(golden, stage)).to(found.dtype).expand_as(found)
        if stage != 'clusters':
            expected = expected.where(~ties, found)
        assert torch.equal(found, expected), stage


@pytest.mark.parametrize('bounds', [None, Bounds()], ids=['exact', 'bounded'])
@pytest.mark.parametrize('path', CASES, ids=lambda p: p.stem)
def test_every_stage_equals_the_published_code(clip, device, path, bounds):
    golden = read_recording(path)
    result = traced(clip, golden, bounds=bounds)
    assert result.exact.all()
    np.testing.assert_allclose(result.tokens[0], np.load(path)['tokens'], atol=1e-4)
    for stage in ('correlation', 'patch_logits'):
        np.testing.assert_allclose(getattr(result, stage)[0], getattr(golden, stage), atol=1e-4)
    assert_labels_equal(result, golden, clip, device)


@pytest.mark.parametrize('path', CASES, ids=lambda p: p.stem)
def test_half_precision_keeps_the_labels(half, path):
    golden = read_recording(path)
    result = traced(half, golden)
    assert result.tokens.dtype == result.correlation.dtype == torch.float32
    assert (result.labels[0].numpy() == golden.labels).mean() >= 0.995


def test_there_are_golden_cases_of_each_mode():
    assert {str(np.load(path)['mode']) for path in CASES} == {'background', 'image_prior', 'plain'}


def test_a_batch_labels_each_image_as_alone(clip, device):
    golden = read_recording(CASES[0])
    assert_labels_equal(traced(clip, golden, copies=2), golden, clip, device)
