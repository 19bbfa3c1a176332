"""Losses from captions alone: what is and what is not in the picture."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.correlation import denoise_correlation
from cliptrase_ros.toybox.captions import Level, compositions, presence

# Of names, shapes and colours.
LEVEL_WEIGHTS = (1.0, 1.0, 1.0)
SHAPES_LEVEL = 1
MEAN_WEIGHT = 0.25
COMPOSITION_WEIGHT = 2.0
# Temperature of the correlation as an attention: clusters need rows that differ by about as much.
SHARPNESS = 0.1
# The share of a picture that a thing worth mentioning takes up, as a rule.
USUAL_SHARE = 0.05


def contrast(logits: Tensor, mentioned: Tensor, denied: Tensor) -> Tensor:
    """CLIP's loss with several right answers, both ways; logits, mentioned, denied (B, P).

    Of the phrases that are mentioned or denied, the mentioned ones share the probability
    equally; and likewise of the pictures for each phrase.
    """
    return 0.5 * (_spread(logits, mentioned, denied) + _spread(logits.mT, mentioned.mT, denied.mT))


def _spread(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    logits = logits.masked_fill(~(positive | negative), -torch.inf)
    log_probability = logits.log_softmax(-1).masked_fill(~positive, 0)
    count = positive.sum(-1)
    # A row without positives has nothing to say.
    loss = -log_probability.sum(-1) / count.clamp_min(1)
    return loss.sum() / (count > 0).sum().clamp_min(1)


def patches(logits: Tensor, mentioned: Tensor, denied: Tensor) -> Tensor:
    """Every patch shows something that is there, and everything mentioned takes up some room.

    logits (B, N, P) of the patches; mentioned, denied (B, P).
    """
    log_probability = logits.log_softmax(-1)
    possible = log_probability.masked_fill(denied[:, None], -torch.inf)
    somewhere = -possible.logsumexp(-1).mean()
    # Floors and walls are nearly always there, so the plain middle of a thing could safely be
    # called floor, and the thing be only where it differs from all others. Asking for more than
    # a usual size would make things spread over their surroundings.
    share = log_probability.logsumexp(1) - math.log(logits.shape[1])
    missing = (math.log(USUAL_SHARE) - share).clamp_min(0)
    room = (missing * mentioned).sum(-1) / mentioned.sum(-1).clamp_min(1)
    return somewhere + room.mean()


def composition(text: list[Tensor]) -> Tensor:
    """The meaning of 'red ball' is that of 'red thing' and of 'ball' together.

    text: per level (P, D), unit length. What a picture teaches about one name then holds for the
    colour and for the shape, and so for pairs that no picture showed. 0 for perfect agreement.
    """
    name, shape, color = compositions().to(text[0].device).unbind(1)
    parts = F.normalize(text[1][shape] + text[2][color], dim=-1)
    return 1 - (text[0][name] * parts).sum(-1).mean()


def regional(tokens: Tensor, correlation: Tensor) -> Tensor:
    """Patch tokens averaged over the patches that correlate with them, unit length (B, N, D).

    tokens (B, 1 + N, D), correlation (B, 1 + N, 1 + N), as in `DenseFeatures`.
    """
    weights = (denoise_correlation(correlation.float()) / SHARPNESS).softmax(-1)
    return F.normalize(weights @ tokens[:, 1:], dim=-1)


def caption_loss(
    tokens: Tensor,
    correlation: Tensor,
    text: list[Tensor],
    levels: tuple[Level, ...],
    coverage: Tensor,
    scale: Tensor,
    dense: bool,
    recoloured: Tensor,
) -> dict[str, Tensor]:
    """Loss terms; their sum is what training minimises.

    tokens (B, 1 + N, D): unit length, [CLS] first. correlation (B, 1 + N, 1 + N). text: per level
    (P, D), unit length. coverage (B, len(CLASSES)). dense: also on the recovered patch tokens,
    not on [CLS] alone. recoloured: bool (B,), pictures whose colours are not true, of which
    only the shapes are said.
    """
    names = ('cls', 'mean', 'patch', 'region') if dense else ('cls',)
    terms = dict.fromkeys(names, tokens.new_zeros(()))
    if dense:
        regions = regional(tokens, correlation)
        mean = F.normalize(tokens[:, 1:].mean(1), dim=-1)
    for index, (level, features) in enumerate(zip(levels, text, strict=True)):
        weight = LEVEL_WEIGHTS[index]
        mentioned, denied = presence(level, coverage)
        if index != SHAPES_LEVEL:
            mentioned, denied = (said & ~recoloured[:, None] for said in (mentioned, denied))
        direction = scale * features.mT
        found = {'cls': contrast(tokens[:, 0] @ direction, mentioned, denied)}
        if dense:
            found['mean'] = MEAN_WEIGHT * contrast(mean @ direction, mentioned, denied)
            found['patch'] = patches(tokens[:, 1:] @ direction, mentioned, denied)
            found['region'] = patches(regions @ direction, mentioned, denied)
        terms = {name: terms[name] + weight * term for name, term in found.items()}
    return terms | {'text': COMPOSITION_WEIGHT * composition(text)}
