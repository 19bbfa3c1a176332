"""The life of a process that is one node: domain, slow imports, signals, spinning, the end.

Imports nothing that takes time, so that the process listens to signals from its beginning.
"""

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from cliptrase_ros.ros.arguments import explain_refusal, explain_unread_arguments

#: After a signal the process ends within this time, whatever is still being computed, seconds.
END_LIMIT_S = 2.0


class StartFailure(Exception):
    """Raised by a node that spins and cannot start; the message says why and what to do."""


class _Signals:
    """What SIGINT and SIGTERM do before and after rclpy takes them over.

    rclpy's own handlers shut the context down, which ends spin(), and then call this.
    """

    def __init__(self):
        self.is_spinning = False
        self._has_come = False

    def install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self)
            signal.signal(signal.SIGTERM, self)

    def __call__(self, _number, _stack) -> None:
        # Before the node there is nothing to end in order, and a second signal means "at once".
        if not self.is_spinning or self._has_come:
            os._exit(0)
        self._has_come = True
        timer = threading.Timer(END_LIMIT_S, leave, (0,))
        timer.daemon = True
        timer.start()


_signals = _Signals()


def own_domain() -> str:
    """Give this process and those it starts a ROS domain, unless ROS_DOMAIN_ID is set; returns it.

    To be called before rclpy is initialised. It is 1 to 100, whose ports no system hands out to
    others, and depends on the process id, so that two seldom meet.
    """
    return os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))


def run_module(module: str) -> int:
    """Import the module of a node and run its `main`; returns the exit status.

    A signal during the import, which takes seconds, ends the process with status 0.
    """
    _signals.install()
    return importlib.import_module(module).main()


@contextlib.contextmanager
def initialized(args: list[str] | None) -> Iterator[None]:
    """Initialise rclpy for a block, as `rclpy.init` does by itself from Kilted on.

    Raises:
        StartFailure: rcl cannot read the arguments, or variables of the environment.
    """
    import rclpy

    try:
        rclpy.init(args=args)
    except RuntimeError as error:
        raise StartFailure(explain_refusal(error)) from error
    try:
        yield
    finally:
        rclpy.try_shutdown()


def run_node(make_node: Callable, name: str, args: list[str] | None) -> int:
    """Make a node and spin it until the process is told to end.

    Args:
        make_node: Returns an rclpy Node. If it raises ValueError, or spinning raises StartFailure,
            the node cannot start: the message is logged under `name`.
        args: Arguments of the process, without its name; None for those it has. What of them the
            node does not read is logged.

    Returns:
        The exit status: 0, or 1 for a node that cannot start.
    """
    import rclpy
    from rclpy.exceptions import ParameterException
    from rclpy.executors import ExternalShutdownException
    from rclpy.logging import get_logger

    _signals.install()
    status = 0
    arguments = sys.argv[1:] if args is None else args
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(initialized(arguments))
            _signals.is_spinning = True
            try:
                node = make_node()
            except (ValueError, ParameterException) as error:
                # The latter is raised for parameters that every node has: use_sim_time.
                raise StartFailure(str(error)) from error
            try:
                for warning in explain_unread_arguments(node, arguments):
                    node.get_logger().warning(warning)
                rclpy.spin(node)
            finally:
                node.destroy_node()
        except StartFailure as failure:
            get_logger(name).fatal(f'cannot start: {failure}')
            status = 1
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        except Exception:
            # In a context that is shut down while a node is being made, rclpy fails in many ways.
            if rclpy.ok():
                raise
    if any(thread.daemon for thread in threading.enumerate()):
        # Some thread is still loading or computing. Python would end it in the middle of foreign
        # code, which crashes; the node itself is destroyed already.
        leave(status)
    return status


def leave(status: int) -> None:
    """End the process at once, with what was written so far."""
    for stream in (sys.stdout, sys.stderr):
        # The reader of a pipe may be gone.
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
