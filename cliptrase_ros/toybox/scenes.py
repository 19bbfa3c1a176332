"""The toy world: its classes, its rooms and the camera's tour through a room.

Everything a renderer needs is packed into tensors (`RoomBatch`), so that thousands of rooms are
sampled and rendered without a loop over scenes. The world is in metres, z is up, the floor is
z = 0, and a room is the box from the origin to `size`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.segmentation.vocabulary import UNLABELLED
from cliptrase_ros.toybox import materials

SPLITS = ('train', 'held_out', 'unseen_combinations')

# Slots of a room. Balls, cones and cylinders share one intersection formula, boxes have another.
ROUND_SLOTS = 8
BOX_SLOTS = 4
OBJECT_SLOTS = ROUND_SLOTS + BOX_SLOTS
SURFACES = ('wall', 'wall', 'wall', 'wall', 'floor', 'ceiling')
FIXTURE_SLOT = OBJECT_SLOTS + len(SURFACES)
FIXTURES = ('door', 'window')
SLOTS = FIXTURE_SLOT + len(FIXTURES)

ROOM_HEIGHT = 2.7
HIGHEST_OBJECT = 1.22


@dataclass(frozen=True)
class Difficulty:
    """What rooms of a difficulty are drawn from; lengths in metres, pairs are ranges.

    Attributes:
        round_slots: Most balls, cones and cylinders.
        box_slots: Most boxes.
        width: Radius of round things, about half the side of boxes.
        stretch: Factor of heights.
        gap: Least distance between two things.
        lamp_offset: Of the lamp from the middle, in shares of the room.
        lamp_height: Of the lamp above the floor.
        brightness: Factor of its light.
        warmth: Most that red gains and blue loses in its light, as a share.
        ambient: Strength of the light without direction.
        gain: See `materials.vary`.
        hue: See `materials.vary`.
        aged: Whether there are stains, gloss, and textures of other sizes.
        tremor: How much a camera on tour shakes and tilts, radians.
        exposure: Of its pictures, seconds; 0 for no blur.
        noise: Standard deviation in its pictures, in shares of white.
    """

    round_slots: int
    box_slots: int
    width: tuple[float, float]
    stretch: tuple[float, float]
    gap: float
    lamp_offset: float
    lamp_height: tuple[float, float]
    brightness: tuple[float, float]
    warmth: float
    ambient: tuple[float, float]
    gain: float
    hue: float
    aged: bool
    tremor: float
    exposure: float
    noise: float


DIFFICULTIES = {
    'easy': Difficulty(
        round_slots=5,
        box_slots=2,
        width=(0.32, 0.48),
        stretch=(0.9, 1.1),
        gap=0.1,
        lamp_offset=0.25,
        lamp_height=(2.5, 2.5),
        brightness=(0.85, 1.15),
        warmth=0.06,
        ambient=(0.42, 0.42),
        gain=0.15,
        hue=0.06,
        aged=False,
        tremor=0.0,
        exposure=0.0,
        noise=0.0,
    ),
    'hard': Difficulty(
        round_slots=ROUND_SLOTS,
        box_slots=BOX_SLOTS,
        width=(0.22, 0.5),
        stretch=(0.75, 1.25),
        gap=0.02,
        lamp_offset=0.42,
        lamp_height=(1.9, 2.6),
        brightness=(0.55, 1.35),
        warmth=0.15,
        ambient=(0.25, 0.5),
        gain=0.22,
        hue=0.08,
        aged=True,
        tremor=0.05,
        exposure=0.05,
        noise=0.02,
    ),
}


@dataclass(frozen=True)
class ToyClass:
    """One class of the world.

    Attributes:
        name: A phrase such as 'red ball'.
        kind: 'object', 'floor', 'wall', 'ceiling', 'door' or 'window'.
        adjective: Colour or pattern of an object, material of a surface; '' where there is none.
        noun: Shape of an object; otherwise the kind.
    """

    name: str
    kind: str
    adjective: str
    noun: str


CLASSES = (
    *(
        ToyClass(f'{finish} {shape}', 'object', finish, shape)
        for shape in materials.SHAPES
        for finish in materials.FINISHES
    ),
    *(ToyClass(name, 'floor', name.split()[0], 'floor') for name in materials.FLOORS),
    *(ToyClass(name, 'wall', name.split()[0], 'wall') for name in materials.WALLS),
    *(ToyClass(kind, kind, '', kind) for kind in ('ceiling', *FIXTURES)),
)
CLASS_IDS = {toy_class.name: index for index, toy_class in enumerate(CLASSES)}
UNSEEN_COMBINATIONS = (
    ('orange', 'ball'),
    ('dotted', 'ball'),
    ('purple', 'box'),
    ('white', 'cone'),
    ('striped', 'cone'),
    ('yellow', 'cylinder'),
)

# What people call these things. A phrase is matched word by word after these replacements.
SYNONYMS = {
    'sphere': 'ball',
    'crate': 'box',
    'cube': 'box',
    'pylon': 'cone',
    'barrel': 'cylinder',
    'drum': 'cylinder',
    'thing': 'object',
    'wood': 'wooden',
    'tile': 'tiled',
    'tiles': 'tiled',
    'bricks': 'brick',
    'parquet': 'wooden floor',
    'polka': 'dotted',
    'spotted': 'dotted',
    'violet': 'purple',
}
_FILLERS = {'a', 'an', 'the', 'of', 'some', 'traffic', 'beach', 'room'}


@lru_cache(maxsize=4096)
def _words(phrase: str) -> frozenset[str]:
    words = phrase.lower().replace('-', ' ').split()
    expanded = ' '.join(SYNONYMS.get(word, word) for word in words).split()
    return frozenset(word for word in expanded if word not in _FILLERS)


def matches(phrase: str, toy_class: ToyClass) -> bool:
    """Whether a user's phrase names this class.

    'red ball', 'a red sphere', 'ball', 'red object' and 'object' all name the class 'red ball';
    'brick wall' and 'wall' both name the class 'brick wall'.
    """
    words = _words(phrase)
    return bool(words) and words <= {toy_class.adjective, toy_class.noun, toy_class.kind}


def true_labels(labels: np.ndarray | Tensor, phrases: Sequence[str]) -> np.ndarray | Tensor:
    """Rename world labels into a vocabulary.

    Args:
        labels: uint8, any shape, indices into `CLASSES` (or 255).

    Returns:
        The same type and shape, with the index of the first phrase that names each pixel's class,
        255 where none does.
    """
    table = np.full(256, UNLABELLED, np.uint8)
    for index, toy_class in enumerate(CLASSES):
        for position, phrase in enumerate(phrases):
            if matches(phrase, toy_class):
                table[index] = position
                break
    if isinstance(labels, Tensor):
        return torch.from_numpy(table).to(labels.device)[labels.long()]
    return table[labels]


@dataclass(frozen=True)
class RoomBatch:
    """B rooms as tensors, float32, metres.

    Attributes:
        size: (B, 3), extent of the room.
        light: (B, 3), position of the lamp.
        brightness: (B, 3), RGB of its light.
        ambient: (B,), strength of the light without direction.
        appearance: (B, SLOTS, materials.FEATURES), texture and class of all that can be hit.
        round: (B, ROUND_SLOTS, 6), x, y, height and the three coefficients of the squared radius
            as a polynomial of z.
        box: (B, BOX_SLOTS, 7), x, y, height, half length, half width, cosine and sine of the yaw.
        fixture: (B, 2, 5), wall 0..3, extent along it (two numbers), extent in z (two numbers).
        radius: (B, OBJECT_SLOTS), of the circle that an object stands in; 0 for an empty slot.
    """

    size: Tensor
    light: Tensor
    brightness: Tensor
    ambient: Tensor
    appearance: Tensor
    round: Tensor
    box: Tensor
    fixture: Tensor
    radius: Tensor

    def __len__(self) -> int:
        return len(self.size)

    def _map(self, function: Callable[[Tensor], Tensor]) -> RoomBatch:
        return RoomBatch(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self, index: slice | Tensor) -> RoomBatch:
        """Some of the rooms."""
        return self._map(lambda tensor: tensor[index])

    def to(self, device: str | torch.device) -> RoomBatch:
        """The same rooms on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    @staticmethod
    def concatenate(batches: Sequence[RoomBatch]) -> RoomBatch:
        """All rooms of several batches, in order."""
        return RoomBatch(
            **{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(RoomBatch)}
        )


