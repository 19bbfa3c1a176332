"""Probabilities of classes and background phrases at patches, and what is left out by them."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from reference_weights import reference_clip

from cliptrase_ros.segmentation import score_image
from cliptrase_ros.segmentation.model.preprocessing import framing_of, to_camera_size
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.graphs import FixedCalls
from cliptrase_ros.segmentation.run.pipeline import Bounds
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

HALF = (0.5, 0.5, 0.5)
SETTINGS = SegmentationSettings(resolution=96, scores=True)
VOCABULARY = parse_vocabulary('road; person = pedestrian; tree', ['Sky', 'wall'])

# Every way of making labels.
CHOICES = [
    *({'preset': preset} for preset in PRESETS),
    {'preset': 'plus', 'window': 64, 'stride': 32},
    {'smoothing': 0.5},
    {'preset': 'plus', 'refinement': 'pamr'},
    {'preset': 'sc_clip', 'window': 0},
    {'preset': 'sc_clip', 'window': 64, 'refinement': 'pamr'},
]


@pytest.fixture(scope='module')
def segmenter(device):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    segmenter = Segmenter(LoadedModel(reference_clip(), tokenizer, HALF, HALF), device)
    segmenter.fixed_calls = None
    return segmenter


@pytest.fixture(scope='module')
def words(segmenter):
    return segmenter.encode_vocabulary(VOCABULARY)


@pytest.fixture
def fixed(segmenter, make_queue):
    """A function that gives the segmenter calls of fixed shape, until the test ends."""

    def give(**arguments):
        queue = make_queue(segmenter.device)
        segmenter.fixed_calls = FixedCalls(segmenter.pipeline, queue, patience=1, **arguments)
        return segmenter

    yield give
    segmenter.fixed_calls = None


def image(seed, height=96, width=128):
    blocks = np.random.RandomState(seed).randint(0, 256, (height // 24, width // 32, 3))
    return blocks.astype(np.uint8).repeat(24, 0).repeat(32, 1)


@pytest.mark.parametrize('choices', CHOICES, ids=str)
def test_scores_are_what_labels_are_made_from(segmenter, words, choices):
    settings = replace(SETTINGS, **choices)
    (plain,) = segmenter.segment([image(0)], words, replace(settings, scores=False))
    (result,) = segmenter.segment([image(0)], words, settings)
    # They change nothing else.
    assert plain.scores is None
    np.testing.assert_array_equal(result.label, plain.label)
    np.testing.assert_array_equal(result.confidence, plain.confidence)

    height, width = (6, 6) if settings.preset == 'paper' else (6, 8)
    assert result.scores.shape == (5, height, width) and result.scores.dtype == np.float32
    total = result.scores.sum(0)
    if settings.method.softmax == 'patches':
        np.testing.assert_allclose(total, 1, atol=1e-5)
    else:
        # Of two synonyms the more probable counts, not both.
        assert (total <= 1 + 1e-5).all() and (total > 0.5).all()
    if settings.refinement != 'none' or settings.method.clustering:
        return
    # Beside the centres of patches, labels are the largest of these.
    largest = result.scores.argmax(0)
    of_patches = np.where(largest < 3, largest, 255)
    left = 0 if settings.preset != 'paper' else 16
    assert (result.label[8::16, left + 8 :: 16][:, :width] == of_patches).mean() > 0.95


@pytest.mark.parametrize(
    'choices', [{}, {'smoothing': 0.5}, {'preset': 'paper'}, {'preset': 'sc_clip', 'window': 64}]
)
def test_scores_through_calls_of_fixed_shape(segmenter, words, fixed, choices):
    settings = replace(SETTINGS, **choices)
    images = [image(0), image(1), image(2, 72, 64)]
    expected = [segmenter.segment([i], words, settings)[0] for i in images]
    # Images beyond the bounds are labelled again.
    fixed(bounds=Bounds(rounds=0 if settings.smoothing else 6))
    for result, other in zip(segmenter.segment(images, words, settings), expected, strict=True):
        np.testing.assert_allclose(result.scores, other.scores, atol=1e-4)
        assert (result.label == other.label).mean() > 0.995
        assert result.seen == other.seen
    (without,) = segmenter.segment(images[:1], words, replace(settings, scores=False))
    assert without.scores is None


def test_masks_of_a_sam_leave_scores_as_they_are(segmenter, words, monkeypatch):
    settings = replace(SETTINGS, preset='plus')
    (plain,) = segmenter.segment([image(0)], words, settings)
    everything = [np.ones((1, 96, 128), bool)]
    monkeypatch.setattr(segmenter, 'mask_source', lambda images: everything)
    (voted,) = segmenter.segment([image(0)], words, replace(settings, refinement='sam'))
    np.testing.assert_array_equal(voted.scores, plain.scores)
    assert (voted.label != plain.label).any()


def test_a_score_image_has_the_probability_of_one_phrase_at_the_camera_s_pixels(segmenter, words):
    (result,) = segmenter.segment([image(0)], words, SETTINGS)
    road = score_image(result, 'road')
    assert road.shape == (96, 128) and road.dtype == np.uint8
    # Centres of patches lie between pixels.
    between = road.astype(float)
    at_centres = (between[7::16, 7::16] + between[8::16, 8::16]) / 2
    np.testing.assert_allclose(at_centres, 255 * result.scores[0], atol=6)
    np.testing.assert_array_equal(score_image(result, 'ROAD'), road)
    # A synonym is its class; background phrases are each by themselves.
    np.testing.assert_array_equal(score_image(result, 'Pedestrian'), score_image(result, 'person'))
    assert (score_image(result, 'sky') != score_image(result, 'wall')).any()
    total = sum(score_image(result, n).astype(int) for n in ('road', 'person', 'tree', 'sky'))
    assert np.abs(total + score_image(result, 'wall') - 255).max() <= 3
    assert not score_image(result, 'bicycle').any()


def test_a_score_is_zero_where_the_network_saw_nothing(segmenter, words):
    (result,) = segmenter.segment([image(0)], words, replace(SETTINGS, preset='paper'))
    assert result.seen == (slice(0, 96), slice(16, 112))
    score = score_image(result, 'road')
    assert not score[:, :16].any() and not score[:, 112:].any() and score[:, 16:112].any()


def test_without_scores_it_is_said_how_to_have_them(segmenter, words):
    (result,) = segmenter.segment([image(0)], words, replace(SETTINGS, scores=False))
    with pytest.raises(ValueError, match=r'scores=True'):
        score_image(result, 'road')


@pytest.mark.parametrize('source', [(480, 640), (641, 479), (37, 500), (1080, 1920), (7, 7)])
@pytest.mark.parametrize('resolution', [96, 97, 336])
def test_pixels_that_the_network_sees_are_those_with_labels(source, resolution):
    for frame in ('centre', 'whole', 'mmcv'):
        framing = framing_of(frame, source, resolution, 16)
        labels = to_camera_size(torch.ones(1, *framing.crop, dtype=torch.uint8), framing, 0)[0]
        labels = labels.numpy()
        assert labels[framing.seen].all() and labels[framing.seen].sum() == labels.sum()
