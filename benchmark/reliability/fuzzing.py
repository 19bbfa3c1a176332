"""Messages and parameter values that no driver or operator should send, and some that they may."""

import random

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from cliptrase_ros.messages.images import ENCODING_TABLE, ENCODINGS
from cliptrase_ros.segmentation.settings import MAX_ASPECT_RATIO

#: Numbers at the edges of what a uint32 holds.
EDGES = (0, 1, 2, 3, 255, 65535, 65536, 2**31 - 1, 2**31, 4_000_000_000, 2**32 - 1)
NO_ENCODINGS = ('', 'rgb9', '32FC1', '16UC1', 'jpeg', 'RGB8', 'x' * 5000, 'rgb8\x00', 'ü§')
FORMATS = ('', 'jpeg', 'png', 'rgb8; jpeg compressed bgr8', '16UC1; compressedDepth', 'x' * 3000)

#: Live parameters, read-only ones, and none.
NAMES = (
    *('vocabulary', 'background', 'rate', 'min_confidence', 'preset', 'resolution'),
    *('refinement', 'smoothing', 'window'),
    *('cameras', 'model', 'device', 'cache_dir', 'max_phrases', 'autostart', 'nonsense'),
)


def image(rng: random.Random, frame_id: str) -> Image:
    """A small image with nothing wrong, or with up to three things."""
    width, height = rng.randint(3, 48), rng.randint(3, 48)
    name = rng.choice(ENCODINGS)
    encoding = ENCODING_TABLE[name]
    step = width * encoding.channels * encoding.bits // 8 + rng.choice((0, 0, 0, 1, 7))
    data = rng.randbytes(step * int(height * encoding.planes))
    message = Image(encoding=name, width=width, height=height, step=step)
    message.header.frame_id = frame_id
    for _ in range(rng.randint(0, 3)):
        field = rng.choice(('width', 'height', 'step', 'encoding', 'data', 'is_bigendian', 'stamp'))
        if field in ('width', 'height', 'step'):
            setattr(message, field, rng.choice((*EDGES, rng.randint(0, 100))))
        elif field == 'encoding':
            message.encoding = rng.choice((*NO_ENCODINGS, rng.choice(ENCODINGS)))
        elif field == 'data':
            data = rng.choice((b'', data[: rng.randint(0, len(data))], data + rng.randbytes(9)))
        elif field == 'is_bigendian':
            message.is_bigendian = rng.randint(0, 255)
        else:
            message.header.stamp.sec = rng.choice((-(2**31), -1, 0, 2**31 - 1))
            message.header.stamp.nanosec = rng.choice((0, 999_999_999, 2**32 - 1))
    message.data = data
    return message


def elongated_image(frame_id: str, upright: bool) -> Image:
    """An image with nothing wrong, as long as any that is labelled."""
    height, width = (MAX_ASPECT_RATIO, 1) if upright else (1, MAX_ASPECT_RATIO)
    message = Image(encoding='mono8', width=width, height=height, step=width)
    message.header.frame_id = frame_id
    message.data = bytes(range(MAX_ASPECT_RATIO))
    return message


def compressed_image(rng: random.Random, frame_id: str) -> CompressedImage:
    """A small JPEG or PNG with nothing wrong, or damaged."""
    pixels = np.frombuffer(rng.randbytes(24 * 32 * 3), np.uint8).reshape(24, 32, 3)
    suffix = rng.choice(('.jpg', '.png'))
    data = bytearray(cv2.imencode(suffix, pixels)[1].tobytes())
    kind = rng.choice(('good', 'cut', 'flipped', 'noise', 'empty', 'huge'))
    if kind == 'cut':
        data = data[: rng.randint(0, len(data))]
    elif kind == 'flipped':
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 'noise':
        data = bytearray(rng.randbytes(rng.randint(1, 300)))
    elif kind == 'empty':
        data = bytearray()
    elif kind == 'huge' and suffix == '.png':
        # Width and height in the header of a PNG.
        data[16:24] = (60_000).to_bytes(4, 'big') * 2
    message = CompressedImage(format=rng.choice(FORMATS), data=bytes(data))
    message.header.frame_id = frame_id
    return message


def damaged_bytes(rng: random.Random, good: bytes) -> bytes:
    """A serialized message that was cut or has foreign bytes in it."""
    if rng.random() < 0.3:
        return good[: rng.randint(4, len(good))]
    data = bytearray(good)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(4, len(data))] = rng.randrange(256)
    return bytes(data)


def parameter(rng: random.Random) -> tuple[str, object]:
    """Name and value of a parameter; of those that are accepted, none makes the node slow."""
    name = rng.choice(NAMES)
    word = ''.join(rng.choices('abc :;,[]{}\'"\\\n\t\u200b\x07üß水🚗', k=rng.randint(0, 20)))
    choices = [
        word,
        [word, word],
        [word, 'car'],
        [f'{word}{i}' for i in range(rng.choice((2, 300)))],
        'word ' * rng.choice((1, 100, 100_000)),
        True,
        [True, False],
        [],
        rng.choice((-1, 0, 1, 63, 2000, 2**63 - 1, -(2**63))),
        [1, 2],
        rng.choice((float('nan'), float('inf'), -1.0, 1e300, 1e-300)),
        [0.5],
        [b'b', b'\xff'],
        None,
    ]
    good = {'resolution': 64, 'rate': 25.0, 'min_confidence': 0.1, 'preset': 'sc_clip'}
    good |= {'refinement': 'pamr', 'smoothing': 0.5, 'window': 64}
    return name, rng.choice([*choices, good.get(name, 'car; tree')])
