"""Depth at the pixels of an image, from depth images of another size or calibration."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import CameraModel, camera_model, model_rays, project
from cliptrase_ros.messages.type_names import Message

# Pairs of cameras whose pixels are kept.
_KEPT = 16


@dataclass(frozen=True)
class Calibration:
    """What is known of a camera and its depth.

    Attributes:
        info: sensor_msgs/CameraInfo of the images.
        depth_info: That of the depth images, None where there is none.
        is_rectified: Whether the images are, so that `p` of `info` describes them.
        depth_is_rectified: The same of depth.
    """

    info: Message
    depth_info: Message | None
    is_rectified: bool
    depth_is_rectified: bool


def depth_and_rays(
    depth: np.ndarray,
    depth_header: Message,
    header: Message,
    shape: tuple[int, int],
    calibration: Calibration,
) -> tuple[np.ndarray, np.ndarray]:
    """Depth at the pixels of an image, and the rays on which it lies.

    Args:
        depth: float32 (h, w), metres, NaN where nothing was measured.
        depth_header: Of the depth image.
        header: Of the image.
        shape: (H, W) of the image.

    Returns:
        float32 (H, W), metres, NaN where nothing was measured or depth does not reach; and rays,
        float32 (2, H, W), as `rays.model_rays` has them.

    Raises:
        ImageError: Depth is in another frame or cannot be brought to the image's pixels, or a
            camera_info cannot be used.
    """
    if not is_same_frame(depth_header, header):
        raise ImageError(
            f'depth is in frame {depth_header.frame_id!r}, the image in {header.frame_id!r}; '
            'depth has to be registered to the image'
        )
    height, width = shape
    camera = camera_model(calibration.info, width, height, calibration.is_rectified)
    depth_camera = depth_camera_model(
        calibration.depth_info, depth_header, depth.shape, calibration.depth_is_rectified
    )
    depth = register_depth(depth, depth_camera, camera, width, height)
    return depth, model_rays(camera, width, height)


def is_same_frame(first: Message, second: Message) -> bool:
    """Whether two headers name one frame; without a name they may.

    tf's own names begin without a slash; drivers that came from ROS 1 write one.
    """
    frames = first.frame_id.lstrip('/'), second.frame_id.lstrip('/')
    return not all(frames) or frames[0] == frames[1]


def depth_camera_model(
    info: Message | None, header: Message, shape: tuple[int, int], is_rectified: bool
) -> CameraModel | None:
    """Model of the camera that depth images are of, by a camera_info of their own.

    Args:
        info: None where there is none.
        header: Of a depth image.
        shape: (height, width) of depth images, pixels.
        is_rectified: As in `camera_model`.

    Returns:
        None where the camera_info says nothing about them: not calibrated, or in another frame.

    Raises:
        ImageError: As `camera_model`.
    """
    if info is None or not (info.p if is_rectified else info.k)[0]:
        return None
    if not is_same_frame(info.header, header):
        return None
    try:
        return camera_model(info, *shape[::-1], is_rectified)
    except ImageError as error:
        raise ImageError(f'of depth, {error}') from None


def register_depth(
    depth: np.ndarray,
    depth_camera: CameraModel | None,
    camera: CameraModel,
    width: int,
    height: int,
) -> np.ndarray:
    """Depth of each pixel of an image: that of the depth image's pixel nearest to its ray.

    Both are seen from one place in one direction, only with other pixels. Nothing is known of the
    depth image's pixels without `depth_camera`: if it is as large as the image, they are those of
    the image, and if it is larger or smaller by a whole factor, it shows the same all the same.

    Args:
        depth: float32 (h, w), metres, NaN where nothing was measured.
        depth_camera: Model of the depth image, None if not known.
        camera: Model of the image.
        width: Of the image, pixels, as is `height`.

    Returns:
        float32 (height, width), metres, NaN where nothing was measured or depth does not reach.

    Raises:
        ImageError: Another size by no whole factor, and `depth_camera` is not known.
    """
    depth_height, depth_width = depth.shape
    is_of_size = (depth_width, depth_height) == (width, height)
    if is_of_size and depth_camera in (None, camera):
        return depth
    if depth_camera is not None:
        nearest = _nearest_pixels(camera, width, height, depth_camera, depth_width, depth_height)
        return cv2.remap(depth, nearest, None, cv2.INTER_NEAREST, borderValue=np.nan)
    is_smaller = (depth_width * height, width % depth_width) == (width * depth_height, 0)
    is_larger = (depth_width * height, depth_width % width) == (width * depth_height, 0)
    if not (is_smaller or is_larger):
        raise ImageError(
            f'depth is of {depth_width} x {depth_height} pixels, the image of {width} x {height}; '
            'depth has to be registered to the image, smaller or larger by a whole factor, or come '
            'with a camera_info of its own'
        )
    return cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


@lru_cache(_KEPT)
def _nearest_pixels(
    camera: CameraModel,
    width: int,
    height: int,
    depth_camera: CameraModel,
    depth_width: int,
    depth_height: int,
) -> np.ndarray:
    """Column and row in the depth image of each pixel's ray, int16 (H, W, 2), -1 for outside."""
    pixels = np.rint(project(depth_camera, model_rays(camera, width, height)))
    limits = np.array([depth_width, depth_height])[:, None, None]
    # Also where a pixel is not a number.
    pixels[:, ~((pixels >= 0) & (pixels < limits)).all(axis=0)] = -1
    nearest = np.ascontiguousarray(np.moveaxis(pixels, 0, -1), np.int16)
    nearest.flags.writeable = False
    return nearest
