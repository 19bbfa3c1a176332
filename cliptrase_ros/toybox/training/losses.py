"""Losses from captions alone: what is and what is not in the picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.model.correlation import denoise_correlation
from cliptrase_ros.toybox.training.captions import (
    COLORLESS,
    FINISHES,
    NAMES,
    SHAPES,
    Level,
    compositions,
    presence,
)

# Of names, shapes, finishes, and what is said without colours. If shapes had to be told apart in
# general, it would pay to learn which shapes a colour never comes with. Among the names that occur,
# and in pictures without colours, it does not.
CONTRAST_WEIGHTS = (1.0, 1.0, 1.0, 0.0)
PATCH_WEIGHTS = (1.5, 0.0, 1.5, 3.0)
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
    # A share of the sum of probabilities could be had by every patch believing a little in
    # everything that is mentioned. Asking for more patches than a usual share would make things
    # spread over their surroundings.
    count = max(1, round(USUAL_SHARE * logits.shape[1]))
    surest = log_probability.topk(count, 1).values.mean(1)
    room = -(surest * mentioned).sum(-1) / mentioned.sum(-1).clamp_min(1)
    return somewhere + room.mean()


def composition(text: list[Tensor]) -> Tensor:
    """The meaning of 'red ball' is that of 'red thing' and of 'ball' together.

    text: per level (P, D), unit length. What a picture teaches about one name then holds for the
    colour and for the shape, and so for pairs that no picture showed. 0 for perfect agreement.
    """
    name, shape, color = compositions().to(text[NAMES].device).unbind(1)
    parts = F.normalize(text[SHAPES][shape] + text[FINISHES][color], dim=-1)
    return 1 - (text[NAMES][name] * parts).sum(-1).mean()


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
    colorless: Tensor,
) -> dict[str, Tensor]:
    """Loss terms; their sum is what training minimises.

    tokens (B, 1 + N, D): unit length, [CLS] first. correlation (B, 1 + N, 1 + N). text: per level
    (P, D), unit length. coverage (B, len(CLASSES)). dense: also on the recovered patch tokens,
    not on [CLS] alone. colorless: bool (B,), pictures without colours; shapes are said of these
    alone, names and finishes of all others.
    """
    names = ('cls', 'mean', 'patch', 'region') if dense else ('cls',)
    terms = dict.fromkeys(names, tokens.new_zeros(()))
    if dense:
        regions = regional(tokens, correlation)
        mean = F.normalize(tokens[:, 1:].mean(1), dim=-1)
    weights = zip(CONTRAST_WEIGHTS, PATCH_WEIGHTS, strict=True)
    for index, (level, features, weight) in enumerate(zip(levels, text, weights, strict=True)):
        of_picture, of_patches = weight
        direction = scale * features.mT
        said = presence(level, coverage)
        apt = colorless if index in (SHAPES, COLORLESS) else ~colorless
        said = tuple(phrases & apt[:, None] for phrases in said)
        found = {}
        if of_picture:
            found['cls'] = of_picture * contrast(tokens[:, 0] @ direction, *said)
        if dense and of_picture:
            found['mean'] = of_picture * MEAN_WEIGHT * contrast(mean @ direction, *said)
        if dense and of_patches:
            found['patch'] = of_patches * patches(tokens[:, 1:] @ direction, *said)
            found['region'] = of_patches * patches(regions @ direction, *said)
        terms |= {name: terms[name] + term for name, term in found.items()}
    return terms | {'text': COMPOSITION_WEIGHT * composition(text)}
