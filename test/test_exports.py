"""Datasets of results, read back with the libraries of those who use them."""

import importlib
import io
import json
import shutil
import tracemalloc
from pathlib import PurePosixPath

import bags
import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer

from cliptrase_ros.exports.export import FORMATS, join_parts, write_part
from cliptrase_ros.exports.names import distinct_names, portable_path
from cliptrase_ros.exports.regions import MIN_REGION_AREA
from cliptrase_ros.exports.results import ExportError, Result, text_of
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.messages.type_names import CLASS_MASKS
from cliptrase_ros.messages.typestore import make_typestore, typestore_message_maker
from cliptrase_ros.photos.reading import read_photo
from cliptrase_ros.photos.results import describe_segmentation, write_json, write_label
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

pytest.importorskip('pycocotools', reason='the extra `fleet` is not installed')
pytest.importorskip('pyarrow', reason='the extra `fleet` is not installed')
from pyarrow import parquet as pq
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

# Of pycocotools, over NumPy 2.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')

VOCABULARY = parse_vocabulary('Straße; person: pedestrian')
HEIGHT, WIDTH = 48, 64


def make_label(seed):
    """Blobs of both classes and unlabelled ones, with holes, crumbs and thin lines."""
    noise = np.random.default_rng(seed).random((2, HEIGHT, WIDTH)).astype(np.float32)
    first, second = (cv2.GaussianBlur(layer, (0, 0), 3) for layer in noise)
    label = np.where(first > 0.52, 0, 255).astype(np.uint8)
    label[second > 0.55] = 1
    label[2, 3:60] = 0
    label[5:40, 1] = 1
    cv2.rectangle(label, (20, 10), (45, 35), 0, -1)
    cv2.rectangle(label, (25, 15), (35, 25), 255, -1)
    label[44, 62] = 1
    return label


def segmentation(label):
    confidence = np.where(label == 0, 204, 102).astype(np.uint8)
    return Segmentation(label, confidence, VOCABULARY)


