"""Instances: connected regions of classes, against SciPy and COCO's own tools."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from cliptrase_ros.messages.boxes import box_in_space
from cliptrase_ros.photos.results import describe_segmentation
from cliptrase_ros.segmentation.instances import (
    connected_regions,
    count_instances,
    find_instances,
)
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

VOCABULARY = parse_vocabulary('road; person; tree')
TOUCHING = np.ones((3, 3))
X, Y = np.meshgrid(np.arange(-40, 40), np.arange(-30, 30))


def segmentation(label, seed=0):
    confidence = np.random.default_rng(seed).integers(0, 256, label.shape, np.uint8)
    return Segmentation(label, confidence, VOCABULARY)


def by_scipy(result, least):
    """Class id, area, box, mean confidence and pixels of every region, in any order."""
    found = []
    for class_id in range(3):
        numbers, count = ndimage.label(result.label == class_id, TOUCHING)
        for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
            where = numbers == number
            box = (
                columns.start,
                rows.start,
                columns.stop - columns.start,
                rows.stop - rows.start,
            )
            mean = result.confidence[where].mean() / 255
            found.append((class_id, int(where.sum()), box, pytest.approx(mean), where.tobytes()))
        assert count == numbers.max()
    return [region for region in found if region[1] >= least]


def blobs(height, width, seed):
    noise = np.random.default_rng(seed).standard_normal((4, height, width)).astype(np.float32)
    smooth = [cv2.GaussianBlur(values, (0, 0), 4) for values in noise]
    return np.array([0, 1, 2, 255], np.uint8)[np.argmax(smooth, axis=0)]


@settings(max_examples=60)
@given(
    st.sampled_from([(1, 1), (1, 9), (9, 1), (7, 8), (12, 5)]).flatmap(
        lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))
    ),
    st.sampled_from([0, 2, 4]),
)
def test_small_images(label, least):
    check(label, least)


@pytest.mark.parametrize('seed', range(3))
def test_blobs(seed):
    check(blobs(120, 160, seed), 20)


@pytest.mark.parametrize(
    'label',
    [
        np.zeros((40, 60), np.uint8),
        np.full((40, 60), 255, np.uint8),
        np.indices((40, 60)).sum(axis=0).astype(np.uint8) % 2,  # corners join each colour
        np.random.default_rng(0).integers(0, 3, (90, 110), np.uint8),
        # A comb and a spiral, whose ends meet late.
        np.where((np.arange(50) % 2 == 0) | (np.arange(40)[:, None] == 39), 0, 1).astype(np.uint8),
        ((np.hypot(X, Y) + 4 * np.arctan2(Y, X) / np.pi) // 4 % 2).astype(np.uint8),
    ],
)
def test_shapes(label):
    check(label, 1)


def check(label, least):
    result = segmentation(label)
    instances = find_instances(result, least / label.size)
    found = []
    for instance in instances:
        x, y, width, height = instance.box
        where = np.zeros(label.shape, bool)
        where[y : y + height, x : x + width] = instance.mask
        assert instance.entry is VOCABULARY.classes[instance.entry.id]
        found.append(
            (instance.entry.id, instance.area, instance.box, instance.confidence, where.tobytes())
        )
    expected = by_scipy(result, least)
    assert sorted(found, key=lambda f: f[4]) == sorted(expected, key=lambda f: f[4])
    assert [class_id for class_id, *_ in found] == sorted(class_id for class_id, *_ in found)
    counts = count_instances(connected_regions(label), least / label.size)
    ids = [class_id for class_id, *_ in found]
    assert counts == {class_id: ids.count(class_id) for class_id in set(ids)}


def test_what_coco_reads():
    mask = pytest.importorskip('pycocotools.mask', reason='pycocotools is not installed')
    result = segmentation(blobs(60, 80, 5))
    instances = find_instances(result, 0.002)
    assert len(instances) > 3
    described = describe_segmentation(result, True, instances, range(7, 7 + len(instances)))
    for number, (entry, instance) in enumerate(
        zip(described['instances'], instances, strict=True), start=7
    ):
        assert (entry['id'], entry['category_id']) == (number, instance.entry.id)
        decoded = mask.decode(entry['segmentation']).astype(bool)
        np.testing.assert_array_equal(decoded, instance.numbers == instance.number)
        assert mask.area(entry['segmentation']) == entry['area'] == instance.area
        assert mask.toBbox(entry['segmentation']).tolist() == entry['bbox'] == list(instance.box)
        assert entry['score'] == pytest.approx(instance.confidence, abs=1e-4)
    assert 'instances' not in describe_segmentation(result)


def test_boxes_on_the_overlay():
    label = np.full((120, 160), 255, np.uint8)
    label[40:80, 50:90] = 1
    image = np.full((120, 160, 3), 90, np.uint8)
    result = segmentation(label)
    instances = find_instances(result, 0.01)
    plain = draw_overlay(image, label, VOCABULARY, legend=False)
    drawn = draw_overlay(image, label, VOCABULARY, legend=False, instances=instances, ids=[12])
    changed = (drawn != plain).any(axis=2)
    color = VOCABULARY.classes[1].color
    assert (drawn[40:80, 50] == color).all() and (drawn[79, 50:90] == color).all()
    assert not changed[42:78, 52:88].any() and not changed[81:].any()
    # The name stands above the box.
    assert changed[30:39, 52:80].any()


def seen(depth, label=None):
    """The only instance of an image, and where it is, of a camera of 100 pixels focal length."""
    label = np.zeros(depth.shape, np.uint8) if label is None else label
    (instance,) = find_instances(segmentation(label), 0.001)
    y, x = np.indices(depth.shape, np.float32)
    rays = np.stack([(x - 39.5) / 100, (y - 29.5) / 100])
    return box_in_space(instance, depth.astype(np.float32), rays)


def test_box_in_space_is_where_the_thing_is():
    depth = np.full((60, 80), 5.0)
    label = np.full(depth.shape, 255, np.uint8)
    label[10:40, 20:60] = 1
    depth[10:40, 20:60] = 2.0
    # A rim of background that the label has, and what was not measured.
    depth[10:40, 57:60] = 5.0
    depth[10:12, 20:60] = 5.0
    depth[20:24, 30:50] = np.nan
    box = seen(depth, label)
    assert box.centre == pytest.approx((2 * (38 - 39.5) / 100, 2 * (25.5 - 29.5) / 100, 2))
    assert box.size == pytest.approx((2 * 36 / 100, 2 * 27 / 100, 0), abs=1e-6)


def test_box_in_space_keeps_all_of_what_is_slanted():
    depth = np.linspace(1.0, 2.0, 80)[None].repeat(60, axis=0)
    box = seen(depth)
    assert box.centre[2] == pytest.approx(1.5) and box.size[2] == pytest.approx(1.0)


def test_box_in_space_needs_depth():
    depth = np.full((60, 80), np.nan)
    assert seen(depth) is None
    depth[0, :5] = 1.0
    assert seen(depth) is None
    depth[:10] = 1.0
    assert seen(depth).centre[2] == 1.0
