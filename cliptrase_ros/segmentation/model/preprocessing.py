"""Camera pixels to network input, and label images back to camera pixels."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cliptrase_ros.segmentation.kernels import on_cuda_by
from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.model.filter_taps import (
    BICUBIC_PLACES,
    Taps,
    bicubic_taps,
    bilinear_taps,
)
from cliptrase_ros.segmentation.settings import MAX_ASPECT_RATIO, is_too_elongated

#: Most patches of one network input: bounds memory for frames of extreme aspect ratio.
MAX_PATCHES = 8192

# Longest side after mmcv's resize, pixels: what mmsegmentation's test pipelines give it.
_LONGEST_SIDE = 2048


@dataclass(frozen=True)
class Framing:
    """Which part of an image the network sees, and at what size; lengths in pixels.

    Attributes:
        source: (height, width) of the image.
        resized: (height, width) of the whole image after scaling.
        offset: (top, left) of the crop, which is what the network sees, in the scaled image.
        crop: (height, width) of the crop.
        antialias: Whether PIL's antialiased bicubic filter scales, or OpenCV's bilinear one.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    crop: tuple[int, int]
    antialias: bool = True

    @property
    def seen(self) -> tuple[slice, slice]:
        """Rows and columns of the image that the crop covers."""
        rows, columns = (_covered(*lengths) for lengths in self.lines)
        return rows, columns

    @property
    def lines(self) -> Iterator[tuple[int, int, int, int]]:
        """Source, resized, offset and crop along the height, then along the width."""
        return zip(self.source, self.resized, self.offset, self.crop, strict=True)


def check_aspect_ratio(height: int, width: int) -> None:
    """Raise ValueError for an image beyond `MAX_ASPECT_RATIO`."""
    if is_too_elongated(height, width):
        raise ValueError(
            f'an image of {width} x {height} pixels is too elongated to segment; the longer side '
            f'may be {MAX_ASPECT_RATIO} times the shorter one'
        )


def centre_crop_framing(source: tuple[int, int], resolution: int, patch_size: int) -> Framing:
    """The shorter side becomes the resolution, then a square is cut from the centre."""
    side = _round_to_patches(resolution, patch_size)
    height, width = (int(side * length / min(source)) for length in source)
    offset = (round((height - side) / 2), round((width - side) / 2))
    return Framing(source, (height, width), offset, (side, side))


def whole_frame_framing(source: tuple[int, int], resolution: int, patch_size: int) -> Framing:
    """The whole image, its shorter side at the resolution, both sides in whole patches.

    The resolution is lowered where more than `MAX_PATCHES` would come of it.
    """
    area = source[0] * source[1]
    scale = min(resolution / min(source), patch_size * math.sqrt(MAX_PATCHES / area))
    height, width = (_round_to_patches(length * scale, patch_size) for length in source)
    return Framing(source, (height, width), (0, 0), (height, width))


def mmcv_framing(source: tuple[int, int], resolution: int, patch_size: int) -> Framing:
    """The whole image, its shorter side at the resolution, as mmcv scales it.

    Sides are rounded to pixels, not to patches. The resolution is lowered where the longer side
    would exceed 2048 pixels, or `MAX_PATCHES` would be.
    """
    limit = patch_size * math.sqrt(MAX_PATCHES / (source[0] * source[1]))
    scale = min(_LONGEST_SIDE / max(source), resolution / min(source), limit)
    height, width = (int(length * scale + 0.5) for length in source)
    return Framing(source, (height, width), (0, 0), (height, width), antialias=False)


_FRAMINGS = {'centre': centre_crop_framing, 'whole': whole_frame_framing, 'mmcv': mmcv_framing}


def framing_of(frame: str, source: tuple[int, int], resolution: int, patch_size: int) -> Framing:
    """What the network sees of an image.

    Args:
        frame: `centre`, `whole` or `mmcv`, see `settings.Method`.
        source: (height, width) of the image, pixels.
        resolution: Shorter side fed to CLIP, pixels.
    """
    return _FRAMINGS[frame](source, resolution, patch_size)


def _round_to_patches(length: float, patch_size: int) -> int:
    return max(1, round(length / patch_size)) * patch_size


