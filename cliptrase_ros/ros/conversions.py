"""ROS messages to arrays and back, without a loop over pixels."""

import re
import sys
from array import array

import numpy as np
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import ColorRGBA, Header

from cliptrase_ros import msg
from cliptrase_ros.messages import images
from cliptrase_ros.messages.images import (
    ENCODING_TABLE,
    ENCODINGS,
    MAX_PIXELS,
    Box,
    ImageError,
    check_compressed_stream,
    check_image,
    compress_label,
    compress_picture,
    decode_mask,
    decompress_to_rgb,
    label_run_lengths,
)
from cliptrase_ros.segmentation.run_lengths import find_runs
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import Vocabulary

try:
    from sensor_msgs_py.point_cloud2 import create_cloud as _create_cloud
except ImportError:
    _create_cloud = None

__all__ = [
    'ENCODINGS',
    'ImageError',
    'check_compressed_stream',
    'check_image',
    'compressed_label_message',
    'compressed_picture_message',
    'decode_mask',
    'decompress_to_rgb',
    'image_message',
    'masks_message',
    'points_message',
    'to_rgb',
    'vocabulary_message',
]


def to_rgb(image: Image, max_pixels: int = MAX_PIXELS, may_share: bool = False) -> np.ndarray:
    """Picture of a sensor_msgs/Image as a contiguous uint8 (H, W, 3) RGB array.

    may_share: whether it may be the message's own bytes, where they are RGB without padding.
    Honours `step` and `is_bigendian`. 16 bits are scaled to 8 as cv_bridge does (65535 to 255,
    rounded). Raises ImageError as `check_image` and `check_levels`.
    """
    check_image(image, max_pixels)
    if _cv_bridge is not None and _cv_bridge_reads(image):
        encoding = ENCODING_TABLE[image.encoding]
        images.check_levels(images.pixels_of(image, encoding), encoding)
        pixels = np.ascontiguousarray(_cv_bridge.imgmsg_to_cv2(image, 'rgb8'))
        return pixels if may_share else images.apart_from(image, pixels)
    return images.to_rgb(image, max_pixels, may_share)


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
        sample = image_message(np.array([[[1, 2, 3]]], np.uint8), 'bgr8', Header())
        works = bridge.imgmsg_to_cv2(sample, 'rgb8').tolist() == [[[3, 2, 1]]]
    except Exception:
        return None
    return bridge if works else None


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Make a sensor_msgs/Image without row padding.

    pixels: (H, W) or (H, W, C) array of the encoding's type. header: used as it is.
    """
    pixels = np.ascontiguousarray(pixels)
    image = Image(header=header, encoding=encoding)
    image.height, image.width = pixels.shape[:2]
    image.is_bigendian = int(pixels.dtype.itemsize > 1 and sys.byteorder == 'big')
    image.step = pixels.nbytes // image.height
    image.data = _bytes(memoryview(pixels).cast('B'))
    return image


def _bytes(data: bytes | memoryview) -> array:
    # An array('B') is taken as it is; anything else is checked byte by byte.
    copy = array('B')
    copy.frombytes(data)
    return copy


def compressed_label_message(label: np.ndarray, header: Header) -> CompressedImage:
    """Make a sensor_msgs/CompressedImage, PNG, as image_transport's `compressed` reads it.

    label: uint8 (H, W). Never JPEG, which changes ids.
    """
    message = CompressedImage(header=header, format='mono8; png compressed ')
    message.data = _bytes(compress_label(label))
    return message


def compressed_picture_message(rgb: np.ndarray, header: Header) -> CompressedImage:
    """Make a sensor_msgs/CompressedImage, JPEG, as camera drivers do.

    rgb: uint8 (H, W, 3).
    """
    message = CompressedImage(header=header, format='rgb8; jpeg compressed bgr8')
    message.data = _bytes(compress_picture(rgb))
    return message


def points_message(points: np.ndarray, header: Header) -> PointCloud2:
    """Make an organised sensor_msgs/PointCloud2.

    points: structured array (H, W) of float32 and uint32 fields.
    """
    points = np.ascontiguousarray(points)
    if _create_cloud is not None:
        # As a list: what it makes of two dimensions has rows and columns the other way round.
        cloud = _create_cloud(header, point_fields(points.dtype), points.ravel())
    else:
        cloud = PointCloud2(header=header, fields=point_fields(points.dtype))
        cloud.point_step = points.dtype.itemsize
        cloud.is_bigendian = sys.byteorder == 'big'
        cloud.data = _bytes(memoryview(points).cast('B'))
    cloud.height, cloud.width = points.shape
    cloud.row_step = cloud.point_step * cloud.width
    # Pixels without depth are not a number.
    cloud.is_dense = False
    return cloud


def point_fields(dtype: np.dtype) -> list[PointField]:
    """Fields of a structured dtype of float32 and uint32."""
    datatypes = {'f': PointField.FLOAT32, 'u': PointField.UINT32}
    return [
        PointField(name=name, offset=offset, datatype=datatypes[kind.kind], count=1)
        for name, (kind, offset) in dtype.fields.items()
    ]


def vocabulary_message(vocabulary: Vocabulary, header: Header) -> 'msg.Vocabulary':
    """Make a cliptrase_ros/Vocabulary message."""
    return msg.Vocabulary(
        header=header,
        version=vocabulary.version,
        classes=[
            msg.VocabularyClass(
                id=c.id,
                name=c.name,
                synonyms=list(c.synonyms),
                color=_color(c.color),
            )
            for c in vocabulary.classes
        ],
        background=list(vocabulary.background),
    )


def _color(rgb: tuple[int, int, int]) -> ColorRGBA:
    red, green, blue = (value / 255.0 for value in rgb)
    return ColorRGBA(r=red, g=green, b=blue, a=1.0)


def masks_message(
    label: np.ndarray, confidence: np.ndarray, vocabulary: Vocabulary, header: Header
) -> 'msg.ClassMasks':
    """Make a cliptrase_ros/ClassMasks message of every class present.

    label: uint8 (H, W) class ids, 255 = unlabelled. confidence: uint8 (H, W), 255 = 1.0.
    """
    message = msg.ClassMasks(header=header, vocabulary_version=vocabulary.version)
    message.height, message.width = label.shape
    runs = find_runs(label)
    lengths = label_run_lengths(runs)
    message.masks = [
        msg.ClassMask(
            class_id=present.entry.id,
            class_name=present.entry.name,
            confidence=present.confidence,
            area=present.area,
            **_mask_fields(*lengths[present.entry.id]),
        )
        for present in classes_present(Segmentation(label, confidence, vocabulary), runs)
    ]
    return message


def _mask_fields(box: Box, lengths: np.ndarray) -> dict:
    # Taken as it is, as an array('B') of bytes is.
    run_lengths = array('I')
    run_lengths.frombytes(lengths.view(np.uint8))
    return {'roi': RegionOfInterest(**vars(box)), 'run_lengths': run_lengths}


_cv_bridge = _load_cv_bridge()
