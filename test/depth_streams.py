"""Depth compressed as image_transport's compressedDepth does it, for tests to decode."""

import struct
from types import SimpleNamespace

import cv2
import numpy as np


def encode_rvl(pixels):
    """RVL of uint16 pixels, without width and height, by its definition: a nibble at a time."""
    nibbles = []

    def write(number):
        while number > 7:
            nibbles.append(8 | number & 7)
            number >>= 3
        nibbles.append(number)

    values, at, previous = pixels.ravel().tolist(), 0, 0
    while at < len(values):
        begin = at
        while at < len(values) and values[at] == 0:
            at += 1
        write(at - begin)
        begin = at
        while at < len(values) and values[at] != 0:
            at += 1
        write(at - begin)
        for value in values[begin:at]:
            difference = value - previous
            write(2 * difference if difference >= 0 else -2 * difference - 1)
            previous = value
    nibbles += [0] * (-len(nibbles) % 8)
    digits = ''.join(f'{nibble:x}' for nibble in nibbles)
    return np.frombuffer(bytes.fromhex(digits), '>u4').astype('<u4').tobytes()


def encode_depth(pixels, codec, quantisation=(0.0, 0.0)):
    """Data of a message: header, then uint16 (H, W) as PNG or RVL."""
    if codec == 'rvl':
        height, width = pixels.shape
        body = struct.pack('<II', width, height) + encode_rvl(pixels)
    else:
        body = cv2.imencode('.png', pixels)[1].tobytes()
    return struct.pack('<iff', 0, *quantisation) + body


def quantise(metres, farthest=10.0, resolution=100.0):
    """uint16 of the inverse of depth, and the two numbers that turn it back."""
    steps = resolution * (resolution + 1)
    offset = 1 - steps / farthest
    with np.errstate(divide='ignore', invalid='ignore'):
        inverse = steps / metres + offset
    return np.where(metres < farthest, inverse, 0).astype(np.uint16), (steps, offset)


def compressed_depth(format, data):
    """A sensor_msgs/CompressedImage."""
    return SimpleNamespace(format=format, data=data)
