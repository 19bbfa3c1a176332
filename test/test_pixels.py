"""Labels made at the camera's pixels: preset sc_clip's way."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_weights import reference_clip

from cliptrase_ros.segmentation.method import pamr
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import label_table
from cliptrase_ros.segmentation.run import pixels as run_pixels
from cliptrase_ros.segmentation.run.pixels import label_pixels, phrase_maps, probability_of
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import PRESETS, Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

CAMERA = (90, 130)
METHOD = replace(PRESETS['sc_clip'], window=64, stride=48)


@pytest.fixture(scope='module')
def backbone(device):
    return DenseBackbone(reference_clip().requires_grad_(False).visual.to(device))


@pytest.fixture(scope='module')
def table(device):
    # Two phrases for each of the first two classes, three background phrases.
    features = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    columns = [0, 0, 1, 1, 2, 3, 4, 5, 6]
    return label_table(
        F.normalize(features, dim=-1).to(device), columns, [7, 3, 9, 1], 255, 255, 5.0
    )


@pytest.fixture(scope='module')
def network_input(device):
    return torch.randn(2, 3, 100, 141, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.fixture
def maps_of(backbone, table, network_input):
    """A function that makes the maps of the same frames by a method."""

    def make(method=METHOD, words=table):
        return phrase_maps(backbone, network_input, words, method, CAMERA)

    return make


def labels_at_once(maps, table, method):
    """The published way, with all maps in memory: columns and probabilities."""
    everything = maps.at_pixels(slice(None)) * (method.logit_scale or table.logit_scale)
    probability = everything.softmax(1)
    columns = int(table.foreground) + 1
    of_class = torch.stack(
        [
            probability[:, torch.minimum(table.columns, table.foreground) == column].amax(1)
            for column in range(columns)
        ],
        1,
    )
    if method.min_area:
        area = F.one_hot(of_class.argmax(1), columns)[..., :-1].sum((1, 2)).float()
        enough = area > method.min_area * area.sum(1, keepdim=True)
        of_class[:, :-1] *= enough[:, :, None, None]
    return of_class.argmax(1), of_class.amax(1)


@pytest.mark.parametrize(
    'method',
    [
        METHOD,
        replace(METHOD, window=0),
        replace(METHOD, logit_scale=0.0),
        replace(METHOD, min_area=0.3),
        replace(METHOD, min_area=0.3, refinement='pamr'),
    ],
    ids=['windows', 'whole', 'own scale', 'area', 'area and pamr'],
)
def test_phrases_a_few_at_a_time_give_what_all_at_once_give(maps_of, table, method, monkeypatch):
    maps = maps_of(method)
    expected_label, expected_probability = labels_at_once(maps, table, method)
    assert len(expected_label.unique()) > 1
    for values in (1, 2 * 2 * 90 * 130, 1 << 25):
        monkeypatch.setattr(run_pixels, '_VALUES_AT_ONCE', values)
        label, probability = label_pixels(replace(maps), table, method)
        assert (label == expected_label).float().mean() > 0.9999
        torch.testing.assert_close(probability, expected_probability, atol=1e-5, rtol=0)


def test_small_areas_give_their_pixels_to_the_others(maps_of, table):
    label, _ = label_pixels(maps_of(), table, METHOD)
    for index, of_frame in enumerate(label):
        pixels = of_frame[of_frame < table.foreground].bincount(minlength=4)
        share = pixels / pixels.sum()
        smallest = share[share > 0].min()
        fewer, _ = label_pixels(maps_of(), table, replace(METHOD, min_area=float(smallest)))
        kept = {*of_frame.unique().tolist()} - {*(share == smallest).nonzero()[:, 0].tolist()}
        assert {*fewer[index].unique().tolist()} == kept
        assert 4 in kept or 4 not in of_frame


@pytest.mark.parametrize(
    'choice', [{}, {'refinement': 'pamr'}, {'min_area': 0.3}, {'min_area': 1.0}], ids=str
)
@pytest.mark.parametrize('background', [True, False], ids=['background', 'none'])
def test_padding_changes_nothing(maps_of, table, choice, background):
    if not background:
        columns = table.columns.tolist()[:6]
        table = label_table(table.features[:6], columns, [7, 3, 9, 1], 255, 255, 5.0)
    padded, method = table.padded(16, 32), replace(METHOD, **choice)
    expected = label_pixels(maps_of(method, table), table, method)
    label, probability = label_pixels(maps_of(method, padded), padded, method)
    # On a GPU products with a padded table may round the other way.
    assert (label == expected[0]).float().mean() > 0.999
    torch.testing.assert_close(probability, expected[1], atol=1e-4, rtol=0)


def test_the_probability_of_given_labels(maps_of, table):
    maps = maps_of()
    label, probability = label_pixels(maps, table, METHOD)
    torch.testing.assert_close(probability_of(label, maps, table, METHOD), probability)
    zeros = torch.zeros_like(label)
    of_first = (maps.at_pixels(slice(None)) * METHOD.logit_scale).softmax(1)[:, :2].amax(1)
    torch.testing.assert_close(probability_of(zeros, maps, table, METHOD), of_first)


def test_windows_are_enlarged_then_averaged(maps_of, network_input, backbone, table):
    maps = maps_of()
    # 100 x 141 pixels: tops 0 and 36, lefts 0, 48 and 77, which is no multiple of a patch.
    assert maps.corners == [(0, 0), (0, 48), (0, 77), (36, 0), (36, 48), (36, 77)]
    total = torch.zeros(9, 100, 141, device=network_input.device)
    count = torch.zeros(100, 141, device=network_input.device)
    for top, left in maps.corners:
        part = np.s_[top : top + 64, left : left + 64]
        dense = backbone(network_input[:1, :, part[0], part[1]], 'calibrated')
        cosines = (dense.tokens[0, 1:] @ table.features.T).T.view(1, 9, 4, 4)
        enlarged = F.interpolate(cosines, (64, 64), mode='bilinear')[0]
        total[:, part[0], part[1]] += enlarged
        count[part] += 1
    expected = F.interpolate((total / count)[None], CAMERA, mode='bilinear')[0]
    torch.testing.assert_close(maps.at_pixels(slice(None))[0], expected, atol=1e-5, rtol=0)


def test_pamr_refines_every_map_by_the_networks_input_enlarged(maps_of, network_input):
    plain, refined = maps_of(), maps_of(replace(METHOD, refinement='pamr'))
    picture = F.interpolate(network_input, CAMERA, mode='bilinear')
    expected = pamr.refine(plain.at_pixels(slice(2, 5)), pamr.neighbour_weights(picture))
    torch.testing.assert_close(refined.at_pixels(slice(2, 5)), expected)


@pytest.mark.parametrize(
    ('window', 'seen'), [(10, 16), (79, 64), (101, 96), (140, 128), (500, 496)]
)
def test_windows_are_whole_patches_and_no_larger_than_the_frame(maps_of, window, seen):
    maps = maps_of(replace(METHOD, window=window, stride=window))
    assert maps.window == (min(seen, 100), min(seen, 141))
    # Nothing lies between windows.
    covered = np.zeros((100, 141), bool)
    for top, left in maps.corners:
        covered[top : top + maps.window[0], left : left + maps.window[1]] = True
    assert covered.all()


def test_the_least_stride_is_a_patch(maps_of):
    assert maps_of(replace(METHOD, stride=1)).corners == maps_of(replace(METHOD, stride=16)).corners


@pytest.mark.parametrize('name', ['clustering', 'propagation', 'image_prior', 'smoothing'])
def test_what_needs_probabilities_of_patches_is_refused(name):
    with pytest.raises(ValueError, match=f'{name} is .* sc_clip has none'):
        replace(PRESETS['sc_clip'], **{name: 0.5 if name == 'smoothing' else True})


@pytest.mark.parametrize('choice', [{'logit_scale': 40.0}, {'min_area': 0.1}])
def test_what_needs_probabilities_of_pixels_is_refused(choice):
    with pytest.raises(ValueError, match='are for softmax at pixels'):
        replace(PRESETS['robot'], **choice)


def test_the_centre_has_no_labels_for_all_of_the_cameras_pixels():
    with pytest.raises(ValueError, match='whole frame'):
        Method('centre', clustering=False, softmax='pixels')


def test_settings_of_the_preset():
    method = SegmentationSettings('sc_clip').method
    assert (method.window, method.stride, method.logit_scale) == (224, 112, 40)
    assert SegmentationSettings('sc_clip', window=224).method == method
    whole = SegmentationSettings('sc_clip', window=0, stride=56).method
    assert (whole.window, whole.stride) == (0, 0)
    assert SegmentationSettings('sc_clip', window=300).method.stride == 150
    assert SegmentationSettings('sc_clip', stride=56).method.stride == 56
    assert SegmentationSettings('plus').method.window == 0
    # Masks of a SAM vote on the same labels: smoothing goes on, and no graph is captured anew.
    assert SegmentationSettings(refinement='sam').method == SegmentationSettings().method
    with pytest.raises(ValueError, match='smoothing is 0.5'):
        SegmentationSettings('sc_clip', smoothing=0.5)
    with pytest.raises(ValueError, match='stride is 300; it must be 0 to the window, which is 224'):
        SegmentationSettings('sc_clip', stride=300)


@pytest.fixture(scope='module')
def toybox(device):
    return load_segmenter('toybox', device=str(device))


def image(height, width, seed=0):
    blocks = np.random.RandomState(seed).randint(0, 256, (4, 5, 3), np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 5 // width
    return blocks[rows][:, columns]


@pytest.mark.parametrize('size', [(9, 9), (30, 200), (200, 30), (120, 161), (40, 40)])
@pytest.mark.parametrize('window', [-1, 0, 1024])
def test_any_size_of_image(toybox, size, window):
    words = toybox.encode_vocabulary(parse_vocabulary(['red ball', 'blue box', 'carpet']))
    settings = SegmentationSettings('sc_clip', 96, window=window)
    (result,) = toybox.segment([image(*size)], words, settings)
    assert result.label.shape == result.confidence.shape == size
    assert result.confidence.min() > 0


@pytest.mark.parametrize('refinement', ['none', 'edges', 'pamr'])
def test_a_batch_gives_each_image_the_labels_it_has_alone(toybox, refinement):
    phrases = ['red ball', 'blue box', 'carpet', 'brick wall', 'green cone']
    words = toybox.encode_vocabulary(parse_vocabulary(phrases, background=()))
    settings = SegmentationSettings('sc_clip', 128, window=64, refinement=refinement)
    images = [image(60, 80, seed) for seed in range(3)]
    together = toybox.segment(images, words, settings)
    for one, result in zip(images, together, strict=True):
        (alone,) = toybox.segment([one], words, settings)
        assert (result.label == alone.label).mean() > 0.995
        assert np.abs(result.confidence - alone.confidence.astype(int)).max() <= 1
    assert (together[0].confidence != together[1].confidence).mean() > 0.5


@pytest.mark.parametrize('refinement', ['none', 'edges', 'pamr'])
def test_one_class_alone_has_every_pixel(toybox: Segmenter, refinement):
    words = toybox.encode_vocabulary(parse_vocabulary(['red ball'], background=()))
    settings = SegmentationSettings('sc_clip', 96, refinement=refinement)
    (result,) = toybox.segment([image(60, 80)], words, settings)
    assert (result.label == words.vocabulary.classes[0].id).all()
    assert (result.confidence == 255).all()


@pytest.mark.parametrize('preset', ['robot', 'plus', 'sc_clip'])
def test_pamr_on_a_flat_picture(toybox, preset):
    words = toybox.encode_vocabulary(parse_vocabulary(['red ball', 'carpet'], background=()))
    flat = np.full((60, 80, 3), 90, np.uint8)
    plain, refined = (
        toybox.segment([flat], words, SegmentationSettings(preset, 96, refinement=refinement))[0]
        for refinement in ('none', 'pamr')
    )
    # Neighbours all count alike, and the two classes are told apart as without.
    assert (refined.label == plain.label).mean() > 0.9
    assert refined.confidence.min() > 0


def test_calibrated_features_in_the_other_way_to_label(toybox):
    """Features, and where probabilities are made, are choices of their own."""
    words = toybox.encode_vocabulary(parse_vocabulary(['red ball', 'carpet'], background=()))
    seen = []
    for method in (
        Method('whole', features='calibrated'),
        Method('whole', features='calibrated', clustering=False, propagation=True),
        Method('mmcv', clustering=False, softmax='pixels'),
        Method('whole', clustering=False, softmax='pixels', features='clip', window=64),
    ):
        (labelled,) = toybox._label_images(
            [image(60, 80)], words.table, SegmentationSettings(resolution=96), method
        )
        assert labelled.label.shape == (60, 80) and labelled.confidence.min() > 0
        seen.append(labelled.confidence)
    for one, other in itertools.combinations(seen, 2):
        assert (one != other).any()
