"""Ids of instances from image to image."""

import numpy as np
import pytest

from cliptrase_ros.segmentation.instances import find_instances
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.tracking import InstanceTracker

VOCABULARY = parse_vocabulary('car; person')
MS = 1_000_000


class Scene:
    """Squares of 20 pixels in images that a tracker is shown."""

    def __init__(self):
        self.tracker = InstanceTracker()
        self.time_ms = 1000

    def show(self, *squares, step_ms=100, size=(100, 200), vocabulary=VOCABULARY):
        """Show squares, (class id, x, y); returns the id that each has, None for one that is hidden
        or one with another."""
        self.time_ms += step_ms
        label = np.full(size, 255, np.uint8)
        for class_id, x, y in squares:
            label[y : y + 20, x : x + 20] = class_id
        result = Segmentation(label, np.full_like(label, 255), vocabulary)
        instances = find_instances(result, 0.001)
        ids = self.tracker.track(instances, self.time_ms * MS)
        assert len(set(ids)) == len(ids) == len(instances)
        of_box = {instance.box: i for instance, i in zip(instances, ids, strict=True)}
        return [of_box.get((x, y, 20, 20)) for _, x, y in squares]


@pytest.fixture
def scene():
    return Scene()


def test_what_moves_keeps_its_id(scene):
    for x in range(10, 150, 8):
        assert scene.show((0, x, 10), (0, 160 - x, 60), (1, x, 40)) == [1, 2, 3]


def test_what_comes_gets_a_new_id(scene):
    assert scene.show((0, 10, 10)) == [1]
    assert scene.show((0, 12, 10), (0, 100, 10)) == [1, 2]
    assert scene.show((0, 104, 10)) == [2]
    assert scene.show() == []


def test_another_class_is_another_instance(scene):
    assert scene.show((0, 10, 10)) == [1]
    assert scene.show((1, 10, 10)) == [2]
    assert scene.show((0, 10, 10)) == [1]


def test_classes_cross(scene):
    """One passes before the other, which is hidden behind it for a moment."""
    assert scene.show((0, 40, 10), (1, 80, 10)) == [1, 2]
    for x in (72, 64, 56):
        scene.show((0, 40, 10), (1, x, 10))
    assert scene.show((0, 40, 10), (1, 40, 10)) == [2, 2]
    for x in (32, 24):
        scene.show((0, 40, 10), (1, x, 10))
    assert scene.show((0, 40, 10), (1, 16, 10)) == [1, 2]


@pytest.mark.parametrize(('gap_ms', 'expected'), [(1000, 1), (1001, 2)])
def test_what_is_hidden_is_remembered_for_a_second(scene, gap_ms, expected):
    assert scene.show((0, 10, 10)) == [1]
    for _ in range(9):
        assert scene.show() == []
    assert scene.show((0, 12, 10), step_ms=gap_ms - 900) == [expected]


def test_ids_are_not_given_twice(scene):
    seen = [scene.show((0, 10, 10), step_ms=2000)[0] for _ in range(5)]
    assert seen == [1, 2, 3, 4, 5]


def test_two_that_touch_are_one_and_part_again(scene):
    assert scene.show((0, 10, 10), (0, 40, 10)) == [1, 2]
    assert scene.show((0, 18, 10), (0, 34, 10)) == [None, None]
    assert sorted(scene.show((0, 12, 10), (0, 38, 10))) == [1, 2]


def test_what_jumps_is_another(scene):
    assert scene.show((0, 10, 10)) == [1]
    assert scene.show((0, 31, 10)) == [2]


def test_the_larger_overlap_counts(scene):
    assert scene.show((0, 30, 10)) == [1]
    # Two come near the place; the nearer one is it.
    assert scene.show((0, 15, 10), (0, 40, 10)) == [2, 1]


def test_stamps_that_jump_back_begin_anew(scene):
    assert scene.show((0, 10, 10)) == [1]
    assert scene.show((0, 10, 10), step_ms=0) == [1]
    assert scene.show((0, 10, 10), step_ms=-50) == [2]
    assert scene.show((0, 10, 10)) == [2]


def test_images_of_another_size_begin_anew(scene):
    assert scene.show((0, 10, 10)) == [1]
    assert scene.show((0, 10, 10), size=(60, 90)) == [2]
    assert scene.show(size=(60, 90)) == []
    assert scene.show((0, 10, 10), size=(60, 90)) == [2]


def test_a_class_is_known_by_its_name(scene):
    """Another vocabulary may give an id to another class."""
    assert scene.show((0, 10, 10), (1, 60, 10)) == [1, 2]
    other = parse_vocabulary('person; dog')
    assert scene.show((1, 10, 10), (0, 60, 10), vocabulary=other) == [3, 2]
