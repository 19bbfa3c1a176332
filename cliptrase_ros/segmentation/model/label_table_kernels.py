"""From cosines of phrases to logits of label columns, as one Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch
from cliptrase_ros.segmentation.model.label_table import NO_COSINE

# Phrases that are compared with all columns at a time.
_PHRASES = 8
# Columns times patches of a program, unless there are more columns.
_PLACES = 256


def patch_logits(
    cosines: Tensor,
    image_cosines: Tensor | None,
    columns: Tensor,
    used: Tensor,
    count: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`label_table.patch_logits` on CUDA."""
    batch, patches, phrases = cosines.shape
    logits = cosines.new_empty(batch, count, patches)
    has_prior = image_cosines is not None
    label_logits = torch.empty_like(logits) if has_prior else logits
    prior = image_cosines if has_prior else cosines
    width = max(16, triton.next_power_of_2(count))
    at_once = max(1, _PLACES // width)
    if cosines.stride(2) != 1 or cosines.stride(1) != phrases:
        cosines = cosines.contiguous()
    launch(
        _patch_logits,
        (triton.cdiv(patches, at_once), batch),
        cosines,
        prior,
        columns,
        used,
        logits,
        label_logits,
        scale,
        cosines.stride(0),
        prior.stride(0),
        patches,
        phrases,
        count,
        has_prior,
        NO_COSINE,
        at_once,
        width,
        _PHRASES,
    )
    return logits, label_logits


@triton.jit(
    do_not_specialize=['stride', 'prior_stride', 'patches', 'phrases', 'count'],
)
def _patch_logits(
    cosines,
    prior,
    columns,
    used,
    logits,
    label_logits,
    scale,
    stride,
    prior_stride,
    patches,
    phrases,
    count,
    PRIOR: tl.constexpr,
    NO_COSINE: tl.constexpr,
    PATCHES: tl.constexpr,
    COLUMNS: tl.constexpr,
    PHRASES: tl.constexpr,
):
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    image = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    row = cosines + image * stride + patch[:, None].to(tl.int64) * phrases
    is_patch = (patch < patches)[:, None]
    largest = tl.full((PATCHES, COLUMNS), NO_COSINE, tl.float32)
    of_image = tl.full((COLUMNS,), NO_COSINE, tl.float32)
    for first in range(0, phrases, PHRASES):
        phrase = first + tl.arange(0, PHRASES)
        is_phrase = phrase < phrases
        belongs = tl.load(columns + phrase, mask=is_phrase, other=-1)[None, :] == column[:, None]
        mask = is_patch & is_phrase[None, :]
        values = tl.load(row + phrase[None, :], mask=mask, other=NO_COSINE)
        candidates = tl.where(belongs[None, :, :], values[:, None, :], NO_COSINE)
        largest = tl.maximum(largest, tl.max(candidates, 2))
        if PRIOR:
            values = tl.load(prior + image * prior_stride + phrase, mask=is_phrase, other=NO_COSINE)
            candidates = tl.where(belongs, values[None, :], NO_COSINE)
            of_image = tl.maximum(of_image, tl.max(candidates, 1))
    largest *= scale
    place = (image * count + column[None, :]) * patches + patch[:, None]
    mask = is_patch & (column < count)[None, :]
    tl.store(logits + place, largest, mask=mask)
    if PRIOR:
        is_used = (column < tl.load(used))[None, :]
        with_prior = largest * (of_image * scale)[None, :]
        with_prior = tl.where(is_used, with_prior, NO_COSINE * scale)
        tl.store(label_logits + place, with_prior, mask=mask)