class Results:
    """Results written as the commands write them, their inputs, and what is expected."""

    def __init__(self, folder):
        self.folder = folder
        self.labels = {}
        self.results = []

    def add_photos(self, key, name, photos):
        """`photos`: label and options of saving by file name."""
        inputs, written = self.folder / key / 'in', self.folder / key / 'out'
        inputs.mkdir(parents=True)
        images = []
        for number, (file, (label, options)) in enumerate(photos.items()):
            pixels = bags.picture(number, *label.shape)
            if 'exif' in options:
                pixels = np.rot90(pixels)
            Image.fromarray(pixels).save(inputs / file, **options)
            path = f'labels/{number}.png'
            write_label(written / path, segmentation(label))
            described = describe_segmentation(segmentation(label))
            images.append({'file': f'/scratch/{text_of(file)}', 'label': path, **described})
        write_json(written / 'segmentation.json', {'images': images})
        source = f's3://fleet/{name}'
        self.results.append(Result(key, 'photos', name, source, written, inputs))

    def add_video(self, key, name, labels):
        pytest.importorskip('av', reason='PyAV is not installed; `make test` brings it')
        inputs, written = self.folder / f'{key}.avi', self.folder / key
        code = cv2.VideoWriter_fourcc(*'MJPG')
        writer = cv2.VideoWriter(str(inputs), code, 10, (WIDTH, HEIGHT))
        for number in range(len(labels)):
            writer.write(bags.picture(number)[..., ::-1])
        writer.release()
        images = []
        for number, label in enumerate(labels):
            if label is None:
                continue
            path = f'labels/clip/{number:06d}.png'
            write_label(written / path, segmentation(label))
            described = describe_segmentation(segmentation(label))
            images.append(
                {'file': 'clip.avi', 'frame': number, 'time_s': number / 10, 'label': path}
                | described
            )
        write_json(written / 'segmentation.json', {'images': images})
        self.results.append(Result(key, 'video', name, f's3://fleet/{name}', written, inputs))

    def add_recording(self, key, name, topics, cameras):
        """`topics`: those of the input; `cameras`: topic and labels by camera name."""
        inputs = bags.write_bag(self.folder / f'{key}_in', topics)
        written = self.folder / key
        store = make_typestore()
        maker = typestore_message_maker(store)
        rows = []
        with Writer(written, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            for camera, (topic, labels) in cameras.items():
                connection = writer.add_connection(
                    f'/cliptrase/{camera}/masks', CLASS_MASKS, typestore=store
                )
                (messages,) = (messages for other, *_, messages in topics if other == topic)
                for (log_ns, message), label in zip(messages, labels, strict=True):
                    if label is not None:
                        masks = maker.make_masks(
                            LabelledPicture(message.header, None, segmentation(label))
                        )
                        rows.append((log_ns, connection, store.serialize_cdr(masks, CLASS_MASKS)))
            for log_ns, connection, data in sorted(rows, key=lambda row: row[0]):
                writer.write(connection, log_ns, data)
        of_camera = {camera: topic for camera, (topic, _) in cameras.items()}
        self.results.append(
            Result(key, 'recording', name, f's3://fleet/{name}', written, inputs, of_camera)
        )

    def export(self, folder, formats=FORMATS, with_inputs=True):
        for result in self.results:
            inputs = result.inputs if with_inputs else None
            write_part(Result(**(vars(result) | {'inputs': inputs})), formats, folder)
        for name in formats:
            parts = sorted((folder / name).glob('parts/*.jsonl'))
            opened = (io.BytesIO(path.read_bytes()) for path in parts)
            join_parts(name, opened, VOCABULARY, folder / name)
        return folder


@pytest.fixture(scope='module')
def everything(tmp_path_factory):
    """Results of every kind, all formats of them, and the expected label by name of image."""
    results = Results(tmp_path_factory.mktemp('results'))
    empty = np.full((30, 40), 255, np.uint8)
    labels = [make_label(seed) for seed in range(20)]
    turned = Image.Exif()
    turned[0x0112] = 6
    results.add_photos(
        'a1',
        'Fotos/../Öl',
        {
            'x.jpg': (labels[0], {}),
            'x.png': (labels[1], {}),
            'Ü ß.JPG': (labels[2], {}),
            'turned.jpg': (labels[3], {'exif': turned}),
            '#1.bmp': (labels[4], {}),
            'nothing.png': (empty, {}),
            'no\udcfctf8.jpg': (labels[13], {}),
        },
    )
    results.add_photos('a2', 'Fotos/../Öl', {'y.jpg': (labels[5], {})})
    results.add_video('b', 'drives/clip.avi', [labels[6], None, labels[7]])
    stamp = bags.START
    front = [
        (stamp + i, bags.image(bags.picture(i), stamp=stamp if i < 2 else stamp + i))
        for i in range(4)
    ]
    rear = [
        (stamp, bags.compressed(bags.picture(9), stamp, '.jpg', 'rgb8; jpeg compressed bgr8')),
        (stamp + 5, bags.compressed(bags.picture(8), 0)),
    ]
    results.add_recording(
        'c',
        'drives/monday',
        [
            ('/front/image_raw', 'sensor_msgs/msg/Image', [], front),
            ('/rear/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', [], rear),
        ],
        {
            'front': ('/front/image_raw', [labels[8], labels[9], None, labels[10]]),
            'rear': ('/rear/image_raw/compressed', [labels[11], labels[12]]),
        },
    )
    folder = portable_path('Fotos/../Öl')
    x_jpg, x_png = distinct_names(['x.jpg', 'x.png'], ['x', 'x'])
    odd, no_text = distinct_names(
        ['#1.bmp', text_of('no\udcfctf8.jpg')], ['#1', text_of('no\udcfctf8')]
    )
    expected = {
        f'{folder}/{x_jpg}.jpg': labels[0],
        f'{folder}/{x_png}.png': labels[1],
        f'{folder}/Ü ß.JPG': labels[2],
        f'{folder}/turned.jpg': labels[3],
        f'{folder}/{odd}.jpg': labels[4],
        f'{folder}/nothing.png': empty,
        f'{folder}/{no_text}.jpg': labels[13],
        f'{folder}/y.jpg': labels[5],
        'drives/clip.avi/000000.jpg': labels[6],
        'drives/clip.avi/000002.jpg': labels[7],
        f'drives/monday/front/{stamp}.jpg': labels[8],
        f'drives/monday/front/{stamp}_2.jpg': labels[9],
        f'drives/monday/front/{stamp + 3}.jpg': labels[10],
        f'drives/monday/rear/{stamp}.jpg': labels[11],
        f'drives/monday/rear/{stamp + 5}.jpg': labels[12],
    }
    return results, results.export(tmp_path_factory.mktemp('exports')), expected


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob('*')) if p.is_file()}


