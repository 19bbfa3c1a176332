from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from reference_weights import MODEL_CONFIG, reference_clip

from cliptrase_ros.evaluation.class_indices import index_table, label_by_method
from cliptrase_ros.segmentation.model.backbone import DenseBackbone, UnsupportedModelError
from cliptrase_ros.segmentation.model.prompts import PROMPT_TEMPLATES
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import (
    UNLABELLED,
    Vocabulary,
    VocabularyClass,
    VocabularyError,
    parse_vocabulary,
)
from cliptrase_ros.toybox.scenes import sample_room
from cliptrase_ros.toybox.sequences import photograph

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope='module')
def segmenter(device):
    loaded = LoadedModel(reference_clip(), open_clip.get_tokenizer('ViT-B-16'), MEAN, STD)
    return Segmenter(loaded, device)


@pytest.fixture(scope='module')
def encoded(segmenter):
    return segmenter.encode_vocabulary(
        parse_vocabulary(['road', 'person: pedestrian', 'tree'], ['sky', 'wall'])
    )


@pytest.fixture(scope='module')
def toybox(device):
    """A segmenter whose labels differ as those of a trained model do, and words for `room`."""
    segmenter = load_segmenter('toybox', device=str(device), precision='float32')
    words = parse_vocabulary('ball; box; cone; cylinder; floor; wall', background=())
    return segmenter, segmenter.encode_vocabulary(words)


def room(seed, height, width):
    return photograph(sample_room(seed, 'held_out'), 2.0, height, width).image


