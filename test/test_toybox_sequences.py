"""The camera on tour: true motion between frames, blur and noise."""

import numpy as np
import pytest

from cliptrase_ros.toybox import scenes, sequences

DIFFICULTIES = tuple(scenes.DIFFICULTIES)


def sequence(difficulty, seed=2, frames=3, **options):
    room = scenes.sample_room(seed, 'held_out', difficulty)
    return list(sequences.rendered_sequence(room, frames, 96, 128, **options))


@pytest.mark.parametrize('difficulty', DIFFICULTIES)
def test_motion_leads_to_the_same_thing(difficulty):
    first, second, third = sequence(difficulty, rate=5.0)
    assert np.isnan(first.motion).all()
    for before, frame in ((first, second), (second, third)):
        assert frame.motion.shape == (96, 128, 2) and frame.motion.dtype == np.float32
        y, x = np.nonzero(np.isfinite(frame.motion[..., 0]))
        assert len(x) > 0.6 * frame.label.size
        dx, dy = frame.motion[y, x].T
        assert np.hypot(dx, dy).mean() > 0.5, 'the camera moves'
        then = np.rint(y + dy).astype(int).clip(0, 95), np.rint(x + dx).astype(int).clip(0, 127)
        # Rounding to whole pixels may cross an edge, nothing else may.
        assert (before.label[then] == frame.label[y, x]).mean() > 0.95
        unmoved = (before.label[y, x] == frame.label[y, x]).mean()
        assert (before.label[then] == frame.label[y, x]).mean() > unmoved


def test_points_that_come_into_view_have_no_motion():
    _, frame = sequence('easy', frames=2, rate=1.0)
    height, width = frame.label.shape
    y, x = np.nonzero(np.isfinite(frame.motion[..., 0]))
    source = frame.motion[y, x] + np.stack([x, y], -1)
    assert (source > -0.51).all() and (source < [width - 0.49, height - 0.49]).all()
    assert 0.02 < np.isnan(frame.motion[..., 0]).mean() < 0.8


def test_a_still_camera_has_no_motion(monkeypatch):
    room = scenes.sample_room(2, 'held_out')
    pose = scenes.camera_pose(room, 3.0)
    monkeypatch.setattr(sequences, 'camera_pose', lambda room, time: pose)
    _, frame = sequences.rendered_sequence(room, 2, 48, 64)
    assert np.isfinite(frame.motion).mean() > 0.999
    assert np.nanmax(np.abs(frame.motion)) < 1e-3


def test_pictures_depend_on_room_and_time_alone():
    room = scenes.sample_room(3, 'held_out', 'hard')
    first, again, later = (sequences.photograph(room, t, 48, 64) for t in (1.0, 1.0, 1.5))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, later.image)


def test_hard_rooms_are_blurred_and_noisy():
    room = scenes.sample_room(3, 'held_out', 'hard')
    frame = sequences.photograph(room, 1.0, 96, 128)
    sharp = sequences.render([room], [scenes.camera_pose(room, 1.0)], 96, 128)
    difference = np.abs(frame.image.astype(int) - sharp.image[0].numpy())
    assert 2 < difference.mean() < 25
    assert np.array_equal(frame.label, sharp.label[0].numpy())
    assert np.array_equal(frame.depth, sharp.depth[0].numpy())
