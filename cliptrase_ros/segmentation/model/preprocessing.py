"""Camera pixels to network input, and label images back to camera pixels."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cliptrase_ros.segmentation.memo import constant
from cliptrase_ros.segmentation.settings import MAX_ASPECT_RATIO, is_too_elongated

#: Most patches of one network input: bounds memory for frames of extreme aspect ratio.
MAX_PATCHES = 8192

# Longest side after mmcv's resize, pixels: what mmsegmentation's test pipelines give it.
_LONGEST_SIDE = 2048

# Most that PyTorch's antialiased filter shrinks images by: on CUDA it needs shared memory in
# proportion, and above 47 there is too little.
_LARGEST_SCALE = 32


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
    """Resize with the framing's filter, then crop.

    On a CPU the pixels are PIL's or OpenCV's own. Elsewhere the filters are the same, without what
    these round on the way: of PIL's pixels about one value in six differs by 1, one in a thousand
    by more; of OpenCV's one in eight, by 1.

    Args:
        frames: uint8 (B, H, W, 3) RGB, of the framing's source size.

    Returns:
        uint8 (B, 3, h, w) on the same device, of the size of the framing's crop.
    """
    if framing.resized == framing.source:
        resized = frames.permute(0, 3, 1, 2)
    elif frames.device.type == 'cpu':
        scale = _scale_by_pillow if framing.antialias else cv2.resize
        pictures = [scale(frame, framing.resized[::-1]) for frame in frames.numpy()]
        resized = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    else:
        # In the layout that the filter works in; it would copy others before and after.
        images = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        if framing.antialias:
            resized = resize(images, framing.resized)
        else:
            resized = F.interpolate(images, framing.resized, mode='bilinear', align_corners=False)
        resized = resized.round_().clamp_(0, 255).byte()
    (top, left), (height, width) = framing.offset, framing.crop
    return resized[..., top : top + height, left : left + width]


def _scale_by_pillow(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """PIL's antialiased bicubic filter without rounding, of float (B, C, H, W), to (h, w)."""
    scale = max(old / new for old, new in zip(images.shape[-2:], size, strict=True))
    if scale > _LARGEST_SCALE:
        return _resize_by_products(images, size)
    return F.interpolate(images, size=size, mode='bicubic', align_corners=False, antialias=True)


def _resize_by_products(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The same, at any scale."""
    rows, columns = (
        _bicubic(old, new, images.device) for old, new in zip(images.shape[-2:], size, strict=True)
    )
    return rows @ images @ columns.mT


@constant
def _bicubic(source: int, size: int, device: torch.device) -> Tensor:
    """What each of `source` pixels along a line counts in each of `size`: (size, source)."""
    pixel = torch.arange(source, device=device, dtype=torch.float64) + 0.5
    centre = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (source / size)
    distance = (pixel - centre[:, None]).abs() / max(source / size, 1)
    # Keys's cubic with a = -0.5, PIL's.
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    weight = near.where(distance < 1, far).where(distance < 2, 0)
    return (weight / weight.sum(1, keepdim=True)).float()


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
    rows, columns = (
        _nearest(*lengths, cropped.device)
        for lengths in zip(
            framing.source, framing.resized, framing.offset, framing.crop, strict=True
        )
    )
    return bordered[:, rows[:, None], columns]


@constant
def _nearest(source: int, resized: int, offset: int, crop: int, device: torch.device) -> Tensor:
    # Integer arithmetic: the floor of (pixel + 0.5) * resized / source.
    pixel = torch.arange(source, device=device)
    position = (2 * pixel + 1) * resized // (2 * source) - offset
    return position.clamp(-1, crop) + 1