def network_input(frames: Tensor, framing: Framing) -> Tensor:
    """Resize with the framing's filter, then crop; the pixels are PIL's or OpenCV's own.

    Args:
        frames: uint8 (B, H, W, 3) RGB, of the framing's source size.

    Returns:
        uint8 (B, 3, h, w) on the same device, of the size of the framing's crop.
    """
    (top, left), (height, width) = framing.offset, framing.crop
    if framing.resized != framing.source and frames.device.type != 'cpu':
        return (resize_bicubic if framing.antialias else resize_bilinear)(frames, framing)
    if framing.resized != framing.source:
        # The libraries themselves are faster.
        scale = _scale_by_pillow if framing.antialias else cv2.resize
        pictures = [scale(frame, framing.resized[::-1]) for frame in frames.numpy()]
        frames = torch.from_numpy(np.stack(pictures))
    return frames.permute(0, 3, 1, 2)[..., top : top + height, left : left + width]


def _scale_by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    # In one call, Pillow 13 scales some tall pictures down first, and rounds other sums.
    across = Image.fromarray(image).resize((width, len(image)), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((width, height), Image.Resampling.BICUBIC))


@on_cuda_by('preprocessing_kernels')
def resize_bicubic(frames: Tensor, framing: Framing) -> Tensor:
    """`network_input` by PIL's filter, on any device."""
    down, across = filter_taps(framing, frames.device)

    def scale(lines: Tensor, taps: Taps) -> Tensor:
        total = sum(_products(lines, taps)) + (1 << BICUBIC_PLACES - 1)
        return (total >> BICUBIC_PLACES).clamp(0, 255).byte()

    return scale(scale(frames.permute(0, 3, 1, 2), across).mT, down).mT


@on_cuda_by('preprocessing_kernels')
def resize_bilinear(frames: Tensor, framing: Framing) -> Tensor:
    """`network_input` by OpenCV's filter, on any device."""
    down, across = filter_taps(framing, frames.device)
    total = sum(_products(frames.permute(0, 3, 1, 2), across))
    # Of twice 11 binary places 4 go before the second product, 16 after it, and 2 at last.
    total = sum(product >> 16 for product in _products(total.mT >> 4, down))
    return (total + 2 >> 2).byte().mT


def filter_taps(framing: Framing, device: torch.device) -> tuple[Taps, Taps]:
    """How a framing's filter scales down the height, and across the width."""
    height, width = framing.lines
    if framing.antialias:
        return bicubic_taps(*height, device), bicubic_taps(*width, device)
    return bilinear_taps(*height, False, device), bilinear_taps(*width, True, device)


def _products(lines: Tensor, taps: Taps) -> Iterator[Tensor]:
    """Pixels times weights, tap by tap: int32 (..., N) of (..., length)."""
    for tap, weights in enumerate(taps.weights):
        pixel = (taps.first + tap).clamp(0, lines.shape[-1] - 1)
        yield lines[..., pixel] * weights


@on_cuda_by('preprocessing_kernels')
def normalise(
    pixels: Tensor, divisor: float, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> Tensor:
    """Divide, subtract the mean and divide by the deviation, in float32.

    Args:
        pixels: uint8 (B, 3, H, W).
        mean, std: float32 (3, 1, 1).
        dtype: Of the result.
    """
    return pixels.float().div_(divisor).sub_(mean).div_(std).to(dtype)


def to_camera_size(cropped: Tensor, framing: Framing, outside: int) -> Tensor:
    """Bring label images of the crop back to the camera's pixels by nearest neighbour.

    Args:
        cropped: (B, h, w), of any dtype.
        outside: The value of pixels that the network did not see.

    Returns:
        (B, H, W) of the framing's source size, same dtype.
    """
    if framing.resized == framing.crop == framing.source:
        return cropped
    bordered = F.pad(cropped, (1, 1, 1, 1), value=outside)
    rows, columns = (_nearest(*lengths, cropped.device) for lengths in framing.lines)
    return bordered[:, rows[:, None], columns]


def _covered(source: int, resized: int, offset: int, crop: int) -> slice:
    """The pixels whose nearest of the scaled image are in the crop, see `_nearest`."""
    # The least pixel with (2 * pixel + 1) * resized // (2 * source) >= bound.
    begin, end = (
        max(0, -(-(2 * source * bound - resized) // (2 * resized)))
        for bound in (offset, offset + crop)
    )
    return slice(begin, min(end, source))


@constant
def _nearest(source: int, resized: int, offset: int, crop: int, device: torch.device) -> Tensor:
    # Integer arithmetic: the floor of (pixel + 0.5) * resized / source.
    pixel = torch.arange(source, device=device)
    position = (2 * pixel + 1) * resized // (2 * source) - offset
    return position.clamp(-1, crop) + 1
