"""Benchmarks: metrics, layouts on disk, protocols, runs that are cut short."""

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pages import table as table_of_page
from PIL import ExifTags, Image
from reference_weights import reference_clip
from sklearn.metrics import confusion_matrix
from torchvision import transforms

from cliptrase_ros.cli import main
from cliptrase_ros.evaluation import metrics
from cliptrase_ros.evaluation.datasets import DATASETS, EIGHT, PAPER, SC_CLIP, Dataset
from cliptrase_ros.evaluation.labels import BACKGROUND, BORDER, IGNORED
from cliptrase_ros.evaluation.measure import (
    PUBLISHED_MODEL,
    Measurement,
    make_vocabulary,
    measure,
)
from cliptrase_ros.evaluation.protocols import Protocol, counted_truth, square
from cliptrase_ros.evaluation.reading import DatasetError, open_dataset
from cliptrase_ros.evaluation.report import Result, table
from cliptrase_ros.evaluation.run import Notes, Progress, ResumeError, run_benchmark
from cliptrase_ros.evaluation.samples import Benchmark, Sample, SampleError, read_ahead
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import name_and_synonyms

GOLDEN = sorted((Path(__file__).parent / 'golden').glob('small_*.npz'))
CLIP_MEAN = open_clip.OPENAI_DATASET_MEAN
CLIP_STD = open_clip.OPENAI_DATASET_STD

HEIGHT, WIDTH = 6, 8
CLASSES = 5
masks = hnp.arrays(np.int16, (7, 9), elements=st.integers(-1, CLASSES))


@settings(deadline=None)
@given(true=masks, predicted=masks)
def test_scores_equal_those_of_scikit_learn(true, predicted):
    counts = metrics.confusion(predicted, true, CLASSES)
    valid = (true >= 0) & (true < CLASSES)
    if not valid.any():
        assert counts.sum() == 0
        assert np.isnan(metrics.scores(counts).mean_iou)
        return
    # One more class for predictions that are none.
    column = np.where(predicted[valid] < 0, CLASSES, predicted[valid])
    matrix = confusion_matrix(true[valid], column, labels=range(CLASSES + 1)).astype(float)
    assert (counts == matrix[:CLASSES]).all()
    iou, recall, pixels = [], [], []
    for index in range(CLASSES):
        if matrix[index].sum():
            union = matrix[index].sum() + matrix[:, index].sum() - matrix[index, index]
            iou.append(matrix[index, index] / union)
            recall.append(matrix[index, index] / matrix[index].sum())
            pixels.append(matrix[index].sum())
    result = metrics.scores(counts)
    assert result.pixel_accuracy == pytest.approx(np.trace(matrix[:CLASSES]) / valid.sum())
    assert result.mean_accuracy == pytest.approx(np.mean(recall))
    assert result.mean_iou == pytest.approx(np.mean(iou))
    assert result.frequency_weighted_iou == pytest.approx(np.average(iou, weights=pixels))
    as_published = metrics.scores(counts, absent_classes_count=True)
    assert as_published.mean_accuracy == pytest.approx(np.sum(recall) / CLASSES)
    assert as_published.mean_iou == result.mean_iou


def test_confusion_of_label_images_of_one_byte():
    true = np.array([[0, 1, 255]], np.uint8)
    predicted = np.array([[255, 1, 0]], np.uint8)
    assert metrics.confusion(predicted, true, 2).tolist() == [[0, 0, 1], [0, 1, 0]]


def mean_iou(predicted, true, classes):
    return metrics.scores(metrics.confusion(predicted, true, classes)).mean_iou


def test_mean_iou_by_hand():
    true = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
    predicted = np.array([[0, 0, 0, 1], [0, 1, 1, 2]], np.uint8)
    # Class 0: 3 of 5; class 1: 2 of 4; class 2 is not in the truth.
    assert mean_iou(predicted, true, 3) == pytest.approx((3 / 5 + 2 / 4) / 2)


def test_unlabelled_predictions_are_wrong():
    true = np.zeros((2, 2), np.uint8)
    predicted = np.array([[0, 0], [255, 255]], np.uint8)
    assert mean_iou(predicted, true, 1) == pytest.approx(0.5)


def test_mean_iou_counts_over_all_images():
    true = [np.array([0, 0, 1], np.uint8), np.array([1, 1, 1, 1], np.uint8)]
    predicted = [np.array([0, 1, 1], np.uint8), np.array([1, 1, 1, 0], np.uint8)]
    counts = sum(metrics.confusion(p, t, 2) for p, t in zip(predicted, true, strict=True))
    assert metrics.scores(counts).mean_iou == pytest.approx((1 / 3 + 4 / 6) / 2)


