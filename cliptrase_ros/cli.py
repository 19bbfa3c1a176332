"""The `cliptrase` command: arguments in, text and exit status out; the work is done elsewhere."""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

PACKAGE = 'cliptrase_ros'


class CommandError(Exception):
    """What the user asked for cannot be done; the message says why, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 (a check failed) or 2 (an error)."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    try:
        return parsed.run(parsed)
    except CommandError as error:
        print(f'cliptrase {parsed.command}: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def package_version() -> str:
    """Version of this package, as package.xml has it."""
    for folder in Path(__file__).resolve().parents:
        # The source tree, and what colcon installs beside the Python modules.
        for path in (folder / 'package.xml', folder / 'share' / PACKAGE / 'package.xml'):
            if path.is_file():
                package = ElementTree.parse(path).getroot()
                if package.findtext('name') == PACKAGE:
                    return package.findtext('version')
    return importlib.metadata.version(PACKAGE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='cliptrase', description='Label images by words, without training.'
    )
    parser.add_argument('--version', action='version', version=f'cliptrase {package_version()}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    _add_demo(commands)
    _add_verify(commands)
    return parser


def _add_demo(commands) -> None:
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
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise CommandError(
            f'it runs real ROS 2 nodes, and there is no ROS 2 in this Python ({error}); use '
            '`make demo`, or source a ROS 2 distribution and a workspace with this package'
        ) from error
    from .demo import run_demo

    return run_demo(arguments.output, arguments.phase)


def _add_verify(commands) -> None:
    description = (
        'Run the engine on recorded inputs and compare with the recorded outputs. Exit status 0 '
        'only if clusters, raw labels and labels are equal in every entry of every file.'
    )
    command = commands.add_parser(
        'verify', help='compare with recorded reference outputs', description=description
    )
    command.add_argument(
        '--checkpoint',
        required=True,
        metavar='CKPT',
        help='weights the recordings were made with: safetensors, or a PyTorch state dict',
    )
    command.add_argument(
        '--model',
        default='ViT-B-16-quickgelu',
        metavar='NAME',
        help='open_clip architecture of the weights (default: %(default)s)',
    )
    command.add_argument('files', nargs='+', type=Path, metavar='FILE.npz', help='recordings')
    command.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from .segmentation.weights import ModelError, load_model, names_architecture
    from .verify import RecordingError, Verifier, read_recording

    if not names_architecture(arguments.model):
        raise CommandError(
            f'--model is {arguments.model!r}, which brings its own weights; name the architecture '
            'of the checkpoint'
        )
    if not Path(arguments.checkpoint).is_file():
        raise CommandError(f'the checkpoint {arguments.checkpoint} does not exist or is no file')
    try:
        recordings = [read_recording(path) for path in arguments.files]
        verifier = Verifier(load_model(arguments.model, arguments.checkpoint))
    except (ModelError, RecordingError) as error:
        raise CommandError(error) from error

    width = max(len(path.name) for path in arguments.files)
    heads = ('clusters', 'raw labels', 'labels', 'correlation', 'patch logits', 'text features')
    print('Share of equal entries, and largest absolute differences:')
    print(f'{"file":{width}}', *(f'{head:>13}' for head in heads))
    equal = 0
    for path, recording in zip(arguments.files, recordings, strict=True):
        try:
            agreement = verifier.compare(recording)
        except RecordingError as error:
            raise CommandError(f'{path}: {error}') from error
        equal += agreement.equal
        shares = (agreement.clusters, agreement.raw_labels, agreement.labels)
        differences = (agreement.correlation, agreement.patch_logits, agreement.text_features)
        print(
            f'{path.name:{width}}',
            *(f'{_percent(share):>13}' for share in shares),
            *(f'{difference:13.1e}' for difference in differences),
            flush=True,
        )
    print(f'{equal} of {len(recordings)} equal')
    return 0 if equal == len(recordings) else 1


def _percent(share: float) -> str:
    # 100 % is said of nothing less, however it rounds.
    return '100 %' if share == 1 else f'{min(share, 0.999999):.4%}'


if __name__ == '__main__':
    sys.exit(main())
