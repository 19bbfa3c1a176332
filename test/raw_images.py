"""Images with the fields of sensor_msgs/Image, without ROS."""

from types import SimpleNamespace

import numpy as np

from cliptrase_ros.messages.rays import camera_model, model_rays


def raw_image(pixels, encoding, padding=0, is_bigendian=0, data=None):
    """An image of pixels, (H, W) or (H, W, C); `padding` bytes that are no pixels end each row."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    return SimpleNamespace(
        width=width,
        height=height,
        encoding=encoding,
        step=rows.shape[1],
        is_bigendian=is_bigendian,
        data=rows.ravel() if data is None else data,
    )


def camera_info(width=640, height=480, focal=500.0, **fields):
    """A sensor_msgs/CameraInfo of a pinhole camera that looks straight ahead, or with `fields`."""
    cx, cy = (width - 1) / 2, (height - 1) / 2
    return SimpleNamespace(
        **{
            'width': width,
            'height': height,
            'k': (focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0),
            'p': (focal, 0.0, cx, 0.0, 0.0, focal, cy, 0.0, 0.0, 0.0, 1.0, 0.0),
            'd': (),
            'distortion_model': 'plumb_bob',
            'binning_x': 0,
            'binning_y': 0,
            'roi': region(),
        }
        | fields
    )


def pixel_rays(info, width, height, is_rectified=False):
    """The rays of images of a size, by their camera_info."""
    return model_rays(camera_model(info, width, height, is_rectified), width, height)


def region(x_offset=0, y_offset=0, width=0, height=0):
    """A sensor_msgs/RegionOfInterest."""
    return SimpleNamespace(x_offset=x_offset, y_offset=y_offset, width=width, height=height)
