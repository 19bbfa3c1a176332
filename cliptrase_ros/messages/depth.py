"""Depth images and what a camera sees in space, without any ROS.

Messages are taken by their fields, as in `image_messages`.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from cliptrase_ros.messages.images import (
    MAX_PIXELS,
    Encoding,
    ImageError,
    check_layout,
    check_size,
    pixels_of,
)

_MILLIMETRES = Encoding(1, 16)
#: Depth encodings: REP 118, and mono16, which some drivers write for 16UC1.
DEPTH_ENCODINGS = {
    '16UC1': _MILLIMETRES,
    'mono16': _MILLIMETRES,
    '32FC1': Encoding(1, 32, is_float=True),
}

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
    """Pinhole camera: focal lengths and principal point, pixels; pixel centres are integers."""

    fx: float
    fy: float
    cx: float
    cy: float


def check_depth(image, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that `depth_in_metres` could not read, in microseconds.

    image: fields of sensor_msgs/Image. Raises ImageError.
    """
    check_size(image.width, image.height, max_pixels)
    encoding = DEPTH_ENCODINGS.get(image.encoding)
    if encoding is None:
        raise ImageError(
            f'encoding {image.encoding[:40]!r} is not known as depth; publish 16UC1 (millimetres) '
            'or 32FC1 (metres)'
        )
    check_layout(image, encoding)


def depth_in_metres(image, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Depth along the optical axis: float32 (H, W), metres, NaN where there is none.

    image: fields of sensor_msgs/Image, 16UC1 in millimetres or 32FC1 in metres (REP 118). Zero,
    negative, infinite and not a number all mean that nothing was measured.
    Raises ImageError as `check_depth`.
    """
    check_depth(image, max_pixels)
    stored = pixels_of(image, DEPTH_ENCODINGS[image.encoding])
    depth = stored.astype(np.float32)
    if stored.dtype.kind == 'u':
        depth *= np.float32(1e-3)
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def intrinsics_of(info, width: int, height: int) -> Intrinsics:
    """Intrinsics of images of a size, from the K of their camera_info.

    info: fields of sensor_msgs/CameraInfo; its binning and region of interest are honoured, its
    distortion is not: the image has to be rectified, or nearly so.
    Raises ImageError: not calibrated, or calibrated for images of another size.
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


def back_project(depth: np.ndarray, camera: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Where every pixel lies to the right and down of the optical axis, metres.

    depth: float32 (H, W), metres. Returns x and y of the optical frame, whose z is the depth:
    float32 (H, W) each, NaN where depth is.
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
    """Every pixel as a point in space: a structured array of `POINT`, (H, W).

    depth: float32 (H, W), metres. picture: uint8 (H, W, 3) RGB. label: uint8 (H, W).
    confidence: uint8 (H, W), 255 = 1.0. Where depth is NaN, x, y and z are; the rest is kept.
    """
    # 0xFFRRGGBB would be not a number as a float.
    packed = cv2.cvtColor(picture, cv2.COLOR_RGB2BGRA)
    packed[..., 3] = 0
    points = np.empty(depth.shape, POINT)
    points['x'], points['y'] = back_project(depth, camera)
    points['z'] = depth
    points['rgb'] = packed.view('<u4')[..., 0].astype(np.uint32, copy=False).view(np.float32)
    points['label'] = label
    np.divide(confidence, np.float32(255), out=points['confidence'])
    return points
