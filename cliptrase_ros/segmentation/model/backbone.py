"""A frozen CLIP image tower run densely: features of patches, in three ways."""

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.model import calibration
from cliptrase_ros.segmentation.model.correlation import patch_correlation, recover_correlation

_REMEMBERED_GRIDS = 8

# Takes queries, keys and values of each head, (3, B, heads, T, d); gives (B, heads, T, d).
_Attend = Callable[[Tensor], Tensor]


class UnsupportedModelError(ValueError):
    """The model is not a CLIP vision transformer the method is defined for."""


@dataclass(frozen=True)
class DenseFeatures:
    """What one pass over B images gives; N = h w patch tokens follow the [CLS] token.

    Attributes:
        tokens: float32 (B, 1 + N, D), unit length, in the joint image-text space.
        projections: float (B, 1 + N, 3 W), queries, keys and values of the last block but one.
        heads: Of that block.
        grid: (h, w), patches.
    """

    tokens: Tensor
    projections: Tensor
    heads: int
    grid: tuple[int, int]

    @cached_property
    def correlation(self) -> Tensor:
        """float32 (B, 1 + N, 1 + N), recovered at the last block but one (CLIPtrase)."""
        return recover_correlation(self.projections, self.heads)

    def patch_correlation(self, denoising: bool) -> Tensor:
        """Of patches alone: float32 (B, N, N), without what they share with [CLS] if denoised."""
        return patch_correlation(self.projections, self.heads, denoising)


@dataclass(frozen=True)
class Calibration:
    """The steps of SC-CLIP on B windows of N patches; float32 (B, N, W) where nothing is said.

    Attributes:
        before_last: Output of the last block but one, [CLS] first: (B, 1 + N, W).
        projections: Of that block, see `DenseFeatures`.
        scores: (B, N), see `calibration.outlier_scores`.
        flagged: bool (B, N), the outliers.
        repaired: `before_last` without them.
        repaired_similar: The same for the block whose similarity counts.
        similarity: (B, N, N), cosines of `repaired_similar`.
        aggregated: `repaired`, each token with those similar to it.
        attended: What the last block's attention makes of `aggregated` and of the sum of blocks in
            between: (2, B, N, W).
        low_similarity: (B, N, N), cosines of an early block that count.
        low_aggregated: `attended` and its [CLS] tokens, each token with those similar early on.
        output: What goes into the last norm.
    """

    before_last: Tensor
    projections: Tensor
    scores: Tensor
    flagged: Tensor
    repaired: Tensor
    repaired_similar: Tensor
    similarity: Tensor
    aggregated: Tensor
    attended: Tensor
    low_similarity: Tensor
    low_aggregated: Tensor
    output: Tensor


