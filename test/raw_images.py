"""Images with the fields of sensor_msgs/Image, without ROS."""

from types import SimpleNamespace

import numpy as np


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