def test_mean_iou_bounds_and_errors():
    true = np.array([0, 1, 255], np.uint8)
    assert mean_iou(true, true, 2) == 1.0
    assert math.isnan(mean_iou(true, np.full(3, 255, np.uint8), 2))
    with pytest.raises(ValueError, match='predicted is'):
        mean_iou(true, true[:2], 2)


def test_class_lists_are_as_long_as_their_names_say():
    sizes = {name: len(dataset.classes) for name, dataset in DATASETS.items()}
    assert sizes == {
        'coco171': 171,
        'voc20': 20,
        'pc59': 59,
        'pc459': 459,
        'ade150': 150,
        'ade847': 847,
        'coco80': 80,
        'voc21': 20,
        'pc60': 59,
        'coco81-object': 80,
        'cityscapes': 19,
    }
    for dataset in DATASETS.values():
        phrases = [*dataset.classes, *dataset.background]
        assert len(set(phrases)) == len(phrases)
        assert all(phrase == phrase.strip() != '' for phrase in phrases)


def test_the_paper_has_nine_benchmarks():
    assert len(PAPER) == 9
    miou = [DATASETS[name].published[224].mean_iou for name in PAPER]
    assert miou == [22.84, 80.95, 33.83, 9.36, 16.35, 6.31, 43.56, 50.88, 29.87]
    miou = [DATASETS[name].published[336].mean_iou for name in PAPER]
    assert miou == [24.06, 81.20, 34.92, 9.95, 17.04, 5.89, 44.84, 53.04, 30.79]


def test_the_eight_have_the_settings_of_their_authors():
    recipes = {}
    for name, recipe in SC_CLIP.items():
        words = make_vocabulary(replace(DATASETS[name], classes=recipe.classes))
        assert [c.id for c in words.classes] == list(range(len(DATASETS[name].classes)))
        assert bool(recipe.background) == bool(DATASETS[name].background)
        recipes[name] = (
            len(words.classes) + bool(recipe.background),
            sum(len(c.phrases) for c in words.classes) + len(recipe.background),
            recipe.logit_scale,
            recipe.min_confidence,
            recipe.min_area,
            recipe.resolution,
        )
    assert recipes == {
        'voc21': (21, 56, 50, 0.15, 0.1, 336),
        'pc60': (60, 60, 40, 0.15, 0, 336),
        'coco81-object': (81, 113, 55, 0.35, 0, 336),
        'voc20': (20, 30, 40, 0, 0, 336),
        'pc59': (59, 59, 40, 0, 0, 336),
        'coco171': (171, 171, 40, 0, 0, 336),
        'cityscapes': (19, 19, 40, 0, 0, 560),
        'ade150': (150, 150, 40, 0, 0, 336),
    }
    assert round(sum(recipe.mean_iou for recipe in SC_CLIP.values()) / 8, 1) == 43.9
    rows = table_of_page('commands.md', 'DATASET', after='### The eight')
    assert [name for name, *_ in rows] == [f'`{name}`' for name in EIGHT]
    for (_, _, words, *numbers), name in zip(rows, EIGHT, strict=True):
        _, phrases, *settings = recipes[name]
        background = len(SC_CLIP[name].background)
        assert words == (f'{phrases}, {background}' if background else str(phrases))
        assert [float(cell or 0) for cell in numbers] == [*settings, SC_CLIP[name].mean_iou]


def test_the_words_of_the_eight_are_those_of_their_authors():
    voc = [name_and_synonyms(entry) for entry in SC_CLIP['voc20'].classes]
    assert voc[3] == ('ship', ()) and voc[10] == ('table', ())
    assert voc[14] == (
        'person',
        tuple(f'person in {w}' for w in ('shirt', 'jeans', 'dress', 'sweater', 'skirt', 'jacket')),
    )
    assert voc[19] == ('television monitor', ('tv monitor', 'monitor', 'television', 'screen'))
    assert SC_CLIP['voc21'].classes == SC_CLIP['voc20'].classes
    objects = SC_CLIP['coco81-object']
    assert name_and_synonyms(objects.classes[0])[1] == (*voc[14][1], 'body')
    assert 'traffic light' in objects.classes and 'trafficlight' in SC_CLIP['coco171'].classes
    # A bed is background as well, and the background comes first.
    assert 'bed' in objects.classes and 'bed' in objects.background
    assert objects.background == SC_CLIP['voc21'].background and len(objects.background) == 26
    assert SC_CLIP['pc59'].classes[49] == 'table'
    assert {'trafficlight', 'trafficsign'} < set(SC_CLIP['cityscapes'].classes)
    assert SC_CLIP['ade150'].classes[44] == 'chestofdrawers'


