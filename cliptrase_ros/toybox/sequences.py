"""What a camera on tour through a room takes: single pictures, and sequences with true motion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from cliptrase_ros.toybox.renderer import intrinsics, render
from cliptrase_ros.toybox.scenes import DIFFICULTIES, Pose, Room, camera_pose

# Moments of an exposure that are averaged.
_BLUR_SAMPLES = 7
# A point is the one that was seen before if its depth agrees with a neighbouring sample's to this
# share: about what a floor's depth changes by from one pixel to the next.
_DEPTH_TOLERANCE = 0.02


@dataclass(frozen=True)
class Frame:
    """One picture of a sequence.

    image: uint8 (H, W, 3) RGB. label: uint8 (H, W), index into `scenes.CLASSES`. depth: float32
    (H, W), metres along the optical axis. motion: float32 (H, W, 2), pixels (x, y): what is shown
    at p was at p + motion in the frame before; NaN where it was hidden or out of view, and in the
    first frame. pose: of the camera. time: seconds on the tour.
    """

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    motion: np.ndarray
    pose: Pose
    time: float


def photograph(
    room: Room, time: float, height: int, width: int, device: str | torch.device = 'cpu'
) -> Frame:
    """What the camera sees at a time (seconds) of the tour `scenes.camera_pose`.

    In a hard room with the blur of its own motion and the noise of a cheap sensor; label and
    depth are those of the middle of the exposure. `motion` is NaN. A function of the arguments
    alone.
    """
    kind = DIFFICULTIES[room.difficulty]
    pose = camera_pose(room, time)
    views = render([room], [pose], height, width, device)
    image, depth = views.image[0].cpu().numpy(), views.depth[0].cpu().numpy()
    if kind.exposure:
        start, end = (camera_pose(room, time + s * kind.exposure) for s in (-0.5, 0.5))
        image = _blurred(image, depth, pose, start, end)
    if kind.noise:
        generator = np.random.default_rng([room.seed, round(abs(time) * 1e6)])
        noise = generator.standard_normal(image.shape, np.float32) * np.float32(255 * kind.noise)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    nowhere = np.full((height, width, 2), np.nan, np.float32)
    return Frame(image, views.label[0].cpu().numpy(), depth, nowhere, pose, time)


def rendered_sequence(
    room: Room,
    frames: int,
    height: int = 240,
    width: int = 320,
    rate: float = 10.0,
    start: float = 0.0,
    device: str | torch.device = 'cpu',
) -> Iterator[Frame]:
    """`frames` pictures of the tour at `rate` a second from time `start`, with true motion.

    The room does not move, so motion follows from depth and the two poses.
    """
    before = None
    for index in range(frames):
        frame = photograph(room, start + index / rate, height, width, device)
        if before is not None:
            frame.motion[:] = _motion_to(before, frame)
        yield frame
        before = frame


def _motion_to(before: Frame, frame: Frame) -> np.ndarray:
    displaced, expected = _reproject(frame.depth, frame.pose, before.pose)
    height, width = frame.depth.shape
    x, y = displaced[..., 0], displaced[..., 1]
    # A pixel's area reaches half a pixel beyond its centre.
    inside = (expected > 0) & (abs(x - (width - 1) / 2) < width / 2)
    inside &= abs(y - (height - 1) / 2) < height / 2
    left, top = (np.floor(np.where(inside, values, 0)).astype(int) for values in (x, y))
    seen = np.zeros_like(inside)
    for row in (top, top + 1):
        for column in (left, left + 1):
            depth = before.depth[row.clip(0, height - 1), column.clip(0, width - 1)]
            seen |= abs(depth - expected) < _DEPTH_TOLERANCE * expected
    motion = displaced - _pixels(height, width)
    return np.where((inside & seen)[..., None], motion, np.nan).astype(np.float32)


def _pixels(height: int, width: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def _reproject(depth: np.ndarray, pose: Pose, other: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Where another camera sees every pixel's point: (H, W, 2) in pixels, and its depth there."""
    height, width = depth.shape
    fx, fy, cx, cy = intrinsics(height, width)
    x, y = np.moveaxis(_pixels(height, width), -1, 0)
    points = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) * depth[..., None]
    rotation, position = (_array(t) for t in (pose.rotation, pose.position))
    other_rotation, other_position = (_array(t) for t in (other.rotation, other.position))
    points = (points @ rotation.T + position - other_position) @ other_rotation
    z = points[..., 2]
    with np.errstate(divide='ignore', invalid='ignore'):
        seen = np.stack([fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy], -1)
    return seen, z


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy().astype(np.float64)


def _blurred(
    image: np.ndarray, depth: np.ndarray, pose: Pose, start: Pose, end: Pose
) -> np.ndarray:
    """The mean, in linear light, of the picture drawn out along the motion of every pixel."""
    paths = [_reproject(depth, pose, other)[0].astype(np.float32) for other in (start, end)]
    light = np.square(image.astype(np.float32) / 255)
    total = np.zeros_like(light)
    for share in np.linspace(0, 1, _BLUR_SAMPLES, dtype=np.float32):
        source = (1 - share) * paths[0] + share * paths[1]
        total += cv2.remap(light, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Gamma 2, as the renderer has it.
    return np.rint(np.sqrt(total / _BLUR_SAMPLES) * 255).astype(np.uint8)
