"""The toy world: sampling, rendering, names."""

import math

import numpy as np
import pytest
import torch

from cliptrase_ros.toybox import materials, scenes
from cliptrase_ros.toybox.renderer import intrinsics, render
from cliptrase_ros.toybox.scenes import CLASSES, UNSEEN_COMBINATIONS, matches, true_labels


def view(seed=0, split='train', time_s=0.0, height=60, width=80):
    room = scenes.sample_room(seed, split)
    return room, render([room], [scenes.camera_pose(room, time_s)], height, width)


def toy_class(name):
    return CLASSES[scenes.CLASS_IDS[name]]


def class_names(room):
    """Of everything that stands in the room or covers it."""
    ids = room.packed.appearance[0, :, materials.CLASS_ID].long()
    present = torch.ones(scenes.SLOTS, dtype=torch.bool)
    present[: scenes.OBJECT_SLOTS] = room.packed.radius[0] > 0
    return {CLASSES[index].name for index in ids[present].tolist()}


def test_same_seed_same_picture():
    _, first = view(3)
    _, again = view(3)
    _, other = view(4)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.depth, again.depth)
    assert torch.equal(first.label, again.label)
    assert not torch.equal(first.image, other.image)


def test_shapes_and_types():
    _, views = view()
    assert views.image.shape == (1, 60, 80, 3) and views.image.dtype == torch.uint8
    assert views.depth.shape == (1, 60, 80) and views.depth.dtype == torch.float32
    assert views.label.shape == (1, 60, 80) and views.label.dtype == torch.uint8
    assert int(views.label.max()) < len(CLASSES) < scenes.UNLABELLED


def test_a_batch_is_its_single_views():
    rooms = [scenes.sample_room(seed) for seed in range(6)]
    poses = [scenes.camera_pose(room, 5.0 * i) for i, room in enumerate(rooms)]
    batch = render(rooms, poses, 48, 64)
    for index in range(len(rooms)):
        single = render(rooms[index : index + 1], poses[index : index + 1], 48, 64)
        difference = (batch.image[index].int() - single.image[0].int()).abs()
        assert (difference > 1).float().mean() < 0.001
        assert (batch.label[index] != single.label[0]).float().mean() < 0.001
        assert (
            torch.allclose(batch.depth[index], single.depth[0], atol=1e-3)
            or ((batch.depth[index] - single.depth[0]).abs() > 1e-3).float().mean() < 0.001
        )


def test_rooms_and_poses_must_agree_in_number():
    room = scenes.sample_room(0)
    with pytest.raises(ValueError, match='1 rooms but 2 poses'):
        render([room], [scenes.camera_pose(room, 0.0)] * 2, 32, 32)


@pytest.mark.parametrize('seed', range(4))
def test_depth_intrinsics_and_labels_agree_with_the_room(seed):
    room, views = view(seed, time_s=9.0, height=120, width=160)
    pose = scenes.camera_pose(room, 9.0)
    fx, fy, cx, cy = intrinsics(120, 160)
    v, u = torch.meshgrid(torch.arange(120.0), torch.arange(160.0), indexing='ij')
    ray = torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(u)], -1)
    point = (ray * views.depth[0][..., None]) @ pose.rotation.T + pose.position
    size = room.packed.size[0]
    label = views.label[0].long()
    kinds = np.array([c.kind for c in CLASSES])[label.numpy()]
    # Everything is inside the room, and each surface where it belongs.
    assert (point > -1e-3).all() and (point < size + 1e-3).all()
    assert point[..., 2][torch.from_numpy(kinds == 'floor')].abs().max() < 2e-3
    ceiling = torch.from_numpy(kinds == 'ceiling')
    assert (point[..., 2][ceiling] - size[2]).abs().sum() < 1e-2 * (1 + ceiling.sum())
    wall = torch.from_numpy((kinds == 'wall') | (kinds == 'door') | (kinds == 'window'))
    edge = torch.minimum(point[..., :2], size[:2] - point[..., :2]).amin(-1)
    assert edge[wall].abs().max() < 2e-3
    # Every object pixel lies in the circle of an object of its class.
    centres = torch.cat([room.packed.round[0, :, :2], room.packed.box[0, :, :2]])
    radius = room.packed.radius[0]
    ids = room.packed.appearance[0, : scenes.OBJECT_SLOTS, materials.CLASS_ID].long()
    for index in label[torch.from_numpy(kinds == 'object')].unique():
        slots = (ids == index) & (radius > 0)
        gap = (point[label == index][:, None, :2] - centres[slots]).norm(dim=-1)
        assert (gap <= radius[slots] + 1e-3).any(1).all()


def test_a_ball_has_the_depth_of_a_ball():
    ball = 'green ball'
    for seed in range(40):
        room = scenes.sample_room(seed)
        if ball in class_names(room):
            break
    packed = room.packed
    slot = packed.appearance[0, :, materials.CLASS_ID].tolist().index(scenes.CLASS_IDS[ball])
    x, y, height = packed.round[0, slot, :3].tolist()
    target = torch.tensor([[x, y, height / 2]])
    # From right above nothing can be in between.
    pose = scenes.look_at(torch.tensor([[x + 0.01, y, 2.6]]), target)
    views = render([room], pose, 33, 33)
    assert CLASSES[int(views.label[0, 16, 16])].name == ball
    assert float(views.depth[0, 16, 16]) == pytest.approx(2.6 - height, abs=0.01)


