"""Short videos as encoders of cameras send them, packet by packet."""

import functools
import os
from fractions import Fraction
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import pytest

av = pytest.importorskip('av', reason='PyAV is not installed; `make test` brings it')

# What SVT-AV1 would tell on standard error.
os.environ.setdefault('SVT_LOG', '0')

#: Frames from one key frame to the next.
GOP = 8

#: Encoders as robots have them set, without delay, by what CompressedVideo calls their codec.
ENCODERS = {
    'h264': ('libx264', {'preset': 'ultrafast', 'tune': 'zerolatency'}),
    'h265': (
        'libx265',
        {
            'preset': 'ultrafast',
            'tune': 'zerolatency',
            'x265-params': f'log-level=none:keyint={GOP}:min-keyint={GOP}',
        },
    ),
    'av1': ('libsvtav1', {'preset': '10', 'svtav1-params': f'pred-struct=1:keyint={GOP}'}),
    'vp9': ('libvpx-vp9', {'deadline': 'realtime', 'lag-in-frames': '0'}),
}


class Packet(NamedTuple):
    """What the encoder made of the frame of a number."""

    number: int
    data: bytes


def picture(number, height=64, width=96):
    """A scene that moves from frame to frame, uint8 (H, W, 3) RGB."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 2 + number * 9, columns * 2 - number * 9, rows + columns], -1) % 256
    pixels = cv2.GaussianBlur(pixels.astype(np.uint8), (0, 0), 3)
    centre = (number * 11 % width, number * 7 % height)
    return cv2.circle(pixels, centre, height // 5, (255, number * 40 % 256, 0), -1)


@functools.cache
def encode(codec, frames=2 * GOP, height=64, width=96, b_frames=0, **options):
    """Packets of a video of `picture`, in the order in which they are sent."""
    encoder, usual = ENCODERS[codec]
    context = av.CodecContext.create(encoder, 'w')
    context.width, context.height, context.pix_fmt = width, height, 'yuv420p'
    context.time_base, context.framerate = Fraction(1, 30), 30
    context.gop_size, context.max_b_frames = GOP, b_frames
    context.options = {'preset': 'veryfast', 'sc_threshold': '0'} if b_frames else usual | options
    packets = []
    for number in range(frames):
        frame = av.VideoFrame.from_ndarray(picture(number, height, width), format='rgb24')
        frame.pts, frame.time_base = number, context.time_base
        packets += context.encode(frame)
    packets += context.encode(None)
    return [Packet(packet.pts, bytes(packet)) for packet in packets]


def time_of(number):
    return SimpleNamespace(sec=1000 + number, nanosec=5)


def ffmpeg_packet(packet, codec, **changes):
    """Fields of ffmpeg_image_transport_msgs/FFMPEGPacket."""
    fields = {
        'header': SimpleNamespace(stamp=time_of(packet.number), frame_id='front'),
        'width': 96,
        'height': 64,
        'encoding': ENCODERS[codec][0],
        'pts': packet.number,
        'flags': 0,
        'is_bigendian': False,
        'data': np.frombuffer(packet.data, np.uint8),
    }
    return SimpleNamespace(**fields | changes)


def compressed_video(packet, codec, **changes):
    """Fields of foxglove_msgs/CompressedVideo."""
    fields = {
        'timestamp': time_of(packet.number),
        'frame_id': 'front',
        'format': codec,
        'data': np.frombuffer(packet.data, np.uint8),
    }
    return SimpleNamespace(**fields | changes)
