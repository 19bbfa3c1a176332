"""What every pixel of a camera looks at: rays in space, from sensor_msgs/CameraInfo."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.type_names import Message

#: Numbers of coefficients that `d` may have, by distortion model. OpenCV, and image_geometry with
#: it, take those of the first two names for the same model.
DISTORTION_MODELS = {
    'plumb_bob': (4, 5, 8, 12, 14),
    'rational_polynomial': (4, 5, 8, 12, 14),
    'equidistant': (4,),
}

# Farther from its pixel a ray must not lead back, pixels: there the model has no inverse.
_TOLERANCE_PX = 0.05
_CRITERIA = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-6)
# Cameras (with their sizes of images) whose rays are kept: as many as robots have.
_KEPT = 16
# Pixels computed at once: 0.2 GB.
_BLOCK_PIXELS = 2_000_000


@dataclass(frozen=True)
class CameraModel:
    """Intrinsics of a camera in pixels, whose centres have integer coordinates.

    Attributes:
        distortion: Coefficients in OpenCV's order; empty for a pinhole camera.
        is_fisheye: Whether they are of `cv2.fisheye`, ROS's equidistant.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = ()
    is_fisheye: bool = False


def camera_model(info: Message, width: int, height: int, is_rectified: bool = False) -> CameraModel:
    """Model of the camera whose images have a size in pixels.

    Binning and region of interest are honoured. Distortion that is zero throughout is none,
    whatever its model, as image_geometry takes it.

    Args:
        info: sensor_msgs/CameraInfo.
        is_rectified: Whether its `p` describes the images, rather than `k` and `d`.

    Raises:
        ImageError: Not calibrated, calibrated for images of another size, or by a model that is
            not among `DISTORTION_MODELS`.
    """
    name = 'p' if is_rectified else 'k'
    fx, _, cx, *_ = (float(value) for value in getattr(info, name))
    fy, cy = (float(value) for value in (info.p[5:7] if is_rectified else info.k[4:6]))
    if not (np.isfinite([fx, fy, cx, cy]).all() and fx > 0 and fy > 0):
        raise ImageError(f'camera_info has no focal length in {name}: the camera is not calibrated')
    roi = info.roi
    bin_x, bin_y = max(1, info.binning_x), max(1, info.binning_y)
    full = (roi.width or info.width, roi.height or info.height)
    if (full[0] // bin_x, full[1] // bin_y) != (width, height):
        raise ImageError(
            f'camera_info is of {full[0] // bin_x} x {full[1] // bin_y} pixels, the image has '
            f'{width} x {height}'
        )
    distortion = () if is_rectified else _distortion(info)
    return CameraModel(
        fx / bin_x,
        fy / bin_y,
        (cx - roi.x_offset) / bin_x,
        (cy - roi.y_offset) / bin_y,
        distortion,
        bool(distortion) and info.distortion_model == 'equidistant',
    )


def is_rectified_topic(topic: str) -> bool:
    """Whether images of a topic are rectified, by the names that image_proc and drivers give them.

    Those are `image_rect`, `image_rect_color`, `image_rect_raw` and so on, perhaps with a transport
    behind it.
    """
    return any(part.startswith('image_rect') for part in topic.split('/')[-2:])


@lru_cache(_KEPT)
def model_rays(camera: CameraModel, width: int, height: int) -> np.ndarray:
    """What the centre of every pixel looks at; the arrays of the latest cameras are kept.

    Returns:
        float32 (2, H, W), read-only: x/z and y/z in the optical frame (REP 103), NaN where the
        camera's model has no ray: behind its fold, or at 90 degrees from the axis and beyond.
    """
    rays = np.empty((2, height, width), np.float32)
    step = max(1, _BLOCK_PIXELS // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        right, down = np.meshgrid(np.arange(width, dtype=float), np.arange(rows.start, rows.stop))
        with np.errstate(all='ignore'):
            rays[:, rows] = _undistort(camera, np.stack([right, down]))
    rays[:, ~np.isfinite(rays).all(axis=0)] = np.nan
    rays.flags.writeable = False
    return rays


def project(camera: CameraModel, rays: np.ndarray) -> np.ndarray:
    """Where rays meet the image.

    Args:
        rays: float (2, ...), x/z and y/z in the optical frame.

    Returns:
        float64 (2, ...), right and down in pixels, perhaps outside the image; NaN where the
        camera's model says nothing.
    """
    rays = rays.astype(np.float64)
    if camera.distortion:
        radius = np.hypot(*rays)
        radius[~(radius < _farthest(camera)[0])] = np.nan
        if camera.is_fisheye:
            with np.errstate(invalid='ignore'):
                rays = rays * np.where(radius > 0, _distorted(camera, radius) / radius, 1)
        else:
            points = np.stack([*rays, np.ones_like(radius)], axis=-1).reshape(-1, 1, 3)
            still, matrix = np.zeros(3), np.eye(3)
            found, _ = cv2.projectPoints(points, still, still, matrix, np.array(camera.distortion))
            rays = found.T.reshape(rays.shape)
        rays[:, np.isnan(radius)] = np.nan
    return np.stack([rays[0] * camera.fx + camera.cx, rays[1] * camera.fy + camera.cy])


def _distortion(info: Message) -> tuple[float, ...]:
    """Coefficients of a camera_info, () where there is no distortion."""
    distortion = tuple(float(value) for value in info.d)
    if not any(distortion):
        return ()
    counts = DISTORTION_MODELS.get(info.distortion_model)
    if counts is None:
        raise ImageError(
            f'distortion model {info.distortion_model[:40]!r} of camera_info is not known; '
            f'it may be {", ".join(DISTORTION_MODELS)}, or rectify the images'
        )
    if len(distortion) not in counts:
        raise ImageError(
            f'camera_info has {len(distortion)} coefficients in d, but {info.distortion_model} '
            f'has {", ".join(map(str, counts))}'
        )
    if not np.isfinite(distortion).all():
        raise ImageError('camera_info has coefficients in d that are not finite')
    return distortion


def _undistort(camera: CameraModel, pixels: np.ndarray) -> np.ndarray:
    """Rays, float64 (2, H, W), of pixels right and down, NaN where there is none."""
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    focal, centre = matrix[[0, 1], [0, 1], None, None], matrix[:2, 2:, None]
    if not camera.distortion:
        return (pixels - centre) / focal
    if camera.is_fisheye:
        # Not by cv2.fisheye, which takes no pixel for one above pi / 2 focal lengths.
        distorted = (pixels - centre) / focal
        radius = np.hypot(*distorted)
        _, radii = _farthest(camera)
        found = np.interp(radius, _distorted(camera, radii), radii, right=np.nan)
        return distorted * np.where(radius > 0, found / radius, 1)
    points = np.moveaxis(pixels, 0, -1).reshape(-1, 1, 2)
    found = cv2.undistortImagePoints(points, matrix, np.array(camera.distortion), None, _CRITERIA)
    rays = (found.T.reshape(pixels.shape) - centre) / focal
    error = np.hypot(*(project(camera, rays) - pixels))
    rays[:, ~(error < _TOLERANCE_PX)] = np.nan
    return rays


def _distorted(camera: CameraModel, radius: np.ndarray) -> np.ndarray:
    """Distance from the axis in the image, focal lengths, of a ray's distance from it."""
    if camera.is_fisheye:
        angle = np.arctan(radius)
        return angle * np.polyval([*camera.distortion[::-1], 1], angle**2)
    k1, k2, _, _, k3, k4, k5, k6 = (*camera.distortion, 0, 0, 0, 0)[:8]
    square = radius**2
    return radius * np.polyval([k3, k2, k1, 1], square) / np.polyval([k6, k5, k4, 1], square)


@lru_cache(_KEPT)
def _farthest(camera: CameraModel) -> tuple[float, np.ndarray]:
    """How far from the axis rays are seen, and distances up to there, closely spaced.

    Beyond it the polynomial turns back: two rays would come to one pixel.
    """
    radii = np.tan(np.linspace(0, np.pi / 2, 1 << 16, endpoint=False))
    with np.errstate(all='ignore'):
        grows = np.diff(_distorted(camera, radii)) > 0
    count = len(radii) if grows.all() else 1 + int(np.argmin(grows))
    radii = radii[:count]
    return (np.inf if grows.all() else float(radii[-1])), radii
