"""Cameras of the soak as one process: three that behave, three that send what fuzzing gives.

Runs until its standard input is closed or what is to be fuzzed has been sent, and then prints, as
JSON by camera, how many messages it sent and how many of them a node has to refuse.
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
from rclpy.executors import ExternalShutdownException
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


class WellBehaved(Node):
    """A camera whose stamps loop; its frame_id counts, so that every image is known again."""

    def __init__(self, name: str):
        super().__init__(f'{name}_camera')
        width, height, rate, encoding = CAMERAS[name]
        self._name = name
        self._publisher = self.create_publisher(
            Image, f'/{name}/image_raw', qos_profile_sensor_data
        )
        self._pictures = [_picture(width, height, seed, encoding) for seed in range(5)]
        self._width, self._height, self._encoding = width, height, encoding
        self._begin = time.monotonic()
        self.sent = 0
        self.create_timer(1.0 / rate, self._publish)

    def _publish(self) -> None:
        message = Image(encoding=self._encoding, width=self._width, height=self._height)
        message.step = self._width * (1 if self._encoding == 'nv12' else 3)
        message.header.frame_id = f'{self._name} {self.sent}'
        stamp_s = 1000.0 + (time.monotonic() - self._begin) % LOOP_S
        message.header.stamp.sec = int(stamp_s)
        message.header.stamp.nanosec = int(stamp_s % 1 * 1e9)
        message.data = self._pictures[self.sent % len(self._pictures)]
        self._publisher.publish(message)
        self.sent += 1


def _picture(width: int, height: int, seed: int, encoding: str) -> bytes:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 8, 3), np.uint8)
    picture = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)
    if encoding != 'nv12':
        return picture.tobytes()
    y, u, v = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV))
    chroma = np.stack([u[::2, ::2], v[::2, ::2]], axis=-1)
    return y.tobytes() + chroma.tobytes()


class Fuzzer:
    """Sends so many messages to the fuzzed cameras over some time, and counts."""

    def __init__(self, node: Node, count: int, duration_s: float, seed: int):
        self._count, self._duration_s = count, duration_s
        self._rng = random.Random(seed)
        types = {'image_raw': Image, 'image_raw/compressed': CompressedImage}
        # Reliable, and never more on its way than the node keeps: what is sent is received.
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
            if i % 50 == 49:
                for publisher in self._publishers.values():
                    publisher.wait_for_all_acked(Duration(seconds=30))

    def _send(self, name: str) -> None:
        frame_id = f'{name} {self.sent[name]}'
        if name == 'fuzzed' and self.sent[name] < ELONGATED:
            upright = self.sent[name] % 2 == 0
            message, check = fuzzing.elongated_image(frame_id, upright), images.check_image
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
    parser.add_argument('--fuzz', type=int, default=0, help='messages to be fuzzed')
    parser.add_argument('--seconds', type=float, default=60.0, help='over which they are sent')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    with initialized([]):
        cameras = [WellBehaved(name) for name in CAMERAS]
        fuzzer = Fuzzer(cameras[0], arguments.fuzz, arguments.seconds, arguments.seed)
        executor = rclpy.executors.SingleThreadedExecutor()
        for camera in cameras:
            executor.add_node(camera)
        stop = threading.Event()
        fuzzing_thread = threading.Thread(target=fuzzer.run, args=(stop,), daemon=True)
        fuzzing_thread.start()
        listening = threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True)
        listening.start()
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)
        except (KeyboardInterrupt, ExternalShutdownException):
            return
        fuzzing_thread.join()
        sent = {c._name: {'sent': c.sent, 'refused': 0} for c in cameras}
        for name in FUZZED:
            sent[name] = {'sent': fuzzer.sent[name], 'refused': fuzzer.refused[name]}
        print(json.dumps(sent), flush=True)
        # What is still on its way must arrive.
        for publisher in fuzzer._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=10))


if __name__ == '__main__':
    main()