def test_splits_are_disjoint():
    generator = torch.Generator().manual_seed(1)
    unseen = {scenes.CLASS_IDS[f'{finish} {shape}'] for finish, shape in UNSEEN_COMBINATIONS}
    seen = {}
    for split in scenes.SPLITS:
        rooms = scenes.sample_rooms(400, generator, split)
        ids = rooms.appearance[:, : scenes.OBJECT_SLOTS, materials.CLASS_ID].long()
        seen[split] = set(ids[rooms.radius > 0].tolist())
    objects = {i for i, c in enumerate(CLASSES) if c.kind == 'object'}
    assert seen['train'] == seen['held_out'] == objects - unseen
    assert unseen <= seen['unseen_combinations']
    # Each colour and each shape alone is known from training.
    assert {CLASSES[i].adjective for i in seen['train']} == set(materials.FINISHES)
    assert {CLASSES[i].noun for i in seen['train']} == set(materials.SHAPES)
    assert not torch.equal(
        scenes.sample_room(5, 'train').packed.size, scenes.sample_room(5, 'held_out').packed.size
    )


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'test' is not one of train, held_out"):
        scenes.sample_room(0, 'test')


def test_objects_stand_apart_and_inside():
    rooms = scenes.sample_rooms(200, torch.Generator().manual_seed(0))
    centres = torch.cat([rooms.round[..., :2], rooms.box[..., :2]], 1)
    gap = torch.cdist(centres, centres) - rooms.radius[:, None] - rooms.radius[:, :, None]
    both = (rooms.radius > 0)[:, None] & (rooms.radius > 0)[:, :, None]
    both &= ~torch.eye(scenes.OBJECT_SLOTS, dtype=torch.bool)
    assert (gap[both] > 0).all()
    assert 3.5 < (rooms.radius > 0).sum(1).float().mean() < 7


def test_the_tour_is_smooth_endless_and_inside():
    room = scenes.sample_room(7)
    poses = [scenes.camera_pose(room, 0.1 * step) for step in range(-10, 600)]
    position = torch.stack([pose.position for pose in poses])
    assert (position > 0.3).all() and (position < room.packed.size[0] - 0.3).all()
    assert (position[1:] - position[:-1]).norm(dim=1).max() < 0.1
    forward = torch.stack([pose.rotation[:, 2] for pose in poses])
    assert (forward[1:] * forward[:-1]).sum(1).min() > math.cos(math.radians(5))
    for pose in poses[::50]:
        assert torch.allclose(pose.rotation.T @ pose.rotation, torch.eye(3), atol=1e-5)
        assert torch.det(pose.rotation) == pytest.approx(1, abs=1e-5)
        assert pose.rotation[2, 1] < 0, 'the optical y axis points down'


@pytest.mark.parametrize(
    ('phrase', 'name', 'expected'),
    [
        ('red ball', 'red ball', True),
        ('a Red Sphere', 'red ball', True),
        ('ball', 'red ball', True),
        ('red object', 'red ball', True),
        ('object', 'red ball', True),
        ('red ball', 'blue ball', False),
        ('red box', 'red ball', False),
        ('barrel', 'green cylinder', True),
        ('traffic cone', 'orange cone', True),
        ('brick wall', 'brick wall', True),
        ('wall', 'brick wall', True),
        ('wall', 'wallpaper', True),
        ('wall', 'wooden floor', False),
        ('wooden floor', 'wooden wall', False),
        ('floor', 'carpet', True),
        ('carpet', 'carpet', True),
        ('parquet', 'wooden floor', True),
        ('window', 'window', True),
        ('elephant', 'red ball', False),
        ('red elephant', 'red ball', False),
        ('', 'red ball', False),
        ('the', 'red ball', False),
    ],
)
def test_matches(phrase, name, expected):
    assert matches(phrase, toy_class(name)) is expected


def test_names_are_unique_and_name_their_own_class():
    names = [c.name for c in CLASSES]
    assert len(set(names)) == len(names)
    for c in CLASSES:
        assert [d.name for d in CLASSES if matches(c.name, d)] == [c.name]


def test_true_labels_take_the_first_phrase():
    ids = [scenes.CLASS_IDS[n] for n in ('red ball', 'blue ball', 'carpet', 'window')] + [255]
    labels = np.array([ids], np.uint8)
    expected = [[0, 1, 2, 255, 255]]
    phrases = ['red ball', 'ball', 'floor']
    assert true_labels(labels, phrases).tolist() == expected
    as_tensor = true_labels(torch.from_numpy(labels), phrases)
    assert as_tensor.dtype == torch.uint8 and as_tensor.tolist() == expected


def test_room_classes_are_what_is_there():
    room = scenes.sample_room(11)
    names = class_names(room)
    seen = set()
    for step in range(12):
        views = render([room], [scenes.camera_pose(room, 40 * step / 12)], 48, 64)
        seen |= {CLASSES[i].name for i in views.label.unique().tolist()}
    assert seen <= names
    assert {'ceiling', 'door', 'window'} <= names


def test_hard_rooms_hold_more_and_still_stand_apart():
    generator = torch.Generator().manual_seed(0)
    easy, hard = (scenes.sample_rooms(200, generator, 'train', d) for d in ('easy', 'hard'))
    assert (hard.radius > 0).sum() > 1.5 * (easy.radius > 0).sum()
    centres = torch.cat([hard.round[..., :2], hard.box[..., :2]], 1)
    gap = torch.cdist(centres, centres) - hard.radius[:, None] - hard.radius[:, :, None]
    both = (hard.radius > 0)[:, None] & (hard.radius > 0)[:, :, None]
    both &= ~torch.eye(scenes.OBJECT_SLOTS, dtype=torch.bool)
    assert (gap[both] > 0).all()
    assert hard.brightness.std() > 2 * easy.brightness.std()


def test_unknown_difficulty_is_refused():
    with pytest.raises(ValueError, match="'brutal' is not one of easy, hard"):
        scenes.sample_room(0, 'train', 'brutal')