# A real layout each: dataset, folder under the root with the images, end of their names, folder
# with the labels, end of their names, and what the label values of one image mean.
_VOC = {0: BACKGROUND, 1: 0, 20: 19, 255: BORDER}
_PC = {0: BACKGROUND, 1: 0, 59: 58}
_STUFF = {0: 0, 79: 79, 80: 80, 170: 170, 255: IGNORED}
_STUFF_IDS = {0: 0, 12: 11, 89: 79, 91: 80, 181: 170, 255: IGNORED}
_80 = {0: 0, 79: 79, 80: BACKGROUND, 81: IGNORED, 170: IGNORED, 255: BACKGROUND}
_OBJECTS = {0: 0, 79: 79, 80: BACKGROUND, 170: BACKGROUND, 255: BACKGROUND}
_STUFF_164K = ('coco_stuff164k/images/val2017', '.jpg', 'coco_stuff164k/annotations/val2017')
_D2_COCO = ('coco/val2017', '.jpg', 'coco/stuffthingmaps_detectron2/val2017', '.png')
_MM_VOC = ('VOCdevkit/VOC2012/JPEGImages', '.jpg', 'VOCdevkit/VOC2012/SegmentationClass', '.png')
_MM_PC = (
    'VOCdevkit/VOC2010/JPEGImages',
    '.jpg',
    'VOCdevkit/VOC2010/SegmentationClassContext',
    '.png',
)
_ADE = 'ADEChallengeData2016'
_FULL = 'ADE20K_2021_17_01'
_CITY = ('cityscapes/leftImg8bit/val', '_leftImg8bit.png', 'cityscapes/gtFine/val')
LAYOUTS = [
    # MMSegmentation, or as distributed.
    ('voc20', *_MM_VOC, _VOC),
    ('voc21', *_MM_VOC, _VOC),
    ('pc59', *_MM_PC, _PC),
    ('pc60', *_MM_PC, _PC),
    (
        'ade150',
        f'ade/{_ADE}/images/validation',
        '.jpg',
        f'ade/{_ADE}/annotations/validation',
        '.png',
        {0: IGNORED, 1: 0, 150: 149},
    ),
    ('coco171', *_STUFF_164K, '_labelTrainIds.png', _STUFF),
    ('coco171', *_STUFF_164K, '.png', _STUFF_IDS),
    ('coco80', *_STUFF_164K, '_labelTrainIds.png', _80),
    (
        'coco80',
        *_STUFF_164K,
        '.png',
        {0: 0, 89: 79, 91: BACKGROUND, 92: IGNORED, 255: BACKGROUND},
    ),
    (
        'coco81-object',
        'coco_object/images/val2017',
        '.jpg',
        'coco_object/annotations/val2017',
        '_instanceTrainIds.png',
        {0: BACKGROUND, 1: 0, 80: 79},
    ),
    ('cityscapes', *_CITY, '_gtFine_labelTrainIds.png', {0: 0, 18: 18, 255: IGNORED}),
    ('cityscapes', *_CITY, '_gtFine_labelIds.png', {0: IGNORED, 7: 0, 8: 1, 33: 18}),
    # detectron2: the authors' folders, then others'.
    ('coco171', *_D2_COCO, _STUFF),
    ('coco80', *_D2_COCO, _80),
    ('coco81-object', *_D2_COCO, _OBJECTS),
    (
        'voc21',
        'VOC2012/images_detectron2/val',
        '.jpg',
        'VOC2012/annotations_detectron2/val',
        '.png',
        {0: 0, 19: 19, 255: BACKGROUND},
    ),
    (
        'voc20',
        'VOC2012/images_detectron2/val',
        '.jpg',
        'VOC2012/annotations_detectron2/val',
        '.png',
        {0: 0, 19: 19, 255: BACKGROUND},
    ),
    ('pc59', 'pcontext/val/image', '.jpg', 'pcontext/val/label', '.png', {0: 0, 58: 58}),
    ('pc60', 'pcontext/val/image', '.jpg', 'pcontext/val/label', '.png', {58: 58, 255: BACKGROUND}),
    (
        'pc459',
        'pcontext_full/val/image',
        '.jpg',
        'pcontext_full/val/label',
        '.tif',
        {0: 0, 300: 300, 458: 458, 459: IGNORED, 65535: IGNORED},
    ),
    (
        'ade150',
        f'{_ADE}/images/validation',
        '.jpg',
        f'{_ADE}/annotations_detectron2/validation',
        '.png',
        {0: 0, 149: 149, 255: IGNORED},
    ),
    (
        'ade847',
        f'{_FULL}/images_detectron2/validation',
        '.jpg',
        f'{_FULL}/annotations_detectron2/validation',
        '.tif',
        {0: 0, 400: 400, 846: 846, 65535: IGNORED},
    ),
    (
        'ade847',
        f'{_FULL}/images_detectron2/validation',
        '.jpg',
        f'{_FULL}/annotations_detectron2/validation',
        '.png',
        {846: 846, 65535: IGNORED},
    ),
    (
        'voc21',
        'VOCdevkit/VOC2012/JPEGImages',
        '.jpg',
        'VOCdevkit/VOC2012/annotations_detectron2_bg/val',
        '.png',
        {0: 0, 20: BACKGROUND, 255: BORDER},
    ),
    (
        'pc459',
        'VOCdevkit/VOC2010/JPEGImages',
        '.jpg',
        'VOCdevkit/VOC2010/annotations_detectron2/pc459_val',
        '.tif',
        {458: 458},
    ),
    (
        'coco171',
        'coco-stuff/images/val2017',
        '.jpg',
        'coco-stuff/annotations_detectron2/val2017',
        '.png',
        _STUFF,
    ),
]


