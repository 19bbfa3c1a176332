"""Depth images, and points made of them; messages are read as in `messages.images`."""

import cv2
import numpy as np

from cliptrase_ros.messages.images import (
    MAX_PIXELS,
    Encoding,
    ImageError,
    check_layout,
    check_size,
    stored_pixels,
)
from cliptrase_ros.messages.type_names import Message

_MILLIMETRES = Encoding(1, 16)
#: Depth encodings: REP 118, and mono16, which some drivers write for 16UC1.
DEPTH_ENCODINGS = {
    '16UC1': _MILLIMETRES,
    'mono16': _MILLIMETRES,
    '32FC1': Encoding(1, 32, is_float=True),
}

#: Depth and picture belong together if their stamps differ by no more, nanoseconds: half a period
#: at 25 Hz. Registered depth mostly has the very stamp of the picture.
STAMP_TOLERANCE_NS = 20_000_000

#: One point: metres in the optical frame, colour as PCL packs it (0x00RRGGBB), class id
#: (255 = unlabelled), probability 0..1. PCL reads it as PointXYZRGBL.
POINT = np.dtype(
    [
        ('x', np.float32),
        ('y', np.float32),
        ('z', np.float32),
        ('rgb', np.float32),
        ('label', np.uint32),
        ('confidence', np.float32),
    ]
)


def check_depth(image: Message, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a sensor_msgs/Image that `depth_in_metres` could not read, in microseconds.

    Raises:
        ImageError: An encoding other than `DEPTH_ENCODINGS`, or as `messages.images.check_image`.
    """
    check_size(image.width, image.height, max_pixels)
    encoding = DEPTH_ENCODINGS.get(image.encoding)
    if encoding is None:
        raise ImageError(
            f'encoding {image.encoding[:40]!r} is not known as depth; publish 16UC1 (millimetres) '
            'or 32FC1 (metres)'
        )
    check_layout(image, encoding)


def depth_in_metres(image: Message, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Depth along the optical axis.

    Args:
        image: sensor_msgs/Image, 16UC1 in millimetres or 32FC1 in metres (REP 118). Zero,
            negative, infinite and not a number all mean that nothing was measured.

    Returns:
        float32 (H, W), metres, NaN where nothing was measured.

    Raises:
        ImageError: As `check_depth`.
    """
    check_depth(image, max_pixels)
    stored = stored_pixels(image, DEPTH_ENCODINGS[image.encoding])
    depth = stored.astype(np.float32)
    if stored.dtype.kind == 'u':
        depth *= np.float32(1e-3)
    return only_measured(depth)


def only_measured(depth: np.ndarray) -> np.ndarray:
    """Turn what is no distance, zero, negative or infinite, into NaN, in place."""
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def back_project(depth: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Where every pixel lies in space.

    Args:
        depth: float32 (H, W), metres.
        rays: float32 (2, H, W), as `messages.rays.model_rays` has them.

    Returns:
        float32 (3, H, W), x, y and z in the optical frame (REP 103), metres; all three NaN where
        there is no depth or no ray.
    """
    positions = np.empty((3, *depth.shape), np.float32)
    np.multiply(rays, depth, out=positions[:2])
    positions[2] = depth
    positions[2][np.isnan(positions[0])] = np.nan
    return positions


def labelled_points(
    depth: np.ndarray,
    rays: np.ndarray,
    picture: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray,
) -> np.ndarray:
    """Every pixel as a point in space.

    Args:
        depth: float32 (H, W), metres.
        rays: float32 (2, H, W), as `messages.rays.model_rays` has them.
        picture: uint8 (H, W, 3) RGB.
        label: uint8 (H, W), class ids.
        confidence: uint8 (H, W), 255 = 1.0.

    Returns:
        `POINT` (H, W). Without depth or ray x, y and z are NaN; the other fields are there all the
        same.
    """
    # With an alpha of 255 the bytes 0xFFRRGGBB, read as a float, would be not a number.
    packed = cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA)
    packed[..., 3] = 0
    points = np.empty(depth.shape, POINT)
    points['x'], points['y'], points['z'] = back_project(depth, rays)
    points['rgb'] = packed.view('<u4')[..., 0].astype(np.uint32, copy=False).view(np.float32)
    points['label'] = label
    np.divide(confidence, np.float32(255), out=points['confidence'])
    return points
