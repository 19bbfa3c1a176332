"""The time a node goes by, also while nobody publishes the simulated one."""

import time
from dataclasses import dataclass

from rclpy.node import Node


@dataclass(frozen=True)
class NodeTime:
    """One moment.

    ns: nanoseconds, of no particular beginning unless `is_known`. is_known: stamps can be
    compared with it; simulated time is not known before somebody publishes it. is_simulated: it
    may run at any speed, or jump.
    """

    ns: int
    is_known: bool
    is_simulated: bool


def node_time(node: Node) -> NodeTime:
    """Now, by the node's clock. Images may come before simulated time does, so time goes on."""
    clock = node.get_clock()
    ns = clock.now().nanoseconds
    return NodeTime(ns or time.monotonic_ns(), ns > 0, clock.ros_time_is_active)