def write_pair(root, layout, name='one'):
    """Write an image and a label image in a layout; returns the truth that should be read."""
    _, images, image_suffix, labels, label_suffix, meaning = layout
    values = np.resize(np.array(list(meaning), np.uint16), (HEIGHT, WIDTH))
    if max(meaning) < 256:
        values = values.astype(np.uint8)
    stored = Image.fromarray(values)
    if 'SegmentationClass' in labels:
        stored = stored.convert('P')  # VOC's label images have a palette
        stored.putpalette(bytes(range(256)) * 3)
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    nested = f'frankfurt/{name}' if layout[0] == 'cityscapes' else name
    for path, picture in (
        (root / images / f'{nested}{image_suffix}', image),
        (root / labels / f'{nested}{label_suffix}', stored),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    for home, split in (
        ('VOCdevkit/VOC2012', 'Segmentation'),
        ('VOCdevkit/VOC2010', 'SegmentationContext'),
    ):
        if labels.startswith(f'{home}/Segm'):
            listing = root / home / 'ImageSets' / split / 'val.txt'
            listing.parent.mkdir(parents=True, exist_ok=True)
            listing.write_text(f'{name}\n')
    return np.vectorize(meaning.get)(values)


@pytest.mark.parametrize(
    'layout', LAYOUTS, ids=lambda layout: f'{layout[0]}-{layout[3]}{layout[4]}'
)
def test_layouts(layout, tmp_path):
    truth = write_pair(tmp_path, layout)
    benchmark = open_dataset(layout[0], tmp_path)
    assert [name.rpartition('/')[2] for name in benchmark.names] == ['one']
    sample = benchmark.load(benchmark.names[0])
    assert sample.truth.tolist() == truth.tolist()
    assert sample.image.shape == (HEIGHT, WIDTH, 3) and abs(int(sample.image[0, 0, 0]) - 90) < 3


def test_the_root_may_be_the_dataset_itself(tmp_path):
    write_pair(tmp_path, LAYOUTS[0])
    assert open_dataset('voc20', tmp_path / 'VOCdevkit').names == ('one',)
    assert open_dataset('voc20', tmp_path / 'VOCdevkit' / 'VOC2012').names == ('one',)


def test_converted_maps_beside_distributed_ones_are_not_taken_for_them(tmp_path):
    distributed = next(item for item in LAYOUTS if item[5] is _STUFF_IDS)
    objects = (*distributed[:4], '_instanceTrainIds.png', {0: BACKGROUND})
    write_pair(tmp_path, distributed)
    write_pair(tmp_path, objects)
    assert open_dataset('coco171', tmp_path).names == ('one',)


def test_a_wrong_root_says_what_was_looked_for(tmp_path):
    with pytest.raises(DatasetError) as caught:
        open_dataset('ade150', tmp_path)
    message = str(caught.value)
    assert str(tmp_path / 'ADEChallengeData2016/annotations/validation') in message
    assert str(tmp_path / 'ADEChallengeData2016/annotations_detectron2/validation') in message
    with pytest.raises(DatasetError, match='is not a folder'):
        open_dataset('voc20', tmp_path / 'nowhere')
    with pytest.raises(DatasetError, match='--root'):
        open_dataset('voc20', None)


def write_folder(root, classes, labels):
    (root / 'images').mkdir(parents=True)
    (root / 'labels').mkdir()
    (root / 'classes.txt').write_text(classes)
    for name, values in labels.items():
        Image.new('RGB', values.shape[::-1]).save(root / 'images' / f'{name}.jpg')
        Image.fromarray(values).save(root / 'labels' / f'{name}.png')
    return root


def test_folder_with_ids_synonyms_and_background(tmp_path):
    classes = '0 unlabeled\n3 person: worker, pedestrian\n7 background = sky, wall\n9 car = van\n'
    values = np.array([[0, 3], [7, 9]], np.uint8)
    benchmark = open_dataset('folder', write_folder(tmp_path / 'mine', classes, {'a': values}))
    phrases = [entry.phrases for entry in make_vocabulary(benchmark.dataset).classes]
    assert phrases == [('person', 'worker', 'pedestrian'), ('car', 'van')]
    assert benchmark.dataset.background == ('sky', 'wall')
    assert benchmark.ids == (3, 7, 9)
    assert benchmark.load('a').truth.tolist() == [[IGNORED, 0], [BACKGROUND, 1]]


def test_folder_with_names_alone(tmp_path):
    values = np.array([[0, 1, 2]], np.uint8)
    benchmark = open_dataset(
        'folder', write_folder(tmp_path / 'mine', 'road\n\ncar\n', {'a': values})
    )
    assert benchmark.load('a').truth.tolist() == [[0, 1, IGNORED]]


@pytest.mark.parametrize(
    ('classes', 'said'),
    [
        ('0 unlabeled\n', 'names no class'),
        ('1 road\n1 car\n', 'another class'),
        ('1 road\n2 road\n', 'twice'),
        ('70000 road\n', '65535'),
    ],
)
def test_folder_with_wrong_classes(classes, said, tmp_path):
    root = write_folder(tmp_path / 'mine', classes, {'a': np.zeros((2, 2), np.uint8)})
    with pytest.raises(DatasetError, match=said):
        open_dataset('folder', root)


def test_folder_as_windows_writes_it(tmp_path):
    root = write_folder(tmp_path / 'mine', '', {'a': np.array([[0, 1]], np.uint8)})
    (root / 'classes.txt').write_bytes('\ufeff0 unlabelled\r\n1 Straße\r\n'.encode())
    benchmark = open_dataset('folder', root)
    assert benchmark.dataset.classes == ('Straße',)
    assert benchmark.load('a').truth.tolist() == [[IGNORED, 0]]
    (root / 'classes.txt').write_bytes('1 Straße'.encode('cp1252'))
    with pytest.raises(DatasetError, match='not UTF-8'):
        open_dataset('folder', root)


def test_folder_with_files_that_have_no_partner(tmp_path):
    root = write_folder(tmp_path / 'mine', 'road\n', {'a': np.zeros((1, 2), np.uint8)})
    Image.new('RGB', (2, 1)).save(root / 'images' / 'b.jpg')
    for name in ('labels/a.json', 'labels/.c.png', 'images/notes.txt'):
        (root / name).write_text('no picture')
    benchmark = open_dataset('folder', root)
    assert (benchmark.names, benchmark.unpaired) == (('a',), ('b',))
    Image.new('RGB', (2, 1)).save(root / 'images' / 'a.png')
    with pytest.raises(DatasetError, match=r'a\.jpg and a\.png'):
        open_dataset('folder', root)


def test_photos_of_a_folder_are_turned_upright(tmp_path):
    root = write_folder(tmp_path / 'mine', 'road\n', {'a': np.zeros((2, 4), np.uint8)})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new('RGB', (2, 4)).save(root / 'images' / 'a.jpg', exif=exif)
    assert open_dataset('folder', root).load('a').image.shape == (2, 4, 3)


@pytest.mark.parametrize(
    ('name', 'is_the_papers'),
    [
        ('ViT-B-16-quickgelu (openai)', True),
        ('ViT-B-16-quickgelu (ViT-B-16.pt)', True),
        ('ViT-B-16-quickgelu (dfn2b)', False),
        ('ViT-B-16 (laion2b_s34b_b88k)', False),
        ('ViT-B-16-plus-240 (laion400m_e32)', False),
        ('toybox', False),
    ],
)
def test_published_figures_are_of_one_model(name, is_the_papers):
    assert (PUBLISHED_MODEL.fullmatch(name) is not None) == is_the_papers


def test_folder_that_lacks_something(tmp_path):
    with pytest.raises(DatasetError, match='classes.txt'):
        open_dataset('folder', tmp_path)


def break_image(root):
    (root / 'images' / 'a.jpg').write_bytes(b'no picture')


def remove_label(root):
    (root / 'labels' / 'a.png').unlink()


def colour_label(root):
    Image.new('RGB', (4, 4)).save(root / 'labels' / 'a.png')


def shrink_label(root):
    Image.new('L', (3, 4)).save(root / 'labels' / 'a.png')


def stretch_image(root):
    Image.new('RGB', (33, 1)).save(root / 'images' / 'a.jpg')
    Image.new('L', (33, 1)).save(root / 'labels' / 'a.png')


@pytest.mark.parametrize(
    ('damage', 'said'),
    [
        (break_image, 'cannot be read'),
        (remove_label, 'does not exist'),
        (colour_label, 'not an image of class ids'),
        (shrink_label, '4 x 4 and 3 x 4'),
        (stretch_image, 'a.jpg: an image of 33 x 1 pixels is too elongated'),
    ],
)
def test_unreadable_samples(damage, said, tmp_path):
    labels = {'a': np.zeros((4, 4), np.uint8)}
    root = write_folder(tmp_path / 'mine', 'road\n', labels)
    benchmark = open_dataset('folder', root)
    damage(root)
    with pytest.raises(SampleError, match=said):
        benchmark.load('a')


@pytest.mark.parametrize('size', [(37, 53), (53, 37), (31, 31), (20, 64)])
def test_square_is_that_of_the_published_evaluation(size):
    rng = np.random.default_rng(sum(size))
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    truth = rng.integers(-3, 300, size).astype(np.int16)
    result = square(Sample(image, truth), 24)
    scale = transforms.InterpolationMode
    wanted = transforms.Compose([transforms.Resize(24, scale.BICUBIC), transforms.CenterCrop(24)])
    assert (result.image == np.asarray(wanted(Image.fromarray(image)))).all()
    wanted = transforms.Compose([transforms.Resize(24, scale.NEAREST), transforms.CenterCrop(24)])
    assert (result.truth == np.asarray(wanted(Image.fromarray(truth.astype(np.int32))))).all()


@pytest.mark.parametrize('side', [224, 336])
def test_square_is_what_the_published_code_was_recorded_with(side, shared):
    files = sorted((shared / 'goldens').glob(f'*_{side}_plain.npz'))
    for file in files:
        with np.load(file) as golden:
            image, wanted = golden['image'], golden['input']
        truth = np.zeros(image.shape[:2], np.int16)
        assert (square(Sample(image, truth), side).image == wanted).all()
    assert len(files) == 5


def test_what_counts_as_background():
    truth = np.array([0, 4, BACKGROUND, BORDER, IGNORED], np.int16)
    ignored = IGNORED
    assert counted_truth(truth, 5, False, True).tolist() == [0, 4, ignored, ignored, ignored]
    assert counted_truth(truth, 5, True, True).tolist() == [0, 4, 5, 5, ignored]
    assert counted_truth(truth, 5, True, False).tolist() == [0, 4, 5, ignored, ignored]


def made_benchmark(count=9, background=()):
    """Samples whose picture shows the truth: red is the class index."""

    def load(name):
        if name == 'broken':
            raise SampleError('it is broken')
        truth = np.random.default_rng(int(name)).integers(0, 3, (8, 8)).astype(np.int16)
        if name == '2' and background:
            truth[:] = BACKGROUND
        image = np.repeat(truth.astype(np.uint8)[..., None], 3, 2)
        return Sample(image, truth)

    names = [*map(str, range(count)), 'broken']
    return Benchmark(Dataset('made', 'Made', ('a', 'b', 'c'), background), tuple(names), load)


def read_off(images):
    return [image[..., 0].astype(np.int64) for image in images]


WHOLE = Protocol('whole')


def test_samples_come_in_order_and_a_broken_one_does_not_end_the_run():
    benchmark = made_benchmark()
    read = list(read_ahead(benchmark.load, ['3', 'broken', '1', '0'], workers=3))
    assert [name for name, _ in read] == ['3', 'broken', '1', '0']
    assert isinstance(read[1][1], SampleError)
    assert (read[2][1].truth == benchmark.load('1').truth).all()


@pytest.mark.parametrize('batch', [1, 4, 50])
def test_a_run_counts_every_sample_once(batch, tmp_path):
    steps = []
    notes = Notes(tmp_path / 'notes.npz', {})
    progress = run_benchmark(
        made_benchmark(), {'exact': read_off}, WHOLE, notes, batch, step=steps.append
    )
    assert metrics.scores(progress.counts['exact']).mean_iou == 1.0
    assert progress.counts['exact'].sum() == 9 * 64
    assert (progress.counted, dict(progress.unreadable)) == (9, {'broken': 'it is broken'})
    assert sum(steps) == 10


def test_only_the_paper_leaves_pictures_of_background_out(tmp_path):
    benchmark = made_benchmark(background=('sky',))
    methods = {'exact': read_off}
    whole = run_benchmark(benchmark, methods, WHOLE, Notes(tmp_path / 'a.npz', {}))
    paper = run_benchmark(benchmark, methods, Protocol('paper', 8), Notes(tmp_path / 'b.npz', {}))
    assert (whole.left_out, whole.counts['exact'][3].sum()) == (0, 64)
    assert (paper.left_out, paper.counts['exact'][3].sum(), paper.counted) == (1, 0, 8)


def interrupt_at(call):
    calls = 0

    def labeller(images):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return read_off(images)

    return labeller


def test_a_run_that_was_cut_short_goes_on_where_it_stopped(tmp_path):
    benchmark = made_benchmark()
    notes = Notes(tmp_path / 'notes.npz', {'model': 'toybox', 'resolution': 224})
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(benchmark, {'first': read_off, 'second': interrupt_at(6)}, WHOLE, notes)
    labelled = []

    def watched(images):
        labelled.extend(images)
        return read_off(images)

    resumed = run_benchmark(benchmark, {'first': watched, 'second': read_off}, WHOLE, notes)
    assert len(labelled) == 4
    whole = run_benchmark(benchmark, {'first': read_off}, WHOLE, Notes(tmp_path / 'other.npz', {}))
    for counts in resumed.counts.values():
        assert (counts == whole.counts['first']).all()


def test_a_run_of_other_settings_is_not_mixed_in(tmp_path):
    path = tmp_path / 'notes.npz'
    run_benchmark(made_benchmark(), {'exact': read_off}, WHOLE, Notes(path, {'resolution': 224}))
    with pytest.raises(ResumeError, match='differed in resolution'):
        run_benchmark(
            made_benchmark(), {'exact': read_off}, WHOLE, Notes(path, {'resolution': 336})
        )
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResumeError, match='damaged'):
        Notes(path, {'resolution': 224}).load()


