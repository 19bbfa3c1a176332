"""Training pictures: random views of random rooms, and windows cut out of them.

What leaves this module is a picture and the share of it that each class covers; where in the
picture a class lies never reaches the training loss.
"""

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from cliptrase_ros.toybox.renderer import render
from cliptrase_ros.toybox.scenes import CLASSES, random_poses, sample_rooms, split_seed

# Focal lengths in pixels. A 4:3 camera of 64 degrees has 239 at 224 lines and 358 at 336.
FOCAL_RANGE = (130.0, 460.0)
SHARD = 250
# The share of the pictures that are shown without colours; how strong those of the others are.
GRAY_SHARE = 0.35
SATURATION_RANGE = (0.6, 1.15)
# Pixels.
MOST_BLUR = 7
# Of the shards (or of the steps, where nothing is pooled) every so many has easy rooms.
EASY_EVERY = 4
# The most that a camera is turned about its axis in a hard room, radians.
ROLL = 0.1


@dataclass(frozen=True)
class Batch:
    """Pictures to train on.

    Attributes:
        pixels: uint8 (B, 3, H, W) RGB.
        coverage: float32 (B, len(CLASSES)), shares of each picture, 0..1.
    """

    pixels: Tensor
    coverage: Tensor


def render_views(
    count: int, size: int, seed: int, device: str | torch.device = 'cpu'
) -> tuple[Tensor, Tensor]:
    """Render random views of `size` x `size` pixels, each of another room.

    Args:
        seed: Multiples of `EASY_EVERY` give easy rooms, all others hard ones.

    Returns:
        Images uint8 (count, size, size, 3) and labels uint8 (count, size, size).
    """
    generator = torch.Generator().manual_seed(split_seed(seed, 'train'))
    difficulty = 'hard' if seed % EASY_EVERY else 'easy'
    rooms = sample_rooms(count, generator, 'train', difficulty)
    poses = random_poses(rooms, generator, ROLL if difficulty == 'hard' else 0.0)
    low, high = (math.log(bound) for bound in FOCAL_RANGE)
    focal = torch.exp(torch.rand(count, generator=generator) * (high - low) + low)
    views = render(rooms, poses, size, size, device, focal=focal)
    return views.image, views.label