def stem(name):
    return str(PurePosixPath(name).with_suffix(''))


def large_regions(label, class_id, filled=False):
    """Pixels of a class without its small regions; with `filled`, with holes of the others."""
    whole = (label == class_id).astype(np.uint8)
    count, parts = cv2.connectedComponents(whole, connectivity=8)
    kept = np.zeros_like(whole)
    for number in range(1, count):
        part = (parts == number).astype(np.uint8)
        if part.sum() >= MIN_REGION_AREA:
            if filled:
                around, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(part, around, -1, 1, -1)
            kept |= part
    return kept.astype(bool)


@pytest.mark.parametrize('name', ['coco', 'coco-polygons'])
def test_coco_instances(everything, name, capsys):
    _, exports, expected = everything
    coco = COCO(exports / name / 'annotations/instances_default.json')
    assert {c['id']: c['name'] for c in coco.loadCats(coco.getCatIds())} == {
        1: 'Straße',
        2: 'person',
    }
    images = coco.loadImgs(coco.getImgIds())
    assert {image['file_name'] for image in images} == set(expected)
    for image in images:
        label = expected[image['file_name']]
        assert (image['height'], image['width']) == label.shape
        masks = {0: np.zeros(label.shape, bool), 1: np.zeros(label.shape, bool)}
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation).astype(bool)
            masks[annotation['category_id'] - 1] |= mask
            encoded = coco_masks.encode(np.asfortranarray(mask, np.uint8))
            assert list(coco_masks.toBbox(encoded)) == annotation['bbox']
            assert annotation['score'] == {1: 0.8, 2: 0.4}[annotation['category_id']]
            if name == 'coco':
                assert annotation['segmentation']['counts'] == encoded['counts'].decode()
                assert mask.sum() == annotation['area'] >= MIN_REGION_AREA
        for class_id, mask in masks.items():
            assert (mask == large_regions(label, class_id, name != 'coco')).all()
    (clip,) = (image for image in images if image['file_name'].endswith('clip.avi/000002.jpg'))
    assert (clip['source'], clip['stamp_ns']) == ('s3://fleet/drives/clip.avi', 200_000_000)


def test_coco_panoptic(everything):
    _, exports, expected = everything
    panoptic = json.loads((exports / 'coco/annotations/panoptic_default.json').read_text())
    instances = json.loads((exports / 'coco/annotations/instances_default.json').read_text())
    assert panoptic['images'] == instances['images']
    assert [category['isthing'] for category in panoptic['categories']] == [0, 0]
    names = {image['id']: image['file_name'] for image in panoptic['images']}
    assert len(panoptic['annotations']) == len(expected)
    for annotation in panoptic['annotations']:
        label = expected[names[annotation['image_id']]]
        pixels = np.asarray(
            Image.open(exports / 'coco/annotations/panoptic_default' / annotation['file_name'])
        )
        ids = pixels.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32)
        found = np.full(label.shape, 255, np.uint8)
        for segment in annotation['segments_info']:
            found[ids == segment['id']] = segment['category_id'] - 1
            assert segment['area'] == (ids == segment['id']).sum()
        assert (found == label).all()
        assert set(np.unique(ids)) - {0} == {s['id'] for s in annotation['segments_info']}


def test_yolo(everything):
    _, exports, expected = everything
    content = yaml.safe_load((exports / 'yolo/data.yaml').read_text())
    assert content == {'train': 'images', 'val': 'images', 'names': {0: 'Straße', 1: 'person'}}
    labels = files_in(exports / 'yolo/labels')
    assert set(labels) == {f'{stem(name)}.txt' for name in expected}
    for name, label in expected.items():
        masks = np.zeros((2, *label.shape), np.uint8)
        for line in labels[f'{stem(name)}.txt'].read_text().splitlines():
            class_id, *numbers = line.split()
            # What trainers do: to whole pixels, and lines between them.
            polygon = np.array(numbers, float).reshape(-1, 2) * label.shape[::-1]
            assert len(polygon) >= 4
            cv2.fillPoly(masks[int(class_id)], [polygon.astype(np.int32)], 1)
        for class_id, mask in enumerate(masks):
            assert (mask == large_regions(label, class_id, filled=True)).all()


