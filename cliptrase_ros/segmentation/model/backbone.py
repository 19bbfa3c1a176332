"""A frozen CLIP image tower run densely: patch features and the recovered correlation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.model.correlation import recover_correlation

_REMEMBERED_GRIDS = 8


class UnsupportedModelError(ValueError):
    """The model is not a CLIP vision transformer the method is defined for."""


@dataclass(frozen=True)
class DenseFeatures:
    """What one pass over B images gives; N = h w patch tokens follow the [CLS] token.

    Attributes:
        tokens: float (B, 1 + N, D), unit length, in the joint image-text space.
        correlation: float32 (B, 1 + N, 1 + N), recovered at the last block but one.
        grid: (h, w), patches.
    """

    tokens: Tensor
    correlation: Tensor
    grid: tuple[int, int]


class DenseBackbone:
    """The image tower of an open_clip ViT with a last block that looks at like tokens.

    The last block's attention weights are softmax(q q^T) + softmax(k k^T) + softmax(v v^T), a
    plain sum (CLIPtrase, section 3.2, as published code does it); everything else is unchanged.
    Patch size, width, depth, heads and activation are the model's own. Gradients flow.
    """

    def __init__(self, visual: nn.Module) -> None:
        """Take over an `open_clip.transformer.VisionTransformer`.

        Raises:
            UnsupportedModelError: It is none that the method is defined for.
        """
        _check_supported(visual)
        self.visual = visual
        self._positions: dict[tuple[tuple[int, int], int], Tensor] = {}
        self.patch_size: int = visual.conv1.kernel_size[0]

    def __call__(self, pixels: Tensor, features: str = 'recovered') -> DenseFeatures:
        """Run the tower.

        Args:
            pixels: float (B, 3, H, W), normalised, in the tower's dtype and on its device; H and W
                are multiples of the patch size.
            features: `clip` leaves the last block as it is in plain CLIP.
        """
        visual, last = self.visual, self.visual.transformer.resblocks[-1]
        x, qkv, grid = self._before_last(pixels)
        x, _ = _run_block(last, x, attend=_self_attend if features == 'recovered' else _attend)
        x = visual.ln_post(x)
        if visual.proj is not None:
            x = x @ visual.proj
        correlation = recover_correlation(qkv, last.attn.num_heads)
        return DenseFeatures(x / x.norm(dim=-1, keepdim=True), correlation, grid)

    def attention(self, pixels: Tensor) -> Tensor:
        """What tokens attend to in the last block of plain CLIP, mean over heads.

        Returns:
            float32 (B, 1 + N, 1 + N), [CLS] first; rows add up to 1.
        """
        x, _, _ = self._before_last(pixels)
        last = self.visual.transformer.resblocks[-1]
        _, qkv = _run_block(last, x)
        q, k, _ = _split_heads(qkv.float(), last.attn.num_heads)
        return _attention_weights(q, k).mean(1)

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The last block's input, the projections of the block before it, and the grid."""
        visual = self.visual
        height, width = pixels.shape[-2:]
        grid = (height // self.patch_size, width // self.patch_size)
        embed = _embed_by_product if pixels.is_cuda else _embed_patches
        x = embed(visual.conv1, pixels)
        cls_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls_token, x], dim=1) + self._positional_embedding(grid).to(x.dtype)
        x = visual.ln_pre(x)

        for block in visual.transformer.resblocks[:-1]:
            x, qkv = _run_block(block, x)
        return x, qkv, grid

    def _positional_embedding(self, grid: tuple[int, int]) -> Tensor:
        embedding = self.visual.positional_embedding
        trained = math.isqrt(len(embedding) - 1)
        if grid == (trained, trained):
            return embedding
        if embedding.requires_grad or embedding.device.type != 'cpu':
            return _resize_positions(embedding, trained, grid)
        # Resizing takes a hundredth of a frame's time, for the same few grids again and again. On
        # CUDA captured calls keep the result, see `memo`.
        key = (grid, embedding._version)
        if key not in self._positions:
            self._positions = dict(list(self._positions.items())[1 - _REMEMBERED_GRIDS :])
            with torch.inference_mode(False), torch.no_grad():
                self._positions[key] = _resize_positions(embedding, trained, grid)
        return self._positions[key]


