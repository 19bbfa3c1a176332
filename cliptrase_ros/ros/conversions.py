"""ROS messages to arrays and back, without a loop over pixels."""

import re
import sys
from array import array
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import ColorRGBA, Header

from cliptrase_ros import msg
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, Vocabulary

#: Longest side of an image that is believed, pixels; above, a header is taken for corrupt.
MAX_SIDE = 16384
#: Most pixels of an image that are believed (an 8K frame has 33 million).
MAX_PIXELS = 64_000_000


class ImageError(ValueError):
    """An image message that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class _Encoding:
    """How an encoding lies in memory, and what turns it into RGB.

    channels, bits: of one pixel as stored. code: OpenCV's conversion, None for RGB itself.
    even_width, even_height: of formats whose chroma is shared between neighbours.
    planes: rows of the buffer for one row of the image (1.5 for half-size chroma below).
    """

    channels: int
    bits: int = 8
    code: int | None = None
    even_width: bool = False
    even_height: bool = False
    planes: float = 1.0
    min_side: int = 1


def _encodings() -> dict[str, _Encoding]:
    table = {
        'yuv422': _Encoding(2, code=cv2.COLOR_YUV2RGB_UYVY, even_width=True),
        'yuv422_yuy2': _Encoding(2, code=cv2.COLOR_YUV2RGB_YUY2, even_width=True),
        'nv12': _Encoding(
            1, code=cv2.COLOR_YUV2RGB_NV12, even_width=True, even_height=True, planes=1.5
        ),
        'nv21': _Encoding(
            1, code=cv2.COLOR_YUV2RGB_NV21, even_width=True, even_height=True, planes=1.5
        ),
    }
    for bits in (8, 16):
        table[f'mono{bits}'] = _Encoding(1, bits, cv2.COLOR_GRAY2RGB)
        table[f'rgb{bits}'] = _Encoding(3, bits)
        table[f'bgr{bits}'] = _Encoding(3, bits, cv2.COLOR_BGR2RGB)
        table[f'rgba{bits}'] = _Encoding(4, bits, cv2.COLOR_RGBA2RGB)
        table[f'bgra{bits}'] = _Encoding(4, bits, cv2.COLOR_BGRA2RGB)
        # ROS names the first two pixels of the first row, OpenCV those of the second row.
        for pattern, code in (
            ('rggb', cv2.COLOR_BayerBG2RGB),
            ('bggr', cv2.COLOR_BayerRG2RGB),
            ('gbrg', cv2.COLOR_BayerGR2RGB),
            ('grbg', cv2.COLOR_BayerGB2RGB),
        ):
            # Smaller than its 3 x 3 window, OpenCV leaves a mosaic black.
            table[f'bayer_{pattern}{bits}'] = _Encoding(1, bits, code, min_side=3)
    # Newer names of the same formats.
    table['uyvy'] = table['yuv422']
    table['yuyv'] = table['yuv422_yuy2']
    # Bare OpenCV types carry no order of colours; OpenCV's own is BGR.
    table['8UC1'], table['8UC3'], table['8UC4'] = table['mono8'], table['bgr8'], table['bgra8']
    return table


_ENCODINGS = _encodings()

#: Every encoding `to_rgb` understands (sensor_msgs/image_encodings.hpp).
ENCODINGS = tuple(sorted(_ENCODINGS))


def check_image(image: Image) -> None:
    """Refuse an image that `to_rgb` could not read, in microseconds and without touching pixels.

    Raises ImageError: width or height zero or absurd, an encoding that is not known or not a
    picture, `step` shorter than a row, fewer data than the header promises.
    """
    size = f'{image.width} x {image.height}'
    encoding = _ENCODINGS.get(image.encoding)
    if image.width == 0 or image.height == 0:
        raise ImageError(f'image of {size} pixels; the camera has to fill in width and height')
    if max(image.width, image.height) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f'image of {size} pixels is larger than {MAX_SIDE} on a side or '
            f'{MAX_PIXELS // 1_000_000} megapixels; its header is probably corrupt'
        )
    if encoding is None:
        raise ImageError(
            f'encoding {image.encoding[:40]!r} is not known as a picture; '
            f'publish one of {", ".join(ENCODINGS)}'
        )
    if (encoding.even_width and image.width % 2) or (encoding.even_height and image.height % 2):
        raise ImageError(f'{image.encoding} image of {size} pixels; its chroma needs even sides')
    if min(image.width, image.height) < encoding.min_side:
        raise ImageError(
            f'{image.encoding} image of {size} pixels; its mosaic needs '
            f'{encoding.min_side} x {encoding.min_side}'
        )
    row = image.width * encoding.channels * encoding.bits // 8
    if image.step < row:
        raise ImageError(
            f'step is {image.step} bytes, but a row of {image.width} {image.encoding} pixels '
            f'takes {row}'
        )
    # The last row may come without its padding.
    rows = int(image.height * encoding.planes)
    needed = image.step * (rows - 1) + row
    if len(image.data) < needed:
        raise ImageError(
            f'{len(image.data)} bytes of data, but {size} {image.encoding} pixels with step '
            f'{image.step} take {needed}'
        )


def to_rgb(image: Image) -> np.ndarray:
    """Picture of a sensor_msgs/Image as a contiguous uint8 (H, W, 3) RGB array.

    Honours `step` and `is_bigendian`. 16 bits are scaled to 8 as cv_bridge does (65535 to 255,
    rounded). Raises ImageError as `check_image`.
    """
    check_image(image)
    if _cv_bridge is not None and _cv_bridge_reads(image):
        return np.ascontiguousarray(_cv_bridge.imgmsg_to_cv2(image, 'rgb8'))
    return _to_rgb(image)


def _to_rgb(image: Image) -> np.ndarray:
    encoding = _ENCODINGS[image.encoding]
    dtype = np.dtype(np.uint8)
    if encoding.bits == 16:
        dtype = np.dtype('>u2' if image.is_bigendian else '<u2')
    rows = int(image.height * encoding.planes)
    # A view; only the conversion copies.
    pixels = np.ndarray(
        (rows, image.width, encoding.channels),
        dtype,
        image.data,
        strides=(image.step, encoding.channels * dtype.itemsize, dtype.itemsize),
    )
    if encoding.channels == 1:
        pixels = pixels[..., 0]
    pixels = np.ascontiguousarray(pixels, dtype.newbyteorder('='))
    if encoding.code is not None:
        pixels = cv2.cvtColor(pixels, encoding.code)
    if encoding.bits == 16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    # Never a view into the message: what is labelled must not change under the engine.
    return pixels.copy() if np.may_share_memory(pixels, image.data) else pixels


def _cv_bridge_reads(image: Image) -> bool:
    # cv_bridge's Python side knows fewer encodings, mis-reads rows whose padding is not a whole
    # number of pixels or is missing in the last row, and fails on foreign byte order with NumPy 2.
    encoding = _ENCODINGS[image.encoding]
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
    area = np.bincount(label.ravel(), minlength=256)
    total = np.bincount(label.ravel(), weights=confidence.ravel(), minlength=256)
    message.masks = [
        msg.ClassMask(
            class_id=class_id,
            class_name=vocabulary.name_of(class_id),
            confidence=float(total[class_id] / area[class_id] / 255.0),
            area=int(area[class_id]),
            **encode_mask(label == class_id),
        )
        for class_id in np.flatnonzero(area).tolist()
        if class_id != UNLABELLED
    ]
    return message


def encode_mask(mask: np.ndarray) -> dict:
    """Bounding box and run lengths of a mask, as fields of cliptrase_ros/ClassMask.

    mask: bool (H, W) with at least one pixel set.
    Returns `roi` (sensor_msgs/RegionOfInterest) and `run_lengths` (array('I')).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = mask[top:bottom, left:right].ravel()
    changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    # The first run is of zeros, so one of length 0 stands before a mask that begins with ones.
    edges = np.concatenate(([0, 0] if inside[0] else [0], changes, [inside.size]))
    lengths = array('I')
    lengths.frombytes(np.diff(edges).astype(np.uint32).tobytes())
    roi = RegionOfInterest(
        x_offset=int(left), y_offset=int(top), width=int(right - left), height=int(bottom - top)
    )
    return {'roi': roi, 'run_lengths': lengths}


def decode_mask(mask: 'msg.ClassMask', height: int, width: int) -> np.ndarray:
    """Pixels of one class: bool (height, width), True where the class is.

    height, width: those of the cliptrase_ros/ClassMasks message the mask came in.
    Raises ValueError where roi, run lengths and size do not fit together.
    """
    roi, lengths = mask.roi, np.asarray(mask.run_lengths, np.int64)
    if roi.x_offset + roi.width > width or roi.y_offset + roi.height > height:
        raise ValueError(f'a roi that reaches out of an image of {width} x {height} pixels')
    if lengths.sum() != roi.height * roi.width:
        raise ValueError(
            f'run lengths add up to {lengths.sum()}, the roi has {roi.height * roi.width} pixels'
        )
    ones = np.arange(lengths.size) % 2 == 1
    pixels = np.zeros((height, width), bool)
    pixels[roi.y_offset : roi.y_offset + roi.height, roi.x_offset : roi.x_offset + roi.width] = (
        np.repeat(ones, lengths).reshape(roi.height, roi.width)
    )
    return pixels


_cv_bridge = _load_cv_bridge()