OTHER_SETTINGS = {
    'preset': 'plus',
    'resolution': 96,
    'min_confidence': 0.5,
    'refinement': 'edges',
    'smoothing': 0.5,
    'window': 64,
    'stride': 32,
    'min_presence': 0.5,
    'min_instance_area': 0.01,
    'image_prior': True,
    'scores': True,
}


def test_no_setting_overwrites_a_result_of_another(tiny_model, tmp_path):
    assert set(OTHER_SETTINGS) == {field.name for field in fields(SegmentationSettings)}
    segmenter = load_segmenter(tiny_model, device='cpu')

    def run(**changes):
        settings = SegmentationSettings(**{'resolution': 64, **changes})
        measurement = Measurement(made_benchmark(2), WHOLE, settings)
        measure(segmenter, measurement, tmp_path).notes.remove()

    run()
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    for name, value in OTHER_SETTINGS.items():
        try:
            run(**{name: value})
        except ResumeError as error:
            assert f'differed in {name}' in str(error)
        assert path.read_bytes() == before, name
    run()
    assert path.read_bytes() == before


def test_published_figures_stand_below_ours():
    dataset = DATASETS['voc20']
    counts = np.zeros((20, 21), np.int64)
    counts[0, 0], counts[0, 1], counts[1, 1] = 3, 1, 4
    progress = Progress({'paper': counts}, done=('a', 'b', 'c'), left_out=1)
    published = dataset.published[224]
    result = Result(dataset, Protocol('paper', 224), 224, {}, progress, None, published)
    head, ours, theirs = table([result]).splitlines()
    assert head.split() == ['dataset', 'size', 'method', 'images', 'pAcc', 'mAcc', 'fwIoU', 'mIoU']
    # As published: absent classes have accuracy 0 in mAcc, and no part in mIoU.
    assert ours.split() == ['voc20', '224', 'paper', '2', '87.50', '8.75', '77.50', '77.50']
    assert theirs.split() == ['published', '89.68', '91.40', '82.49', '80.95']
    assert head.index('mIoU') + 4 == len(ours) == len(theirs)


