"""Depth images as image_transport's `compressedDepth` sends them: PNG or RVL behind a header."""

import struct

import cv2
import numpy as np

from cliptrase_ros.messages.depth import (
    DEPTH_ENCODINGS,
    check_depth,
    depth_in_metres,
    only_measured,
)
from cliptrase_ros.messages.images import MAX_PIXELS, ImageError, check_size
from cliptrase_ros.messages.picture_headers import picture_size
from cliptrase_ros.messages.rvl import decode_rvl
from cliptrase_ros.messages.type_names import COMPRESSED_IMAGE, IMAGE, Message

# What kind of compression, and the two parameters of the quantisation of floats.
_HEADER = struct.Struct('<iff')
_RVL_SIZE = struct.Struct('<II')


def is_compressed_depth(image: Message) -> bool:
    """Whether a sensor_msgs/CompressedImage is meant for depth, be it readable or not."""
    return 'compressedDepth' in image.format


def check_compressed_depth(image: Message, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse what `decompress_depth` could not read, in microseconds and without decoding.

    Args:
        image: sensor_msgs/CompressedImage.

    Raises:
        ImageError: Another format, a header that is cut short or makes no sense, a PNG that is cut
            short, or a size that is not believed.
    """
    encoding, codec = _split_format(image.format)
    data = bytes(image.data)
    _quantisation(data, encoding)
    check_size(*_size(data[_HEADER.size :], codec), max_pixels)


def decompress_depth(image: Message, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Depth along the optical axis.

    Args:
        image: sensor_msgs/CompressedImage whose `format` begins with 16UC1 (millimetres) or 32FC1
            (metres, of which the inverse was compressed in steps).

    Returns:
        float32 (H, W), metres, NaN where nothing was measured.

    Raises:
        ImageError: As `check_compressed_depth`, or data that cannot be decoded.
    """
    check_compressed_depth(image, max_pixels)
    encoding, codec = _split_format(image.format)
    data = bytes(image.data)
    stored = _decode(data[_HEADER.size :], codec)
    depth = stored.astype(np.float32)
    if DEPTH_ENCODINGS[encoding].is_float:
        steps, offset = _quantisation(data, encoding)
        depth -= np.float32(offset)
        with np.errstate(divide='ignore', over='ignore'):
            np.divide(np.float32(steps), depth, out=depth)
        depth[stored == 0] = np.nan
    else:
        depth *= np.float32(1e-3)
    return only_measured(depth)


def _split_format(text: str) -> tuple[str, str]:
    """Encoding and codec, 'png' or 'rvl', of a format: `16UC1; compressedDepth rvl`."""
    encoding, _, rest = (part.strip() for part in text.partition(';'))
    kind, _, codec = rest.partition(' ')
    # Old versions know nothing but PNG, and name it not.
    codec = codec.strip() or 'png'
    if encoding not in DEPTH_ENCODINGS or kind != 'compressedDepth' or codec not in ('png', 'rvl'):
        raise ImageError(
            f"format {text[:60]!r} is not known as compressed depth; it should be '16UC1; "
            "compressedDepth png', with 32FC1 or rvl in its place"
        )
    return encoding, codec


def _quantisation(data: bytes, encoding: str) -> tuple[float, float]:
    """Numerator and offset by which floats were turned into 16 bits, from the header."""
    if len(data) <= _HEADER.size:
        raise ImageError(
            f'{len(data)} bytes of compressed depth, whose header alone takes {_HEADER.size}'
        )
    _, steps, offset = _HEADER.unpack_from(data)
    if DEPTH_ENCODINGS[encoding].is_float and not (0 < steps < np.inf and np.isfinite(offset)):
        raise ImageError(
            f'compressed depth whose header has quantisation {steps:g}, {offset:g}; no depth can '
            "be read of it, look at the publisher's depth_quantization and depth_max"
        )
    return steps, offset


def _size(data: bytes, codec: str) -> tuple[int, int]:
    """Width and height of what follows the header, from its own."""
    if codec == 'rvl':
        if len(data) < _RVL_SIZE.size:
            raise ImageError(f'{len(data)} bytes of RVL, whose header alone takes {_RVL_SIZE.size}')
        return _RVL_SIZE.unpack_from(data)
    try:
        size = picture_size(data) if data.startswith(b'\x89PNG') else None
    except ValueError as error:
        raise ImageError(f'compressed depth with {error}') from None
    if size is None:
        raise ImageError('compressed depth without a PNG behind its header')
    return size


def _decode(data: bytes, codec: str) -> np.ndarray:
    """uint16 (H, W) of what `_size` has read."""
    width, height = _size(data, codec)
    octets = np.frombuffer(data, np.uint8)
    try:
        if codec == 'rvl':
            return decode_rvl(octets[_RVL_SIZE.size :], width * height).reshape(height, width)
        pixels = cv2.imdecode(octets, cv2.IMREAD_UNCHANGED)
    except (ValueError, cv2.error) as error:
        raise ImageError(f'compressed depth cannot be read: {error}') from error
    if pixels is None:
        raise ImageError('compressed depth is a PNG that cannot be read')
    if pixels.shape != (height, width) or pixels.dtype != np.uint16:
        raise ImageError(
            f'compressed depth is a PNG of {pixels.shape} x {pixels.dtype}, not of 16 bits a pixel'
        )
    return pixels


#: By type of the message: what refuses a depth image, and what reads it.
DEPTH_READERS = {
    IMAGE: (check_depth, depth_in_metres),
    COMPRESSED_IMAGE: (check_compressed_depth, decompress_depth),
}