class DenseBackbone:
    """The image tower of an open_clip ViT, asked for what every patch shows.

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
        self.dtype: torch.dtype = visual.conv1.weight.dtype

    def __call__(self, pixels: Tensor, features: str = 'recovered') -> DenseFeatures:
        """Run the tower.

        Args:
            pixels: float (B, 3, H, W), normalised, on the tower's device. What H and W exceed whole
                patches by is not looked at.
            features: A name of `FEATURES`.
        """
        x, projections = FEATURES[features](self, pixels)
        if self.visual.proj is not None:
            x = x @ self.visual.proj
        heads = self.visual.transformer.resblocks[-2].attn.num_heads
        return DenseFeatures(_unit_length(x), projections, heads, self.grid(pixels))

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Whole patches (h, w) in pixels (B, 3, H, W)."""
        height, width = pixels.shape[-2:]
        return height // self.patch_size, width // self.patch_size

    def attention(self, pixels: Tensor) -> Tensor:
        """What tokens attend to in the last block of plain CLIP, mean over heads.

        Returns:
            float32 (B, 1 + N, 1 + N), [CLS] first; rows add up to 1.
        """
        _, normed, _ = self._before_last(pixels)
        qkv = _project(self._last, normed)
        q, k, _ = _split_heads(qkv.float(), self._last.attn.num_heads)
        return _attention_weights(q, k).mean(1)

    def calibrate(self, pixels: Tensor) -> Calibration:
        """Take the steps of SC-CLIP, one after the other, on windows (see `__call__`)."""
        depth, grid = len(self.visual.transformer.resblocks), self.grid(pixels)
        use = calibration.blocks_for(depth)
        wanted = {use.low, use.similar, *use.fused, depth - 1}
        # The published code leaves the order of sums to PyTorch, too, unlike that of `_attend`.
        outputs, _, projections = self._run_blocks(pixels, wanted, _attend_fused)
        before_last = outputs[depth - 1].float()
        low, similar = (outputs[number][:, 1:].float() for number in (use.low, use.similar))
        fused = torch.stack([outputs[number] for number in use.fused]).sum(0, dtype=torch.float32)

        scores = calibration.outlier_scores(before_last[:, 1:], self.dtype == torch.float32)
        flagged = calibration.flag_outliers(scores)
        both = torch.cat([before_last[:, 1:], similar], -1)
        repaired, repaired_similar = calibration.repair(both, flagged, grid).chunk(2, -1)
        similarity = calibration.similarity(repaired_similar)
        low_similarity = calibration.without_low(calibration.similarity(low))

        aggregated = calibration.aggregate(repaired, calibration.without_low(similarity))
        attended = _attend_without_residual(
            self._last,
            torch.cat([aggregated, fused[:, 1:]]).to(self.dtype),
            calibration.attention_to_similar(similarity).repeat(2, 1, 1).to(self.dtype),
        )
        attended = attended.float().unflatten(0, (2, -1))
        cls_tokens = torch.stack([before_last[:, :1], fused[:, :1]])
        low_aggregated = calibration.aggregate(
            attended + use.cls_share * cls_tokens, low_similarity
        )
        return Calibration(
            before_last,
            projections,
            scores,
            flagged,
            repaired,
            repaired_similar,
            similarity,
            aggregated,
            attended,
            low_similarity,
            low_aggregated,
            low_aggregated.sum(0),
        )

    @property
    def _last(self) -> nn.Module:
        return self.visual.transformer.resblocks[-1]

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output of the last block but one, the same normed for the last, and its projections."""
        number = len(self.visual.transformer.resblocks) - 1
        outputs, normed, projections = self._run_blocks(pixels, {number}, _attend)
        return outputs[number], normed, projections

    def _run_blocks(
        self, pixels: Tensor, wanted: Set[int], attend: _Attend
    ) -> tuple[dict[int, Tensor], Tensor, Tensor]:
        """Run all blocks but the last.

        Args:
            wanted: Blocks by number from 1.

        Returns:
            The outputs of those and, of the last one run, what goes into the last block, normed,
            (B, 1 + N, W) each; and its projections, (B, 1 + N, 3 W).
        """
        visual, grid = self.visual, self.grid(pixels)
        blocks = visual.transformer.resblocks
        whole_patches = pixels[..., : grid[0] * self.patch_size, : grid[1] * self.patch_size]
        embed = _embed_by_product if pixels.is_cuda else _embed_patches
        patches = embed(visual.conv1, whole_patches.to(self.dtype))
        x, normed = _embed_tokens(
            patches,
            visual.class_embedding.to(patches.dtype),
            self._positional_embedding(grid).to(patches.dtype),
            visual.ln_pre,
            blocks[0].ln_1,
        )
        outputs = {}
        for number, (block, following) in enumerate(pairwise(blocks), 1):
            x, normed, qkv = _run_block(block, x, normed, following.ln_1, attend)
            if number in wanted:
                outputs[number] = x
        return outputs, normed, qkv

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


def _clip(backbone: DenseBackbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The last block is CLIP's own."""
    return _run_last_block(backbone, pixels, _attend)


