"""Rays of calibrated cameras: distorted by OpenCV in the test, and found again."""

import cv2
import numpy as np
import pytest
from raw_images import camera_info, pixel_rays, region

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.messages.rays import (
    CameraModel,
    camera_model,
    is_rectified_topic,
    model_rays,
    project,
)

K = (500.0, 0, 320.0, 0, 510.0, 240.0, 0, 0, 1.0)
SMALL_K = (125.0, 0, 80.0, 0, 127.5, 60.0, 0, 0, 1.0)
#: As calibrated cameras have them: webcams, Azure Kinect, wide lenses.
DISTORTIONS = [
    ('plumb_bob', (-0.3, 0.1, 0.001, -0.002)),
    ('plumb_bob', (0.12, -0.25, 0.0005, 0.001, 0.08)),
    ('rational_polynomial', (0.67, -2.5, 0.0006, -0.0002, 1.45, 0.55, -2.3, 1.4)),
    ('rational_polynomial', (-0.2, 0.05, 0, 0, 0, 0, 0, 0, 0.001, -0.001, 0.002, 0.001)),
    (
        'rational_polynomial',
        (-0.2, 0.05, 0, 0, 0, 0, 0, 0, 0.001, -0.001, 0.002, 0.001, 0.02, 0.01),
    ),
    ('equidistant', (0.1, 0.02, -0.01, 0.001)),
    ('equidistant', (-0.02, 0.01, -0.005, 0.0)),
]


def distort(points, model, matrix, d):
    """Pixels of points in space, both (N, 2 or 3), by OpenCV."""
    project_points = cv2.fisheye.projectPoints if model == 'equidistant' else cv2.projectPoints
    points = np.asarray(points, float).reshape(-1, 1, 3)
    return project_points(points, np.zeros(3), np.zeros(3), matrix, np.array(d))[0].reshape(-1, 2)


@pytest.mark.parametrize(('model', 'd'), DISTORTIONS)
def test_distorted_points_are_found_on_the_rays_of_their_pixels(model, d):
    info = camera_info(160, 120, distortion_model=model, d=d, k=SMALL_K)
    rays = pixel_rays(info, 160, 120)
    assert (rays.dtype, rays.shape) == (np.float32, (2, 120, 160)) and np.isfinite(rays).all()
    generator = np.random.default_rng(0)
    points = generator.uniform((-0.6, -0.45, 1), (0.6, 0.45, 1), (500, 3))
    right, down = distort(points, model, np.array(SMALL_K).reshape(3, 3), d).T.astype(np.float32)
    inside = (right > 0) & (right < 159) & (down > 0) & (down < 119)
    assert inside.sum() > 300
    found = [cv2.remap(of, right[None], down[None], cv2.INTER_LINEAR)[0] for of in rays]
    # OpenCV interpolates by 1/32 of a pixel.
    np.testing.assert_allclose(np.stack(found, -1)[inside], points[inside, :2], atol=0.03 / 125)
    rows, columns = np.indices((120, 160))
    np.testing.assert_allclose(
        project(camera_model(info, 160, 120), rays), [columns, rows], atol=1e-3
    )


def test_whole_binned_and_cut_images_of_a_pinhole_camera():
    assert camera_model(camera_info(k=K), 640, 480) == CameraModel(500.0, 510.0, 320.0, 240.0)
    binned = camera_info(k=K, binning_x=2, binning_y=4)
    assert camera_model(binned, 320, 120) == CameraModel(250.0, 127.5, 160.0, 60.0)
    cut = camera_info(k=K, roi=region(100, 40, 200, 160))
    assert camera_model(cut, 200, 160) == CameraModel(500.0, 510.0, 220.0, 200.0)
    right, down = pixel_rays(cut, 200, 160)
    np.testing.assert_allclose(right[0], (np.arange(200) - 220) / 500, rtol=1e-6)
    np.testing.assert_allclose(down[:, 0], (np.arange(160) - 200) / 510, rtol=1e-6)


@pytest.mark.parametrize(('model', 'd'), DISTORTIONS)
def test_cut_and_binned_images_have_the_rays_of_the_whole(model, d):
    fields = {'distortion_model': model, 'd': d, 'k': SMALL_K}
    whole = pixel_rays(camera_info(160, 120, **fields), 160, 120)
    info = camera_info(160, 120, binning_x=2, binning_y=4, roi=region(20, 8, 80, 64), **fields)
    np.testing.assert_allclose(
        pixel_rays(info, 40, 16), whole[:, 8:72:4, 20:100:2], rtol=1e-5, atol=1e-6
    )


def test_distortion_of_zeros_is_none_whatever_its_model():
    for model, d in (('', ()), ('plumb_bob', [0.0] * 5), ('equidistant', [0.0] * 4)):
        info = camera_info(k=K, distortion_model=model, d=d)
        assert camera_model(info, 640, 480) == CameraModel(500.0, 510.0, 320.0, 240.0)


