"""Listens to outputs of a node's cameras, as bytes, and says how many came and how late.

Counts from one line of standard input to the next, and prints then, as JSON by output, the latency
of each message, milliseconds from its stamp to its arrival; and so on until its input is closed.
"""

import argparse
import json
import struct
import sys
import time
from collections import defaultdict

import rclpy
from processes import NODE_NAME

from cliptrase_ros.messages.maker import CAMERA_OUTPUTS
from cliptrase_ros.ros.conversions import message_class
from cliptrase_ros.ros.executable import initialized
from cliptrase_ros.ros.own_thread import OwnThread


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
        # Not rclpy's executor, which takes a millisecond a message where there are many topics.
        listening = OwnThread(node, 'listening')
        for camera in arguments.cameras:
            for output in arguments.outputs:
                node.create_subscription(
                    message_class(CAMERA_OUTPUTS[output][0]),
                    f'{NODE_NAME}/{camera}/{output}',
                    lambda data, _, output=output: arrivals.add(output, data),
                    10,
                    callback_group=listening,
                    raw=True,
                )
        listening.start()
        arrivals.count_between_lines()
        listening.stop()


if __name__ == '__main__':
    main()