@pytest.fixture
def engine_calls(monkeypatch):
    """Labels every pixel with the first class; what the engine was called with."""
    calls = []

    def label(segmenter, images, table, settings, method):
        calls.append((settings, method, table))
        return [np.zeros(image.shape[:2], np.int16) for image in images]

    monkeypatch.setattr('cliptrase_ros.evaluation.measure.label_by_method', label)
    monkeypatch.setattr(TextEncoder, 'encode', lambda _, phrases: torch.zeros(len(phrases), 32))
    return calls


def test_eight_datasets_by_one_word(capsys, engine_calls, monkeypatch, tiny_model, tmp_path):
    for name in EIGHT:
        write_pair(tmp_path / 'data', next(layout for layout in LAYOUTS if layout[0] == name))
    monkeypatch.setattr('cliptrase_ros.evaluation.measure.PUBLISHED_MODEL', re.compile('.*'))
    arguments = ['eight', '--root', tmp_path / 'data', '--model', tiny_model, '-o', tmp_path]
    assert main(['evaluate', *map(str, arguments), '--preset', 'sc_clip']) == 0
    for (chosen, method, labels), name in zip(engine_calls, EIGHT, strict=True):
        recipe = SC_CLIP[name]
        assert (chosen.resolution, method.window) == (recipe.resolution, 224)
        assert chosen.min_confidence == recipe.min_confidence
        assert (method.logit_scale, method.min_area) == (recipe.logit_scale, recipe.min_area)
        assert labels.unlabelled == (len(recipe.classes) if recipe.background else -1)
        report = json.loads(
            (tmp_path / f'{name}-whole-sc_clip-{recipe.resolution}.json').read_text()
        )
        assert report['published']['mean_iou'] == recipe.mean_iou
        assert report['published']['pixel_accuracy'] is None
        assert report['classes'] == list(recipe.classes)
        named = [entry['name'] for entry in report['methods']['sc_clip']['classes']]
        assert named == [*DATASETS[name].classes, *(['background'] if recipe.background else [])]
    head, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:16:2]] == [
        [name, str(SC_CLIP[name].resolution), 'sc_clip'] for name in EIGHT
    ]
    assert [line.split() for line in lines[1:16:2]] == [
        ['published', '-', '-', '-', f'{SC_CLIP[name].mean_iou:.2f}'] for name in EIGHT
    ]
    assert {len(line) for line in lines[:16]} == {len(head)}


