"""RVL, the compression of depth images that is faster than PNG, decoded.

Runs of zeros, and differences between neighbours that are not: Andrew D. Wilson, Fast Lossless
Depth Image Compression, ISS 2017. Numbers are made of nibbles, the lowest first, of 3 bits and one
that says whether another follows; eight of them are in a word of 32 bits, the first one highest.
"""

import numpy as np

# Bytes that a pixel takes at most, and what all of them end with.
_MOST_BYTES_PER_PIXEL, _MOST_EXTRA_BYTES = 3, 16
# Nibbles of the largest number that fits 32 bits.
_MOST_NIBBLES = 11


def decode_rvl(data: np.ndarray, count: int) -> np.ndarray:
    """Pixels of a depth image.

    Args:
        data: uint8 (N,), what follows width and height.
        count: Of pixels.

    Returns:
        uint16 (count,).

    Raises:
        ValueError: The data are cut short or damaged.
    """
    if len(data) > _MOST_BYTES_PER_PIXEL * count + _MOST_EXTRA_BYTES:
        raise ValueError('RVL data longer than any of that size')
    numbers = _numbers(data[: len(data) // 4 * 4])
    # Each run is a count of zeros, one of other pixels, and their differences.
    at, starts, items = 0, [], memoryview(numbers)
    while at < len(items) - 1:
        starts.append(at)
        at += 2 + items[at + 1]
    heads = np.array(starts, np.int64)
    runs = np.stack([numbers[heads], numbers[heads + 1]], axis=1).astype(np.int64)
    # What follows the last pixel fills its word up.
    runs = runs[: 1 + np.searchsorted(runs.sum(axis=1).cumsum(), count)]
    heads = heads[: len(runs)]
    used = runs[:, 1].sum() + 2 * len(runs)
    if runs.sum() != count or used > len(numbers):
        raise ValueError('RVL data that are cut short or damaged')
    is_difference = np.ones(used, bool)
    is_difference[heads] = is_difference[heads + 1] = False
    zigzag = numbers[:used][is_difference]
    # Sums wrap as the encoder's do.
    values = ((zigzag >> 1) ^ -(zigzag & 1)).cumsum(dtype=np.uint32)
    pixels = np.zeros(count, np.uint16)
    pixels[np.repeat(np.tile([False, True], len(runs)), runs.ravel())] = values.astype(np.uint16)
    return pixels


def _numbers(data: np.ndarray) -> np.ndarray:
    """All numbers, uint32 (N,), of whole words, uint8."""
    octets = data.view('<u4').astype('>u4').view(np.uint8)
    nibbles = np.empty(2 * len(octets), np.uint8)
    nibbles[::2], nibbles[1::2] = octets >> 4, octets & 15
    ends = np.flatnonzero(nibbles < 8)
    lengths = np.diff(ends, prepend=-1)
    if (lengths > _MOST_NIBBLES).any():
        raise ValueError('RVL data that are damaged')
    # The sum of a number's bits, each nibble's in its place.
    bits = (nibbles[: lengths.sum()] & 7).astype(np.uint32)
    place = np.arange(len(bits), dtype=np.uint32)
    place -= np.repeat((ends - lengths + 1).astype(np.uint32), lengths)
    bits <<= 3 * place
    sums = bits.cumsum(dtype=np.uint32)
    return np.diff(sums[ends], prepend=np.uint32(0))
