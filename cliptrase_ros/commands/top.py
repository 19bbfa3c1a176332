"""`cliptrase top`: running nodes in the terminal."""

import argparse

from cliptrase_ros.commands.common import command_errors, require_ros


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Rates, latencies, drops and vocabulary of every running segmentation node, read from '
        '/diagnostics. Latency is from stamp to publishing, work from taking the image to '
        'publishing; mean and (longest) over the last second. Ends with Ctrl-C.'
    )
    command = commands.add_parser(
        'top', help='watch running nodes in the terminal', description=description
    )
    command.add_argument('--once', action='store_true', help='print once; exit status 1 if none')
    command.add_argument(
        '--timeout',
        type=float,
        default=10.0,
        metavar='SECONDS',
        help='how long --once waits for a node (default: %(default)s)',
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    require_ros('it listens to running nodes', 'source a ROS 2 distribution')
    from cliptrase_ros.ros.executable import StartFailure
    from cliptrase_ros.ros.top import run_top

    with command_errors(StartFailure):
        return run_top(arguments.once, arguments.timeout)
