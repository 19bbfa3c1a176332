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

    tokens: float (B, 1 + N, D), unit length, in the joint image-text space.
    correlation: float32 (B, 1 + N, 1 + N), recovered at the last block but one.
    grid: (h, w).
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

    def __init__(self, visual: nn.Module):
        """visual: `open_clip.transformer.VisionTransformer`. Raises UnsupportedModelError."""
        _check_supported(visual)
        self.visual = visual
        self._positions: dict[tuple[tuple[int, int], int], Tensor] = {}
        self.patch_size: int = visual.conv1.kernel_size[0]

    def __call__(self, pixels: Tensor, recovery: bool = True) -> DenseFeatures:
        """Run the tower.

        pixels: float (B, 3, H, W), normalised, in the tower's dtype and on its device; H and W
        are multiples of the patch size. recovery: False leaves the last block as it is.
        """
        visual, last = self.visual, self.visual.transformer.resblocks[-1]
        x, qkv, grid = self._before_last(pixels)
        x, _ = _block(last, x, attend=_self_attend if recovery else None)
        x = visual.ln_post(x)
        if visual.proj is not None:
            x = x @ visual.proj
        correlation = recover_correlation(qkv, last.attn.num_heads)
        return DenseFeatures(x / x.norm(dim=-1, keepdim=True), correlation, grid)

    def attention(self, pixels: Tensor) -> Tensor:
        """What tokens attend to in the last block of plain CLIP, mean over heads.

        pixels: as for a call. Returns float32 (B, 1 + N, 1 + N), rows add up to 1, [CLS] first.
        """
        x, _, _ = self._before_last(pixels)
        last = self.visual.transformer.resblocks[-1]
        _, qkv = _block(last, x)
        q, k, _ = qkv.float().unflatten(-1, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return _weights(q, k).mean(1)

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """The last block's input, the projections of the block before it, and the grid."""
        visual = self.visual
        grid = tuple(side // self.patch_size for side in pixels.shape[-2:])
        embed = _embedded_by_product if pixels.is_cuda else _embedded
        x = embed(visual.conv1, pixels)
        cls_token = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([cls_token, x], dim=1) + self._positional_embedding(grid).to(x.dtype)
        x = visual.ln_pre(x)

        for block in visual.transformer.resblocks[:-1]:
            x, qkv = _block(block, x)
        return x, qkv, grid

    def _positional_embedding(self, grid: tuple[int, int]) -> Tensor:
        embedding = self.visual.positional_embedding
        trained = math.isqrt(len(embedding) - 1)
        if grid == (trained, trained):
            return embedding
        if embedding.requires_grad or embedding.device.type != 'cpu':
            return _resized_positions(embedding, trained, grid)
        # As long as a hundredth of everything, for the same few grids again and again. On CUDA
        # the calls that are repeated keep it.
        key = (grid, embedding._version)
        if key not in self._positions:
            self._positions = dict(list(self._positions.items())[1 - _REMEMBERED_GRIDS :])
            with torch.inference_mode(False), torch.no_grad():
                self._positions[key] = _resized_positions(embedding, trained, grid)
        return self._positions[key]


def _embedded(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """Patches (B, N, W) of pixels (B, 3, H, W)."""
    return conv(pixels).flatten(2).mT


def _embedded_by_product(conv: nn.Conv2d, pixels: Tensor) -> Tensor:
    """The same without cuDNN, which rounds float32 to TF32 unless a global switch forbids it."""
    patches = F.pixel_unshuffle(pixels, conv.stride[0]).flatten(2).mT
    return F.linear(patches, conv.weight.flatten(1), conv.bias)


@constant
def _resized_positions(embedding: Tensor, trained: int, grid: tuple[int, int]) -> Tensor:
    # A scale factor a little over grid / trained, not a target size, is what the published code
    # passes; bicubic sampling positions depend on it in the last digits.
    square = embedding[1:].float().unflatten(0, (trained, trained)).permute(2, 0, 1)[None]
    scale = tuple((side + 0.1) / trained for side in grid)
    resized = F.interpolate(square, scale_factor=scale, mode='bicubic', align_corners=False)
    return torch.cat([embedding[:1], resized[0].flatten(1).mT.to(embedding.dtype)])


def _block(
    block: nn.Module, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """One residual block; returns its output and its projections side by side, (B, T, 3 W)."""
    attention = block.attn
    qkv = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    heads = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    attended = (attend or _attend)(*heads)
    x = x + block.ls_1(attention.out_proj(attended.transpose(1, 2).flatten(2)))
    return x + block.ls_2(block.mlp(block.ln_2(x))), qkv


# In float32 on a CPU, for the squares of the published figures (14 x 14 and 21 x 21 patches), the
# weights are made explicitly, in the published order of operations: where two classes tie to the
# last digit, a fused kernel's rounding would choose the other label. It takes a sixth more time.
_REFERENCE_TOKENS = (1 + 14 * 14, 1 + 21 * 21)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _is_reference(q):
        return _weights(q, k) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _self_attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if _is_reference(q):
        return (_weights(q, q) + _weights(k, k) + _weights(v, v)) @ v
    return sum(F.scaled_dot_product_attention(x, x, v) for x in (q, k, v))


def _is_reference(x: Tensor) -> bool:
    return x.device.type == 'cpu' and x.dtype == torch.float32 and x.shape[-2] in _REFERENCE_TOKENS


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)


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
