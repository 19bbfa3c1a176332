"""The engine against recorded outputs of the published code, on a small model."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reference_weights import reference_clip

from cliptrase_ros.segmentation.backbone import DenseBackbone
from cliptrase_ros.segmentation.label_table import label_table
from cliptrase_ros.segmentation.method import PRESETS
from cliptrase_ros.segmentation.pipeline import Bounds, trace
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

CASES = sorted((Path(__file__).parent / 'golden').glob('small_*.npz'))
CLIP_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
CLIP_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]


@pytest.fixture(scope='module')
def clip():
    return reference_clip()


def traced(clip, golden, copies=1, bounds=None):
    features = torch.from_numpy(golden['text_features'])
    table = label_table(
        features,
        range(len(features)),
        range(len(golden['foreground'])),
        UNLABELLED,
        UNLABELLED,
        float(clip.logit_scale.exp()),
    )
    method = replace(PRESETS['paper'], image_prior=golden['mode'] == 'image_prior')
    pixels = torch.from_numpy(golden['input']).permute(2, 0, 1)[None].float() / 255
    pixels = ((pixels - CLIP_MEAN) / CLIP_STD).expand(copies, -1, -1, -1)
    with torch.inference_mode():
        backbone = DenseBackbone(clip.visual)
        pixels = pixels.to(clip.visual.conv1.weight.dtype)
        return trace(backbone, pixels, table, method, bounds)


@pytest.mark.parametrize('bounds', [None, Bounds()], ids=['exact', 'bounded'])
@pytest.mark.parametrize('path', CASES, ids=lambda p: p.stem)
def test_every_stage_equals_the_published_code(clip, path, bounds):
    golden = np.load(path)
    result = traced(clip, golden, bounds=bounds)
    assert result.exact.all()
    for stage in ('tokens', 'correlation', 'patch_logits'):
        np.testing.assert_allclose(getattr(result, stage)[0], golden[stage], atol=1e-4)
    for stage in ('clusters', 'raw_labels', 'labels'):
        np.testing.assert_array_equal(getattr(result, stage)[0], golden[stage], stage)


@pytest.mark.parametrize('path', CASES, ids=lambda p: p.stem)
def test_half_precision_keeps_the_labels(clip, path):
    half = copy.deepcopy(clip)
    half.visual.half()
    golden = np.load(path)
    result = traced(half, golden)
    assert result.tokens.dtype == result.correlation.dtype == torch.float32
    assert (result.labels[0].numpy() == golden['labels']).mean() >= 0.995


def test_there_are_golden_cases_of_each_mode():
    assert {str(np.load(path)['mode']) for path in CASES} == {'background', 'image_prior', 'plain'}


def test_a_batch_labels_each_image_as_alone(clip):
    golden = np.load(CASES[0])
    for labels in traced(clip, golden, copies=2).labels:
        np.testing.assert_array_equal(labels, golden['labels'])
