"""Options that several commands have, and what is made of them."""

import argparse
import contextlib
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptrase_ros.commands.common import CommandError, command_errors
from cliptrase_ros.segmentation.settings import (
    RESOLUTION_RANGE,
    ModelSettings,
    SegmentationSettings,
    Setting,
    settings_of,
)
from cliptrase_ros.segmentation.vocabulary import (
    DEFAULT_BACKGROUND,
    Vocabulary,
    VocabularyError,
    parse_vocabulary,
)

if TYPE_CHECKING:
    from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmenter


def at_least_one(text: str) -> int:
    """Read a positive whole number; for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


#: --threads on a command line, where nothing else waits for a core as on a robot.
ALL_THREADS = {
    'type': at_least_one,
    'metavar': 'N',
    'help': 'processor cores to compute with (default: every one, or what OMP_NUM_THREADS says)',
}


def add_settings(
    parser: argparse._ActionsContainer,
    declaration: type,
    *,
    only: Collection[str] = (),
    without: Collection[str] = (),
    **changes: dict[str, Any],
) -> None:
    """Add an option for each setting that a dataclass declares.

    Args:
        declaration: The dataclass; see `settings.settings_of`.
        only: Names of the settings to add; empty for all.
        **changes: By the name of a setting, what its option has instead; arguments of
            `add_argument`.
    """
    for declared in settings_of(declaration):
        if declared.name not in without and (not only or declared.name in only):
            about = _option(declared) | changes.get(declared.name, {})
            parser.add_argument(f'--{declared.name.replace("_", "-")}', **about)


def _option(declared: Setting) -> dict[str, Any]:
    # What other values there are than the help says, the settings say when they are made.
    notes = [declared.rule] if declared.choices or declared.limits else []
    if declared.default != '':
        notes.append(f'default: {declared.default}')
    doc = declared.doc[0].lower() + declared.doc[1:].rstrip('.').replace('%', '%%')
    about = {'default': declared.default, 'help': f'{doc} ({"; ".join(notes)})' if notes else doc}
    if declared.type is bool:
        return about | {'action': argparse.BooleanOptionalAction}
    return about | {'type': declared.type, 'metavar': declared.unit.upper() or None}


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """What the options of `ModelSettings` say. Raises CommandError."""
    with command_errors(ValueError):
        return ModelSettings(**_values(arguments, ModelSettings))


def segmentation_settings(arguments: argparse.Namespace, **changes: Any) -> SegmentationSettings:
    """What the options of `SegmentationSettings` say, or the changes. Raises CommandError.

    What the command has no option for is at its default.
    """
    with command_errors(ValueError):
        settings = SegmentationSettings(**{**_values(arguments, SegmentationSettings), **changes})
    if settings.stride and not settings.method.window:
        raise CommandError(
            '--stride says how far apart windows stand, and there are none: give a --window of at '
            f'least {RESOLUTION_RANGE[0]} pixels'
        )
    if settings.refinement == 'sam' and not arguments.sam_model:
        raise CommandError('--refinement sam needs the folder of a SAM: --sam-model FOLDER')
    return settings


def _values(arguments: argparse.Namespace, declaration: type) -> dict[str, Any]:
    names = {declared.name for declared in settings_of(declaration)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def add_words(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Add --vocabulary and --background."""
    command.add_argument(
        '-v',
        '--vocabulary',
        required=required,
        metavar='WORDS',
        help="the classes: 'road; person = pedestrian, worker'; or FILE.txt, a class a line",
    )
    command.add_argument(
        '--background',
        default='; '.join(DEFAULT_BACKGROUND),
        metavar='WORDS',
        help="what is none of the classes, or FILE.txt; '' for nothing (default: '%(default)s')",
    )


def parse_words(arguments: argparse.Namespace) -> Vocabulary:
    """Classes and background as the options of `add_words` say. Raises CommandError."""
    vocabulary, background = map(_read_words, (arguments.vocabulary, arguments.background))
    with command_errors(VocabularyError):
        return parse_vocabulary(vocabulary, background)


