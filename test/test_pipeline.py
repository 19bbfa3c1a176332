from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_weights import reference_clip

from cliptrase_ros.segmentation.memo import constant, reuse_constants_in
from cliptrase_ros.segmentation.model.backbone import (
    DenseBackbone,
    _embed_by_product,
    _embed_patches,
)
from cliptrase_ros.segmentation.model.label_table import label_table
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.run.pipeline import Bounds, Pipeline, trace
from cliptrase_ros.segmentation.settings import Method
from cliptrase_ros.segmentation.vocabulary import UNLABELLED

METHODS = [
    Method('whole', fewest_clusters=2, min_agreement=0.7),
    Method('centre', image_prior=True),
    Method('whole', refinement='edges'),
    Method('whole', clustering=False, propagation=True),
]


@pytest.fixture(scope='module')
def pipeline(device):
    half = torch.full((3, 1, 1), 0.5, device=device)
    return Pipeline(DenseBackbone(reference_clip().visual.to(device)), half, half)


@pytest.fixture(scope='module')
def table(device):
    # Two phrases for the first class, two background phrases.
    features = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(features, dim=-1)
    return label_table(unit.to(device), [0, 0, 1, 2, 3, 4], [7, 3, 9], 255, 255, 100.0)


def frames(batch, height=96, width=128):
    blocks = np.random.RandomState(0).randint(0, 256, (batch, height // 24, width // 32, 3))
    return (
        torch.from_numpy(blocks.astype(np.uint8)).repeat_interleave(24, 1).repeat_interleave(32, 2)
    )


def run(pipeline, table, method, bounds, min_confidence=0.3):
    device = pipeline.mean.device
    batch = frames(2).to(device)
    least = torch.tensor(min_confidence, device=device)
    framing = framing_of(method.frame, batch.shape[1:3], 96, pipeline.backbone.patch_size)
    with torch.inference_mode():
        return pipeline(batch, framing, table, least, method, bounds)


@pytest.mark.parametrize('method', METHODS, ids=['whole', 'prior', 'edges', 'propagation'])
def test_bounded_and_padded_labels_are_the_exact_ones(pipeline, table, method):
    exact = run(pipeline, table, method, None)
    bounded = run(pipeline, table.padded(16, 32), method, Bounds())
    assert bounded.exact.all()
    assert len(exact.label.unique()) > 1
    # On a GPU products with a padded table may round the other way.
    different = (bounded.label != exact.label).float().mean()
    assert different <= (0 if exact.label.device.type == 'cpu' else 0.001)
    assert (bounded.confidence.int() - exact.confidence.int()).abs().max() <= 1


def test_too_few_slots_or_rounds_are_reported(pipeline, table):
    method = Method('centre')
    assert not run(pipeline, table, method, Bounds(clusters=1)).exact.all()
    assert not run(pipeline, table, method, Bounds(rounds=0)).exact.all()


def test_a_padded_table_gives_labels_the_same_ids(table):
    padded = table.padded(8, 16)
    assert padded.size == (8, 16)
    assert padded.ids[:4].tolist() == [7, 3, 9, UNLABELLED]


PLAIN = Method('whole', features='clip', clustering=False, denoising=False)


def traced(pipeline, table, method):
    batch = frames(2).permute(0, 3, 1, 2).to(pipeline.mean.device)
    pixels = pipeline.normalise(batch, method.frame)
    with torch.inference_mode():
        return trace(pipeline.backbone, pixels, table, method)


def test_without_recovery_the_tower_is_plain_clip():
    clip = reference_clip()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        tokens = DenseBackbone(clip.visual)(pixels, 'clip').tokens
        wanted = F.normalize(clip.encode_image(pixels), dim=-1)
    torch.testing.assert_close(tokens[:, 0], wanted, atol=1e-5, rtol=1e-4)


def test_patches_are_embed_patches_alike_with_and_without_a_convolution(device):
    conv = reference_clip().visual.conv1
    pixels = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = _embed_patches(conv, pixels)
        found = _embed_by_product(conv.to(device), pixels.to(device)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_constants_are_made_once_for_a_call_that_is_repeated():
    made = []

    @constant
    def ones(count):
        made.append(count)
        return torch.ones(count)

    first, second = {}, {}
    for constants in (first, second, first):
        with reuse_constants_in(constants):
            assert len(ones(2)) == 2 and len(ones(3)) == 3
    ones(2)
    assert made == [2, 3, 2, 3, 2] and len(first) == len(second) == 2


def test_attention_is_that_of_the_last_block():
    clip = reference_clip()
    last = clip.visual.transformer.resblocks[-1]
    entered = []
    hook = last.register_forward_pre_hook(lambda block, inputs: entered.append(inputs[0]))
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        clip.encode_image(pixels)
        hook.remove()
        x = last.ln_1(entered[0])
        x = x if last.attn.batch_first else x.transpose(0, 1)
        last.attn.batch_first = True
        wanted = last.attn(x, x, x, need_weights=True)[1]
        attention = DenseBackbone(clip.visual).attention(pixels)
    torch.testing.assert_close(attention, wanted, atol=1e-6, rtol=1e-4)


def test_every_switch_changes_what_it_is_about(pipeline, table):
    whole = traced(pipeline, table, Method('whole'))
    plain = traced(pipeline, table, PLAIN)
    recovered = traced(pipeline, table, replace(PLAIN, features='recovered'))
    clustered = traced(pipeline, table, Method('whole', denoising=False))
    assert not torch.equal(plain.tokens, recovered.tokens)
    assert (plain.clusters == -1).all() and torch.equal(plain.labels, plain.raw_labels)
    assert torch.equal(recovered.labels, whole.raw_labels)
    assert torch.equal(clustered.raw_labels, whole.raw_labels)
    # A patch correlates with itself entirely, unless what [CLS] correlates with is removed.
    itself = clustered.correlation.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(itself, torch.ones_like(itself))
    assert (whole.correlation.diagonal(dim1=1, dim2=2) < 0.9).all()
    assert not torch.equal(clustered.clusters, whole.clusters)


@pytest.mark.parametrize('bounds', [None, Bounds()], ids=['exact', 'bounded'])
def test_switches_hold_within_bounds(pipeline, table, bounds):
    method = replace(PLAIN, features='recovered')
    result = run(pipeline, table, method, bounds, min_confidence=0.0)
    assert result.exact.all()
    assert torch.equal(result.label, run(pipeline, table, method, None, 0.0).label)


def test_more_labels_than_a_byte_holds(pipeline):
    features = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    features[:300] *= 1e-3  # the last columns win
    features = features.to(pipeline.mean.device)
    wide = label_table(features, range(400), range(390), -1, 390, 100.0, torch.int16)
    label = run(pipeline, wide, Method('centre', clustering=False), None, 0.0).label
    assert label.dtype == torch.int16
    assert set(label[..., :16].unique().tolist()) == {-1}  # outside the square
    assert 300 <= label.max() <= 390
