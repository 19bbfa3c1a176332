import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import cliptrase_ros as ct
from cliptrase_ros import segmentation
from cliptrase_ros.segmentation import (
    DEFAULT_BACKGROUND,
    ModelSettings,
    SegmentationSettings,
    VocabularyError,
    draw_overlay,
    load_segmenter,
    parse_vocabulary,
)

WORDS = 'road; person = pedestrian, worker; tree'
HEAVY = {'numpy', 'torch', 'cv2', 'PIL', 'open_clip', 'xml'}


def picture(seed=0, height=80, width=120):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope='module')
def loaded(tiny_model):
    return ct.load(tiny_model, device='cpu')


@pytest.fixture
def model(loaded):
    """A model without classes, which shares its weights with others."""
    return ct.Model(loaded.segmenter)


@pytest.fixture
def result(model):
    model.set_classes(WORDS, background='sky')
    return model(picture(), resolution=64)


def imported(code):
    """Modules that a fresh Python has imported after running code."""
    code = f'{code}\nimport json, sys\nprint(json.dumps(list(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_imports_nothing_heavy():
    code = 'import cliptrase_ros as ct\nassert not hasattr(ct, "nothing")\nassert "load" in dir(ct)'
    assert not imported(code) & {*HEAVY, 'cliptrase_ros.api', 'cliptrase_ros.segmentation'}
    assert not imported(f'{code}\nct.__version__') & (HEAVY - {'xml'})


def test_settings_and_words_do_without_pytorch():
    code = 'from cliptrase_ros.segmentation import ModelSettings, parse_vocabulary'
    assert not imported(code) & {'torch', 'cv2', 'open_clip'}


def test_works_beside_the_messages():
    pytest.importorskip('cliptrase_ros.msg', reason='needs the messages that colcon generates')
    lines = ('from cliptrase_ros import segmentation', 'from cliptrase_ros import msg')
    for first, second in (lines, lines[::-1]):
        imported(f'{first}\n{second}\nmsg.Vocabulary, segmentation.ModelSettings')


def test_every_exported_name_is_there():
    for module in (ct, segmentation):
        assert all(getattr(module, name) is not None for name in module.__all__)
        with pytest.raises(AttributeError, match='nothing'):
            _ = module.nothing


def test_load_has_the_settings_and_defaults_of_a_model():
    parameters = inspect.signature(ct.load).parameters.values()
    assert {p.name: p.default for p in parameters} == vars(ModelSettings())


def test_labels_are_those_of_the_explicit_way(model, tiny_model):
    segmenter = load_segmenter(tiny_model, device='cpu')
    settings = SegmentationSettings('plus', 64, 0.1)
    words = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
    (expected,) = segmenter.segment([picture()], words, settings)
    model.set_classes(WORDS)
    result = model(picture(), preset='plus', resolution=64, min_confidence=0.1)
    assert (result.label == expected.label).all()
    assert (result.confidence == expected.confidence).all()
    assert result.segmentation.vocabulary == expected.vocabulary
    assert result.segmentation.vocabulary.background == DEFAULT_BACKGROUND


def test_arrays_paths_and_pictures_give_the_same(model, tmp_path):
    model.set_classes(WORDS)
    Image.fromarray(picture()).save(tmp_path / 'photo.png')
    images = [
        picture(),
        tmp_path / 'photo.png',
        str(tmp_path / 'photo.png'),
        Image.fromarray(picture()),
        Image.fromarray(picture()).convert('RGBA'),
    ]
    expected = model(images[0], resolution=64)
    for image in images:
        assert (model(image, resolution=64).label == expected.label).all()
        assert (expected.overlay(image) == expected.overlay(picture())).all()


def test_photos_are_turned_upright_and_pictures_taken_as_they_are(model, tmp_path):
    model.set_classes(WORDS)
    lying = Image.fromarray(picture())
    exif = lying.getexif()
    exif[274] = 6  # orientation: to be turned by 90 degrees
    lying.save(tmp_path / 'photo.png', exif=exif)
    assert model(tmp_path / 'photo.png', resolution=64).label.shape == (120, 80)
    with Image.open(tmp_path / 'photo.png') as opened:
        assert model(opened, resolution=64).label.shape == (80, 120)


def test_a_list_gives_a_list_in_order(model):
    model.set_classes(WORDS)
    images = [picture(0), picture(1, 64, 64), picture(2)]
    for given in (images, tuple(images)):
        results = model(given, resolution=64)
        assert isinstance(results, list)
        for image, result in zip(images, results, strict=True):
            assert (result.label == model(image, resolution=64).label).all()
    assert model([]) == []


def test_classes_that_stay_keep_their_ids(model):
    model.set_classes(['road', 'person = pedestrian'])
    model.set_classes('tree; person')
    assert [(entry.name, entry.id) for entry in model.classes] == [('tree', 2), ('person', 1)]
    with pytest.raises(VocabularyError, match='twice'):
        model.set_classes('dog; dog')
    with pytest.raises(VocabularyError, match='too long'):
        model.set_classes('very ' * 100)
    assert [entry.name for entry in model.classes] == ['tree', 'person']