def _recovered(backbone: DenseBackbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """In the last block tokens attend to tokens like themselves.

    The weights are softmax(q q^T) + softmax(k k^T) + softmax(v v^T), a plain sum (CLIPtrase,
    section 3.2, as published code does it); everything else is unchanged.
    """
    return _run_last_block(backbone, pixels, _self_attend)


def _run_last_block(
    backbone: DenseBackbone, pixels: Tensor, attend: _Attend
) -> tuple[Tensor, Tensor]:
    x, normed, projections = backbone._before_last(pixels)
    _, normed, _ = _run_block(backbone._last, x, normed, backbone.visual.ln_post, attend)
    return normed, projections


def _calibrated(backbone: DenseBackbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of SC-CLIP, which ends without [CLS]; the one of the last block but one stays."""
    steps = backbone.calibrate(pixels)
    output = torch.cat([steps.before_last[:, :1], steps.output], 1)
    return backbone.visual.ln_post(output.to(backbone.dtype)), steps.projections


#: Features of patches, by name: what comes out of the last norm, (B, 1 + N, W) with [CLS] first,
#: and the projections of the last block but one.
FEATURES: dict[str, Callable[[DenseBackbone, Tensor], tuple[Tensor, Tensor]]] = {
    'clip': _clip,
    'recovered': _recovered,
    'calibrated': _calibrated,
}


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


def _attend(qkv: Tensor) -> Tensor:
    if _is_reference(qkv):
        q, k, v = qkv
        return _attention_weights(q, k) @ v
    return _attend_fused(qkv)


def _attend_fused(qkv: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*qkv)


def _self_attend(qkv: Tensor) -> Tensor:
    q, k, v = qkv
    if _is_reference(qkv):
        weights = _attention_weights(q, q) + _attention_weights(k, k) + _attention_weights(v, v)
        return weights @ v
    if qkv.is_cuda:
        return _self_attend_at_once(qkv)
    return (
        F.scaled_dot_product_attention(q, q, v)
        + F.scaled_dot_product_attention(k, k, v)
        + F.scaled_dot_product_attention(v, v, v)
    )


def _self_attend_at_once(qkv: Tensor) -> Tensor:
    """One call instead of three, as if there were three times as many heads."""
    likes = qkv.transpose(0, 1).flatten(1, 2)
    attended = F.scaled_dot_product_attention(likes, likes, qkv[2].repeat(1, 3, 1, 1))
    return attended.transpose(1, 2).unflatten(2, (3, -1)).sum(2).transpose(1, 2)


def _is_reference(x: Tensor) -> bool:
    return x.device.type == 'cpu' and x.dtype == torch.float32 and x.shape[-2] in _REFERENCE_TOKENS


def _attention_weights(q: Tensor, k: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)


def _split_heads(qkv: Tensor, heads: int) -> Tensor:
    """Projections (B, T, 3 W) as queries, keys and values of each head: (3, B, heads, T, d)."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def _run_block(
    block: nn.Module, x: Tensor, normed: Tensor, following: nn.Module, attend: _Attend
) -> tuple[Tensor, Tensor, Tensor]:
    """One residual block.

    Args:
        x: (B, T, W).
        normed: The same after the block's first norm.
        following: The norm after the block.

    Returns:
        Its output, the same after the following norm, and its projections side by side,
        (B, T, 3 W).
    """
    qkv = _project(block, normed)
    attended = attend(_split_heads(qkv, block.attn.num_heads)).transpose(1, 2).flatten(2)
    x, normed = _add_and_norm(x, block.ls_1(block.attn.out_proj(attended)), block.ln_2)
    x, normed = _add_and_norm(x, block.ls_2(_run_mlp(block.mlp, normed)), following)
    return x, normed, qkv


def _project(block: nn.Module, normed: Tensor) -> Tensor:
    return F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias)


def _run_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    for layer in mlp:
        x = _quick_gelu(x) if isinstance(layer, QuickGELU) else layer(x)
    return x


def _are_half(x: Tensor, *others: object) -> bool:
    """Whether kernels of the tower take these: float32 is for exactness, and PyTorch's alone."""
    norms = [other for other in others if isinstance(other, nn.Module)]
    return x.dtype in (torch.float16, torch.bfloat16) and all(
        isinstance(norm, nn.LayerNorm) for norm in norms
    )


@on_cuda_by('tower_kernels', where=_are_half)
def _embed_tokens(
    patches: Tensor, cls_token: Tensor, positions: Tensor, before: nn.Module, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """What goes into the first block, and the same after its norm, (B, 1 + N, W) each.

    Args:
        patches: (B, N, W), embedded.
        cls_token: (W,).
        positions: (1 + N, W).
        before: The norm before the blocks.
        norm: The first block's.
    """
    cls_tokens = cls_token.expand(len(patches), 1, -1)
    x = before(torch.cat([cls_tokens, patches], dim=1) + positions)
    return x, norm(x)


@on_cuda_by('tower_kernels', where=_are_half)
def _add_and_norm(x: Tensor, change: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """The sum, and the same after a norm; (B, T, W) each."""
    x = x + change
    return x, norm(x)


@on_cuda_by('tower_kernels', where=_are_half)
def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@on_cuda_by('tower_kernels', where=_are_half)
def _unit_length(x: Tensor) -> Tensor:
    """Rows of (B, T, D), each divided by its length: float32."""
    x = x.float()
    return x / x.norm(dim=-1, keepdim=True)


def _attend_without_residual(block: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """The attention of a block alone: half by weights that are given, half by like keys.

    Args:
        x: float (B, N, W).
        weights: (B, N, N), of all heads, rows add up to 1.
    """
    attention, width = block.attn, x.shape[-1]
    keys_and_values = F.linear(
        block.ln_1(x), attention.in_proj_weight[width:], attention.in_proj_bias[width:]
    )
    k, v = keys_and_values.unflatten(-1, (2, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    by_keys = F.scaled_dot_product_attention(k, k, v).transpose(1, 2).flatten(2)
    by_weights = weights @ keys_and_values[..., width:]
    return block.ls_1(attention.out_proj((by_weights + by_keys) / 2))


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
