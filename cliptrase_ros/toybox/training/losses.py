"""Losses from captions alone: what is and what is not in the picture."""

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

# Of the levels: names, shapes, finishes, and what is said without colours. Where shapes are told
# apart in coloured pictures, it pays to learn which shapes a colour never comes with, and unseen
# combinations are lost. Among the names that occur, and without colours, it does not pay.
CONTRAST_WEIGHTS = (1.0, 1.0, 1.0, 0.0)
PATCH_WEIGHTS = (1.5, 0.0, 1.5, 3.0)
MEAN_WEIGHT = 0.25
COMPOSITION_WEIGHT = 2.0
# Temperature of the correlation as an attention: rows of one cluster differ by about as much.
SHARPNESS = 0.1
# The share of a picture that a thing worth mentioning takes up, as a rule.
USUAL_SHARE = 0.05


def contrast(logits: Tensor, mentioned: Tensor, denied: Tensor) -> Tensor:
    """CLIP's loss with several right answers, both ways.

    Of the phrases that are mentioned or denied, the mentioned ones share the probability
    equally; and likewise of the pictures for each phrase.

    Args:
        logits: (B, P), of B pictures and P phrases; the others are bool of the same shape.
    """
    of_phrases = _cross_entropy(logits, mentioned, denied)
    return 0.5 * (of_phrases + _cross_entropy(logits.mT, mentioned.mT, denied.mT))


def _cross_entropy(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    logits = logits.masked_fill(~(positive | negative), -torch.inf)
    log_probability = logits.log_softmax(-1).masked_fill(~positive, 0)
    count = positive.sum(-1)
    # A row without positives has nothing to say.
    loss = -log_probability.sum(-1) / count.clamp_min(1)
    return loss.sum() / (count > 0).sum().clamp_min(1)


def patches(logits: Tensor, mentioned: Tensor, denied: Tensor) -> Tensor:
    """Every patch shows something that is there, and everything mentioned takes up some room.

    Args:
        logits: (B, N, P), of the patches; the others are bool (B, P).
    """
    log_probability = logits.log_softmax(-1)
    possible = log_probability.masked_fill(denied[:, None], -torch.inf)
    somewhere = -possible.logsumexp(-1).mean()
    # Of the surest patches alone: a mean over all could be had by every patch believing a little
    # in everything that is mentioned. If more patches were asked for than a usual share, things
    # would spread over their surroundings.
    count = max(1, round(USUAL_SHARE * logits.shape[1]))
    surest = log_probability.topk(count, 1).values.mean(1)
    room = -(surest * mentioned).sum(-1) / mentioned.sum(-1).clamp_min(1)
    return somewhere + room.mean()


def composition(text: list[Tensor]) -> Tensor:
    """The meaning of 'red ball' is that of 'red thing' and of 'ball' together.

    What a picture teaches about one name then holds for the colour and for the shape, and so for
    pairs that no picture showed.

    Args:
        text: For each level (P, D), unit length.
    """
    name, shape, color = compositions().to(text[NAMES].device).unbind(1)
    parts = F.normalize(text[SHAPES][shape] + text[FINISHES][color], dim=-1)
    return 1 - (text[NAMES][name] * parts).sum(-1).mean()


def regional(tokens: Tensor, correlation: Tensor) -> Tensor:
    """Patch tokens, averaged over the patches that correlate with them: (B, N, D), unit length."""
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

    Args:
        tokens: (B, 1 + N, D), unit length, [CLS] first.
        correlation: (B, 1 + N, 1 + N), as in `DenseFeatures`.
        text: For each level (P, D), unit length.
        coverage: (B, len(CLASSES)), shares of each picture.
        scale: What cosines are multiplied by.
        dense: Also on the recovered patch tokens, not on [CLS] alone.
        colorless: bool (B,), pictures without colours; shapes are said of these alone, names and
            finishes of all others.
    """
    names = ('cls', 'mean', 'patch', 'region') if dense else ('cls',)
    terms = dict.fromkeys(names, tokens.new_zeros(()))
    if dense:
        regions = regional(tokens, correlation)
        mean = F.normalize(tokens[:, 1:].mean(1), dim=-1)
    by_level = zip(levels, text, CONTRAST_WEIGHTS, PATCH_WEIGHTS, strict=True)
    for index, (level, features, of_picture, of_patches) in enumerate(by_level):
        direction = scale * features.mT
        # Of a picture of the wrong kind nothing is mentioned and nothing denied.
        is_apt = (colorless if index in (SHAPES, COLORLESS) else ~colorless)[:, None]
        caption = tuple(phrases & is_apt for phrases in presence(level, coverage))
        found = {}
        if of_picture:
            found['cls'] = of_picture * contrast(tokens[:, 0] @ direction, *caption)
        if dense and of_picture:
            found['mean'] = of_picture * MEAN_WEIGHT * contrast(mean @ direction, *caption)
        if dense and of_patches:
            found['patch'] = of_patches * patches(tokens[:, 1:] @ direction, *caption)
            found['region'] = of_patches * patches(regions @ direction, *caption)
        terms |= {name: terms[name] + term for name, term in found.items()}
    return terms | {'text': COMPOSITION_WEIGHT * composition(text)}
