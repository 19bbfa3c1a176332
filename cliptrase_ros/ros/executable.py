"""The life of a process that is one node."""

from collections.abc import Callable

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node

from cliptrase_ros.segmentation.weights import ModelError


def run_node(make_node: Callable[[], Node], name: str, args: list[str] | None) -> int:
    """Make a node and spin it until the process is told to end; returns the exit status.

    A node that raises ValueError or ModelError when it is made cannot start: its message is
    logged under `name`, and the status is 1.
    """
    try:
        with rclpy.init(args=args):
            try:
                try:
                    node = make_node()
                except (ValueError, ModelError) as error:
                    get_logger(name).fatal(f'cannot start: {error}')
                    return 1
                try:
                    rclpy.spin(node)
                finally:
                    node.destroy_node()
            except Exception:
                # Told to end while it was being made, rclpy fails in many ways.
                if rclpy.ok():
                    raise
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    return 0
