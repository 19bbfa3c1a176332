"""Captions and losses of the toybox, and the area under the ROC curve."""

import math

import numpy as np
import pytest
import torch

from cliptrase_ros.toybox import materials, scenes
from cliptrase_ros.toybox.training import captions, losses
from cliptrase_ros.toybox.training.evaluate import roc_auc


def test_roc_auc():
    positive = np.array([True, True, False, False])
    assert roc_auc(np.array([0.9, 0.8, 0.2, 0.1]), positive) == 1.0
    assert roc_auc(np.array([0.1, 0.2, 0.8, 0.9]), positive) == 0.0
    assert roc_auc(np.ones(4), positive) == 0.5
    assert math.isnan(roc_auc(np.ones(4), np.ones(4, bool)))


def test_unseen_combinations_are_never_said():
    unseen = {' '.join(pair) for pair in scenes.UNSEEN_COMBINATIONS}
    said = {word for level in captions.levels() for words in level.words for word in words}
    assert not unseen & said
    assert 'red ball' in said and 'brick wall' in said


def test_every_class_has_at_most_one_phrase_a_level():
    for level in captions.levels():
        assert (level.member.sum(1) <= 1).all()
        for index, toy_class in enumerate(scenes.CLASSES):
            known = (toy_class.adjective, toy_class.noun) not in scenes.UNSEEN_COMBINATIONS
            assert bool(level.member[index].any()) is known


def test_presence_leaves_small_things_unsaid():
    coverage = torch.zeros(1, len(scenes.CLASSES))
    for name, share in (('red ball', 0.1), ('blue box', 0.005), ('carpet', 0.895)):
        coverage[0, scenes.CLASS_IDS[name]] = share
    level = captions.levels()[0]
    mentioned, denied = captions.presence(level, coverage)
    by_word = {words[0]: column for column, words in enumerate(level.words)}
    assert mentioned[0, by_word['red ball']] and mentioned[0, by_word['carpet']]
    assert not mentioned[0, by_word['blue box']] and not denied[0, by_word['blue box']]
    assert denied[0, by_word['green cone']]


def test_losses_prefer_the_truth():
    mentioned = torch.tensor([[True, False, True], [False, True, False]])
    good = mentioned.float() * 10
    assert losses.contrast(good, mentioned, ~mentioned) < losses.contrast(
        -good, mentioned, ~mentioned
    )
    # Two patches, one for each thing that is there, beat two that show the same thing.
    each = torch.eye(3)[[0, 2]][None] * 10
    same = torch.eye(3)[[0, 0]][None] * 10
    absent = torch.eye(3)[[0, 1]][None] * 10
    first = (mentioned[:1], ~mentioned[:1])
    assert losses.patches(each, *first) < losses.patches(same, *first)
    assert losses.patches(each, *first) < losses.patches(absent, *first)
    # Nor is it an answer that every patch shows a little of everything.
    mixed = each.mean(1, keepdim=True).expand_as(each)
    assert losses.patches(each, *first) + 0.1 < losses.patches(mixed, *first)


def test_a_picture_without_mentions_gives_no_gradient_trouble():
    logits = torch.randn(2, 4, requires_grad=True)
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    loss = losses.contrast(logits, nothing, ~nothing)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()


def test_compositions_name_their_parts():
    names, shapes, colors, _ = captions.levels()
    rows = captions.compositions()
    objects = [c for c in scenes.CLASSES if c.kind == 'object']
    assert len(rows) == len(objects) - len(scenes.UNSEEN_COMBINATIONS)
    for name, shape, color in rows.tolist():
        adjective, noun = names.words[name][0].split()
        assert shapes.words[shape][0] == noun
        assert colors.words[color][0] == f'{adjective} object'


def test_composition_is_zero_when_names_are_the_sum_of_their_parts():
    generator = torch.Generator().manual_seed(0)
    text = [
        torch.nn.functional.normalize(torch.randn(len(level.words), 16, generator=generator), dim=1)
        for level in captions.levels()
    ]
    assert losses.composition(text) > 0.5
    name, shape, color = captions.compositions().unbind(1)
    text[0][name] = torch.nn.functional.normalize(text[1][shape] + text[2][color], dim=-1)
    assert losses.composition(text) == pytest.approx(0, abs=1e-6)


def test_colors_are_said_where_they_are_seen_and_shapes_where_they_are_not():
    levels = captions.levels()
    generator = torch.Generator().manual_seed(0)

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    text = [unit(len(level.words), 16) for level in levels]
    coverage = torch.zeros(1, len(scenes.CLASSES))
    coverage[0, scenes.CLASS_IDS['red ball']] = 0.3
    coverage[0, scenes.CLASS_IDS['carpet']] = 0.7

    def loss(features, colorless):
        terms = losses.caption_loss(
            tokens, correlation, features, levels, coverage, torch.tensor(10.0), True, colorless
        )
        return sum(value for name, value in terms.items() if name != 'text')

    def other(*indices):
        return [unit(*t.shape) if index in indices else t for index, t in enumerate(text)]

    tokens, correlation = unit(1, 5, 16), torch.eye(5)[None]
    gray, true = torch.tensor([True]), torch.tensor([False])
    assert loss(text, gray) == loss(other(captions.NAMES, captions.FINISHES), gray)
    assert loss(text, gray) != loss(other(captions.SHAPES), gray)
    assert loss(text, gray) != loss(other(captions.COLORLESS), gray)
    assert loss(text, true) == loss(other(captions.SHAPES, captions.COLORLESS), true)
    assert loss(text, true) != loss(other(captions.NAMES), true)


def test_without_colors_a_striped_ball_is_a_ball_too():
    level = captions.levels()[captions.COLORLESS]
    column = {words[0]: index for index, words in enumerate(level.words)}
    said = ' '.join(word for words in level.words for word in words)
    assert not any(color in said for color in materials.COLORS)
    coverage = torch.zeros(2, len(scenes.CLASSES))
    coverage[0, scenes.CLASS_IDS['striped ball']] = 0.4
    coverage[1, scenes.CLASS_IDS['red ball']] = 0.4
    mentioned, denied = captions.presence(level, coverage)
    assert mentioned[:, column['striped ball']].tolist() == [True, False]
    assert denied[:, column['striped ball']].tolist() == [False, True]
    assert mentioned[:, column['ball']].tolist() == [False, True]
    assert not denied[:, column['ball']].any()
    assert denied[:, column['cone']].all()
