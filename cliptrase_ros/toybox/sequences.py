"""What a camera on tour through a room takes: single pictures, and sequences with true motion."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from cliptrase_ros.toybox.renderer import intrinsics, render
from cliptrase_ros.toybox.scenes import DIFFICULTIES, Pose, Room, camera_pose, sample_room

#: Height and width of the pictures of rooms of a difficulty, pixels: 4:3 and 16:9.
PICTURE_SIZES = {'easy': (240, 320), 'hard': (270, 480)}

# By how many seconds the picture of a room is taken later on the tour than that of the room of the
# seed before, so that rooms are seen from all sides.
_LATER_S = 7.3
# Moments of an exposure that are averaged.
_BLUR_SAMPLES = 7
# Largest difference, as a share, between a point's depth and the one seen before at its place for
# both to be the same point: about what a floor's depth changes by from one pixel to the next.
_DEPTH_TOLERANCE = 0.02


@dataclass(frozen=True)
class Photograph:
    """One picture that the camera takes, and what is true of it.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        label: uint8 (H, W), index into `scenes.CLASSES`.
        depth: float32 (H, W), metres along the optical axis.
        motion: float32 (H, W, 2), pixels (x, y): what is shown at p was at p + motion in the
            picture before; NaN where it was hidden or out of view, and where there is none before.
        pose: Of the camera.
    """

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    motion: np.ndarray
    pose: Pose


def photograph_room(
    seed: int, split: str, difficulty: str, size: tuple[int, int] | None = None
) -> Photograph:
    """Take the picture by which a room is evaluated: one, at a moment that its seed says.

    Args:
        size: Height and width, pixels; None for those of `PICTURE_SIZES`.
    """
    height, width = size or PICTURE_SIZES[difficulty]
    return photograph(sample_room(seed, split, difficulty), _LATER_S * seed, height, width)


def photograph(room: Room, time_s: float, height: int, width: int) -> Photograph:
    """Take a picture `time_s` seconds into the tour `scenes.camera_pose`.

    In a hard room it has the blur of the camera's motion and the noise of a cheap sensor; label and
    depth are those of the middle of the exposure. A function of the arguments alone.
    """
    difficulty = DIFFICULTIES[room.difficulty]
    pose = camera_pose(room, time_s)
    views = render([room], [pose], height, width)
    image, depth, label = (part[0].numpy() for part in (views.image, views.depth, views.label))
    if difficulty.exposure:
        start, end = (camera_pose(room, time_s + s * difficulty.exposure) for s in (-0.5, 0.5))
        image = _blur(image, depth, pose, start, end)
    if difficulty.noise:
        generator = np.random.default_rng([room.seed, round(abs(time_s) * 1e6)])
        deviation = np.float32(255 * difficulty.noise)
        noise = generator.standard_normal(image.shape, np.float32) * deviation
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    unknown_motion = np.full((height, width, 2), np.nan, np.float32)
    return Photograph(image, label, depth, unknown_motion, pose)


def rendered_sequence(
    room: Room,
    frames: int,
    height: int = 240,
    width: int = 320,
    rate: float = 10.0,
) -> Iterator[Photograph]:
    """Take pictures of the tour from its beginning on, `rate` a second, with true motion.

    The room does not move, so that motion follows from depth and the two poses.
    """
    before = None
    for index in range(frames):
        photo = photograph(room, index / rate, height, width)
        if before is not None:
            photo.motion[:] = _motion_from(before, photo)
        yield photo
        before = photo


def _motion_from(before: Photograph, photo: Photograph) -> np.ndarray:
    displaced, expected = _reproject(photo.depth, photo.pose, before.pose)
    height, width = photo.depth.shape
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
    motion = displaced - _pixel_grid(height, width)
    return np.where((inside & seen)[..., None], motion, np.nan).astype(np.float32)


def _pixel_grid(height: int, width: int) -> np.ndarray:
    """Coordinates (x, y) of every pixel, float32 (H, W, 2)."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


def _reproject(depth: np.ndarray, pose: Pose, other: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Where another camera sees every pixel's point: (H, W, 2) in pixels, and its depth there."""
    height, width = depth.shape
    fx, fy, cx, cy = intrinsics(height, width)
    x, y = np.moveaxis(_pixel_grid(height, width), -1, 0)
    points = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) * depth[..., None]
    rotation, position, other_rotation, other_position = (
        tensor.double().numpy()
        for tensor in (pose.rotation, pose.position, other.rotation, other.position)
    )
    points = (points @ rotation.T + position - other_position) @ other_rotation
    z = points[..., 2]
    with np.errstate(divide='ignore', invalid='ignore'):
        seen = np.stack([fx * points[..., 0] / z + cx, fy * points[..., 1] / z + cy], -1)
    return seen, z


def _blur(image: np.ndarray, depth: np.ndarray, pose: Pose, start: Pose, end: Pose) -> np.ndarray:
    """Mean of the picture, in linear light, along the way that each pixel moves."""
    paths = [_reproject(depth, pose, other)[0].astype(np.float32) for other in (start, end)]
    light = np.square(image.astype(np.float32) / 255)
    total = np.zeros_like(light)
    for share in np.linspace(0, 1, _BLUR_SAMPLES, dtype=np.float32):
        source = (1 - share) * paths[0] + share * paths[1]
        total += cv2.remap(light, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # Gamma 2, as the renderer has it.
    return np.rint(np.sqrt(total / _BLUR_SAMPLES) * 255).astype(np.uint8)
