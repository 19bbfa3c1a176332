"""Cameras as one process: a single one, or three that behave and three that send fuzzed messages.

Runs until its standard input is closed, sends what is left to be fuzzed, and prints, as JSON by
camera, how many messages it sent and how many of them a node has to refuse.
"""

import argparse
import json
import random
import sys
import threading
import time

import cv2
import fuzzing
import numpy as np
import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from cliptrase_ros.messages import images
from cliptrase_ros.ros.executable import initialized

#: Name: width, height, images a second, encoding.
CAMERAS = {
    'front': (640, 480, 10.0, 'rgb8'),
    'rear': (320, 240, 15.0, 'bgr8'),
    'side': (160, 120, 5.0, 'nv12'),
}
#: Stamps start anew after this long, as those of a bag that is played in a loop.
LOOP_S = 7.0
#: Topics that are fuzzed: fields of images, compressed images, and serialized bytes.
FUZZED = {'fuzzed': 'image_raw', 'packed': 'image_raw/compressed', 'wire': 'image_raw'}
#: So many of the first images are as elongated as can be; not all of them are labelled.
ELONGATED = 40


class Camera(Node):
    """A camera that publishes images in turn, best effort, once somebody has subscribed.

    Their frame_id counts, so that every image is known again. Stamps start anew after `loop_s`
    seconds; with 0 they are those of the system's clock.
    """

    def __init__(self, name: str, messages: list[Image], rate: float, loop_s: float = 0.0):
        super().__init__(f'{name}_camera')
        self.camera_name = name
        self.sent = 0
        self._messages = messages
        self._loop_s = loop_s
        self._begin = time.monotonic()
        self._publisher = self.create_publisher(
            Image, f'/{name}/image_raw', qos_profile_sensor_data
        )
        self.create_timer(1.0 / rate, self._publish)

    def _publish(self) -> None:
        # What is published before the node has subscribed does not count.
        if not self.sent and not self._publisher.get_subscription_count():
            return
        message = self._messages[self.sent % len(self._messages)]
        message.header.frame_id = f'{self.camera_name} {self.sent}'
        now = self.get_clock().now()
        if self._loop_s:
            now = rclpy.time.Time(seconds=1000 + (time.monotonic() - self._begin) % self._loop_s)
        message.header.stamp = now.to_msg()
        self._publisher.publish(message)
        self.sent += 1


def _blocks(width: int, height: int, seed: int, encoding: str) -> Image:
    """An image of colours in blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    rgb = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    message = Image(encoding=encoding, width=width, height=height)
    if encoding != 'nv12':
        message.step, message.data = 3 * width, rgb.tobytes()
        return message
    y, u, v = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV))
    chroma = np.stack([u[::2, ::2], v[::2, ::2]], axis=-1)
    message.step, message.data = width, y.tobytes() + chroma.tobytes()
    return message


def _noise(width: int, height: int) -> Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image(encoding='rgb8', width=width, height=height, step=3 * width, data=pixels.tobytes())


class Fuzzer:
    """Sends so many messages to the fuzzed cameras over some time, and counts."""

    def __init__(self, node: Node, count: int, duration_s: float, seed: int):
        self._count, self._duration_s = count, duration_s
        self._rng = random.Random(seed)
        types = {'image_raw': Image, 'image_raw/compressed': CompressedImage}
        # Reliable, and never more on its way than is kept: what is sent is received.
        self._publishers = {
            name: node.create_publisher(types[topic], f'/{name}/{topic}', QoSProfile(depth=200))
            for name, topic in FUZZED.items()
        }
        good = Image(encoding='rgb8', width=4, height=4, step=12, data=bytes(48))
        good.header.frame_id = 'wire'
        self._good = serialize_message(good)
        self.sent = dict.fromkeys(FUZZED, 0)
        self.refused = dict.fromkeys(FUZZED, 0)

    def run(self, stop: threading.Event) -> None:
        """Send everything, without waiting from when it is told to stop."""
        while not all(p.get_subscription_count() for p in self._publishers.values()):
            if stop.wait(0.05):
                return
        begin = time.monotonic()
        for i in range(self._count):
            stop.wait(max(0.0, begin + self._duration_s * i / self._count - time.monotonic()))
            self._send(('fuzzed', 'packed', 'fuzzed', 'packed', 'wire')[i % 5])
            # An answer may take a heartbeat, which comes every 3 s.
            if i % 300 == 299:
                self.wait_for_arrival(30)

    def wait_for_arrival(self, timeout_s: float) -> None:
        """Wait until nothing is on its way any more."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=timeout_s))

    def _send(self, name: str) -> None:
        frame_id = f'{name} {self.sent[name]}'
        if name == 'fuzzed' and self.sent[name] < ELONGATED:
            is_upright = self.sent[name] % 2 == 0
            message, check = fuzzing.elongated_image(frame_id, is_upright), images.check_image
        elif name == 'fuzzed':
            message, check = fuzzing.image(self._rng, frame_id), images.check_image
        elif name == 'packed':
            message = fuzzing.compressed_image(self._rng, frame_id)
            check = images.check_compressed_stream
        else:
            message, check = fuzzing.damaged_bytes(self._rng, self._good), None
        self._publishers[name].publish(message)
        self.sent[name] += 1
        if check is not None:
            # As it arrives: text ends at a zero byte.
            arrived = deserialize_message(serialize_message(message), type(message))
            try:
                check(arrived)
            except images.ImageError:
                self.refused[name] += 1


def main() -> None:
    """Publish until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--single', nargs=3, type=int, metavar=('WIDTH', 'HEIGHT', 'RATE'), help='one camera alone'
    )
    parser.add_argument('--fuzz', type=int, default=0, help='messages to be fuzzed')
    parser.add_argument('--seconds', type=float, default=60.0, help='over which they are sent')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    with initialized([]):
        if arguments.single:
            width, height, rate = arguments.single
            cameras, fuzzer = [Camera('camera', [_noise(width, height)], rate)], None
        else:
            cameras = [
                Camera(name, [_blocks(width, height, i, encoding) for i in range(5)], rate, LOOP_S)
                for name, (width, height, rate, encoding) in CAMERAS.items()
            ]
            fuzzer = Fuzzer(cameras[0], arguments.fuzz, arguments.seconds, arguments.seed)
            fuzzing_thread = threading.Thread(target=fuzzer.run, args=(stop,), daemon=True)
            fuzzing_thread.start()
        executor = SingleThreadedExecutor()
        for camera in cameras:
            executor.add_node(camera)
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
        except (KeyboardInterrupt, ExternalShutdownException):
            return
        counts = {c.camera_name: {'sent': c.sent, 'refused': 0} for c in cameras}
        if fuzzer is not None:
            fuzzing_thread.join()
            for name in FUZZED:
                counts[name] = {'sent': fuzzer.sent[name], 'refused': fuzzer.refused[name]}
        print(json.dumps(counts), flush=True)
        if fuzzer is not None:
            fuzzer.wait_for_arrival(10)


if __name__ == '__main__':
    main()
