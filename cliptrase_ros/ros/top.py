"""The terminal panel, fed from /diagnostics."""

import time

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException
from rich.console import Console
from rich.live import Live

from cliptrase_ros.ros.executable import initialized
from cliptrase_ros.ros.panel import Panel

#: Shorter than a report's period, so that the age of a silent node is seen to grow.
_REFRESH_S = 0.5
#: In a file or pipe there is no width to fit into.
_FILE_WIDTH = 140


def run_top(once: bool = False, timeout_s: float = 10.0) -> int:
    """Show the panel until Ctrl-C, or print it once.

    Printing it once waits `timeout_s` for the first report. Returns the exit status: 0, or 1 if
    there was none in that time.
    """
    panel = Panel()
    console = Console() if Console().is_terminal else Console(width=_FILE_WIDTH)
    try:
        with initialized([]):
            node = rclpy.create_node('cliptrase_top')
            node.create_subscription(
                DiagnosticArray,
                '/diagnostics',
                lambda array: panel.update(array, time.monotonic()),
                10,
            )
            try:
                if once:
                    return _print_once(node, panel, console, timeout_s)
                with Live(panel.render(0.0), console=console, auto_refresh=False) as live:
                    while True:
                        _spin(node, _REFRESH_S)
                        live.update(panel.render(time.monotonic()), refresh=True)
            finally:
                node.destroy_node()
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0


def _spin(node, duration_s: float) -> None:
    end = time.monotonic() + duration_s
    while (left := end - time.monotonic()) > 0:
        rclpy.spin_once(node, timeout_sec=left)


def _print_once(node, panel: Panel, console: Console, timeout_s: float) -> int:
    end = time.monotonic() + timeout_s
    while not panel.nodes and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    if panel.nodes:
        # Other nodes report within a second as well.
        _spin(node, 1.2)
    console.print(panel.render(time.monotonic()))
    return 0 if panel.nodes else 1
