"""Listens to outputs of a node's cameras, as bytes, and says how many came and how late.

Counts from one line of standard input to the next, and prints then, as JSON by output, the latency
of each message, milliseconds from its stamp to its arrival; and so on until its input is closed.
"""

import argparse
import json
import struct
import sys
import threading
import time
from collections import defaultdict

import rclpy
from cliptrase_ros.msg import ClassMasks
from processes import NODE_NAME
from rclpy.impl.implementation_singleton import rclpy_implementation
from sensor_msgs.msg import CompressedImage, Image

from cliptrase_ros.ros.executable import initialized

TYPES = {'masks': ClassMasks, 'label/compressed': CompressedImage}


class Arrivals:
    """Latencies of the outputs that somebody asks for."""

    def __init__(self):
        self._is_counting = False
        self._latencies_ms: dict[str, list[float]] = defaultdict(list)

    def add(self, output: str, message: bytes) -> None:
        """Count a serialised message that begins with a header."""
        if self._is_counting:
            seconds, nanoseconds = struct.unpack_from('<iI', message, 4)
            latency_s = time.time() - seconds - 1e-9 * nanoseconds
            self._latencies_ms[output].append(round(1e3 * latency_s, 3))

    def count_between_lines(self) -> None:
        """Begin to count at a line of standard input, and print at the next one."""
        for _ in sys.stdin:
            self._is_counting = not self._is_counting
            if not self._is_counting:
                print(json.dumps(self._latencies_ms), flush=True)
                self._latencies_ms.clear()


def main() -> None:
    """Listen until told to end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cameras', nargs='+', required=True)
    parser.add_argument('--outputs', nargs='+', required=True)
    arguments = parser.parse_args()
    arrivals = Arrivals()
    with initialized([]):
        node = rclpy.create_node('listener', start_parameter_services=False)
        outputs = {}
        for camera in arguments.cameras:
            for output in arguments.outputs:
                topic = f'{NODE_NAME}/{camera}/{output}'
                subscription = node.create_subscription(
                    TYPES.get(output, Image), topic, lambda _: None, 10, raw=True
                )
                outputs[subscription.handle.pointer] = output, subscription.handle
        counting = threading.Thread(target=arrivals.count_between_lines, daemon=True)
        counting.start()
        # Without rclpy's executor, which takes a millisecond a message where there are many topics.
        context = node.context.handle
        wait_set = rclpy_implementation.WaitSet(len(outputs), 0, 0, 0, 0, 0, context)
        while counting.is_alive():
            wait_set.clear_entities()
            for _, handle in outputs.values():
                wait_set.add_subscription(handle)
            wait_set.wait(100_000_000)
            for pointer in wait_set.get_ready_entities('subscription'):
                output, handle = outputs[pointer]
                taken = handle.take_message(None, True)
                if taken is not None:
                    arrivals.add(output, taken[0])


if __name__ == '__main__':
    main()