@dataclass(frozen=True)
class Room:
    """One room; `packed` is a `RoomBatch` of length 1."""

    seed: int
    split: str
    packed: RoomBatch
    difficulty: str = 'easy'


@dataclass(frozen=True)
class Pose:
    """A camera pose in the room; poses of B cameras have a leading dimension.

    Attributes:
        position: float32 (3,), metres.
        rotation: float32 (3, 3); columns are the axes of the optical frame (x right, y down,
            z forward) in room coordinates.
    """

    position: Tensor
    rotation: Tensor


def _uniform(generator: torch.Generator, shape, low: float, high: float) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


@lru_cache
def _combinations(shapes: tuple[str, ...], unseen: bool) -> Tensor:
    """Class ids of things of these shapes, the `UNSEEN_COMBINATIONS` or all others."""
    ids = [
        CLASS_IDS[f'{finish} {shape}']
        for shape in shapes
        for finish in materials.FINISHES
        if ((finish, shape) in UNSEEN_COMBINATIONS) == unseen
    ]
    return torch.tensor(ids)


def _object_classes(
    count: int, split: str, generator: torch.Generator, round_slots: int, box_slots: int
) -> Tensor:
    """Class ids (count, slots), round ones first; only unseen ones may occur twice in a room."""
    columns = []
    for shapes, slots in ((('ball', 'cone', 'cylinder'), round_slots), (('box',), box_slots)):
        known = _combinations(shapes, unseen=False)
        order = torch.rand(count, len(known), generator=generator).argsort(1)[:, :slots]
        chosen = known[order]
        if split == 'unseen_combinations':
            unseen = _combinations(shapes, unseen=True)
            pick = torch.randint(len(unseen), (count, slots), generator=generator)
            swap = torch.rand(count, slots, generator=generator) < 0.6
            chosen = torch.where(swap, unseen[pick], chosen)
        columns.append(chosen)
    return torch.cat(columns, 1)


