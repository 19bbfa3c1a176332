"""`cliptrase segment`: photos, videos and webcams."""

import argparse
import itertools
import os
import signal
import sys
from pathlib import Path

from cliptrase_ros.commands.common import command_errors, progress_bar, quiet_pillow
from cliptrase_ros.commands.options import (
    add_engine,
    add_overlay_boxes,
    add_view,
    add_words,
    check_view,
    load_engine,
    open_view,
    parse_words,
)


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Label photos, videos or a webcam by words. Written are label images (palette PNG of '
        'class ids, 255 = unlabelled), overlays with a legend, and segmentation.json with areas '
        'and confidences. Exit status: 0, or 1 if an input could not be read or labelled, or its '
        'results not be written (the rest is done), or 2 if nothing was done.'
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
    add_words(command)
    command.add_argument(
        '-o',
        '--output',
        type=Path,
        default=Path('cliptrase_output'),
        metavar='FOLDER',
        help='where results go; new, empty or of an earlier run (default: %(default)s)',
    )
    command.add_argument(
        '--rle',
        action='store_true',
        help='masks of classes, and instances, as COCO run lengths in segmentation.json',
    )
    command.add_argument(
        '--no-overlay', dest='overlay', action='store_false', help='leave out the overlays'
    )
    add_overlay_boxes(command)
    add_view(command, 'pictures and labels')
    add_engine(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    # Of what cannot be opened, one line of ours is enough.
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'ERROR')
    quiet_pillow()
    # As Ctrl-C: what was done is kept when `timeout` or a service manager ends a webcam.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from cliptrase_ros.photos.output_folder import check_output
    from cliptrase_ros.photos.sources import InputError, find_sources

    vocabulary = parse_words(arguments)
    check_view(arguments)
    with command_errors(InputError, OSError):
        check_output(arguments.output)
        sources = find_sources(arguments.inputs, arguments.output)
    segmenter, encoded, settings, batch = load_engine(arguments, vocabulary)

    from cliptrase_ros.photos.segment import OutputSettings, segment_sources
    from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

    counts = [_count(source, arguments.rate) for source in sources]
    output = OutputSettings(
        arguments.output,
        arguments.rate,
        coco=arguments.rle,
        overlay=arguments.overlay,
        overlay_boxes=arguments.overlay_boxes,
    )
    engine = FaultTolerantEngine(segmenter, batch=batch)
    total = None if None in counts else sum(counts)
    with (
        open_view(arguments) as viewer,
        progress_bar(total) as progress,
        command_errors(OSError, before='results could not be written: '),
    ):
        outcome = segment_sources(
            *(sources, engine, encoded, settings, output),
            on_image=progress.update,
            on_result=_make_shower(viewer) if viewer else lambda *_: None,
        )
    for file, reason in outcome.unreadable:
        print(f'cliptrase segment: {file}: {reason}', file=sys.stderr)
    for entry in vocabulary.classes:
        share = outcome.areas[entry.id] / max(1, outcome.total_area)
        print(f'{share:7.1%}  {entry.name}')
    print(f'{outcome.labelled} labelled, in {arguments.output}')
    if outcome.unreadable:
        print(f'{len(outcome.unreadable)} could not be labelled, see above')
    return 1 if outcome.unreadable else 0


def _count(source, rate: float) -> int | None:
    from cliptrase_ros.photos.videos import count_frames

    if source.kind == 'webcam':
        return None
    return 1 if source.kind == 'photo' else count_frames(source.location, rate)


def _make_shower(viewer):
    numbers = itertools.count()

    def show(picture, segmentation) -> None:
        if picture.number is None:
            viewer.set_photo(next(numbers))
            viewer.show_segmentation('photos', picture.pixels, segmentation, str(picture.source))
        else:
            viewer.set_video_time(picture.time_s)
            viewer.show_segmentation(picture.source.name, picture.pixels, segmentation)

    return show
