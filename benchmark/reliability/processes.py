"""The node under test as a process, and what its operating system and its diagnostics say of it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter

from cliptrase_ros.ros.executable import initialized, own_domain

ROOT = Path(__file__).resolve().parents[2]
NODE_NAME = '/cliptrase'
#: What the node is asked to label, where it is no matter what.
WORDS = ('road', 'person', 'car', 'tree', 'building', 'grass', 'dog', 'chair')
#: Seconds anything may take on a busy machine.
PATIENCE_S = 300.0

#: For `process`: standard input and output are read and written line by line.
PIPES = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}

# Other nodes of this name on this machine would be taken for the one that is measured.
own_domain()


class Failure(AssertionError):
    """Something the node promises and does not keep."""


@contextlib.contextmanager
def process(command: list[str], log: Path, **arguments) -> Iterator[subprocess.Popen]:
    """Run a command, its output in a file; it is killed where it has not ended by itself."""
    with log.open('w') as output:
        started = subprocess.Popen(command, stderr=output, **{'stdout': output, **arguments})
        try:
            yield started
        finally:
            if started.poll() is None:
                started.kill()
            started.wait()


@contextlib.contextmanager
def segment_node(
    log: Path,
    parameters: dict,
    cache: Path,
    script: Path | None = None,
    *,
    pipes: dict | None = None,
    **variables: str,
) -> Iterator[subprocess.Popen]:
    """Run the node with these parameters, or a script that makes one; text features in `cache`.

    A Failure in the block tells the last words of the node as well.

    Args:
        pipes: `PIPES` for a script that answers.
        **variables: Of its environment.
    """
    with tempfile.NamedTemporaryFile('w', suffix='.yaml') as file:
        # JSON is YAML.
        json.dump({'/**': {'ros__parameters': parameters}}, file)
        file.flush()
        program = ['-m', 'cliptrase_ros.ros.segment_node'] if script is None else [str(script)]
        command = [sys.executable, *program, '--ros-args', '--params-file', file.name]
        environment = {**os.environ, 'XDG_CACHE_HOME': str(cache), **variables}
        with process(command, log, env=environment, **(pipes or {})) as started:
            try:
                yield started
            except Failure as failure:
                text = log.read_text(errors='replace')
                raise Failure(f'{failure}; its last words:\n{text[-2000:]}') from None


@contextlib.contextmanager
def cameras(log: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """Run cameras.py with these arguments; `stop_cameras` ends it in order."""
    command = [sys.executable, str(Path(__file__).with_name('cameras.py')), *map(str, arguments)]
    with process(command, log, **PIPES) as started:
        yield started


def tell(started: subprocess.Popen, line: object = '') -> None:
    """Write a line to a process with `PIPES`."""
    print(line, file=started.stdin, flush=True)


def ask(started: subprocess.Popen, line: object = '') -> str:
    """Write a line to a process with `PIPES`; returns the line that it answers.

    Raises:
        Failure: It has ended.
    """
    tell(started, line)
    if not (answer := started.stdout.readline()):
        raise Failure(f'{started.args} has ended')
    return answer


def stop_cameras(started: subprocess.Popen) -> dict[str, dict[str, int]]:
    """Stop the cameras; returns how many messages each sent, and how many are to be refused."""
    started.stdin.close()
    return json.loads(started.stdout.readline())


class Observer(Node):
    """Listens to the node's diagnostics and sets its parameters; spins only where it waits."""

    def __init__(self):
        super().__init__('observer', start_parameter_services=False)
        self.spinner = SingleThreadedExecutor()
        self.spinner.add_node(self)
        #: Latest values by the name of the status: `engine`, `camera NAME`.
        self.reports: dict[str, dict[str, str]] = {}
        self.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)
        self._setter = self.create_client(SetParameters, f'{NODE_NAME}/set_parameters')

    def _keep(self, array: DiagnosticArray) -> None:
        for status in array.status:
            self.reports[status.name.partition(': ')[2]] = {v.key: v.value for v in status.values}

    def wait_for(self, condition: Callable, what: str, timeout_s: float = PATIENCE_S):
        """Spin until a condition holds; returns its value.

        Raises:
            Failure: It does not hold in time.
        """
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise Failure(f'waited {timeout_s:.0f} s for {what}')
            self.spinner.spin_once(timeout_sec=0.02)
        return value

    def spin(self, seconds: float) -> None:
        """Receive for some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.spinner.spin_once(timeout_sec=min(left, 0.02))

    def wait_until_active(self, node: subprocess.Popen) -> None:
        """Wait for the node to label by a vocabulary."""

        def is_active() -> bool:
            if node.poll() is not None:
                raise Failure(f'the node ended with status {node.returncode}')
            engine = self.reports.get('engine', {})
            return engine.get('state') == 'active' and int(engine['vocabulary_version']) > 0

        self.wait_for(is_active, 'an active node')
        self.wait_for(self._setter.service_is_ready, 'the parameter service')

    def set_parameters(self, **values) -> tuple[list, float]:
        """Set parameters as `ros2 param set` does; returns results and the seconds it took."""
        messages = [
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
        ]
        begin = time.monotonic()
        future = self._setter.call_async(SetParameters.Request(parameters=messages))
        self.wait_for(future.done, 'an answer of the parameter service')
        return future.result().results, time.monotonic() - begin


def end(node: subprocess.Popen, log: Path) -> float:
    """End the node as Ctrl-C does; returns the seconds it took.

    Raises:
        Failure: It does not end, or not in order.
    """
    begin = time.monotonic()
    node.send_signal(signal.SIGINT)
    try:
        status = node.wait(timeout=30)
    except subprocess.TimeoutExpired:
        raise Failure('SIGINT did not end the node within 30 s') from None
    if status != 0 or 'Traceback' in log.read_text(errors='replace'):
        raise Failure(f'the node ended with status {status}')
    return time.monotonic() - begin


def resources(pid: int) -> dict[str, float]:
    """Resident memory (MB), threads and open files of a process."""
    folder = Path(f'/proc/{pid}')
    pages = int((folder / 'statm').read_text().split()[1])
    return {
        'memory_mb': pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
        'threads': len(list((folder / 'task').iterdir())),
        'files': len(list((folder / 'fd').iterdir())),
    }


def cpu_seconds(pid: int) -> float:
    """Processor time a process has used, all threads."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@contextlib.contextmanager
def observer() -> Iterator[Observer]:
    """Initialise rclpy and make an observer."""
    with initialized([]):
        node = Observer()
        try:
            yield node
        finally:
            node.spinner.shutdown()
            node.destroy_node()