def test_topics_of_rectified_images():
    rectified = ['/a/image_rect', 'image_rect_color', '/a/image_rect_raw/compressedDepth']
    others = ['/a/image_raw', '/image_rect/a/image_raw', '/rect/image', '/a/image_raw/compressed']
    assert all(map(is_rectified_topic, rectified)) and not any(map(is_rectified_topic, others))


def test_rectified_images_are_of_p_and_not_distorted():
    p = (400.0, 0, 310.0, -40.0, 0, 410.0, 230.0, 0, 0, 0, 1.0, 0)
    info = camera_info(k=(0.0,) * 9, d=(np.nan,), distortion_model='none of ours', p=p)
    assert camera_model(info, 640, 480, True) == CameraModel(400.0, 410.0, 310.0, 230.0)


def test_pixels_that_a_model_does_not_reach_have_no_ray():
    # Of this barrel distortion no ray comes farther than 0.702 focal lengths from the axis.
    info = camera_info(distortion_model='plumb_bob', d=(-0.3, 0, 0, 0), focal=400.0)
    rays = pixel_rays(info, 640, 480)
    rows, columns = np.indices((480, 640))
    radius = np.hypot(columns - 319.5, rows - 239.5) / 400
    assert np.isfinite(rays[:, radius < 0.69]).all()
    assert np.isnan(rays[:, radius > 0.71]).all()
    # With k2, pixels out there would be reached by rays beyond the fold.
    folded = pixel_rays(camera_info(d=(-0.3, 0.03, 0, 0), focal=400.0), 640, 480)
    assert np.nanmax(np.hypot(*folded)) < 1.5


def test_fisheye_ends_at_90_degrees():
    info = camera_info(distortion_model='equidistant', d=(0.05, 0, 0, 0), focal=150.0)
    rays = pixel_rays(info, 640, 480)
    rows, columns = np.indices((480, 640))
    radius = np.hypot(columns - 319.5, rows - 239.5) / 150
    # 1.57 rad are seen here, and OpenCV's own inverse ends at 1.57 focal lengths.
    edge = np.pi / 2 * (1 + 0.05 * (np.pi / 2) ** 2)
    assert edge > 1.75
    assert np.isfinite(rays[:, radius < 0.999 * edge]).all()
    assert np.isnan(rays[:, radius > edge]).all()
    with np.errstate(all='ignore'):
        angle = np.arctan(np.hypot(*rays))
    within = radius < 0.99 * edge
    np.testing.assert_allclose((angle * (1 + 0.05 * angle**2))[within], radius[within], rtol=1e-5)


def test_rays_are_kept_by_calibration_and_cannot_be_changed():
    first = pixel_rays(camera_info(d=[0.1] * 4), 640, 480)
    assert pixel_rays(camera_info(d=[0.1] * 4), 640, 480) is first
    assert pixel_rays(camera_info(d=[0.1] * 5), 640, 480) is not first
    with pytest.raises(ValueError, match='read-only'):
        first[0, 0, 0] = 1


def test_large_images_are_computed_in_blocks(monkeypatch):
    info = camera_info(64, 48, 60.0, d=(-0.2, 0.1, 0, 0))
    whole = pixel_rays(info, 64, 48)
    model_rays.cache_clear()
    monkeypatch.setattr('cliptrase_ros.messages.rays._BLOCK_PIXELS', 640)
    np.testing.assert_array_equal(pixel_rays(info, 64, 48), whole)


@pytest.mark.parametrize(
    ('info', 'text'),
    [
        (camera_info(k=(0.0,) * 9), 'not calibrated'),
        (camera_info(k=(np.nan,) * 9), 'not calibrated'),
        (camera_info(0, 0), '0 x 0'),
        (camera_info(1280), '1280 x 480 pixels, the image has 640 x 480'),
        (camera_info(d=(0.1,) * 4, distortion_model='fov'), "'fov' of camera_info is not known"),
        (camera_info(d=(0.1,) * 3), '3 coefficients in d, but plumb_bob has 4, 5'),
        (camera_info(d=(0.1,) * 5, distortion_model='equidistant'), 'equidistant has 4'),
        (camera_info(d=(0.1, np.inf, 0, 0)), 'not finite'),
        (camera_info(d=(np.nan,) * 4), 'not finite'),
    ],
)
def test_calibrations_that_cannot_be_used(info, text):
    with pytest.raises(ImageError, match=text):
        pixel_rays(info, 640, 480)


def test_rectified_without_p_is_not_calibrated():
    with pytest.raises(ImageError, match='no focal length in p'):
        pixel_rays(camera_info(p=(0.0,) * 12), 640, 480, is_rectified=True)


@pytest.mark.parametrize('d', [(1e300,) * 4, (-1e9,) * 5, (1e9,) * 14, (1e-300,) * 8])
@pytest.mark.parametrize('focal', [1e-300, 500.0, 1e300])
def test_absurd_calibrations_give_no_rays_rather_than_an_error(d, focal):
    rays = pixel_rays(camera_info(16, 12, focal, d=d), 16, 12)
    assert not np.isinf(rays).any()
