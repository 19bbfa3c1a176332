"""Pixels of image messages, without any ROS.

Functions here use the fields of a message and do not ask for its class, so that messages of rclpy
and messages read from a recording both will do. `data` may be anything with the buffer protocol.
`max_pixels` is always width x height of the largest image that is believed.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np

from cliptrase_ros.messages.picture_headers import picture_size
from cliptrase_ros.messages.type_names import Message

#: Longest side of an image that is believed, pixels; above, a header is taken for corrupt.
MAX_SIDE = 16384
#: Most pixels of an image that are believed (an 8K frame has 33 million).
MAX_PIXELS = 64_000_000
#: Most rows below the picture that decoders add to a plane, in multiples of which they work.
MAX_EXTRA_ROWS = 64
#: Fewest grey levels of 256 in which a picture of 16 bits can still be seen.
MIN_LEVELS = 8


class ImageError(ValueError):
    """An image message that cannot be used; the message says what is wrong with it."""


def header_stamp_ns(header: Message) -> int:
    """Stamp of a std_msgs/Header, nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


@dataclass(frozen=True)
class Encoding:
    """How an encoding lies in memory, and what turns it into RGB.

    Attributes:
        channels: Samples of one pixel as stored.
        bits: Of one sample.
        code: OpenCV's conversion to RGB, None for RGB itself.
        even_width: Whether neighbours in a row share chroma, so that they must come in pairs.
        even_height: The same of neighbours in a column.
        planes: Rows of the buffer for one row of the image: 1.5 with half-size chroma below.
        min_side: Shortest side that can be converted, pixels.
        is_float: Whether samples are floats.
    """

    channels: int
    bits: int = 8
    code: int | None = None
    even_width: bool = False
    even_height: bool = False
    planes: float = 1.0
    min_side: int = 1
    is_float: bool = False


def _encodings() -> dict[str, Encoding]:
    table = {
        'yuv422': Encoding(2, code=cv2.COLOR_YUV2RGB_UYVY, even_width=True),
        'yuv422_yuy2': Encoding(2, code=cv2.COLOR_YUV2RGB_YUY2, even_width=True),
        'nv12': Encoding(
            1, code=cv2.COLOR_YUV2RGB_NV12, even_width=True, even_height=True, planes=1.5
        ),
        'nv21': Encoding(
            1, code=cv2.COLOR_YUV2RGB_NV21, even_width=True, even_height=True, planes=1.5
        ),
    }
    for bits in (8, 16):
        table[f'mono{bits}'] = Encoding(1, bits, cv2.COLOR_GRAY2RGB)
        table[f'rgb{bits}'] = Encoding(3, bits)
        table[f'bgr{bits}'] = Encoding(3, bits, cv2.COLOR_BGR2RGB)
        table[f'rgba{bits}'] = Encoding(4, bits, cv2.COLOR_RGBA2RGB)
        table[f'bgra{bits}'] = Encoding(4, bits, cv2.COLOR_BGRA2RGB)
        # ROS names the first two pixels of the first row, OpenCV those of the second row.
        for pattern, code in (
            ('rggb', cv2.COLOR_BayerBG2RGB),
            ('bggr', cv2.COLOR_BayerRG2RGB),
            ('gbrg', cv2.COLOR_BayerGR2RGB),
            ('grbg', cv2.COLOR_BayerGB2RGB),
        ):
            # Smaller than its 3 x 3 window, OpenCV leaves a mosaic black.
            table[f'bayer_{pattern}{bits}'] = Encoding(1, bits, code, min_side=3)
    # Newer names of the same formats.
    table['uyvy'] = table['yuv422']
    table['yuyv'] = table['yuv422_yuy2']
    # Bare OpenCV types carry no order of colours; OpenCV's own is BGR.
    table['8UC1'], table['8UC3'], table['8UC4'] = table['mono8'], table['bgr8'], table['bgra8']
    return table


#: By name, as sensor_msgs/image_encodings.hpp has it.
ENCODING_TABLE = _encodings()
#: Every encoding `to_rgb` understands.
ENCODINGS = tuple(sorted(ENCODING_TABLE))
_LISTED = ', '.join(ENCODINGS)