def _place(
    size: Tensor, radius: Tensor, generator: torch.Generator, least_gap: float
) -> tuple[Tensor, Tensor]:
    """Stand circles in rooms without overlap; returns centres and which of them found room."""
    count, slots = radius.shape
    trials = 24
    centres = torch.zeros(count, slots, 2)
    placed = torch.zeros(count, slots, dtype=torch.bool)
    for slot in range(slots):
        margin = radius[:, slot, None, None] + 0.15
        free = size[:, None, :2] - 2 * margin
        candidates = torch.rand(count, trials, 2, generator=generator) * free + margin
        gap = (candidates[:, :, None] - centres[:, None]).norm(dim=-1)
        clear = gap > radius[:, None] + radius[:, slot, None, None] + least_gap
        clear = (clear | ~placed[:, None]).all(-1)
        first = clear.float().argmax(1)
        centres[:, slot] = candidates[torch.arange(count), first]
        placed[:, slot] = clear.any(1) & (radius[:, slot] > 0)
    return centres, placed


def sample_rooms(
    count: int, generator: torch.Generator, split: str = 'train', difficulty: str = 'easy'
) -> RoomBatch:
    """Draw random rooms on the CPU, a function of the arguments alone.

    Args:
        split: One of `SPLITS`. 'held_out' has the same distribution as 'train' and is kept apart
            by its seeds; 'unseen_combinations' mixes in `UNSEEN_COMBINATIONS`, which occur in no
            other split.

    Raises:
        ValueError: For an unknown split or difficulty.
    """
    _check_choice('split', split, SPLITS)
    _check_choice('difficulty', difficulty, DIFFICULTIES)
    ranges = DIFFICULTIES[difficulty]
    slots = ranges.round_slots + ranges.box_slots
    size = torch.cat(
        [_uniform(generator, (count, 2), 4.5, 6.5), torch.full((count, 1), ROOM_HEIGHT)], 1
    )
    offset = _uniform(generator, (count, 2), -ranges.lamp_offset, ranges.lamp_offset) * size[:, :2]
    warmth = _uniform(generator, (count, 1), -ranges.warmth, ranges.warmth)
    brightness = _uniform(generator, (count, 1), *ranges.brightness) * torch.cat(
        [1 + warmth, torch.ones(count, 1), 1 - warmth], 1
    )

    class_ids = _object_classes(count, split, generator, ranges.round_slots, ranges.box_slots)
    shape = class_ids // len(materials.FINISHES)
    present = torch.rand(count, slots, generator=generator) < torch.tensor(
        [0.8] * ranges.round_slots + [0.75] * ranges.box_slots
    )
    width = _uniform(generator, (count, slots), *ranges.width)
    stretch = _uniform(generator, (count, slots), *ranges.stretch)
    radius = torch.where(shape == materials.SHAPES.index('box'), width * 1.4, width) * present
    # In the order of the slots: with large things first no room would be left for small ones.
    centres, placed = _place(size, radius, generator, ranges.gap)
    radius = radius * placed

    ball = shape == materials.SHAPES.index('ball')
    cone = shape == materials.SHAPES.index('cone')
    height = torch.where(ball, 2 * width, torch.where(cone, 2.3 * width, 2.1 * width) * stretch)
    # Below the camera on its tour.
    height = height.clamp_max(HIGHEST_OBJECT)
    squared = width * width
    constant = torch.where(ball, torch.zeros_like(width), squared)
    linear = torch.where(ball, 2 * width, torch.where(cone, -2 * squared / height, 0 * width))
    quadratic = torch.where(ball, -torch.ones_like(width), cone * squared / height**2)
    rounds = torch.stack(
        [centres[..., 0], centres[..., 1], height, constant, linear, quadratic], -1
    )[:, : ranges.round_slots]

    side = width[:, ranges.round_slots :]
    long = side * _uniform(generator, side.shape, 0.85, 1.05)
    box_height = side * _uniform(generator, side.shape, 1.5, 2.1)
    if difficulty != 'easy':
        box_height = (box_height * stretch[:, ranges.round_slots :]).clamp_max(HIGHEST_OBJECT)
    yaw = _uniform(generator, side.shape, 0.0, math.pi / 2)
    boxes = torch.cat(
        [
            centres[:, ranges.round_slots :],
            torch.stack([box_height, long, side * 0.9, yaw.cos(), yaw.sin()], -1),
        ],
        -1,
    )

    fixture = _sample_fixtures(size, generator)
    appearance = _sample_appearance(class_ids, count, generator, ranges)
    # After all else, so that easy rooms stay what their seeds have always given.
    lamp = _uniform(generator, (count, 1), *ranges.lamp_height)
    light = torch.cat([size[:, :2] / 2 + offset, lamp], 1)
    ambient = _uniform(generator, (count,), *ranges.ambient)

    def all_slots(values: Tensor) -> Tensor:
        """Empty slots after the used ones of each kind; values (count, slots, ...)."""
        rounds, rest = values.split([ranges.round_slots, values.shape[1] - ranges.round_slots], 1)
        boxes, rest = rest.split([ranges.box_slots, rest.shape[1] - ranges.box_slots], 1)
        return torch.cat([_padded(rounds, ROUND_SLOTS), _padded(boxes, BOX_SLOTS), rest], 1)

    return RoomBatch(
        size,
        light,
        brightness,
        ambient,
        all_slots(appearance),
        _padded(rounds, ROUND_SLOTS),
        _padded(boxes, BOX_SLOTS),
        fixture,
        all_slots(radius),
    )