def test_palette(everything):
    _, exports, expected = everything
    labelmap = (exports / 'palette/labelmap.txt').read_text().splitlines()
    colors = {name: color for name, color, *_ in (line.split(':') for line in labelmap[1:])}
    names = (exports / 'palette/ImageSets/Segmentation/default.txt').read_text().splitlines()
    assert sorted(names) == sorted(map(stem, expected))
    for name, label in expected.items():
        with Image.open(exports / f'palette/SegmentationClass/{stem(name)}.png') as image:
            assert image.mode == 'P'
            assert (np.asarray(image) == label).all()
            shown = np.asarray(image.convert('RGB'))
        for value, word in ((0, 'Straße'), (1, 'person'), (255, 'background')):
            color = [int(part) for part in colors[word].split(',')]
            assert (shown[label == value] == color).all()


def test_fiftyone(everything):
    _, exports, expected = everything
    targets = json.loads((exports / 'fiftyone/mask_targets.json').read_text())
    assert targets == {'1': 'Straße', '2': 'person'}
    masks = files_in(exports / 'fiftyone/labels')
    assert set(map(stem, masks)) == set(map(stem, expected))
    for name, label in expected.items():
        with Image.open(masks[f'{stem(name)}.png']) as image:
            assert image.mode == 'L'
            assert (np.asarray(image) == label + np.uint8(1)).all()


def check_parquet_rows(rows, expected):
    """Rows, dicts, of which lists may be arrays."""
    assert {row['path'] for row in rows} == set(expected)
    for row in rows:
        label = expected[row['path']]
        found = np.full(label.shape, 255, np.uint8)
        for present in row['classes']:
            size = (int(row['height']), int(row['width']))
            mask = coco_masks.decode({'size': size, 'counts': present['rle']}).astype(bool)
            found[mask] = present['id']
            assert present['area'] == mask.sum()
            assert present['name'] == ('Straße', 'person')[present['id']]
            assert present['confidence'] == (0.8, 0.4)[present['id']]
            rows_in, columns_in = np.nonzero(mask)
            x, y = columns_in.min(), rows_in.min()
            box = [x, y, columns_in.max() + 1 - x, rows_in.max() + 1 - y]
            assert list(present['box']) == box
        assert (found == label).all()


def test_parquet(everything):
    _, exports, expected = everything
    rows = pq.read_table(exports / 'parquet').to_pylist()
    check_parquet_rows(rows, expected)
    by_path = {row['path']: row for row in rows}
    front = by_path[f'drives/monday/front/{bags.START + 3}.jpg']
    assert front['topic'] == '/front/image_raw'
    assert (front['kind'], front['source']) == ('recording', 's3://fleet/drives/monday')
    assert front['stamp_ns'] == bags.START + 3
    (turned,) = (row for row in rows if row['source'].endswith('/turned.jpg'))
    assert (turned['topic'], turned['stamp_ns']) == (None, None)


def test_parquet_in_pandas(everything):
    _, exports, expected = everything
    pandas = pytest.importorskip('pandas', reason='pandas is not installed')
    table = pandas.read_parquet(exports / 'parquet')
    check_parquet_rows(table.to_dict('records'), expected)


def test_parquet_in_duckdb(everything):
    _, exports, expected = everything
    duckdb = pytest.importorskip('duckdb', reason='DuckDB is not installed')
    files = f"read_parquet('{exports}/parquet/*.parquet')"
    cursor = duckdb.sql(f'SELECT path, height, width, classes FROM {files}')
    rows = [dict(zip(cursor.columns, row, strict=True)) for row in cursor.fetchall()]
    check_parquet_rows(rows, expected)
    areas = duckdb.sql(
        f'SELECT c.name, sum(c.area) FROM {files}, unnest(classes) AS row(c) GROUP BY ALL'
    ).fetchall()
    assert dict(areas) == {
        name: sum((label == class_id).sum() for label in expected.values())
        for class_id, name in enumerate(['Straße', 'person'])
    }


def test_parquet_in_datasets(everything, tmp_path):
    _, exports, expected = everything
    datasets = pytest.importorskip('datasets', reason='Hugging Face datasets is not installed')
    files = [str(path) for path in (exports / 'parquet').glob('*.parquet')]
    loaded = datasets.load_dataset('parquet', data_files=files, cache_dir=str(tmp_path))
    check_parquet_rows(list(loaded['train']), expected)


