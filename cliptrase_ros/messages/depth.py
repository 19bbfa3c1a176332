"""Depth images and what a camera sees in space; messages are read as in `messages.images`."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera, in pixels, whose centres have integer coordinates."""

    fx: float
    fy: float
    cx: float
    cy: float


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
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def intrinsics_of(info: Message, width: int, height: int) -> Intrinsics:
    """Intrinsics of images of a size in pixels, from the K of their sensor_msgs/CameraInfo.

    Its binning and region of interest are honoured, its distortion is not: the image has to be
    rectified, or nearly so.

    Raises:
        ImageError: Not calibrated, or calibrated for images of another size.
    """
    fx, _, cx, _, fy, cy = (float(value) for value in info.k[:6])
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise ImageError('camera_info has no focal length in k: the camera is not calibrated')
    roi = info.roi
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    full = (roi.width or info.width, roi.height or info.height)
    if (full[0] // bin_x, full[1] // bin_y) != (width, height):
        raise ImageError(
            f'camera_info is of {full[0] // bin_x} x {full[1] // bin_y} pixels, the image has '
            f'{width} x {height}'
        )
    return Intrinsics(
        fx / bin_x, fy / bin_y, (cx - roi.x_offset) / bin_x, (cy - roi.y_offset) / bin_y
    )


def read_registered_depth(
    depth_image: Message, info: Message, width: int, height: int, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, Intrinsics]:
    """`depth_in_metres` and `intrinsics_of` for a picture that depth is registered to.

    Args:
        width: Of the picture, pixels.
        height: Of the picture, pixels.

    Raises:
        ImageError: Depth of another size than the picture, or as the two.
    """
    if (depth_image.width, depth_image.height) != (width, height):
        raise ImageError(
            f'depth is of {depth_image.width} x {depth_image.height} pixels, the image of '
            f'{width} x {height}; depth has to be registered to the image'
        )
    return depth_in_metres(depth_image, max_pixels), intrinsics_of(info, width, height)


def back_project(depth: np.ndarray, camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel lies to the right and down of the optical axis.

    Args:
        depth: float32 (H, W), metres.

    Returns:
        x and y in the optical frame (REP 103), whose z is the depth: float32 (H, W) each, metres,
        NaN where depth is.
    """
    height, width = depth.shape
    right = ((np.arange(width) - camera.cx) / camera.fx).astype(np.float32)
    down = ((np.arange(height) - camera.cy) / camera.fy).astype(np.float32)
    return depth * right, depth * down[:, None]


def labelled_points(
    depth: np.ndarray,
    camera: Intrinsics,
    picture: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray,
) -> np.ndarray:
    """Every pixel as a point in space.

    Args:
        depth: float32 (H, W), metres.
        picture: uint8 (H, W, 3) RGB.
        label: uint8 (H, W), class ids.
        confidence: uint8 (H, W), 255 = 1.0.

    Returns:
        `POINT` (H, W). Where depth is NaN, so are x, y and z; the other fields are there all the
        same.
    """
    # With an alpha of 255 the bytes 0xFFRRGGBB, read as a float, would be not a number.
    packed = cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA)
    packed[..., 3] = 0
    points = np.empty(depth.shape, POINT)
    points['x'], points['y'] = back_project(depth, camera)
    points['z'] = depth
    points['rgb'] = packed.view('<u4')[..., 0].astype(np.uint32, copy=False).view(np.float32)
    points['label'] = label
    np.divide(confidence, np.float32(255), out=points['confidence'])
    return points