def test_what_sc_clip_is_not_sure_of_is_background(monkeypatch, tiny_model, tmp_path):
    write_pair(tmp_path, next(layout for layout in LAYOUTS if layout[0] == 'voc21'))
    segmenter = load_segmenter(tiny_model, device='cpu')
    # With this scale none of 56 phrases can be more probable than 0.12.
    unsure = replace(SC_CLIP['voc21'], logit_scale=1.0)

    def background(min_confidence):
        monkeypatch.setitem(SC_CLIP, 'voc21', replace(unsure, min_confidence=min_confidence))
        settings = SegmentationSettings('sc_clip')
        measurement = Measurement(open_dataset('voc21', tmp_path), WHOLE, settings)
        folder = tmp_path / str(min_confidence)
        folder.mkdir()
        (counts,) = measure(segmenter, measurement, folder).progress.counts.values()
        # A quarter of the picture is border.
        assert counts.sum() == 3 * HEIGHT * WIDTH / 4 and counts[:, 21].sum() == 0
        return counts[:, 20].sum()

    assert background(0.0) < background(0.15) == 3 * HEIGHT * WIDTH / 4


_MODEL = 'ViT-B-16-quickgelu (openai)'


@pytest.mark.parametrize(
    ('changes', 'protocol', 'model', 'is_shown'),
    [
        ({}, 'whole', _MODEL, True),
        ({'window': 224, 'stride': 112}, 'whole', _MODEL, True),
        ({}, 'whole', 'ViT-B-16 (laion2b_s34b_b88k)', False),
        ({}, 'paper', _MODEL, False),
        ({'resolution': 448}, 'whole', _MODEL, False),
        ({'window': 0}, 'whole', _MODEL, False),
        ({'refinement': 'pamr'}, 'whole', _MODEL, False),
        ({'preset': 'plus'}, 'whole', _MODEL, False),
    ],
)
def test_the_published_figure_is_shown_beside_what_it_was_reached_with(
    changes, protocol, model, is_shown, engine_calls, monkeypatch, tiny_model, tmp_path
):
    segmenter = load_segmenter(tiny_model, device='cpu')
    monkeypatch.setattr(segmenter, 'name', model)
    benchmark = replace(made_benchmark(1), dataset=DATASETS['voc21'])
    settings = SegmentationSettings(**{'preset': 'sc_clip', **changes})
    measurement = Measurement(benchmark, Protocol(protocol, settings.resolution), settings)
    result = measure(segmenter, measurement, tmp_path)
    assert (result.published is not None) == is_shown
    if is_shown:
        assert result.published.mean_iou == 64.6


