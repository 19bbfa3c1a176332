"""ROS messages to arrays and back, without a loop over pixels."""

import re
import sys
from array import array
from dataclasses import asdict

import numpy as np
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import ColorRGBA, Header

from cliptrase_ros import image_messages, msg
from cliptrase_ros.image_messages import (
    ENCODING_TABLE,
    ENCODINGS,
    ImageError,
    check_image,
    decode_mask,
    mask_run_lengths,
)
from cliptrase_ros.segmentation.segmenter import Segmentation
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import Vocabulary

__all__ = [
    'ENCODINGS',
    'ImageError',
    'check_image',
    'decode_mask',
    'encode_mask',
    'image_message',
    'masks_message',
    'to_rgb',
    'vocabulary_message',
]


def to_rgb(image: Image) -> np.ndarray:
    """Picture of a sensor_msgs/Image as a contiguous uint8 (H, W, 3) RGB array.

    Honours `step` and `is_bigendian`. 16 bits are scaled to 8 as cv_bridge does (65535 to 255,
    rounded). Raises ImageError as `check_image`.
    """
    check_image(image)
    if _cv_bridge is not None and _cv_bridge_reads(image):
        return np.ascontiguousarray(_cv_bridge.imgmsg_to_cv2(image, 'rgb8'))
    return image_messages.to_rgb(image)


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
    # An array('B') is taken as it is; anything else is checked byte by byte.
    data = array('B')
    data.frombytes(memoryview(pixels).cast('B'))
    image.data = data
    return image


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
    message.masks = [
        msg.ClassMask(
            class_id=present.entry.id,
            class_name=present.entry.name,
            confidence=present.confidence,
            area=present.area,
            **encode_mask(label == present.entry.id),
        )
        for present in classes_present(Segmentation(label, confidence, vocabulary))
    ]
    return message


def encode_mask(mask: np.ndarray) -> dict:
    """Bounding box and run lengths of a mask, as fields of cliptrase_ros/ClassMask.

    mask: bool (H, W) with at least one pixel set.
    Returns `roi` (sensor_msgs/RegionOfInterest) and `run_lengths` (array('I')).
    """
    box, lengths = mask_run_lengths(mask)
    # An array('I') is taken as it is; anything else is checked number by number.
    run_lengths = array('I')
    run_lengths.frombytes(lengths.tobytes())
    return {'roi': RegionOfInterest(**asdict(box)), 'run_lengths': run_lengths}


_cv_bridge = _load_cv_bridge()
