"""The `cliptrase` command: arguments in, text and exit status out; the work is done elsewhere."""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    Vocabulary,
    VocabularyError,
    parse_over_background,
)

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
    _add_segment(commands)
    _add_bag(commands)
    _add_top(commands)
    _add_demo(commands)
    _add_verify(commands)
    return parser


def _add_segment(commands) -> None:
    description = (
        'Label photos, videos or a webcam by words. Written are label images (palette PNG of '
        'class ids, 255 = unlabelled), overlays with a legend, and segmentation.json with areas '
        'and confidences. Exit status: 0, or 1 if an input could not be read or labelled (the '
        'rest is done), or 2 if nothing was done.'
    )
    command = commands.add_parser(
        'segment', help='label photos, videos or a webcam', description=description
    )
    command.add_argument(
        'inputs',
        nargs='+',
        metavar='INPUT',
        help="photo, folder, pattern such as 'photos/**/*.jpg', video, or number of a webcam",
    )
    _add_words(command)
    command.add_argument(
        '-o',
        '--output',
        type=Path,
        default=Path('cliptrase_output'),
        metavar='FOLDER',
        help='where results go; new, empty or of an earlier run (default: %(default)s)',
    )
    command.add_argument(
        '--rle', action='store_true', help='masks as COCO run lengths in segmentation.json'
    )
    _add_engine(command, 'frames of a video or webcam, by its own time')
    command.set_defaults(run=_segment)


def _segment(arguments: argparse.Namespace) -> int:
    # Of a file or webcam that cannot be opened, one line of ours is enough.
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    from .photos.sources import InputError, check_output, find_sources

    vocabulary = _parse_words(arguments)
    try:
        check_output(arguments.output)
        sources = find_sources(arguments.inputs, arguments.output)
    except (InputError, OSError) as error:
        raise CommandError(error) from error
    segmenter, encoded, settings, batch = _load_engine(arguments, vocabulary)

    from .photos.reading import count_frames
    from .photos.segment import OutputSettings, segment_sources

    counts = [
        1 if source.kind == 'photo' else count_frames(source, arguments.rate) for source in sources
    ]
    output = OutputSettings(arguments.output, batch, arguments.rate, arguments.rle)
    with _progress(None if None in counts else sum(counts)) as progress:
        try:
            outcome = segment_sources(
                sources, segmenter, encoded, settings, output, progress.update
            )
        except OSError as error:
            raise CommandError(f'results could not be written: {error}') from error
    for file, reason in outcome.unreadable:
        print(f'cliptrase segment: {file}: {reason}', file=sys.stderr)
    for entry in vocabulary.classes:
        share = outcome.areas[entry.id] / max(1, outcome.total_area)
        print(f'{share:7.1%}  {entry.name}')
    print(f'{outcome.labelled} labelled, in {arguments.output}')
    if outcome.unreadable:
        print(f'{len(outcome.unreadable)} could not be labelled, see above')
    return 1 if outcome.unreadable else 0


def _add_bag(commands) -> None:
    description = (
        'Label the images of a rosbag2 recording (MCAP or SQLite, compressed or not). The new '
        'recording has everything of the old one, and the topics of the node: '
        'NODE/CAMERA/label, label_info, masks and overlay, and NODE/vocabulary. No ROS needed. '
        'Exit status: 0, or 1 if the recording is damaged or an image could not be labelled (the '
        'rest is done), or 2 if nothing was written.'
    )
    command = commands.add_parser('bag', help='label a recording', description=description)
    command.add_argument('input', type=Path, metavar='IN', help='folder, .mcap or .db3 file')
    command.add_argument('output', type=Path, metavar='OUT', help='folder; must not exist yet')
    _add_words(command)
    command.add_argument(
        '--topic',
        action='append',
        default=[],
        metavar='TOPIC[=CAMERA]',
        help='image topic to label, and what to call its camera; may be repeated (default: every '
        'topic with pictures)',
    )
    command.add_argument(
        '--node',
        default='/cliptrase',
        metavar='NAME',
        help='node name the new topics are under (default: %(default)s)',
    )
    command.add_argument(
        '--no-overlay', dest='overlay', action='store_false', help='leave out the large overlays'
    )
    command.add_argument(
        '--storage', choices=('mcap', 'sqlite3'), help='storage of OUT (default: that of IN)'
    )
    command.add_argument(
        '--compress',
        action=argparse.BooleanOptionalAction,
        help='compress OUT with zstd or not (default: as IN)',
    )
    _add_engine(command, 'images of a camera, by their times in the recording')
    command.set_defaults(run=_bag)