#: Encodings of numbers without a word about what they mean, such as depth.
MEASUREMENTS = re.compile(r'(8S|16[US]|32[SF]|64F)C\d')
# Codecs whose frames need the ones before them.
_VIDEO = re.compile(r'\b(h\.?26[456]|hevc|avc|av1|vp[89]|mpeg\d?|theora)\b', re.IGNORECASE)
_NO_PICTURE = (
    'depth, or what a sensor counts (a thermal camera, say); publish mono8, or mono16 scaled to '
    '0..65535'
)


def check_image(image: Message, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image that `to_rgb` could not read, in microseconds and without touching pixels.

    Raises:
        ImageError: Width or height zero or absurd, an encoding that is not known or not a picture,
            `step` shorter than a row, or fewer data than the header promises.
    """
    check_size(image.width, image.height, max_pixels)
    encoding = ENCODING_TABLE.get(image.encoding)
    if encoding is None:
        is_measured = MEASUREMENTS.match(image.encoding)
        advice = f' but as {_NO_PICTURE}' if is_measured else f'; publish one of {_LISTED}'
        raise ImageError(f'encoding {image.encoding[:40]!r} is not known as a picture{advice}')
    check_layout(image, encoding)


def check_layout(image: Message, encoding: Encoding) -> None:
    """Refuse an image whose size, step and data do not fit together. Raises ImageError."""
    size = f'{image.width} x {image.height}'
    _check_sides(image.encoding, encoding, image.width, image.height)
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
    # Less than a page may follow, as buffers of drivers have it.
    extra = len(image.data) - image.step * rows
    if encoding.planes > 1 and extra >= 4096 and _luma_rows(image, encoding) == image.height:
        raise ImageError(
            f'{image.encoding} image of {size} pixels with step {image.step} and {extra} bytes too '
            'many to tell where its chroma begins; publish it without rows below the picture'
        )


def _check_sides(name: str, encoding: Encoding, width: int, height: int) -> None:
    size = f'{name} image of {width} x {height} pixels'
    if (encoding.even_width and width % 2) or (encoding.even_height and height % 2):
        raise ImageError(f'{size}; its chroma needs even sides')
    if min(width, height) < encoding.min_side:
        raise ImageError(f'{size}; its mosaic needs {encoding.min_side} x {encoding.min_side}')


def _luma_rows(image: Message, encoding: Encoding) -> int:
    """Rows of brightness before the chroma: hardware decoders add some below the picture."""
    rows, rest = divmod(len(image.data), image.step)
    padded, odd = divmod(rows, encoding.planes)
    is_padded = not rest and not odd and image.height <= padded < image.height + MAX_EXTRA_ROWS
    return int(padded) if is_padded else image.height


def stored_pixels(image: Message, encoding: Encoding) -> np.ndarray:
    """Pixels of an image that `check_layout` has passed, just as they are stored.

    Returns:
        uint8, uint16 or float32 in the byte order of the message: (H, W), (H, W, C), or, of chroma
        in planes of their own, (1.5 H, W). The array shares the memory of the message, unless rows
        between the planes had to be left out.
    """
    order = '>' if image.is_bigendian else '<'
    dtype = np.dtype(f'{order}{"f" if encoding.is_float else "u"}{encoding.bits // 8}')
    luma_rows = _luma_rows(image, encoding)
    pixels = np.ndarray(
        (int(luma_rows * encoding.planes), image.width, encoding.channels),
        dtype,
        image.data,
        strides=(image.step, encoding.channels * dtype.itemsize, dtype.itemsize),
    )
    if luma_rows > image.height:
        chroma_rows = int(image.height * (encoding.planes - 1))
        luma, chroma = pixels[: image.height], pixels[luma_rows : luma_rows + chroma_rows]
        pixels = np.concatenate([luma, chroma])
    return pixels[..., 0] if encoding.channels == 1 else pixels


def to_rgb(image: Message, max_pixels: int = MAX_PIXELS, may_share: bool = False) -> np.ndarray:
    """Picture of a sensor_msgs/Image.

    Honours `step` and `is_bigendian`. 16 bits are scaled to 8 as cv_bridge does (65535 to 255,
    rounded).

    Args:
        may_share: Whether the result may be the message's own memory, where that is RGB without
            padding. It then changes with the message.

    Returns:
        uint8 (H, W, 3) RGB, contiguous.

    Raises:
        ImageError: As `check_image` and `check_levels`.
    """
    check_image(image, max_pixels)
    encoding = ENCODING_TABLE[image.encoding]
    stored = stored_pixels(image, encoding)
    # A copy only where rows are padded or bytes are in foreign order.
    pixels = np.ascontiguousarray(stored, stored.dtype.newbyteorder('='))
    check_levels(pixels, encoding)
    rgb = _convert_to_rgb(pixels, encoding)
    return rgb if may_share else copy_if_shared(rgb, image)


def check_levels(pixels: np.ndarray, encoding: Encoding) -> None:
    """Refuse a mono16 picture of which 8 bits would show next to nothing. Raises ImageError.

    Sensors of 10 to 14 bits, thermal cameras above all, put their counts into 16 bits as they are.
    What has no contrast in 16 bits either passes: a wall, a covered lens.
    """
    if encoding != ENCODING_TABLE['mono16']:
        return
    low, high = int(pixels.min()), int(pixels.max())
    if 256 <= high - low < 256 * MIN_LEVELS:
        raise ImageError(
            f'mono16 image of {low} to {high} where 0 is black and 65535 white: nothing could be '
            'seen in it; publish it scaled to that range, or as mono8'
        )


def _convert_to_rgb(pixels: np.ndarray, encoding: Encoding) -> np.ndarray:
    if encoding.code is not None:
        pixels = cv2.cvtColor(pixels, encoding.code)
    return cv2.convertScaleAbs(pixels, alpha=255 / 65535) if encoding.bits == 16 else pixels


def copy_if_shared(pixels: np.ndarray, image: Message) -> np.ndarray:
    """Copy pixels that lie in the memory of the message; return others as they are."""
    return pixels.copy() if np.may_share_memory(pixels, image.data) else pixels


def check_compressed(image: Message) -> None:
    """Refuse a compressed image whose `format` names depth, counts or video. Raises ImageError."""
    original, codec, _ = _split_format(image.format)
    if 'compressedDepth' in codec or MEASUREMENTS.match(original):
        raise ImageError(f'format {image.format[:60]!r} is {_NO_PICTURE}')
    if _VIDEO.search(image.format):
        raise ImageError(
            f'format {image.format[:60]!r} is video, of which one message alone is no picture; '
            'publish it as FFMPEGPacket or CompressedVideo (transport ffmpeg or foxglove), let the '
            'camera send JPEG, or decode it into sensor_msgs/Image'
        )


def check_compressed_stream(image: Message, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse what `decompress_to_rgb` could not read, in microseconds and without decoding.

    Stricter than `decompress_to_rgb`: only JPEG and PNG pass, whose size is known before memory is
    taken for them.

    Raises:
        ImageError: Anything but a complete JPEG or PNG of a believable size.
    """
    check_compressed(image)
    if _size_before_decoding(image, max_pixels) is None:
        raise ImageError(
            f'{len(image.data)} bytes of format {image.format[:60]!r} are neither JPEG nor PNG; '
            "set the camera's format (of image_transport: its parameter ending in "
            'compressed.format) to jpeg or png, or have the images decoded and take those'
        )


def decompress_to_rgb(image: Message, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Picture of a sensor_msgs/CompressedImage: JPEG, PNG or anything else OpenCV reads.

    Colours are as the file has them, unless `format` says that they are those of the raw image.

    Returns:
        uint8 (H, W, 3) RGB, contiguous.

    Raises:
        ImageError: As `check_compressed` and `check_levels`, or data that cannot be read.
    """
    check_compressed(image)
    promised = _size_before_decoding(image, max_pixels)
    data = np.frombuffer(image.data, np.uint8)
    try:
        # Not turned by the orientation in its EXIF data: other readers of the topic do not turn
        # it either, and labels must lie on their pixels.
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error as error:
        raise ImageError(f'compressed image cannot be read: {error.err}') from error
    if pixels is None or promised not in (None, pixels.shape[1::-1]):
        raise ImageError(
            f'{data.size} bytes of format {image.format[:60]!r} cannot be read as an image'
        )
    check_size(pixels.shape[1], pixels.shape[0], max_pixels)
    encoding = _decoded_encoding(image.format, pixels)
    check_levels(pixels, encoding)
    return _convert_to_rgb(pixels, encoding)


def _split_format(text: str) -> tuple[str, str, str]:
    """Split `format` into encoding of the raw image, codec, and encoding of what was compressed.

    image_transport writes `ENCODING; CODEC compressed ENCODING`, the last one often empty. Drivers
    that compress by themselves write the codec alone, or what they like.
    """
    original, _, rest = text.partition(';')
    codec, _, target = rest.strip().partition(' compressed')
    return original.strip(), codec, target.strip()


def _decoded_encoding(format: str, pixels: np.ndarray) -> Encoding:
    """Tell what decoded pixels are: grey, BGR or BGRA as in any file, or as the raw image had them.

    image_transport turns images into BGR or grey before it compresses them, and says so at the end
    of the format. It leaves as they are: mosaics in PNG, in JPEG by old versions or if asked for,
    and everything in TIFF.
    """
    original, codec, target = _split_format(format)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits = 8 * pixels.itemsize
    if (original.startswith('bayer_') or codec == 'tiff') and target in ('', original):
        # JPEG keeps 8 bits of 16.
        encoding = ENCODING_TABLE.get(re.sub(r'(8|16)$', str(bits), original))
        if encoding is not None and (encoding.channels, encoding.planes) == (channels, 1):
            _check_sides(original, encoding, *pixels.shape[1::-1])
            return encoding
    usual = {1: 'mono', 3: 'bgr', 4: 'bgra'}.get(channels)
    if usual is None or pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f'format {format[:60]!r} with {channels} x {pixels.dtype} a pixel is {_NO_PICTURE}'
        )
    return ENCODING_TABLE[f'{usual}{bits}']


def _size_before_decoding(image: Message, max_pixels: int) -> tuple[int, int] | None:
    # Before decoding, because a few hundred bytes can ask for gigabytes of pixels.
    try:
        size = picture_size(bytes(image.data))
    except ValueError as error:
        raise ImageError(f'{len(image.data)} bytes that are {error}') from None
    if size is not None:
        check_size(*size, max_pixels)
    return size


def compress_label(label: np.ndarray) -> bytes:
    """PNG of a label image, uint8 (H, W). Lossless, fast rather than small."""
    return _encode('.png', label, cv2.IMWRITE_PNG_COMPRESSION, 1)


def compress_picture(rgb: np.ndarray, quality: int = 95) -> bytes:
    """JPEG of a picture, uint8 (H, W, 3) RGB, of a quality of 1 to 100."""
    return _encode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), cv2.IMWRITE_JPEG_QUALITY, quality)


def _encode(suffix: str, pixels: np.ndarray, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise ImageError(f'an array of shape {pixels.shape} cannot be compressed')
    return data.tobytes()


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a size that is nothing, absurd, or above the limit. Raises ImageError."""
    if width == 0 or height == 0:
        raise ImageError(
            f'image of {width} x {height} pixels; the camera has to fill in width and height'
        )
    if max(width, height) > MAX_SIDE or width * height > max_pixels:
        raise ImageError(
            f'image of {width} x {height} pixels is larger than {MAX_SIDE} on a side or '
            f'{max_pixels / 1_000_000:g} megapixels; its header is probably corrupt'
        )


def mono8(image: Message) -> np.ndarray:
    """Pixels of a mono8 message, such as a label image: uint8 (H, W), a view into the message.

    Raises:
        ImageError: Another encoding, or as `check_image`.
    """
    check_image(image)
    if image.encoding != 'mono8':
        raise ImageError(f'encoding {image.encoding[:40]!r}, which should be mono8')
    return stored_pixels(image, ENCODING_TABLE['mono8'])
