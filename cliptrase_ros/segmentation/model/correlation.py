"""Semantic correlation recovery and denoising (CLIPtrase, arXiv 2407.08268, sections 3.2, 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by


def recover_correlation(qkv: Tensor, heads: int) -> Tensor:
    """Mean over heads of the cosine similarities of queries, keys and values with themselves.

    Args:
        qkv: float (B, T, 3 W), one attention block's projections side by side.
        heads: Of the block, each W / heads wide.

    Returns:
        float32 (B, T, T), -1..1: (cos(q_i, q_j) + cos(k_i, k_j) + cos(v_i, v_j)) / 3.
    """
    # The mean of products over 3 x heads groups is one product of the groups laid side by side.
    groups = qkv.float().unflatten(-1, (3 * heads, -1))
    unit = F.normalize(groups, dim=-1).flatten(-2)
    return unit @ unit.mT / (3 * heads)


def denoise_correlation(correlation: Tensor) -> Tensor:
    """Remove from every patch what the [CLS] token correlates with, the "global" patches.

    Args:
        correlation: float (B, 1 + N, 1 + N), [CLS] first.

    Returns:
        float (B, N, N), not negative.
    """
    return (correlation[:, 1:, 1:] - correlation[:, :1, 1:]).clamp(min=0)


def _heads_are_usual(qkv: Tensor, heads: int, denoising: bool) -> bool:
    """Whether the kernel takes these: half precision, heads of a width that its products have."""
    is_half = qkv.dtype in (torch.float16, torch.bfloat16)
    return is_half and qkv.shape[-1] // (3 * heads) in (16, 32, 64, 128)


@on_cuda_by('correlation_kernels', where=_heads_are_usual)
def patch_correlation(qkv: Tensor, heads: int, denoising: bool) -> Tensor:
    """The recovered correlation of patches alone, without the global patches if denoised.

    Args:
        qkv, heads: See `recover_correlation`; [CLS] is the first token.

    Returns:
        float32 (B, N, N).
    """
    correlation = recover_correlation(qkv, heads)
    return denoise_correlation(correlation) if denoising else correlation[:, 1:, 1:]
