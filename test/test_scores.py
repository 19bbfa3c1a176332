"""Probabilities of classes and background phrases at patches, and what is left out by them."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from cliptrase_ros.segmentation import load_segmenter, score_image
from cliptrase_ros.segmentation.model.preprocessing import framing_of, to_camera_size
from cliptrase_ros.segmentation.run.graphs import FixedCalls
from cliptrase_ros.segmentation.run.pipeline import Bounds
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.sequences import photograph_room

SETTINGS = SegmentationSettings(resolution=96, scores=True)
# What the room shows, and what it does not.
PRESENT = ['stone floor', 'brick wall = bricks', 'window', 'dotted cone', 'plaster wall']
ABSENT = ['red ball', 'white box', 'green cone', 'striped cylinder', 'white cylinder']
WORDS = [*PRESENT[:2], *ABSENT[:3], *PRESENT[2:], *ABSENT[3:]]
BACKGROUND = ['White ball', 'concrete wall']

# Every way of making labels.
CHOICES = [
    *({'preset': preset} for preset in PRESETS),
    {'preset': 'plus', 'window': 64, 'stride': 32},
    {'smoothing': 0.5},
    {'preset': 'plus', 'smoothing': 0.5},
    {'preset': 'plus', 'refinement': 'pamr'},
    {'preset': 'sc_clip', 'window': 0, 'refinement': 'edges'},
    {'preset': 'sc_clip', 'window': 64},
]


@pytest.fixture(scope='module')
def segmenter(device):
    segmenter = load_segmenter('toybox', device=str(device))
    segmenter.fixed_calls = None
    return segmenter


@pytest.fixture(scope='module')
def words(segmenter):
    return segmenter.encode_vocabulary(parse_vocabulary(WORDS, BACKGROUND))


@pytest.fixture(scope='module')
def room():
    """uint8 (96, 128, 3)."""
    photo = photograph_room(3, 'held_out', 'easy').image
    return cv2.resize(photo, (128, 96), interpolation=cv2.INTER_AREA)


@pytest.fixture
def fixed(segmenter, make_queue):
    """A function that gives the segmenter calls of fixed shape, until the test ends."""

    def give(**arguments):
        queue = make_queue(segmenter.device)
        segmenter.fixed_calls = FixedCalls(segmenter.pipeline, queue, patience=1, **arguments)

    yield give
    segmenter.fixed_calls = None


@pytest.mark.parametrize('choices', CHOICES, ids=str)
def test_scores_are_what_labels_are_made_from(segmenter, words, room, choices):
    settings = replace(SETTINGS, **choices)
    (plain,) = segmenter.segment([room], words, replace(settings, scores=False))
    (result,) = segmenter.segment([room], words, settings)
    # They change nothing else.
    assert plain.scores is None
    np.testing.assert_array_equal(result.label, plain.label)
    np.testing.assert_array_equal(result.confidence, plain.confidence)

    height, width, left = (6, 6, 16) if settings.preset == 'paper' else (6, 8, 0)
    count = len(WORDS)
    assert result.scores.shape == (count + 2, height, width) and result.scores.dtype == np.float32
    total = result.scores.sum(0)
    if settings.method.softmax == 'patches':
        np.testing.assert_allclose(total, 1, atol=1e-5)
    else:
        # Of a class's phrases the most probable counts, not all of them.
        assert (total <= 1 + 1e-5).all() and (total > 0.5).all()
    # At the centres of patches labels are the largest of these, but for votes and refinements.
    largest = result.scores.argmax(0)
    at_centres = result.label[8::16, left + 8 :: 16][:, :width]
    agreement = 0.7 if settings.method.clustering or settings.refinement != 'none' else 0.95
    assert (at_centres == np.where(largest < count, largest, 255)).mean() > agreement


@pytest.mark.parametrize(
    'choices',
    [{}, {'smoothing': 0.5}, {'preset': 'paper'}, {'preset': 'sc_clip', 'window': 64}],
    ids=str,
)
def test_scores_and_what_they_leave_out_by_calls_of_fixed_shape(
    segmenter, words, room, fixed, choices
):
    settings = replace(SETTINGS, min_presence=0.3, **choices)
    images = [room, np.ascontiguousarray(room[:, ::-1]), room[:64]]
    expected = [segmenter.segment([image], words, settings)[0] for image in images]
    # Images beyond the bounds are labelled again.
    fixed(bounds=Bounds(rounds=0 if choices else 6))
    for result, other in zip(segmenter.segment(images, words, settings), expected, strict=True):
        np.testing.assert_allclose(result.scores, other.scores, atol=1e-4)
        assert (result.label == other.label).mean() > 0.995
        assert result.seen == other.seen
    (without,) = segmenter.segment(images[:1], words, replace(settings, scores=False))
    assert without.scores is None


def test_masks_of_a_sam_leave_scores_as_they_are(segmenter, words, room, monkeypatch):
    (plain,) = segmenter.segment([room], words, SETTINGS)
    monkeypatch.setattr(segmenter, 'mask_source', lambda images: [np.ones((1, 96, 128), bool)])
    (voted,) = segmenter.segment([room], words, replace(SETTINGS, refinement='sam'))
    np.testing.assert_array_equal(voted.scores, plain.scores)
    assert (voted.label != plain.label).any()


def test_a_score_image_has_the_probability_of_one_phrase_at_the_camera_s_pixels(
    segmenter, words, room
):
    (result,) = segmenter.segment([room], words, SETTINGS)
    wall = score_image(result, 'brick wall')
    assert wall.shape == (96, 128) and wall.dtype == np.uint8 and wall.max() > 250
    # The centre of a patch lies between four pixels.
    corners = [wall[i::16, j::16].astype(float) for i, j in itertools.product((7, 8), (7, 8))]
    np.testing.assert_allclose(np.mean(corners, 0), 255 * result.scores[1], atol=20)
    # A synonym is its class; background phrases are each by themselves.
    for name in ('BRICK wall', 'Bricks'):
        np.testing.assert_array_equal(score_image(result, name), wall)
    assert (score_image(result, 'white ball') != score_image(result, 'concrete wall')).any()
    names = [word.partition(' =')[0] for word in (*WORDS, *BACKGROUND)]
    total = np.sum([score_image(result, name) for name in names], 0, int)
    assert np.abs(total - 255).max() <= len(names) / 2
    assert not score_image(result, 'bicycle').any()


def test_a_score_is_zero_where_the_network_saw_nothing(segmenter, words, room):
    (result,) = segmenter.segment([room], words, replace(SETTINGS, preset='paper'))
    assert result.seen == (slice(0, 96), slice(16, 112))
    score = score_image(result, 'stone floor')
    assert not score[:, :16].any() and not score[:, 112:].any() and score[:, 16:112].any()


def test_without_scores_it_is_said_how_to_have_them(segmenter, words, room):
    (result,) = segmenter.segment([room], words, replace(SETTINGS, scores=False))
    with pytest.raises(ValueError, match=r'scores=True'):
        score_image(result, 'window')


@pytest.mark.parametrize('source', [(480, 640), (641, 479), (37, 500), (1080, 1920), (7, 7)])
@pytest.mark.parametrize('resolution', [96, 97, 336])
def test_pixels_that_the_network_sees_are_those_with_labels(source, resolution):
    for frame in ('centre', 'whole', 'mmcv'):
        framing = framing_of(frame, source, resolution, 16)
        labels = to_camera_size(torch.ones(1, *framing.crop, dtype=torch.uint8), framing, 0)[0]
        seen = labels.numpy()[framing.seen]
        assert seen.all() and seen.sum() == labels.sum()


@pytest.mark.parametrize('choices', CHOICES, ids=str)
def test_classes_left_out_are_as_if_the_vocabulary_had_not_had_them(
    segmenter, words, room, choices
):
    settings = replace(SETTINGS, **choices)
    (everything,) = segmenter.segment([room], words, settings)
    peaks = everything.scores[: len(WORDS)].max((1, 2))
    # Between two classes, in the widest gap.
    ranked = np.sort(peaks)
    split = np.diff(ranked).argmax()
    least = float(ranked[split : split + 2].mean())
    kept = [word for word, peak in zip(WORDS, peaks, strict=True) if peak >= least]
    assert 0 < len(kept) < len(WORDS)

    (result,) = segmenter.segment([room], words, replace(settings, min_presence=least))
    # What is left out can be seen in the scores: they are those of all words.
    np.testing.assert_array_equal(result.scores, everything.scores)
    fewer = parse_vocabulary(kept, BACKGROUND)
    (expected,) = segmenter.segment([room], segmenter.encode_vocabulary(fewer), settings)
    position = {entry.name: i for i, entry in enumerate(words.vocabulary.classes)}
    ids = np.full(256, 255)
    ids[: len(kept)] = [position[entry.name] for entry in fewer.classes]
    # Where patches share probabilities, they shared those of all words.
    shares = settings.method.propagation
    assert (result.label == ids[expected.label]).mean() > (0.95 if shares else 0.999)
    difference = np.abs(result.confidence.astype(int) - expected.confidence)
    assert difference.mean() < (8 if shares else 0.1)


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('background', [(), ('ceiling',)], ids=['none', 'ceiling'])
def test_an_image_that_shows_no_class_has_no_labels(segmenter, room, preset, background):
    absent = segmenter.encode_vocabulary(parse_vocabulary(ABSENT, background))
    settings = replace(SETTINGS, preset=preset, min_presence=1.0)
    flat = np.full_like(room, 127)
    for refinement in ('none', 'edges', 'pamr'):
        settings = replace(settings, refinement=refinement)
        result, _ = segmenter.segment([flat, room], absent, settings)
        assert (result.label == 255).all()
        # With one background phrase that is left, it is certainly that.
        seen = result.confidence[result.seen]
        assert (seen >= 254).all() if background else not seen.any()


def test_each_image_of_a_batch_leaves_out_what_it_does_not_show(segmenter, words, room):
    settings = replace(SETTINGS, preset='plus', min_presence=0.3)
    images = [room, np.full_like(room, 127), np.ascontiguousarray(room[::-1])]
    alone = [segmenter.segment([image], words, settings)[0] for image in images]
    for result, expected in zip(segmenter.segment(images, words, settings), alone, strict=True):
        assert (result.label == expected.label).mean() > 0.999


def test_with_smoothing_a_class_that_is_left_out_comes_back(segmenter, words, room):
    """What was left out of a frame is not forgotten: the history has all classes."""
    settings = replace(SETTINGS, smoothing=0.9, min_presence=0.3)
    (first,) = segmenter.segment([room], words, replace(settings, min_presence=1.0))
    assert (first.label == 255).all()
    (plain,) = segmenter.segment([room], words, replace(settings, min_presence=0.0))
    np.testing.assert_array_equal(
        first.history.history.probability.cpu(), plain.history.history.probability.cpu()
    )
    (again,) = segmenter.segment([room], words, settings, [first.history])
    assert (again.label != 255).mean() > 0.8
