"""Cameras that take little processor time: bytes made beforehand, with a new stamp each time.

Each line of standard input is a number of seconds to send for; the answer, as JSON, is the number
of images sent and the seconds it took. The cameras take turns, or send all at the same time, as
those of a rig do that are triggered together.
"""

import argparse
import json
import struct
import sys
import time

import cv2
import numpy as np
import rclpy
from rclpy.publisher import Publisher
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image

from cliptrase_ros.messages.images import compress_picture
from cliptrase_ros.messages.transports import topic_of
from cliptrase_ros.ros.executable import initialized

#: Where a serialised message that begins with a header has its stamp, and where that ends.
STAMP, AFTER_STAMP = 4, 12


def picture(width: int, height: int) -> np.ndarray:
    """Blobs of colour with some noise, as smooth as photos: uint8 (H, W, 3) RGB."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 256, (height // 20, width // 20, 3), np.uint8)
    smooth = cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = generator.normal(0.0, 3.0, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def serialised(width: int, height: int, encoding: str) -> bytes:
    """Make a serialised sensor_msgs/Image of rgb8 or bgr8, or a CompressedImage of jpeg."""
    rgb = picture(width, height)
    if encoding == 'jpeg':
        message = CompressedImage(format='rgb8; jpeg compressed bgr8', data=compress_picture(rgb))
    else:
        pixels = np.ascontiguousarray(rgb if encoding == 'rgb8' else rgb[..., ::-1])
        message = Image(encoding=encoding, width=width, height=height, step=3 * width)
        message.data.frombytes(pixels)
    message.header.frame_id = 'camera_optical_frame'
    return serialize_message(message)


def send(
    publishers: list[Publisher], message: bytes, rate: float, seconds: float, together: bool
) -> dict[str, float]:
    """Send by the clock for some time; returns the number of images, and how long it took."""
    before, after = message[:STAMP], message[AFTER_STAMP:]
    count = round(rate * len(publishers) * seconds)
    at_once = len(publishers) if together else 1
    begin = time.monotonic()
    for i in range(count):
        due_s = (i - i % at_once) / (rate * len(publishers))
        wait_s = begin + due_s - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        stamp = struct.pack('<iI', *divmod(time.time_ns(), 1_000_000_000))
        publishers[i % len(publishers)].publish(b''.join((before, stamp, after)))
    return {'sent': count, 'seconds': max(seconds, time.monotonic() - begin)}


def main() -> None:
    """Send whenever told to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cameras', nargs='+', required=True)
    parser.add_argument('--width', type=int, required=True)
    parser.add_argument('--height', type=int, required=True)
    parser.add_argument('--rate', type=float, required=True, help='images a second and camera')
    parser.add_argument('--encoding', choices=('rgb8', 'bgr8', 'jpeg'), required=True)
    parser.add_argument('--together', action='store_true', help='all at the same time')
    arguments = parser.parse_args()
    message = serialised(arguments.width, arguments.height, arguments.encoding)
    is_jpeg = arguments.encoding == 'jpeg'
    topic = topic_of('image_raw', 'compressed' if is_jpeg else 'raw')
    message_type = CompressedImage if is_jpeg else Image
    with initialized([]):
        node = rclpy.create_node('rig', start_parameter_services=False)
        publishers = [
            node.create_publisher(message_type, f'/{camera}/{topic}', qos_profile_sensor_data)
            for camera in arguments.cameras
        ]
        while not all(p.get_subscription_count() for p in publishers):
            time.sleep(0.02)
        for line in sys.stdin:
            seconds, together = float(line), arguments.together
            sent = send(publishers, message, arguments.rate, seconds, together)
            print(json.dumps(sent), flush=True)


if __name__ == '__main__':
    main()
