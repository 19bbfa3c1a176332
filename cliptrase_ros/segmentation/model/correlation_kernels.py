"""The correlation of patches as one Triton kernel: products of half precision, sums of float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cliptrase_ros.segmentation.kernels import launch

# Patches along a side of what a program computes.
_SIDE = 32


def patch_correlation(qkv: Tensor, heads: int, denoising: bool) -> Tensor:
    """`correlation.patch_correlation` on CUDA."""
    qkv = qkv.contiguous()
    batch, tokens, width = qkv.shape
    patches = tokens - 1
    result = qkv.new_empty(batch, patches, patches, dtype=torch.float32)
    tiles = triton.cdiv(patches, _SIDE)
    launch(
        _patch_correlation,
        (tiles, tiles, batch),
        qkv,
        result,
        tokens,
        3 * heads,
        width // (3 * heads),
        denoising,
        _SIDE,
    )
    return result


@triton.jit(do_not_specialize=['tokens', 'groups'])
def _patch_correlation(
    qkv,
    result,
    tokens,
    groups,
    WIDTH: tl.constexpr,
    DENOISING: tl.constexpr,
    SIDE: tl.constexpr,
):
    patches = tokens - 1
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    image = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    stride = groups * WIDTH
    qkv += image * tokens * stride
    # [CLS] is the token before the first patch.
    row_place = qkv + (row[:, None] + 1) * stride + channel[None, :]
    column_place = qkv + (column[:, None] + 1) * stride + channel[None, :]
    is_row, is_column = (row < patches)[:, None], (column < patches)[:, None]
    total = tl.zeros((SIDE, SIDE), tl.float32)
    with_cls = tl.zeros((SIDE,), tl.float32)
    for group in range(groups):
        start = group * WIDTH
        a = tl.load(row_place + start, mask=is_row, other=0.0)
        b = tl.load(column_place + start, mask=is_column, other=0.0)
        scale_a, scale_b = _inverse_length(a), _inverse_length(b)
        total += tl.dot(a, tl.trans(b)) * scale_a[:, None] * scale_b[None, :]
        if DENOISING:
            cls = tl.load(qkv + start + channel).to(tl.float32)
            scale = 1 / tl.maximum(tl.sqrt_rn(tl.sum(cls * cls, 0)), 1e-12)
            with_cls += tl.sum(cls[None, :] * b.to(tl.float32), 1) * scale_b * scale
    total = total / groups
    if DENOISING:
        total = tl.maximum(total - (with_cls / groups)[None, :], 0.0)
    place = (image * patches + row[:, None]) * patches + column[None, :]
    tl.store(result + place, total, mask=is_row & (column < patches)[None, :])


@triton.jit
def _inverse_length(vectors):
    # As F.normalize divides: never by less than 1e-12.
    vectors = vectors.to(tl.float32)
    return 1 / tl.maximum(tl.sqrt_rn(tl.sum(vectors * vectors, 1)), 1e-12)