def _padded(values: Tensor, slots: int) -> Tensor:
    missing = slots - values.shape[1]
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], 1)


def _sample_fixtures(size: Tensor, generator: torch.Generator) -> Tensor:
    """A door and a window, each on its own wall; walls 0 and 1 are x = 0 and x = max, then y."""
    count = len(size)
    walls = torch.rand(count, 4, generator=generator).argsort(1)[:, :2]
    length = torch.where(walls < 2, size[:, 1:2], size[:, 0:1])
    width = torch.tensor([1.0, 1.5])
    start = torch.rand(count, 2, generator=generator) * (length - width - 1.0) + 0.5
    low, high = torch.tensor([0.0, 0.9]), torch.tensor([2.05, 2.1])
    return torch.stack(
        [walls.float(), start, start + width, low.expand(count, 2), high.expand(count, 2)], -1
    )


def _sample_appearance(
    class_ids: Tensor, count: int, generator: torch.Generator, ranges: Difficulty
) -> Tensor:
    """The texture parameters of every used slot, (count, slots, materials.FEATURES)."""
    table = materials.texture_table([toy_class.name for toy_class in CLASSES])
    floors = torch.tensor([CLASS_IDS[name] for name in materials.FLOORS])
    walls = torch.tensor([CLASS_IDS[name] for name in materials.WALLS])
    floor = floors[torch.randint(len(floors), (count, 1), generator=generator)]
    # Two walls that meet share a material, the other two have another one (or the same).
    pair = walls[torch.randint(len(walls), (count, 2), generator=generator)]
    fixed = torch.tensor([CLASS_IDS[name] for name in ('ceiling', *FIXTURES)]).expand(count, 3)
    ids = torch.cat([class_ids, pair[:, [0, 1, 1, 0]], floor, fixed], 1)
    appearance = materials.vary(table[ids], generator, ranges.gain, ranges.hue)
    return materials.age(appearance, class_ids.shape[1], generator) if ranges.aged else appearance


