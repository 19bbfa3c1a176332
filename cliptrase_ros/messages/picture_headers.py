"""Width and height of JPEG and PNG files from their headers, without decoding a pixel.

Pillow's lazy `Image.open` does not replace this: it takes seconds for headers that were made to
be searched, unpacks text chunks of PNG, and does not notice that the end of a file is missing.
"""

import struct

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_END = b'\xff\xd9'
# Start of frame: every marker that carries the size (ITU T.81, table B.1).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Start, end and scan: one of these before the frame means that the picture has no size.
_JPEG_SIZELESS = frozenset({0xD8, 0xD9, 0xDA})
# Markers without a length: TEM and the restarts.
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})

# Cameras and programs write fewer; a header with more was made to be searched for seconds.
_MOST_SEGMENTS = 1000
_MOST_CHUNKS = 100_000
_MOST_FILLING = 1024


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG or PNG in pixels, found before anything is unpacked.

    Returns:
        Width and height; None where the data are neither JPEG nor PNG.

    Raises:
        ValueError: The header is damaged, or the end of the file is missing: decoders fill what is
            missing with grey, without a word.
    """
    if data[:8] == _PNG_SIGNATURE:
        return _png_size(data)
    if data[:3] == b'\xff\xd8\xff':
        return _jpeg_size(data)
    return None


def _png_size(data: bytes) -> tuple[int, int]:
    # The header has to be the first chunk.
    if data[8:16] != b'\0\0\0\x0dIHDR' or len(data) < 33:
        raise ValueError('a PNG without a header')
    at = 33
    for _ in range(_MOST_CHUNKS):
        if at + 12 > len(data):
            raise ValueError('a PNG that is cut short')
        # OpenCV allocates what a chunk claims to hold, up to 2 GB, before it looks for it.
        length, kind = struct.unpack_from('>I4s', data, at)
        at += 12 + length
        if kind == b'IEND':
            break
    else:
        raise ValueError('a PNG of more parts than pictures have')
    if at > len(data):
        raise ValueError('a PNG that is cut short')
    return struct.unpack('>II', data[16:24])


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_SEGMENTS):
        # What lies between segments is skipped, as by decoders.
        at = data.find(b'\xff', at)
        filling = data[at : at + _MOST_FILLING] if at >= 0 else b''
        at += len(filling) - len(filling.lstrip(b'\xff'))
        if not filling or at + 8 > len(data):
            raise ValueError('a JPEG that is cut short')
        marker, at = data[at], at + 1
        if marker == 0 or marker in _JPEG_BARE:
            continue
        length, _, height, width = struct.unpack_from('>HBHH', data, at)
        if marker in _JPEG_FRAMES:
            # Nothing looks like the end inside the picture: there 255 is followed by 0.
            if data.rfind(_JPEG_END) < at + length:
                raise ValueError('a JPEG that is cut short')
            return width, height
        if marker in _JPEG_SIZELESS or length < 2:
            break
        at += length
    raise ValueError('a JPEG with a damaged header')
