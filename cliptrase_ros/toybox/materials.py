"""What things look like: one texture formula with a row of parameters for every class.

Bricks, planks, tiles, stripes, dots, window bars and the bands of a barrel are all the same
formula with other numbers, so a picture of mixed materials needs no branch and no loop.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch import Tensor

SHAPES = ('ball', 'box', 'cone', 'cylinder')

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Texture:
    """Texture parameters; colours are RGB in linear light, 0..1.

    The surface coordinates (u, v) are metres on walls and floors; on objects u runs 0..1 around
    (or across a face) and v runs 0..1 from the floor to the top.

    Attributes:
        first: Colour of cells.
        second: Colour of every other cell, or of dots.
        trim: Colour of joints, bands and frame.
        tile: Size of a cell along u and v.
        shift: Offset of every row against the one below it, cells.
        joint: Half width of the joint between cells along u and v, in cells.
        checker: How far every other cell has the second colour, 0..1.
        dot: Radius of a dot in each cell, in cells.
        variation: How much the brightness of cells differs.
        grain: How much that of lines along u differs.
        bands: (centre, half width) of two bands, along v.
        frame: Width of the strips at both ends of u.
    """

    first: Color
    second: Color = (0.0, 0.0, 0.0)
    trim: Color = (0.0, 0.0, 0.0)
    tile: tuple[float, float] = (100.0, 100.0)
    shift: float = 0.0
    joint: tuple[float, float] = (0.0, 0.0)
    checker: float = 0.0
    dot: float = 0.0
    variation: float = 0.0
    grain: float = 0.0
    bands: tuple[tuple[float, float], tuple[float, float]] = ((-9.0, 0.0), (-9.0, 0.0))
    frame: float = 0.0


# Columns of a packed texture: the class, the attributes of `Texture` in order, and what is drawn.
CLASS_ID = 0
FIRST, SECOND, TRIM = slice(1, 4), slice(4, 7), slice(7, 10)
TILE_U, TILE_V, SHIFT, JOINT_U, JOINT_V, CHECKER, DOT, VARIATION, GRAIN = range(10, 19)
BAND_1, WIDTH_1, BAND_2, WIDTH_2, FRAME, PHASE, WEAR, GLOSS = range(19, 27)
FEATURES = 27

WHITE: Color = (0.80, 0.80, 0.78)
DARK: Color = (0.035, 0.035, 0.04)

COLORS: dict[str, Color] = {
    'red': (0.62, 0.02, 0.02),
    'orange': (0.90, 0.24, 0.01),
    'yellow': (0.88, 0.62, 0.02),
    'green': (0.03, 0.36, 0.05),
    'blue': (0.02, 0.09, 0.60),
    'purple': (0.24, 0.03, 0.42),
    'white': WHITE,
}
PATTERNS = ('striped', 'dotted')
FINISHES = (*COLORS, *PATTERNS)

FLOORS: dict[str, Texture] = {
    'wooden floor': Texture(
        first=(0.33, 0.15, 0.055),
        trim=(0.08, 0.035, 0.015),
        tile=(1.3, 0.16),
        shift=0.37,
        joint=(0.004, 0.04),
        variation=0.28,
        grain=0.16,
    ),
    'tiled floor': Texture(
        first=(0.55, 0.60, 0.62),
        second=(0.05, 0.12, 0.16),
        trim=(0.40, 0.40, 0.40),
        tile=(0.42, 0.42),
        joint=(0.025, 0.025),
        checker=1.0,
        variation=0.05,
    ),
    'carpet': Texture(
        first=(0.22, 0.025, 0.05),
        second=(0.62, 0.42, 0.20),
        tile=(0.34, 0.34),
        shift=0.5,
        dot=0.24,
        variation=0.04,
        grain=0.10,
    ),
    'stone floor': Texture(
        first=(0.30, 0.31, 0.27),
        trim=(0.07, 0.075, 0.06),
        tile=(0.62, 0.40),
        shift=0.43,
        joint=(0.035, 0.055),
        variation=0.45,
        grain=0.06,
    ),
}

WALLS: dict[str, Texture] = {
    'brick wall': Texture(
        first=(0.36, 0.095, 0.05),
        trim=(0.44, 0.41, 0.37),
        tile=(0.34, 0.13),
        shift=0.5,
        joint=(0.035, 0.085),
        variation=0.35,
    ),
    'wooden wall': Texture(
        first=(0.50, 0.30, 0.12),
        trim=(0.16, 0.085, 0.03),
        tile=(0.24, 100.0),
        joint=(0.035, 0.0),
        variation=0.18,
        grain=0.05,
    ),
    'concrete wall': Texture(
        first=(0.33, 0.35, 0.37),
        second=(0.11, 0.115, 0.12),
        trim=(0.15, 0.155, 0.16),
        tile=(1.0, 0.9),
        joint=(0.008, 0.009),
        dot=0.06,
        variation=0.14,
        grain=0.05,
    ),
    'wallpaper': Texture(
        first=(0.30, 0.52, 0.46),
        second=(0.66, 0.70, 0.52),
        trim=(0.45, 0.40, 0.25),
        tile=(0.36, 100.0),
        checker=1.0,
    ),
    'plaster wall': Texture(
        first=(0.70, 0.56, 0.38),
        trim=(0.45, 0.36, 0.26),
        grain=0.03,
        bands=((0.05, 0.07), (-9.0, 0.0)),
    ),
}

FIXTURES: dict[str, Texture] = {
    'ceiling': Texture(
        first=(0.72, 0.72, 0.70), trim=(0.45, 0.45, 0.45), tile=(0.6, 0.6), joint=(0.02, 0.02)
    ),
    'door': Texture(
        first=(0.10, 0.17, 0.14),
        trim=(0.035, 0.06, 0.05),
        tile=(0.5, 0.52),
        joint=(0.10, 0.085),
    ),
    'window': Texture(
        first=(0.36, 0.68, 1.0), trim=(0.85, 0.85, 0.82), tile=(0.5, 0.6), joint=(0.06, 0.05)
    ),
}


def _tint(color: Color, amount: float) -> Color:
    red, green, blue = (channel + (0.9 - channel) * amount for channel in color)
    return red, green, blue


def _shade(color: Color, factor: float) -> Color:
    red, green, blue = (channel * factor for channel in color)
    return red, green, blue


def object_texture(finish: str, shape: str) -> Texture:
    """Texture of an object: its finish, and the trim that every thing of its shape wears.

    Balls have the segments of a beach ball, boxes the frame of a crate, cones the bands of a
    traffic cone, cylinders the hoops of a barrel. In a small picture shapes differ by little
    more than shading; trim makes them things one can tell apart.
    """
    if finish == 'striped':
        style = {'first': WHITE, 'second': DARK, 'checker': 1.0}
        style['tile'] = {
            'ball': (100.0, 0.125),
            'box': (0.2, 100.0),
            'cone': (0.125, 100.0),
            'cylinder': (0.1, 100.0),
        }[shape]
    elif finish == 'dotted':
        style = {'first': WHITE, 'second': (0.75, 0.02, 0.35), 'dot': 0.33}
        style['tile'] = {
            'ball': (0.125, 0.22),
            'box': (0.25, 0.25),
            'cone': (0.125, 0.22),
            'cylinder': (0.1, 0.25),
        }[shape]
        style['shift'] = 0.5
    else:
        style = {'first': COLORS[finish]}
    color = style['first']
    if shape == 'ball':
        if finish in COLORS:
            # White segments would make every ball half white; a tint keeps the colour's name.
            style |= {
                'second': _tint(color, 0.28) if finish != 'white' else _shade(color, 0.72),
                'tile': (1 / 6, 100.0),
                'checker': 1.0,
            }
        style |= {'trim': WHITE if finish != 'white' else DARK, 'bands': ((1.0, 0.05), (-9, 0))}
    elif shape == 'box':
        style |= {
            'trim': _shade(color, 0.42) if finish in COLORS else (0.20, 0.11, 0.045),
            'bands': ((0.0, 0.1), (1.0, 0.1)),
            'frame': 0.1,
        }
    elif shape == 'cone':
        trim = WHITE if finish in COLORS and finish != 'white' else (0.16, 0.16, 0.17)
        style |= {'trim': trim, 'bands': ((0.30, 0.085), (0.62, 0.075))}
    else:
        style |= {'trim': DARK, 'bands': ((0.09, 0.05), (0.87, 0.05))}
    return Texture(**style)


def texture_table(names: Sequence[str]) -> Tensor:
    """Packed textures of classes, float32 (len(names), FEATURES); row i has class id i."""
    # Phase, wear and gloss, the last columns, are drawn for each room.
    table = torch.zeros(len(names), FEATURES)
    for index, name in enumerate(names):
        known = FLOORS.get(name) or WALLS.get(name) or FIXTURES.get(name)
        texture = known or object_texture(*name.split())
        numbers = np.concatenate([np.ravel(value) for value in astuple(texture)])
        table[index, CLASS_ID] = index
        table[index, FIRST.start : PHASE] = torch.from_numpy(numbers)
    return table


def vary(
    appearance: Tensor, generator: torch.Generator, gain: float = 0.15, hue: float = 0.06
) -> Tensor:
    """Paint of other batches: every slot's colours change a little, and so do its cells.

    Args:
        appearance: (..., slots, FEATURES).
        gain: The most that brightness changes, as a share.
        hue: The most that single channels change, as a share.
    """
    varied = appearance.clone()
    shape = appearance.shape[:-1]
    gains = torch.rand(*shape, 1, generator=generator) * (2 * gain) + (1 - gain)
    hues = torch.rand(*shape, 3, generator=generator) * (2 * hue) + (1 - hue)
    for columns in (FIRST, SECOND, TRIM):
        varied[..., columns] *= gains * hues
    varied[..., PHASE] = torch.rand(shape, generator=generator) * 97.0
    return varied


def age(appearance: Tensor, objects: int, generator: torch.Generator) -> Tensor:
    """Stains on everything, gloss on things, other sizes of bricks, planks and tiles.

    Args:
        appearance: (..., slots, FEATURES).
        objects: So many slots, the first ones, are things.
    """
    aged = appearance.clone()
    shape = appearance.shape[:-1]
    aged[..., WEAR] = torch.rand(shape, generator=generator) * 0.35
    gloss = torch.rand(shape, generator=generator) - 0.4
    aged[..., :objects, GLOSS] = gloss[..., :objects].clamp_min(0)
    scale = torch.exp(torch.rand(shape, generator=generator) * 0.6 - 0.3)[..., objects:]
    for column in (TILE_U, TILE_V):
        aged[..., objects:, column] *= scale
    return aged
