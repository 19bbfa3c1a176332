"""Pixels of photos."""

import functools
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

#: Suffixes of raw photos, which cannot be read: they look like TIFF files of a thumbnail.
RAW_SUFFIXES = (
    *('.dng', '.nef', '.nrw', '.cr2', '.cr3', '.crw', '.arw', '.srf', '.sr2', '.orf', '.rw2'),
    *('.raf', '.pef', '.srw', '.3fr', '.iiq', '.x3f'),
)

# Formats whose files begin in a way that no other file does.
_KNOWN_BY_CONTENT = (
    *('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF', 'QOI'),
)
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')
_AVIF_BRANDS = (b'avif', b'avis')

# What white may be where a sample has more than 8 bits: cameras put 8, 10, 12 or 14 into 16.
_WHITES = (255, 1023, 4095, 16383, 65535)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(Exception):
    """A photo, video or webcam that cannot be read; the message says why."""


def read_photo(path: Path) -> np.ndarray:
    """Read a photo, turned upright as its EXIF data say.

    Of several images in a file the first counts; transparency is left out. Samples that are not
    bytes are scaled by what their values show white to be.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        UnreadableError: It cannot be read.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UnreadableError('it is neither a file nor a folder')
        if path.suffix.lower() in RAW_SUFFIXES:
            raise UnreadableError('it is a raw photo; save it as JPEG, PNG or TIFF')
        with _open(path) as image:
            deep = _has_deep_colours(image)
            image.load()
            pixels = _read_deep_colours(path) if deep else None
            if pixels is None:
                pixels = rgb_pixels(image)
            # Pillow and OpenCV turn TIFF while they load it, and no other format. What is read of
            # its EXIF data here is that it is upright.
            turn = _turn_to_upright(image)
            if turn is None:
                return pixels
            return np.asarray(Image.fromarray(pixels).transpose(turn))
    except UnreadableError:
        raise
    except Exception as error:
        # Decoders raise nearly anything over damaged files.
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UnreadableError(reason) from error


def is_photo(path: Path) -> bool:
    """Whether a file is a photo by its content, whatever its name."""
    try:
        with Image.open(path, formats=_recognised_formats()):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:
        return _read_brand(path) in _HEIC_BRANDS + _AVIF_BRANDS


def photo_format(photo: Path | IO[bytes]) -> str | None:
    """'JPEG' or 'PNG' of a photo that any program shows as `read_photo` reads it; else None.

    Such photos are upright, and have 8 bits a sample.
    """
    try:
        with Image.open(photo, formats=['JPEG', 'PNG']) as image:
            is_deep = image.mode.startswith('I') or _has_deep_colours(image)
            if is_deep or _turn_to_upright(image) is not None:
                return None
            # A JPEG with further pictures behind it, which others do not see.
            return 'JPEG' if image.format == 'MPO' else image.format
    except Exception:
        # Decoders raise nearly anything over damaged files.
        return None


@functools.cache
def _recognised_formats() -> list[str]:
    Image.init()
    return [name for name in _KNOWN_BY_CONTENT if name in Image.OPEN]


def _read_brand(path: Path) -> bytes:
    """What a file of the family of MP4, HEIC and AVIF says it is; of other files any bytes."""
    try:
        with path.open('rb') as file:
            return file.read(12)[8:]
    except OSError:
        return b''


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except UnidentifiedImageError:
        brand = _read_brand(path)
        if brand in _AVIF_BRANDS:
            raise UnreadableError('AVIF photos need Pillow 11.3 or newer') from None
        if brand not in _HEIC_BRANDS:
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise UnreadableError('HEIC photos need `pip install pillow-heif`') from None
    register_heif_opener()
    return Image.open(path)


def _turn_to_upright(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None if it is, or if nothing readable says otherwise."""
    # Not ImageOps.exif_transpose: it writes all EXIF data anew, and fails over any that is odd.
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return None


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Pixels of a picture of any mode as uint8 (H, W, 3) RGB, not turned upright.

    Raises:
        UnreadableError: For numbers that do not say what is black and what is white.
    """
    if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
        return np.repeat(_to_bytes(np.asarray(image))[..., None], 3, axis=2)
    if 'transparency' in image.info:
        # Pillow warns of a conversion to RGB in one step.
        image = image.convert('RGBA')
    return np.asarray(image.convert('RGB'))


def _has_deep_colours(image: Image.Image) -> bool:
    return image.mode in ('RGB', 'RGBA') and any(
        ';16' in str(tile[3]) for tile in getattr(image, 'tile', ())
    )


def _read_deep_colours(path: Path) -> np.ndarray | None:
    # Pillow keeps the upper 8 of 16 bits, in which samples of 10 or 12 bits are nearly black.
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        return None
    return cv2.cvtColor(_to_bytes(pixels[..., :3]), cv2.COLOR_BGR2RGB)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Samples as uint8, scaled by what white must be for them. Raises UnreadableError."""
    is_float = values.dtype.kind == 'f'
    finite = values[np.isfinite(values)] if is_float else values
    if not finite.size:
        raise UnreadableError('it has no number in it')
    lowest, highest = float(finite.min()), float(finite.max())
    # Resampling of numbers overshoots a little.
    slack = 1.05 if is_float else 1.0
    # Small numbers go from 0 to 1, or else are light, temperatures or distances, of which nobody
    # knows what is white.
    whites = (1,) if is_float and highest < 64 else _WHITES
    white = next((white for white in whites if highest <= slack * white), None)
    if white is None or lowest < highest * (1 - slack):
        raise UnreadableError(
            f'its values go from {lowest:g} to {highest:g}, which does not say what is black and '
            'what is white; save it with 8 or 16 bits'
        )
    shown = np.nan_to_num(values.astype(np.float32), nan=0.0).clip(0, white)
    return np.round(shown * np.float32(255 / white)).astype(np.uint8)