def test_datumaro(everything):
    _, exports, expected = everything
    datumaro = pytest.importorskip('datumaro', reason='Datumaro is not installed')
    labels = {stem(name): label for name, label in expected.items()}
    for folder, name in (
        ('coco', 'coco_instances'),
        ('coco', 'coco_panoptic'),
        ('palette', 'voc_segmentation'),
    ):
        dataset = datumaro.Dataset.import_from(str(exports / folder), name)
        classes = [entry.name for entry in dataset.categories()[datumaro.AnnotationType.label]]
        assert {item.id for item in dataset} == set(labels)
        for item in dataset:
            label = labels[item.id]
            assert item.media.data.shape[:2] == label.shape
            for class_id, word in enumerate(['Straße', 'person']):
                mask = np.zeros(label.shape, bool)
                for annotation in item.annotations:
                    if classes[annotation.label] == word and annotation.type.name == 'mask':
                        mask |= annotation.image.astype(bool)
                is_whole = name != 'coco_instances'
                wanted = label == class_id if is_whole else large_regions(label, class_id)
                assert (mask == wanted).all()


def test_supervision(everything):
    _, exports, expected = everything
    supervision = pytest.importorskip('supervision', reason='supervision is not installed')
    root, file = exports / 'coco/images', exports / 'coco/annotations/instances_default.json'
    dataset = supervision.DetectionDataset.from_coco(str(root), str(file), force_masks=True)
    assert len(dataset) == len(expected)
    for path, _, detections in dataset:
        label = expected[str(PurePosixPath(path).relative_to(root))]
        for class_id in (0, 1):
            mask = np.zeros(label.shape, bool)
            for found in detections.mask[detections.class_id == class_id] if detections else ():
                mask |= found.astype(bool)
            assert (mask == large_regions(label, class_id)).all()


def test_ultralytics(everything, monkeypatch, tmp_path):
    _, exports, expected = everything
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(tmp_path))
    monkeypatch.setenv('YOLO_OFFLINE', 'true')
    pytest.importorskip('ultralytics', reason='Ultralytics is not installed')
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygons2masks

    folder = shutil.copytree(exports / 'yolo', tmp_path / 'yolo')  # it writes beside the labels
    content = check_det_dataset(str(folder / 'data.yaml'))
    dataset = YOLODataset(img_path=content['train'], data=content, task='segment', augment=False)
    assert len(dataset) == len(expected)
    for entry in dataset.labels:
        label = expected[str(PurePosixPath(entry['im_file']).relative_to(folder / 'images'))]
        for class_id in (0, 1):
            mask = np.zeros(label.shape, np.uint8)
            for polygon, found in zip(entry['segments'], entry['cls'][:, 0], strict=True):
                if found == class_id:
                    points = (polygon * label.shape[::-1]).reshape(-1)
                    mask |= polygons2masks(label.shape, [points], 1)[0]
            assert (mask == large_regions(label, class_id, filled=True)).all()


def test_images(everything):
    results, exports, expected = everything
    folders = {'coco': 'images', 'yolo': 'images', 'palette': 'JPEGImages', 'fiftyone': 'data'}
    for name, folder in folders.items():
        images = files_in(exports / name / folder)
        assert set(images) == set(expected)
        for file, label in expected.items():
            assert read_photo(images[file]).shape[:2] == label.shape
    images = files_in(exports / 'coco/images')
    photos = results.results[0].inputs
    for file in ('Ü ß.JPG', 'nothing.png', 'turned.jpg', '#1.bmp'):
        (stored,) = (
            path
            for name, path in images.items()
            if stem(name).endswith(('_1-' + distinct_names([file])[0][-8:], '/' + stem(file)))
        )
        was_kept = stored.read_bytes() == (photos / file).read_bytes()
        assert was_kept == (file in ('Ü ß.JPG', 'nothing.png'))
        difference = read_photo(stored).astype(int) - read_photo(photos / file)
        assert abs(difference).mean() < 4
    # Of recordings and videos the images that were labelled, and not those between them.
    for file, seed in (
        (f'drives/monday/front/{bags.START + 3}.jpg', 3),
        (f'drives/monday/rear/{bags.START}.jpg', 9),
        (f'drives/monday/rear/{bags.START + 5}.jpg', 8),
        ('drives/clip.avi/000002.jpg', 2),
    ):
        difference = read_photo(images[file]).astype(int) - bags.picture(seed)
        assert abs(difference).mean() < 8