def _embed_patches(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Patches (B, N, W) of pixels (B, 3, H, W)."""
    return conv(pixels).flatten(2).mT


def _embed_by_product(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """The same without cuDNN, which rounds float32 to TF32 unless a global switch forbids it."""
    patches = F.pixel_unshuffle(pixels, conv.stride[0]).flatten(2).mT
    return F.linear(patches, conv.weight.flatten(1), conv.bias)


@constant
def _resize_positions(embedding: Tensor, trained: int, grid: tuple[int, int]) -> Tensor:
    # A scale factor a little over grid / trained, not a target size, is what the published code
    # passes; bicubic sampling positions depend on it in the last digits.
    square = embedding[1:].float().unflatten(0, (trained, trained)).permute(2, 0, 1)[None]
    scale = tuple((side + 0.1) / trained for side in grid)
    resized = F.interpolate(square, scale_factor=scale, mode='bicubic', align_corners=False)
    return torch.cat([embedding[:1], resized[0].flatten(1).mT.to(embedding.dtype)])


# In float32 on a CPU, for the squares of the published figures (14 x 14 and 21 x 21 patches), the
# weights are computed explicitly, in the published order of operations: where two classes tie to
# the last digit, a fused kernel's rounding would choose the other label. It takes a sixth more
# time.
_REFERENCE_TOKENS = (1 + 14 * 14, 1 + 21 * 21)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _is_reference(q):
        return _attention_weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _self_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _is_reference(q):
        weights = _attention_weights(q, q) + _attention_weights(k, k) + _attention_weights(v, v)
        return weights @ v
    return (
        F.scaled_dot_product_attention(q, q, v)
        + F.scaled_dot_product_attention(k, k, v)
        + F.scaled_dot_product_attention(v, v, v)
    )


def _is_reference(x: Tensor) -> bool:
    return x.device.type == 'cpu' and x.dtype == torch.float32 and x.shape[-2] in _REFERENCE_TOKENS


def _attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)


def _split_heads(qkv: Tensor, heads: int) -> Tensor:
    """Projections (B, T, 3 W) as queries, keys and values of each head: (3, B, heads, T, d)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _run_block(
    block: nn.Module,
    x: Tensor,
    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = _attend,
) -> tuple[Tensor, Tensor]:
    """One residual block; returns its output and its projections side by side, (B, T, 3 W)."""
    attention = block.attn
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    attended = attend(*_split_heads(qkv, attention.num_heads))
    x = x + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x))), qkv


def _check_supported(visual: nn.Module) -> None:
    problem = None
    blocks = getattr(getattr(visual, 'transformer', None), 'resblocks', None)
    if not hasattr(visual, 'class_embedding') or not hasattr(visual, 'conv1') or not blocks:
        problem = 'its image tower is no vision transformer with a [CLS] token'
    elif getattr(visual, 'attn_pool', None) is not None:
        problem = 'it pools with an attention layer'
    elif getattr(visual, 'pool_type', 'tok') != 'tok' or visual.final_ln_after_pool:
        problem = 'it does not read its feature from the [CLS] token'
    elif len(blocks) < 3:
        problem = f'it has {len(blocks)} blocks'
    elif not all(type(block.attn) is nn.MultiheadAttention for block in blocks):
        problem = 'its attention is not plain multi-head attention'
    if problem:
        raise UnsupportedModelError(
            f'CLIPtrase needs a plain CLIP vision transformer of at least 3 blocks, but {problem}; '
            'choose another model, for instance ViT-B-16-quickgelu'
        )