def sample_room(seed: int, split: str = 'train', difficulty: str = 'easy') -> Room:
    """Draw one room, a function of the arguments alone; see `sample_rooms`."""
    _check_choice('split', split, SPLITS)
    generator = torch.Generator().manual_seed(split_seed(seed, split))
    return Room(seed, split, sample_rooms(1, generator, split, difficulty), difficulty)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f'{name} {value!r} is not one of {", ".join(choices)}')


def split_seed(seed: int, split: str) -> int:
    """Seed of a generator; the same number gives unrelated rooms in different splits."""
    return seed * len(SPLITS) + SPLITS.index(split) + 0x70B0


def look_at(position: Tensor, target: Tensor) -> Pose:
    """Level cameras (B, 3) that look at targets (B, 3)."""
    forward = torch.nn.functional.normalize(target - position, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], device=position.device).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up), dim=-1)
    down = torch.linalg.cross(forward, right)
    return Pose(position, torch.stack([right, down, forward], -1))


def camera_pose(room: Room, time_s: float) -> Pose:
    """Pose at a time, seconds, of a smooth, endless tour along the walls of the room.

    One round takes about 40 s; the camera looks across the room, slightly downwards.
    """
    phase = 2 * math.pi * (time_s / 40.0 + (room.seed * 0.381966) % 1.0)
    length, width, _ = room.packed.size[0].tolist()
    position = [
        length / 2 + (length / 2 - 0.6) * math.cos(phase),
        width / 2 + (width / 2 - 0.6) * math.sin(phase),
        1.35 + 0.1 * math.sin(0.7 * phase),
    ]
    wander = 0.45 * math.sin(2.3 * phase)
    target = [
        length / 2 + 0.8 * math.cos(phase + math.pi + wander),
        width / 2 + 0.8 * math.sin(phase + math.pi + wander),
        0.55,
    ]
    pose = look_at(torch.tensor([position]), torch.tensor([target]))
    return Pose(pose.position[0], pose.rotation[0] @ _shake(room, time_s))


def _shake(room: Room, time_s: float) -> Tensor:
    """Roll, pitch and yaw of a camera on a rough floor, as a rotation (3, 3)."""
    tremor = DIFFICULTIES[room.difficulty].tremor
    if not tremor:
        return torch.eye(3)
    angles = [
        tremor * strength * math.sin(2 * math.pi * rate * time_s + room.seed + index)
        for index, (strength, rate) in enumerate(((0.4, 0.9), (0.6, 0.7), (1.5, 0.23)))
    ]
    generators = torch.zeros(3, 3, 3)
    for axis in range(3):
        after, last = (axis + 1) % 3, (axis + 2) % 3
        generators[axis, last, after], generators[axis, after, last] = 1.0, -1.0
    return torch.linalg.matrix_exp(torch.einsum('a,aij->ij', torch.tensor(angles), generators))


def random_poses(rooms: RoomBatch, generator: torch.Generator, roll: float = 0.0) -> Pose:
    """Draw one view into each room: from anywhere inside, aimed at an object or a random point.

    Args:
        roll: The most that the camera is turned about its axis, radians.
    """
    count = len(rooms)
    size = rooms.size.cpu()
    low = torch.tensor([0.3, 0.3, 1.0])
    high = torch.cat([size[:, :2] - 0.3, torch.full((count, 1), 1.75)], 1)
    target = torch.rand(count, 3, generator=generator) * (size * torch.tensor([1.0, 1.0, 0.5]))
    centres = torch.cat([rooms.round[..., :2], rooms.box[..., :2]], 1).cpu()
    weight = (rooms.radius.cpu() > 0).float() + 1e-6
    chosen = torch.multinomial(weight, 1, generator=generator)[:, 0]
    aimed = torch.cat([centres[torch.arange(count), chosen], torch.full((count, 1), 0.4)], 1)
    jitter = torch.randn(count, 3, generator=generator) * torch.tensor([0.5, 0.5, 0.25])
    use = torch.rand(count, 1, generator=generator) < 0.75
    target = torch.where(use, aimed + jitter, target)
    # The farthest of a few candidates keeps the camera from standing on its target.
    candidates = low + torch.rand(count, 3, 3, generator=generator) * (high[:, None] - low)
    far = (candidates[..., :2] - target[:, None, :2]).norm(dim=-1).argmax(1)
    pose = look_at(candidates[torch.arange(count), far], target)
    if not roll:
        return pose
    angle = _uniform(generator, (count,), -roll, roll)
    zero, one = torch.zeros(count), torch.ones(count)
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], -1)
    return Pose(pose.position, pose.rotation @ turn.view(count, 3, 3))