def test_without_inputs_photos_have_their_own_paths(everything, tmp_path):
    results, _, expected = everything
    exports = results.export(tmp_path, ('coco', 'yolo', 'parquet'), with_inputs=False)
    coco = json.loads((exports / 'coco/annotations/instances_default.json').read_text())
    names = [image['file_name'] for image in coco['images']]
    assert names[:2] == ['Fotos/../Öl/x.jpg', 'Fotos/../Öl/x.png']
    assert 'drives/clip.avi/000002.jpg' in names
    assert not list(exports.rglob('images'))
    assert set(files_in(exports / 'yolo/labels')) == {f'{stem(name)}.txt' for name in expected}


def test_equal_results_give_equal_files(everything, tmp_path):
    results, exports, _ = everything
    again = files_in(results.export(tmp_path))
    assert {name: path.read_bytes() for name, path in files_in(exports).items()} == {
        name: path.read_bytes() for name, path in again.items()
    }


def test_missing_images_are_named(everything, tmp_path):
    results, _, _ = everything
    for result in results.results:
        other = {'photos': tmp_path, 'video': results.results[2].folder / 'labels'}
        other['recording'] = bags.write_bag(tmp_path / result.key)
        with pytest.raises(ExportError, match=r'is not in|are not in'):
            inputs = other[result.kind]
            write_part(Result(**(vars(result) | {'inputs': inputs})), ['yolo'], tmp_path / 'out')


def test_unknown_format_and_missing_library(everything, tmp_path, monkeypatch):
    results, _, _ = everything
    with pytest.raises(ExportError, match='coco, coco-polygons, yolo'):
        write_part(results.results[0], ['voc'], tmp_path)
    import_module = importlib.import_module

    def without_pyarrow(name):
        if name == 'pyarrow':
            raise ImportError(name)
        return import_module(name)

    monkeypatch.setattr(importlib, 'import_module', without_pyarrow)
    with pytest.raises(ExportError, match='pip install pyarrow'):
        write_part(results.results[0], ['yolo', 'parquet'], tmp_path)
    assert not list(tmp_path.iterdir())


def test_photos_of_several_folders_are_refused(tmp_path):
    images = [{'file': f'{folder}/x.jpg', 'label': 'x.png', 'classes': []} for folder in 'ab']
    write_json(tmp_path / 'segmentation.json', {'images': images})
    with pytest.raises(ExportError, match=r'two photos are called x\.jpg'):
        write_part(Result('k', 'photos', 'n', 's', tmp_path), ['yolo'], tmp_path / 'out')


def test_damaged_results_are_refused(tmp_path):
    (tmp_path / 'segmentation.json').write_text('{"images": [')
    for kind in ('photos', 'recording', 'film'):
        with pytest.raises(ExportError):
            write_part(Result('k', kind, 'n', 's', tmp_path), ['yolo'], tmp_path / 'out')


def test_joining_takes_bounded_memory(tmp_path):
    image = {
        'image': {'file_name': 'x.jpg', 'height': 4, 'width': 4},
        'annotations': [{'category_id': 1, 'segmentation': 'x' * 2000}] * 5,
        'panoptic': {'file_name': 'x.png', 'segments_info': []},
    }
    part = json.dumps(image).encode() + b'\n'

    def fragments():
        for _ in range(10):
            yield iter([part] * 100)

    tracemalloc.start()
    join_parts('coco', fragments(), VOCABULARY, tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    joined = tmp_path / 'annotations/instances_default.json'
    assert joined.stat().st_size > 10_000_000
    assert most < 2_000_000
    ids = [annotation['id'] for annotation in json.loads(joined.read_bytes())['annotations']]
    assert ids == list(range(1, 5_001))


@given(
    st.lists(st.text(st.characters(exclude_characters='/\0'), min_size=1), unique=True, max_size=6)
)
def test_names_are_portable_and_differ(names):
    found = distinct_names(names)
    assert len({name.casefold() for name in found}) == len(names)
    for name in found:
        assert name.encode()[0] not in b'.- '
        assert name[-1] not in '. '
        assert not set(name) & set('/\\:*?"<>|#%&\n')
        assert len(name.encode()) < 240


def test_usual_names_are_kept():
    names = ['DSC_0001', 'n015-2018+0800__CAM_FRONT', 'Müller (2)', 'frame.0001']
    assert distinct_names(names) == names
    assert portable_path('drives/Monday') == 'drives/Monday'
    assert portable_path('.') == ''
    assert '..' not in portable_path('/a/../b').split('/')
