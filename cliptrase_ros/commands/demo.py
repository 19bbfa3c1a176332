"""`cliptrase demo`: simulated cameras and the node."""

import argparse
from pathlib import Path

from cliptrase_ros.commands.common import command_errors, require_ros
from cliptrase_ros.commands.options import add_view, check_view


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Two simulated cameras and the node, as separate processes; half-way the words change.'
    )
    command = commands.add_parser('demo', help='the whole chain at work', description=description)
    command.add_argument(
        '--output',
        type=Path,
        default=Path('demo_output'),
        metavar='FOLDER',
        help='where pictures and report.json go (default: %(default)s)',
    )
    command.add_argument(
        '--phase',
        type=float,
        default=11.0,
        metavar='SECONDS',
        help='how long each vocabulary is watched (default: %(default)s)',
    )
    add_view(command, 'everything')
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    check_view(arguments)
    require_ros(
        'it runs real ROS 2 nodes',
        'use `make demo`, or source a ROS 2 distribution and a workspace with this package',
    )
    from cliptrase_ros.ros.demo import run_demo
    from cliptrase_ros.ros.executable import StartFailure

    with command_errors(StartFailure):
        return run_demo(arguments.output, arguments.phase, arguments.view)
