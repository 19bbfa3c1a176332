"""Options that several commands have, and what is made of them."""

import argparse
import contextlib
from pathlib import Path

from cliptrase_ros.commands.common import CommandError
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    Vocabulary,
    VocabularyError,
    parse_vocabulary,
)


def add_words(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --vocabulary and --background."""
    command.add_argument(
        '-v',
        '--vocabulary',
        required=required,
        metavar='WORDS',
        help="the classes: 'road; person = pedestrian, worker'",
    )
    command.add_argument(
        '--background',
        default='; '.join(DEFAULT_BACKGROUND),
        metavar='WORDS',
        help="what is none of the classes; '' for nothing (default: '%(default)s')",
    )


def add_engine(
    command: argparse.ArgumentParser, what_rate_counts: str, what_smoothing_joins: str
) -> None:
    """Add what the engine is and how it works: `add_model`, batch, preset, smoothing and rate."""
    engine = add_model(command)
    add_batch(engine)
    engine.add_argument(
        '--preset',
        default='robot',
        help='robot (whole frame), plus (whole frame, no clusters) or paper (default: %(default)s)',
    )
    engine.add_argument(
        '--resolution',
        type=int,
        default=336,
        metavar='PIXELS',
        help='shorter side fed to CLIP (default: %(default)s)',
    )
    add_beyond_paper(engine)
    engine.add_argument(
        '--smoothing',
        type=float,
        default=0.0,
        metavar='SHARE',
        help='share of what a patch was before that is kept, against flicker between '
        f'{what_smoothing_joins}; 0.5 is much (default: none)',
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
        type=rate,
        default=0.0,
        metavar='HZ',
        help=f'label at most so many {what_rate_counts} (default: all)',
    )


def add_beyond_paper(engine) -> None:
    """Add to a group of options what any preset can have besides: refinement and windows."""
    engine.add_argument(
        '--refinement',
        default='none',
        help='none; edges: boundaries follow the picture; sam (default: %(default)s)',
    )
    engine.add_argument(
        '--sam-model', default='', metavar='FOLDER', help='a SAM, for --refinement sam'
    )
    engine.add_argument(
        '--window',
        type=int,
        default=0,
        metavar='PIXELS',
        help='side of squares that slide over a large image (default: none)',
    )
    engine.add_argument(
        '--stride',
        type=int,
        default=0,
        metavar='PIXELS',
        help='how far apart windows stand (default: half a window)',
    )


def add_model(command: argparse.ArgumentParser):
    """Add what the engine is: model, device, threads. Returns the group of options."""
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
    add_threads(engine)
    return engine


def add_batch(engine) -> None:
    """Add --batch to a group of options."""
    engine.add_argument(
        '--batch',
        type=at_least_one,
        metavar='N',
        help='images of equal size at a time (default: 8 on a GPU, else 1)',
    )


def add_threads(engine) -> None:
    """Add --threads to a group of options."""
    engine.add_argument(
        '--threads',
        type=at_least_one,
        metavar='N',
        help='processor cores to compute with (default: every one, or what OMP_NUM_THREADS says)',
    )


def add_view(command: argparse.ArgumentParser, what: str) -> None:
    """Add --view. what: is shown."""
    command.add_argument(
        '--view',
        nargs='?',
        const='',
        metavar='FILE.rrd',
        help=f'show {what} in a window of the Rerun viewer, or record it for the viewer in '
        'FILE.rrd; goes last; needs `pip install rerun-sdk`',
    )


def check_view(arguments: argparse.Namespace) -> None:
    """Refuse a --view that cannot be, before anything long begins. Raises CommandError."""
    if arguments.view is not None:
        from cliptrase_ros.viewer import ViewerError, check_viewer

        try:
            check_viewer(_destination(arguments))
        except ViewerError as error:
            raise CommandError(f'--view: {error}') from error


def open_view(arguments: argparse.Namespace):
    """The viewer as a context manager, whose value is None without --view. CommandError."""
    if arguments.view is None:
        return contextlib.nullcontext()
    from cliptrase_ros.viewer import Viewer, ViewerError

    try:
        return Viewer(_destination(arguments))
    except ViewerError as error:
        raise CommandError(f'--view: {error}') from error


def _destination(arguments: argparse.Namespace) -> Path | None:
    return Path(arguments.view) if arguments.view else None


def rate(text: str) -> float:
    """Read a rate, 0 to 1000 Hz; for argparse."""
    hertz = float(text)
    if not 0 <= hertz <= 1000:
        raise argparse.ArgumentTypeError(f'{text} is not 0 to 1000')
    return hertz


def at_least_one(text: str) -> int:
    """Read a positive whole number; for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


def parse_words(arguments: argparse.Namespace) -> Vocabulary:
    """Classes and background as the arguments say. Raises CommandError."""
    try:
        return parse_vocabulary(arguments.vocabulary, arguments.background)
    except VocabularyError as error:
        raise CommandError(error) from error


def load_engine(arguments: argparse.Namespace, vocabulary: Vocabulary):
    """Engine, encoded vocabulary, settings and batch size, as the arguments say. CommandError."""
    from cliptrase_ros.segmentation.settings import SegmentationSettings

    try:
        settings = SegmentationSettings(
            arguments.preset,
            arguments.resolution,
            arguments.min_confidence,
            refinement=arguments.refinement,
            smoothing=arguments.smoothing,
            window=arguments.window,
            stride=arguments.stride,
        )
    except ValueError as error:
        raise CommandError(error) from error
    segmenter, batch = load_model(arguments)
    try:
        encoded = segmenter.encode_vocabulary(vocabulary)
    except VocabularyError as error:
        raise CommandError(error) from error
    return segmenter, encoded, settings, batch


def load_model(arguments: argparse.Namespace):
    """Engine and batch size, as the arguments say. Raises CommandError."""
    import torch

    from cliptrase_ros.segmentation.model.weights import ModelError
    from cliptrase_ros.segmentation.segmenter import load_segmenter
    from cliptrase_ros.streams.batches import default_batch

    # Not every command that loads a model labels with it.
    sam_model = getattr(arguments, 'sam_model', '')
    if getattr(arguments, 'stride', 0) and not arguments.window:
        raise CommandError('--stride says how far apart windows stand: give --window as well')
    if getattr(arguments, 'refinement', 'none') == 'sam' and not sam_model:
        raise CommandError('--refinement sam needs the folder of a SAM: --sam-model FOLDER')
    try:
        segmenter = load_segmenter(
            arguments.model,
            arguments.pretrained,
            arguments.device,
            arguments.precision,
            arguments.cache_dir,
            # PyTorch's own default, every core: nothing else waits for one here as on a robot.
            arguments.threads or torch.get_num_threads(),
            sam_model,
        )
    except (ModelError, ValueError) as error:
        raise CommandError(error) from error
    return segmenter, getattr(arguments, 'batch', None) or default_batch(segmenter)