def _render_shard(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    torch.set_num_threads(1)
    image, label = render_views(SHARD, size, seed)
    return image.numpy(), label.numpy()


def load_pool(
    folder: Path, count: int, size: int, seed: int, workers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Open a pool of views on disk, which the first call renders.

    On a CPU rendering costs as much as training, so every view is used for several windows.

    Args:
        count: Number of views, rounded up to whole shards.
        workers: Processes that render.

    Returns:
        Images and labels as of `render_views`, memory-mapped.
    """
    count = math.ceil(count / SHARD) * SHARD
    stem = folder / f'views-mixed-{count}-{size}-{seed}'
    paths = [stem.with_suffix(f'.{kind}.npy') for kind in ('image', 'label')]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        shapes = [(count, size, size, 3), (count, size, size)]
        temporaries = [path.with_suffix('.partial') for path in paths]
        arrays = [
            np.lib.format.open_memmap(path, 'w+', np.uint8, shape)
            for path, shape in zip(temporaries, shapes, strict=True)
        ]
        with ProcessPoolExecutor(workers, get_context('spawn')) as pool:
            shards = pool.map(
                _render_shard,
                [size] * (count // SHARD),
                range(seed * 100_000, seed * 100_000 + count // SHARD),
            )
            for index, shard in enumerate(tqdm(shards, 'rendering', count // SHARD, unit='shard')):
                for array, part in zip(arrays, shard, strict=True):
                    array[index * SHARD : (index + 1) * SHARD] = part
        for array, temporary, path in zip(arrays, temporaries, paths, strict=True):
            array.flush()
            temporary.replace(path)
    image, label = (np.load(path, mmap_mode='r') for path in paths)
    return image, label


def _cut_windows(
    image: Tensor, label: Tensor, height: int, width: int, generator: torch.Generator
) -> Batch:
    """One random window of each view, half of them mirrored."""
    count, full_height, full_width = label.shape
    device = label.device
    top = torch.randint(full_height - height + 1, (count, 1, 1), generator=generator)
    left = torch.randint(full_width - width + 1, (count, 1, 1), generator=generator)
    rows = top + torch.arange(height)[None, :, None]
    columns = torch.arange(width).expand(count, 1, -1)
    flip = torch.rand(count, 1, 1, generator=generator) < 0.5
    columns = left + torch.where(flip, width - 1 - columns, columns)
    index = (torch.arange(count)[:, None, None] * full_height + rows) * full_width + columns
    index = index.to(device).flatten()
    pixels = image.reshape(-1, 3)[index].view(count, height, width, 3).permute(0, 3, 1, 2)
    ids = label.reshape(-1)[index].view(count, -1).long()
    coverage = torch.zeros(count, len(CLASSES), device=device)
    coverage.scatter_add_(1, ids, torch.full_like(ids, 1, dtype=torch.float32))
    return Batch(pixels.contiguous(), coverage / (height * width))


def augment(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make pictures those of a cheap camera, and take the colours of some of them away.

    Motion blur, exposure, white balance, saturation and noise differ from picture to picture.

    Args:
        pixels: uint8 (B, 3, H, W).

    Returns:
        The pictures, float32 0..1, and bool (B,), which of them have lost their colours: these
        teach shapes that hold for every colour.
    """
    count = len(pixels)
    device = pixels.device
    gain = (torch.rand(count, 1, 1, 1, generator=generator) * 0.5 + 0.75).to(device)
    balance = (torch.rand(count, 3, 1, 1, generator=generator) * 0.12 + 0.94).to(device)
    lift = (torch.rand(count, 1, 1, 1, generator=generator) * 0.12 - 0.04).to(device)
    noise = (
        torch.randn(pixels.shape, device=device)
        if device.type != 'cpu'
        else torch.randn(pixels.shape, generator=generator)
    )
    strength = (torch.rand(count, 1, 1, 1, generator=generator) * 0.03).to(device)
    image = _blur(pixels.float() / 255, generator)
    matrix, colorless = _random_saturation(count, generator)
    image = torch.einsum('bij,bjhw->bihw', matrix.to(device), image)
    image = (image * gain * balance + lift + noise * strength).clamp(0, 1)
    return image, colorless.to(device)


def _random_saturation(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colour matrices (count, 3, 3), and which of them take all colours away."""
    low, high = SATURATION_RANGE
    saturation = torch.rand(count, generator=generator) * (high - low) + low
    colorless = torch.rand(count, generator=generator) < GRAY_SHARE
    saturation = torch.where(colorless, 0.0, saturation)[:, None, None]
    gray = torch.full((3, 3), 1 / 3)
    return gray + saturation * (torch.eye(3) - gray), colorless


def _blur(image: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures drawn out along a line of up to `MOST_BLUR` pixels."""
    count, _, height, width = image.shape
    length = (torch.rand(count, 1, 1, generator=generator) - 0.5).clamp_min(0) * 2 * MOST_BLUR
    angle = torch.rand(count, 1, 1, generator=generator) * math.pi
    reach = MOST_BLUR // 2
    offset = torch.arange(-reach, reach + 1.0)
    y, x = offset[None, :, None], offset[None, None, :]
    along = (x * angle.cos() + y * angle.sin()).abs() - length / 2
    across = (y * angle.cos() - x * angle.sin()).abs()
    kernel = (1 - along.clamp_min(0)).clamp_min(0) * (1 - across).clamp_min(0)
    kernel = (kernel / kernel.sum((1, 2), keepdim=True)).to(image.device)
    kernel = kernel.repeat_interleave(3, 0)[:, None]
    padded = F.pad(image, (reach,) * 4, mode='replicate').flatten(0, 1)[None]
    return F.conv2d(padded, kernel, groups=3 * count).view(count, 3, height, width)


class PoolSource:
    """Windows of pooled views; step k's batch is a function of the seed and k alone."""

    def __init__(self, pool: tuple[np.ndarray, np.ndarray], seed: int):
        self.image, self.label = pool
        self.seed = seed

    def batch(self, step: int, count: int, height: int, width: int) -> Batch:
        """`count` windows of height x width pixels."""
        generator = _step_generator(self.seed, step)
        chosen = torch.randperm(len(self.image), generator=generator)[:count].sort().values
        image = torch.from_numpy(self.image[chosen.numpy()])
        label = torch.from_numpy(self.label[chosen.numpy()])
        return _cut_windows(image, label, height, width, generator)


class FreshSource:
    """New rooms at every step, rendered on the training device; for GPUs."""

    def __init__(self, size: int, seed: int, device: torch.device):
        self.size, self.seed, self.device = size, seed, device

    def batch(self, step: int, count: int, height: int, width: int) -> Batch:
        """`count` windows of height x width pixels."""
        image, label = render_views(count, self.size, self.seed * 10_000_000 + step, self.device)
        return _cut_windows(image, label, height, width, _step_generator(self.seed, step))


def _step_generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def window_size(
    step: int, progress: float, seed: int, view_size: int, patch: int
) -> tuple[int, int]:
    """Draw height and width of a step's windows, pixels: small first, then up to whole views.

    Small windows cost little and show few things, which makes a caption say more about each
    patch; large ones show whole things and make the model used to the attention of many patches.

    Args:
        progress: Of the training, 0..1.
        view_size: Side of the views, pixels.
        patch: Side of a patch, pixels.
    """
    generator = _step_generator(seed + 7, step)
    whole = view_size // patch
    if progress < 0.4:
        low, high = 4, 6
    elif progress < 0.75:
        low, high = 4, round(0.65 * whole)
    else:
        low, high = 6, whole
    sides = torch.randint(min(low, high), high + 1, (2,), generator=generator) * patch
    return int(sides[0]), int(sides[1])
