"""The `cliptrase` command: arguments in, text and exit status out; the work is done elsewhere."""

import argparse
import io
import sys
from collections.abc import Sequence

from cliptrase_ros import __version__
from cliptrase_ros.commands import bag, batch, bench, demo, evaluate, explain, segment, top, verify
from cliptrase_ros.commands.common import CommandError

PACKAGE = 'cliptrase_ros'
EXAMPLES = """examples:
  cliptrase segment photos/ -v 'road; grass; person = pedestrian, worker'
  cliptrase bag drive labelled -v 'road; car' --view
  cliptrase segment photos/ -v 'red ball; floor; wall' --model toybox    (needs no download)
"""
#: In the order `--help` lists them.
COMMANDS = (segment, bag, batch, top, demo, evaluate, explain, verify, bench)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 (a check failed) or 2 (an error)."""
    # A name that cannot be shown here must not end what is otherwise done.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed)
    except CommandError as error:
        print(f'cliptrase {parsed.command}: error: {error}', file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition('.')[0] == PACKAGE:
            raise
        print(
            f'cliptrase {parsed.command}: error: the Python package {error.name!r} is not '
            'installed; install what requirements.txt of cliptrase_ros lists',
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='cliptrase',
        description='Label images by words, without training.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'cliptrase {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == '__main__':
    sys.exit(main())