def camera_image(height, width, seed=0):
    rng = np.random.RandomState(seed)
    blocks = rng.randint(0, 256, (height // 40 + 1, width // 40 + 1, 3), np.uint8)
    return np.ascontiguousarray(blocks.repeat(40, 0).repeat(40, 1)[:height, :width])


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize('size', [(120, 160), (90, 250), (200, 97), (1, 20), (16, 16)])
def test_labels_have_the_images_size_and_only_ids_of_the_vocabulary(
    segmenter, encoded, preset, size
):
    settings = SegmentationSettings(preset=preset, resolution=64)
    (result,) = segmenter.segment([camera_image(*size)], encoded, settings)
    assert result.label.shape == result.confidence.shape == size
    assert result.label.dtype == result.confidence.dtype == np.uint8
    assert set(np.unique(result.label)) <= {0, 1, 2, UNLABELLED}
    assert result.vocabulary is encoded.vocabulary


def test_paper_labels_the_centred_square_and_robot_the_whole_frame(segmenter, encoded):
    image = camera_image(128, 256)
    foreground_only = segmenter.encode_vocabulary(parse_vocabulary(['road', 'person'], ()))
    paper, robot = (
        segmenter.segment([image], foreground_only, SegmentationSettings(preset, 64))[0].label
        for preset in ('paper', 'robot')
    )
    assert (paper[:, :64] == UNLABELLED).all() and (paper[:, 192:] == UNLABELLED).all()
    assert (paper[:, 64:192] != UNLABELLED).all()
    assert (robot != UNLABELLED).all()


def assert_as_each_alone(toybox, images, settings, *different):
    """different: positions of images whose labels must tell one from the other."""
    segmenter, words = toybox
    together = segmenter.segment(images, words, settings)
    for image, result in zip(images, together, strict=True):
        (alone,) = segmenter.segment([image], words, settings)
        assert (result.label == alone.label).mean() > 0.995
    first, second = (together[position].label for position in different)
    assert len(np.unique(first)) > 2 and (first != second).mean() > 0.1


def test_images_of_several_sizes_are_segmented_as_each_alone(toybox):
    images = [room(1, 96, 128), room(2, 100, 100), room(3, 96, 128)]
    assert_as_each_alone(toybox, images, SegmentationSettings(resolution=96), 0, 2)


@pytest.mark.parametrize('preset', ['paper', 'robot', 'plus'])
def test_a_batch_gives_each_image_the_regions_it_has_alone(toybox, preset):
    # Of one size, but with very different numbers of clusters, none at all among them.
    noise = np.random.RandomState(0).randint(0, 256, (160, 160, 3), np.uint8)
    images = [room(1, 160, 160), np.full((160, 160, 3), 127, np.uint8), noise, room(2, 160, 160)]
    assert_as_each_alone(toybox, images, SegmentationSettings(preset, 160), 0, 3)


@pytest.mark.parametrize('patch_size', [14, 32])
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_other_patch_sizes_and_precisions_segment(device, patch_size, precision):
    torch.manual_seed(0)
    config = {**MODEL_CONFIG, 'quick_gelu': False}
    config['vision_cfg'] = {
        **{'image_size': 4 * patch_size, 'patch_size': patch_size},
        **{'layers': 3, 'width': 64, 'head_width': 32},
    }
    model = open_clip.CLIP(**config)
    loaded = LoadedModel(model, open_clip.get_tokenizer('ViT-B-16'), MEAN, STD)
    segmenter = Segmenter(loaded, device, precision)
    encoded = segmenter.encode_vocabulary(parse_vocabulary(['road', 'person', 'tree'], ()))
    for preset in PRESETS:
        settings = SegmentationSettings(preset, resolution=150)
        (result,) = segmenter.segment([camera_image(120, 130)], encoded, settings)
        assert result.label.shape == (120, 130)
        assert set(np.unique(result.label)) <= {0, 1, 2, UNLABELLED}


def test_pixels_below_the_least_confidence_are_unlabelled(segmenter, encoded):
    image = camera_image(128, 128)
    plain = segmenter.segment([image], encoded, SegmentationSettings(resolution=64))[0]
    threshold = float(np.median(plain.confidence)) / 255
    strict = SegmentationSettings(resolution=64, min_confidence=threshold)
    result = segmenter.segment([image], encoded, strict)[0]
    low = plain.confidence < threshold * 255 - 1
    high = plain.confidence > threshold * 255 + 1
    assert low.any() and high.any()
    assert (result.label[low] == UNLABELLED).all()
    np.testing.assert_array_equal(result.label[high], plain.label[high])


def test_a_synonym_counts_as_its_class(toybox):
    segmenter, _ = toybox
    settings = SegmentationSettings(resolution=160)
    # Without the vote of clusters, which counts pixels of classes.
    method = replace(settings.method, clustering=False)

    def labels(*words):
        table = index_table(segmenter, parse_vocabulary(list(words), background=()))
        return label_by_method(segmenter, [room(7, 120, 160)], table, settings, method)[0]

    apart = labels('ball', 'wall', 'floor')
    assert (np.bincount(apart.ravel(), minlength=3) > 0.2 * apart.size).all()
    expected = np.array([0, 0, 1])[apart]
    for merged in ('ball: wall', 'wall: ball'):
        # All but some pixels between the two: the larger logit is taken before they are enlarged.
        assert (labels(merged, 'floor') == expected).mean() > 0.96


@pytest.mark.parametrize('background_first', [False, True])
def test_where_the_background_comes_first(toybox, background_first):
    segmenter, _ = toybox
    image, method = room(7, 120, 160), SegmentationSettings(resolution=160).method

    def labels(background, min_confidence=0.0):
        classes = (VocabularyClass(0, 'ball'), VocabularyClass(1, 'wall'))
        table = index_table(segmenter, Vocabulary(classes, background), background_first)
        settings = SegmentationSettings(resolution=160, min_confidence=min_confidence)
        return label_by_method(segmenter, [image], table, settings, method)[0]

    # A phrase of both a class and the background.
    shared = labels(('floor', 'wall'))
    assert set(np.unique(shared)) == ({0, 2} if background_first else {0, 1, 2})
    # Pixels that are not probable enough.
    every = labels(('floor',), min_confidence=1.0)
    assert (every == (2 if background_first else -1)).all()
    assert (labels((), min_confidence=1.0) == -1).all()


@pytest.mark.parametrize(
    'image',
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((1, 100, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(segmenter, encoded, image):
    with pytest.raises(ValueError, match='image'):
        segmenter.segment([image], encoded)


@pytest.mark.parametrize(
    'values',
    [
        {'preset': 'fast'},
        {'resolution': 0},
        {'resolution': 5000},
        {'min_confidence': float('nan')},
        {'min_confidence': 1.5},
        {'refinement': 'sharp'},
        {'smoothing': 1.0},
        {'window': 20},
        {'window': 128, 'stride': 200},
    ],
)
def test_settings_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        SegmentationSettings(**values)


def test_text_features_are_the_mean_of_the_full_context_prompts(segmenter):
    model = reference_clip()
    tokens = open_clip.get_tokenizer('ViT-B-16')([t('fire truck') for t in PROMPT_TEMPLATES])
    with torch.no_grad():
        features = model.encode_text(tokens, normalize=True).mean(0)
    encoded = segmenter.encode_vocabulary(parse_vocabulary(['road', 'fire truck'], background=()))
    torch.testing.assert_close(
        encoded.table.features[1].cpu(), features / features.norm(), atol=1e-5, rtol=0
    )


def test_a_phrase_longer_than_the_context_is_refused_by_name(segmenter):
    vocabulary = parse_vocabulary(['road', 'very ' * 500 + 'long'])
    with pytest.raises(VocabularyError, match=r"'very very .*' is too long.*77"):
        segmenter.check_vocabulary(vocabulary)


def image_tower(architecture):
    config = open_clip.get_model_config(architecture)
    with torch.device('meta'):
        return open_clip.model.CLIP(
            config['embed_dim'], config['vision_cfg'], {'layers': 1, 'width': 64, 'heads': 1}
        ).visual


@pytest.mark.parametrize('architecture', ['RN50', 'ViT-B-16-SigLIP', 'coca_ViT-B-32'])
def test_models_without_a_plain_vision_transformer_are_refused(architecture):
    with pytest.raises(UnsupportedModelError, match='vision transformer'):
        DenseBackbone(image_tower(architecture))


@pytest.mark.parametrize(
    ('architecture', 'patch_size'), [('ViT-B-32', 32), ('ViT-S-16', 16), ('ViT-H-14', 14)]
)
def test_other_clip_vision_transformers_are_accepted(architecture, patch_size):
    assert DenseBackbone(image_tower(architecture)).patch_size == patch_size