def _read_words(given: str) -> str:
    """Words as they are given, or of the text file that is given. Raises CommandError."""
    if not given.endswith('.txt'):
        return given
    try:
        text = Path(given).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise CommandError(f'the words in {given} cannot be read: {error.strerror}') from error
    except UnicodeDecodeError as error:
        raise CommandError(f'{given} is no text in UTF-8; save it as such') from error
    lines = [line.strip().rstrip(';') for line in text.splitlines()]
    words = '; '.join(line for line in lines if line and not line.startswith('#'))
    if not words:
        raise CommandError(f'{given} has no words in it; write a class in each line')
    return words


def add_engine(command: argparse.ArgumentParser) -> None:
    """Add what `load_engine` reads, and --rate: all of a command that labels."""
    # Files do not wait for a label that comes sooner.
    model = command.add_argument_group('model')
    add_settings(model, ModelSettings, without=('spin_ms',), threads=ALL_THREADS)
    engine = command.add_argument_group('segmentation')
    add_settings(engine, SegmentationSettings)
    add_batch(engine)
    engine.add_argument(
        '--rate',
        type=rate,
        default=0.0,
        metavar='HZ',
        help='label at most so many images a second of a camera or video, by their own times; 0 '
        'labels all (default: 0)',
    )


def add_batch(engine: argparse._ActionsContainer) -> None:
    """Add --batch."""
    engine.add_argument(
        '--batch',
        type=at_least_one,
        metavar='N',
        help='images of equal size at a time (default: 8 on a GPU, else 1)',
    )


def load_engine(
    arguments: argparse.Namespace, vocabulary: Vocabulary
) -> 'tuple[Segmenter, EncodedVocabulary, SegmentationSettings, int]':
    """Engine, encoded vocabulary, settings and batch size. Raises CommandError."""
    settings = segmentation_settings(arguments)
    segmenter = load_model(arguments)
    with command_errors(VocabularyError):
        encoded = segmenter.encode_vocabulary(vocabulary)
    return segmenter, encoded, settings, batch_size(arguments, segmenter)


def load_model(arguments: argparse.Namespace) -> 'Segmenter':
    """The engine, as the options of `ModelSettings` say. Raises CommandError."""
    settings = model_settings(arguments)

    import torch

    from cliptrase_ros.segmentation.model.weights import ModelError
    from cliptrase_ros.segmentation.segmenter import load_segmenter

    # PyTorch's own default is every core.
    settings = replace(settings, threads=settings.threads or torch.get_num_threads())
    with command_errors(ModelError, ValueError):
        return load_segmenter(**vars(settings))


def batch_size(arguments: argparse.Namespace, segmenter: 'Segmenter') -> int:
    """How many images are labelled together: what --batch says, or what suits the device."""
    from cliptrase_ros.streams.fault_tolerance import default_batch

    return arguments.batch or default_batch(segmenter)


def add_overlay_boxes(command: argparse.ArgumentParser) -> None:
    """Add --overlay-boxes."""
    command.add_argument(
        '--overlay-boxes',
        action='store_true',
        help='draw the instances on the overlays: a box each, with class and id',
    )


def add_view(command: argparse.ArgumentParser, what: str) -> None:
    """Add --view, which shows `what`."""
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

        with command_errors(ViewerError, before='--view: '):
            check_viewer(_destination(arguments))


def open_view(arguments: argparse.Namespace) -> contextlib.AbstractContextManager:
    """The viewer as a context manager, whose value is None without --view. Raises CommandError."""
    if arguments.view is None:
        return contextlib.nullcontext()
    from cliptrase_ros.viewer import Viewer, ViewerError

    with command_errors(ViewerError, before='--view: '):
        return Viewer(_destination(arguments))


def _destination(arguments: argparse.Namespace) -> Path | None:
    return Path(arguments.view) if arguments.view else None


def rate(text: str) -> float:
    """Read a rate, 0 to 1000 Hz; for argparse."""
    hertz = float(text)
    if not 0 <= hertz <= 1000:
        raise argparse.ArgumentTypeError(f'{text} is not 0 to 1000')
    return hertz