def _bag(arguments: argparse.Namespace) -> int:
    vocabulary = _parse_words(arguments)

    from .bag.cameras import check_destination, check_node, choose_cameras
    from .bag.reader import BagError, BagReader
    from .bag.types import make_typestore

    try:
        check_node(arguments.node)
        check_destination(arguments.input, arguments.output)
        typestore = make_typestore()
        with BagReader(arguments.input, typestore) as reader:
            cameras = choose_cameras(reader, arguments.topic, typestore, arguments.node)
            segmenter, encoded, segmentation, batch = _load_engine(arguments, vocabulary)

            from .bag.label import BagSettings, label_bag

            settings = BagSettings(
                arguments.node,
                arguments.storage,
                arguments.compress,
                arguments.rate,
                batch,
                arguments.overlay,
            )
            counts = [camera.topic.count for camera in cameras]
            with _progress(None if None in counts else sum(counts)) as progress:
                summary = label_bag(
                    reader,
                    arguments.output,
                    cameras,
                    segmenter,
                    encoded,
                    segmentation,
                    settings,
                    typestore,
                    progress.update,
                )
    except (BagError, FileNotFoundError) as error:
        raise CommandError(error) from error
    for sentence in summary.damage:
        print(f'cliptrase bag: {arguments.input}: {sentence}', file=sys.stderr)
    for topic, (count, reason) in summary.refused.items():
        print(f'cliptrase bag: {topic}: {count} not labelled: {reason}', file=sys.stderr)
    for camera in cameras:
        print(
            f'{camera.topic.name}: {summary.labelled[camera.name]} images labelled, in '
            f'{arguments.node}/{camera.name}/'
        )
    print(f'{summary.copied} messages and the labels are in {arguments.output}')
    return 1 if summary.damage or summary.refused else 0


def _add_top(commands) -> None:
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
    command.set_defaults(run=_top)


def _top(arguments: argparse.Namespace) -> int:
    _require_ros('it listens to running nodes', 'source a ROS 2 distribution')
    from .ros.top import run_top

    return run_top(arguments.once, arguments.timeout)


def _require_ros(why: str, remedy: str) -> None:
    try:
        import rclpy  # noqa: F401
    except ImportError as error:
        raise CommandError(
            f'{why}, and there is no ROS 2 in this Python ({error}); {remedy}'
        ) from error


def _add_words(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '-v',
        '--vocabulary',
        required=True,
        metavar='WORDS',
        help="the classes: 'road; person: pedestrian, worker'",
    )
    command.add_argument(
        '--background',
        default='; '.join(DEFAULT_BACKGROUND),
        metavar='WORDS',
        help="what is none of the classes; '' for nothing (default: '%(default)s')",
    )


def _add_engine(command: argparse.ArgumentParser, what_rate_counts: str) -> None:
    engine = command.add_argument_group('engine')
    engine.add_argument(
        '--model',
        default='ViT-B-16-quickgelu',
        metavar='NAME',
        help='open_clip architecture, toybox, or local-dir:FOLDER (default: %(default)s)',
    )
    engine.add_argument(
        '--pretrained',
        default='openai',
        metavar='TAG',
        help='weights: a tag of open_clip, or a file (default: %(default)s)',
    )
    engine.add_argument('--cache-dir', metavar='FOLDER', help='where downloaded weights are kept')
    engine.add_argument(
        '--device', default='auto', help='auto, cpu, cuda or cuda:N (default: %(default)s)'
    )
    engine.add_argument(
        '--precision',
        default='auto',
        help='auto, float32, float16 or bfloat16 (default: %(default)s)',
    )
    engine.add_argument(
        '--preset', default='robot', help='robot (whole frame) or paper (default: %(default)s)'
    )
    engine.add_argument(
        '--resolution',
        type=int,
        default=336,
        metavar='PIXELS',
        help='shorter side fed to CLIP (default: %(default)s)',
    )
    engine.add_argument(
        '--min-confidence',
        type=float,
        default=0.0,
        metavar='P',
        help='pixels less sure than this, 0 to 1, are unlabelled (default: %(default)s)',
    )
    engine.add_argument(
        '--rate',
        type=_rate,
        default=0.0,
        metavar='HZ',
        help=f'label at most so many {what_rate_counts} (default: all)',
    )
    engine.add_argument(
        '--batch',
        type=_at_least_one,
        metavar='N',
        help='images of equal size at a time (default: 8 on a GPU, else 1)',
    )


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 <= rate <= 1000:
        raise argparse.ArgumentTypeError(f'{text} is not 0 to 1000')
    return rate


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text} is not at least 1')
    return number


def _parse_words(arguments: argparse.Namespace) -> Vocabulary:
    background = [phrase for phrase in arguments.background.split(';') if phrase.strip()]
    try:
        return parse_over_background(arguments.vocabulary, background)
    except VocabularyError as error:
        raise CommandError(error) from error


def _load_engine(arguments: argparse.Namespace, vocabulary: Vocabulary):
    """Engine, encoded vocabulary, settings and batch size, as the arguments say."""
    from .batches import default_batch
    from .segmentation.segmenter import SegmentationSettings, load_segmenter
    from .segmentation.weights import ModelError

    try:
        settings = SegmentationSettings(
            arguments.preset, arguments.resolution, arguments.min_confidence
        )
        segmenter = load_segmenter(
            arguments.model,
            arguments.pretrained,
            arguments.device,
            arguments.precision,
            arguments.cache_dir,
        )
        encoded = segmenter.encode_vocabulary(vocabulary)
    except (ModelError, ValueError) as error:
        raise CommandError(error) from error
    return segmenter, encoded, settings, arguments.batch or default_batch(segmenter)


def _progress(total: int | None):
    from tqdm import tqdm

    # None: shown on a terminal only.
    return tqdm(total=total, unit='image', disable=None, dynamic_ncols=True)


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
    _require_ros(
        'it runs real ROS 2 nodes',
        'use `make demo`, or source a ROS 2 distribution and a workspace with this package',
    )
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
