"""Captions: which phrases a picture does and does not show, at several levels of detail."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from torch import Tensor

from cliptrase_ros.toybox.materials import PATTERNS
from cliptrase_ros.toybox.scenes import CLASSES, UNSEEN_COMBINATIONS, ToyClass

# A class that covers less is not worth a word: the caption neither mentions nor denies it.
MENTIONED_FROM = 0.025
DENIED_BELOW = 0.001

NAMES, SHAPES, FINISHES, COLORLESS = range(4)

_SHAPE_WORDS = {
    'ball': ('ball', 'ball', 'ball', 'sphere'),
    'box': ('box', 'box', 'box', 'crate', 'cube'),
    'cone': ('cone', 'cone', 'cone', 'traffic cone', 'pylon'),
    'cylinder': ('cylinder', 'cylinder', 'cylinder', 'barrel', 'drum'),
}
_SURFACE_WORDS = {
    'wooden floor': ('wooden floor', 'wooden floor', 'wood floor', 'parquet'),
    'tiled floor': ('tiled floor', 'tiled floor', 'tile floor', 'tiles'),
    'stone floor': ('stone floor', 'stone floor', 'stone tiles'),
    'brick wall': ('brick wall', 'brick wall', 'bricks'),
    'wooden wall': ('wooden wall', 'wooden wall', 'wood wall'),
    'carpet': ('carpet', 'carpet', 'carpet floor', 'rug'),
}
_OBJECT_WORDS = ('object', 'thing')


@dataclass(frozen=True)
class Level:
    """Phrases of which every visible thing has exactly one.

    Attributes:
        words: For each phrase the ways to say it.
        member: bool (len(CLASSES), len(words)), which classes a phrase names; a class of no phrase
            never occurs in training.
        fits: The same with the classes that a phrase is true of although another one names them.
    """

    words: tuple[tuple[str, ...], ...]
    member: Tensor
    fits: Tensor


def _object_words(toy_class: ToyClass) -> tuple[str, ...]:
    return tuple(f'{toy_class.adjective} {noun}' for noun in _SHAPE_WORDS[toy_class.noun])


def _material(toy_class: ToyClass) -> tuple[str, ...]:
    return _SURFACE_WORDS.get(toy_class.name, (toy_class.name,))


def _kind(toy_class: ToyClass) -> tuple[str, ...]:
    return (toy_class.kind,)


def _shape(toy_class: ToyClass) -> tuple[str, ...]:
    return _SHAPE_WORDS[toy_class.noun]


def _finish(toy_class: ToyClass) -> tuple[str, ...]:
    return tuple(f'{toy_class.adjective} {word}' for word in _OBJECT_WORDS)


def _colorless(toy_class: ToyClass) -> tuple[str, ...]:
    return _object_words(toy_class) if toy_class.adjective in PATTERNS else _shape(toy_class)


@lru_cache(maxsize=1)
def levels() -> tuple[Level, ...]:
    """What is said of a picture, in the order of `NAMES`, `SHAPES`, `FINISHES`, `COLORLESS`.

    Names and materials; shapes and kinds of surface; finishes and kinds of surface; and what
    there is to say where colours are gone: shapes, with their patterns, and kinds of surface.
    """
    namings = ((_object_words, _material), (_shape, _kind), (_finish, _kind), (_colorless, _kind))
    result = []
    for name_object, name_surface in namings:
        phrases: dict[tuple[str, ...], list[int]] = {}
        for index, toy_class in enumerate(CLASSES):
            if (toy_class.adjective, toy_class.noun) in UNSEEN_COMBINATIONS:
                # Neither shown nor denied: a denied phrase would be learned as absent.
                continue
            name = name_object if toy_class.kind == 'object' else name_surface
            phrases.setdefault(name(toy_class), []).append(index)
        member = torch.zeros(len(CLASSES), len(phrases), dtype=torch.bool)
        for column, indices in enumerate(phrases.values()):
            member[indices, column] = True
        result.append(Level(tuple(phrases), member, member))
    colorless, shapes = result[COLORLESS], result[SHAPES]
    fits = [
        shapes.member[:, shapes.words.index(words)] if words in shapes.words else column
        for words, column in zip(colorless.words, colorless.member.mT, strict=True)
    ]
    result[COLORLESS] = replace(colorless, fits=torch.stack(fits, 1))
    return tuple(result)


@lru_cache(maxsize=1)
def compositions() -> Tensor:
    """Of what parts the names of things are made up.

    Returns:
        int64 (names of things, 3): the columns of name, shape and finish in their levels. The
        combinations that training never sees have no row.
    """
    names, shapes, colors = (levels()[index].member for index in (NAMES, SHAPES, FINISHES))
    kinds = [toy_class.kind for toy_class in CLASSES]
    rows = [
        [int(names[index].nonzero()), int(shapes[index].nonzero()), int(colors[index].nonzero())]
        for index, kind in enumerate(kinds)
        if kind == 'object' and names[index].any()
    ]
    return torch.tensor(rows)


def prompts(level: Level, generator: torch.Generator) -> list[str]:
    """One prompt a phrase: a random way to say it in a random one of the 80 templates."""
    chosen = []
    for words in level.words:
        word = torch.randint(len(words), (), generator=generator)
        template = torch.randint(len(OPENAI_IMAGENET_TEMPLATES), (), generator=generator)
        chosen.append(OPENAI_IMAGENET_TEMPLATES[int(template)](words[int(word)]))
    return chosen


def presence(level: Level, coverage: Tensor) -> tuple[Tensor, Tensor]:
    """Say which phrases captions mention and which they deny.

    Args:
        coverage: (B, len(CLASSES)), shares of B pictures.

    Returns:
        Two bool (B, phrases); a phrase for something barely visible is in neither.
    """
    share, any_share = (coverage @ table.to(coverage) for table in (level.member, level.fits))
    return share >= MENTIONED_FROM, any_share < DENIED_BELOW


def training_texts() -> list[str]:
    """Every text whose tokens the model has to know."""
    words = [word for level in levels() for group in level.words for word in group]
    words += [toy_class.name for toy_class in CLASSES]
    return [template(word) for template in OPENAI_IMAGENET_TEMPLATES for word in words]
