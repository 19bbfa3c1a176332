"""What stands between the image tower's matrix products, as Triton kernels for half precision.

Sums of a row are float32; what is passed on is rounded where PyTorch's operations round it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from cliptrase_ros.segmentation.kernels import launch

# Values of a program that works on single values.
_VALUES = 1024


def embed_tokens(
    patches: Tensor, cls_token: Tensor, positions: Tensor, before: nn.LayerNorm, norm: nn.LayerNorm
) -> tuple[Tensor, Tensor]:
    """`backbone._embed_tokens` on CUDA."""
    batch, count, width = patches.shape
    tokens = patches.new_empty(batch, count + 1, width)
    normed = torch.empty_like(tokens)
    launch(
        _embed_tokens,
        (batch * (count + 1),),
        patches.contiguous(),
        cls_token,
        positions,
        before.weight,
        before.bias,
        norm.weight,
        norm.bias,
        tokens,
        normed,
        before.eps,
        norm.eps,
        count + 1,
        width,
        triton.next_power_of_2(width),
    )
    return tokens, normed


def add_and_norm(x: Tensor, change: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """`backbone._add_and_norm` on CUDA."""
    x, change = x.contiguous(), change.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    launch(
        _add_and_norm,
        (x.numel() // width,),
        x,
        change,
        norm.weight,
        norm.bias,
        total,
        normed,
        norm.eps,
        width,
        triton.next_power_of_2(width),
    )
    return total, normed


def quick_gelu(x: Tensor) -> Tensor:
    """`backbone._quick_gelu` on CUDA."""
    x = x.contiguous()
    result = torch.empty_like(x)
    launch(_quick_gelu, (triton.cdiv(x.numel(), _VALUES),), x, result, x.numel(), _VALUES)
    return result


def unit_length(x: Tensor) -> Tensor:
    """`backbone._unit_length` on CUDA."""
    x = x.contiguous()
    result = torch.empty_like(x, dtype=torch.float32)
    width = x.shape[-1]
    rows = x.numel() // width
    launch(_unit_length, (rows,), x, result, width, triton.next_power_of_2(width))
    return result


@triton.jit
def _layer_norm(x, weight, bias, eps, width, column, inside):
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    scale = 1 / tl.sqrt_rn(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    return centred * scale * weight + bias


# A model has one width; where it is a multiple of 16, rows are read in larger parts.
@triton.jit(do_not_specialize=['tokens'])
def _embed_tokens(
    patches,
    cls_token,
    positions,
    before_weight,
    before_bias,
    weight,
    bias,
    result,
    normed,
    before_eps,
    eps,
    tokens,
    width,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0)
    image, token = row // tokens, row % tokens
    column = tl.arange(0, WIDTH)
    inside = column < width
    if token == 0:
        x = tl.load(cls_token + column, mask=inside, other=0.0)
    else:
        patch = image.to(tl.int64) * (tokens - 1) + token - 1
        x = tl.load(patches + patch * width + column, mask=inside, other=0.0)
    dtype = result.dtype.element_ty
    position = tl.load(positions + token * width + column, mask=inside, other=0.0)
    x = (x.to(tl.float32) + position.to(tl.float32)).to(dtype).to(tl.float32)
    x = _layer_norm(x, before_weight, before_bias, before_eps, width, column, inside).to(dtype)
    place = row.to(tl.int64) * width + column
    tl.store(result + place, x, mask=inside)
    x = tl.where(inside, x.to(tl.float32), 0.0)
    x = _layer_norm(x, weight, bias, eps, width, column, inside)
    tl.store(normed + place, x.to(dtype), mask=inside)


@triton.jit
def _add_and_norm(x, change, weight, bias, total, normed, eps, width, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    added = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    added += tl.load(change + place, mask=inside, other=0.0).to(tl.float32)
    added = added.to(total.dtype.element_ty)
    tl.store(total + place, added, mask=inside)
    result = _layer_norm(added.to(tl.float32), weight, bias, eps, width, column, inside)
    tl.store(normed + place, result.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _quick_gelu(x, result, count, VALUES: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    inside = place < count
    value = tl.load(x + place, mask=inside, other=0.0)
    gate = tl.sigmoid(1.702 * value.to(tl.float32))
    tl.store(result + place, (value.to(tl.float32) * gate).to(value.dtype), mask=inside)


@triton.jit
def _unit_length(x, result, width, WIDTH: tl.constexpr):
    column = tl.arange(0, WIDTH)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt_rn(tl.sum(value * value, 0))
    tl.store(result + place, tl.div_rn(value, length + tl.zeros_like(value)), mask=inside)