def test_words_of_other_types_are_refused(model):
    for given in (None, 3, [1, 2], {'road': 1}, b'road'):
        with pytest.raises(ct.VocabularyError, match='the vocabulary is .* give a list of texts'):
            model.set_classes(given)
    with pytest.raises(ct.VocabularyError, match='the background is None; give a list'):
        model.set_classes('road', background=None)
    assert model.classes == ()


def test_values_of_a_model_are_checked_before_it_is_loaded():
    for wrong in ({'threads': 5000}, {'threads': -1}, {'device': 3}, {'precision': 'int8'}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f'{name} is .* it must be'):
            ct.load('no such model', **wrong)
    with pytest.raises(ct.ModelError):
        ct.load('no such model', device='cpu')


def test_masks_by_name_or_synonym(result):
    for name, class_id in (('road', 0), ('Person', 1), (' pedestrian', 1), ('tree', 2)):
        mask = result.mask(name)
        assert mask.dtype == bool and (mask == (result.label == class_id)).all()
    for name in ('dog', 'sky', '', 0):
        with pytest.raises(ValueError, match='the classes are road, person, tree'):
            result.mask(name)


def test_scores_by_phrase(model):
    model.set_classes(WORDS, background='sky')
    result = model(picture(), resolution=64, scores=True)
    together = sum(
        result.score(name).astype(int) for name in ('road', ' Pedestrian', 'tree', 'Sky')
    )
    assert result.score('road').shape == result.label.shape and np.abs(together - 255).max() <= 2
    with pytest.raises(ValueError, match='there are road, person, pedestrian, worker, tree, sky'):
        result.score('dog')
    with pytest.raises(ValueError, match='scores=True'):
        model(picture(), resolution=64).score('road')


def test_results_do_not_change(result):
    for array in (result.label, result.confidence):
        assert array.dtype == np.uint8 and array.shape == (80, 120)
        with pytest.raises(ValueError, match='read-only'):
            array[:] = 0
    with pytest.raises(AttributeError):
        result.segmentation = None
    assert repr(result).startswith('<Result of 120 x 80 pixels: ')


def test_overlay_is_over_the_image(result):
    vocabulary = result.segmentation.vocabulary
    expected = draw_overlay(picture(), result.label, vocabulary)
    assert (result.overlay(picture()) == expected).all()
    with pytest.raises(ValueError, match='shape'):
        result.overlay(picture(height=90))
    with pytest.raises(ValueError, match='must be uint8'):
        result.overlay(picture() / 255)


@pytest.mark.parametrize(
    ('image', 'settings', 'error', 'reason'),
    [
        (picture().astype(float), {}, ValueError, 'must be uint8'),
        (picture()[..., 0], {}, ValueError, 'must be uint8'),
        (picture()[None], {}, ValueError, 'must be uint8'),
        (None, {}, TypeError, 'path of a photo or a PIL image'),
        ([picture(), 3], {}, TypeError, 'image 1 of the list: .* of type int'),
        ([picture(), picture()[None]], {}, ValueError, 'image 1 of the list: .* must be uint8'),
        (['no/such.jpg'], {}, FileNotFoundError, 'image 0 of the list: no/such.jpg'),
        (b'photo.jpg', {}, TypeError, 'of type bytes'),
        (picture(0, 10, 500), {}, ValueError, 'too elongated'),
        ('.', {}, ValueError, 'is a folder; give a list'),
        ('no/such.jpg', {}, FileNotFoundError, 'no/such.jpg does not exist'),
        (__file__, {}, ValueError, 'test_api.py cannot be read: '),
        (Image.fromarray(np.float32([[-5, 1e6]])), {}, ValueError, 'cannot be read: '),
        (picture(), {'resolutoin': 3}, TypeError, "no setting 'resolutoin'; there are preset"),
        (picture(), {'resolution': 3}, ValueError, '64 to 1024'),
        (picture(), {'resolution': '224'}, ValueError, "resolution is '224'; .* whole number, 64"),
        (picture(), {'resolution': 224.5}, ValueError, 'must be a whole number'),
        (picture(), {'min_confidence': None}, ValueError, 'min_confidence is None; .* a number'),
        (picture(), {'preset': True}, ValueError, 'preset is True; it must be a text, one of'),
        (picture(), {'refinement': 'sam'}, ValueError, 'no SAM was loaded'),
        (picture(), {'smoothing': 0.5}, ValueError, 'docs/python.md'),
    ],
)
def test_errors_are_clear(model, image, settings, error, reason):
    model.set_classes('road')
    with pytest.raises(error, match=reason):
        model(image, **settings)


def test_classes_come_first(model):
    assert model.classes == ()
    with pytest.raises(RuntimeError, match='set_classes'):
        model(picture())