@pytest.mark.parametrize('path', GOLDEN, ids=lambda path: path.stem)
def test_counts_are_those_of_the_published_labels(path, monkeypatch, tmp_path):
    """From a dataset to counts, with weights and labels recorded from the published code."""
    with np.load(path) as file:
        golden = dict(file)
    classes, background = (tuple(map(str, golden[k])) for k in ('foreground', 'background'))
    prior = str(golden['mode']) == 'image_prior'
    truth = np.random.default_rng(0).integers(-3, len(classes), golden['labels'].shape)
    benchmark = Benchmark(
        Dataset('recorded', 'Recorded', classes, background, image_prior=prior),
        ('only',),
        lambda name: Sample(golden['input'], truth.astype(np.int16)),
    )
    # What the words mean is recorded as well; this model's own text tower says otherwise.
    recorded = torch.from_numpy(golden['text_features'])
    monkeypatch.setattr(TextEncoder, 'encode', lambda encoder, phrases: recorded)
    tokenizer = open_clip.get_tokenizer('ViT-B-16-quickgelu')
    segmenter = Segmenter(LoadedModel(reference_clip(), tokenizer, CLIP_MEAN, CLIP_STD))
    side = len(truth)
    measurement = Measurement(
        benchmark, Protocol('paper', side), SegmentationSettings('paper', side)
    )
    result = measure(segmenter, measurement, tmp_path)
    wanted = np.where((truth == BACKGROUND) | (truth == BORDER), len(classes), truth)
    labels = range(len(classes) + bool(background))
    counted = np.isin(wanted, labels)
    matrix = confusion_matrix(wanted[counted], golden['labels'][counted], labels=labels)
    counts = result.progress.counts['paper']
    assert (counts[:, :-1] == matrix).all() and counts[:, -1].sum() == 0
