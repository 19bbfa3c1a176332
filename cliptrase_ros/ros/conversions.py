"""ROS messages to arrays and back, without a loop over pixels."""

import functools
import importlib
import re
import sys
from array import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header

from cliptrase_ros.messages import images
from cliptrase_ros.messages.images import ENCODING_TABLE, MAX_PIXELS, check_image
from cliptrase_ros.messages.maker import MessageMaker
from cliptrase_ros.messages.masks import decode_mask
from cliptrase_ros.messages.type_names import Message

try:
    from sensor_msgs_py.point_cloud2 import create_cloud as _create_cloud
except ImportError:
    _create_cloud = None

__all__ = ['MAKER', 'decode_mask', 'message_class', 'points_message', 'rclpy_header', 'to_rgb']


@functools.cache
def message_class(message_type: str) -> type:
    """Find the class of a message type, as in `sensor_msgs/msg/Image`. Raises ImportError."""
    package, _, name = message_type.split('/')
    return getattr(importlib.import_module(f'{package}.msg'), name)


def _make(message_type: str, **fields: Any) -> Any:
    message = message_class(message_type)()
    for name, value in fields.items():
        # One by one, because the constructor copies arrays once more.
        setattr(message, name, value)
    return message


def _to_field(values: np.ndarray) -> array:
    # With checks of fields on, anything but an array is checked number by number.
    field = array({'u1': 'B', 'i1': 'b', 'u4': 'I'}[values.dtype.str[1:]])
    field.frombytes(values.view(np.uint8))
    return field


#: Makes messages of rclpy's classes.
MAKER = MessageMaker(_make, _to_field)


def rclpy_header(header: Message) -> Header:
    """Make rclpy's std_msgs/Header of one that was read from bytes."""
    stamp = Time(sec=header.stamp.sec, nanosec=header.stamp.nanosec)
    return Header(stamp=stamp, frame_id=header.frame_id)


def points_message(points: np.ndarray, header: Header) -> PointCloud2:
    """Make an organised sensor_msgs/PointCloud2, by sensor_msgs_py where it is installed.

    Args:
        points: Structured array (H, W) of float32 and uint32 fields.
    """
    if _create_cloud is None:
        return MAKER.make_points(points, header)
    # As a list: what it makes of two dimensions has rows and columns the other way round.
    cloud = _create_cloud(header, MAKER.make_point_fields(points.dtype), points.ravel())
    cloud.height, cloud.width = points.shape
    cloud.row_step = cloud.point_step * cloud.width
    # Pixels without depth are not a number.
    cloud.is_dense = False
    return cloud


def to_rgb(image: Image, max_pixels: int = MAX_PIXELS, may_share: bool = False) -> np.ndarray:
    """Read the picture of a sensor_msgs/Image, by cv_bridge where it is installed and reads it.

    See `messages.images.to_rgb`, which reads the others, for arguments, result and errors.
    """
    check_image(image, max_pixels)
    if _cv_bridge is None or not _cv_bridge_reads(image):
        return images.to_rgb(image, max_pixels, may_share)
    encoding = ENCODING_TABLE[image.encoding]
    images.check_levels(images.stored_pixels(image, encoding), encoding)
    rgb = np.ascontiguousarray(_cv_bridge.imgmsg_to_cv2(image, 'rgb8'))
    return rgb if may_share else images.copy_if_shared(rgb, image)


def _cv_bridge_reads(image: Image) -> bool:
    # cv_bridge's Python side knows fewer encodings, mis-reads rows whose padding is not a whole
    # number of pixels or is missing in the last row, and fails on foreign byte order with NumPy 2.
    encoding = ENCODING_TABLE[image.encoding]
    pixel = encoding.channels * encoding.bits // 8
    return (
        re.fullmatch(r'(mono|(rgb|bgr)a?|bayer_[rgb]{4})(8|16)|yuv422(_yuy2)?', image.encoding)
        is not None
        and image.step % pixel == 0
        and len(image.data) == image.step * image.height
        and (encoding.bits == 8 or bool(image.is_bigendian) == (sys.byteorder == 'big'))
    )


def _load_cv_bridge():
    try:
        import cv_bridge

        bridge = cv_bridge.CvBridge()
        # Its compiled half is imported at the first conversion, and fails there if it was built
        # for another NumPy.
        sample = MAKER.make_image(np.array([[[1, 2, 3]]], np.uint8), 'bgr8', Header())
        works = bridge.imgmsg_to_cv2(sample, 'rgb8').tolist() == [[[3, 2, 1]]]
    except Exception:
        return None
    return bridge if works else None


_cv_bridge = _load_cv_bridge()
