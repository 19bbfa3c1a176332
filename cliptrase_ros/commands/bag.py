"""`cliptrase bag`: recordings."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from cliptrase_ros.commands.common import CommandError, command_errors, progress_bar
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
        'Label the images of a rosbag2 recording (MCAP or SQLite, compressed or not). The new '
        'recording has everything of the old one, and the topics of the node: '
        'NODE/CAMERA/label, label_info, masks, detections and overlay, and NODE/vocabulary; or, '
        'with --sidecar, these alone. No ROS needed. '
        'Exit status: 0, or 1 if the recording is damaged or an image could not be labelled (the '
        'rest is done), or 2 if nothing was written.'
    )
    command = commands.add_parser('bag', help='label a recording', description=description)
    command.add_argument('input', type=Path, metavar='IN', help='folder, .mcap or .db3 file')
    command.add_argument('output', type=Path, metavar='OUT', help='folder; must not exist yet')
    add_words(command, required=False)
    command.add_argument(
        '--merge',
        type=Path,
        metavar='LABELS',
        help='label nothing, but put IN together with its labels, which --sidecar or '
        '`cliptrase batch` has written',
    )
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
    add_overlay_boxes(command)
    command.add_argument(
        '--sidecar',
        action='store_true',
        help='write the labels alone, to lie beside IN; MCAP and compressed, unless told otherwise',
    )
    command.add_argument(
        '--storage', choices=('mcap', 'sqlite3'), help='storage of OUT (default: that of IN)'
    )
    command.add_argument(
        '--compress',
        action=argparse.BooleanOptionalAction,
        help='compress OUT with zstd or not (default: as IN)',
    )
    add_view(command, 'pictures and labels')
    add_engine(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.merge:
        return _merge(arguments)
    if arguments.vocabulary is None:
        raise CommandError(
            'name what to label: -v WORDS; or the labels to put into the recording: --merge LABELS'
        )
    vocabulary = parse_words(arguments)
    check_view(arguments)

    from cliptrase_ros.bag.cameras import check_destination, check_node, choose_cameras
    from cliptrase_ros.bag.folder import BagError
    from cliptrase_ros.bag.reader import BagReader
    from cliptrase_ros.messages.typestore import make_typestore

    points = None
    with command_errors(BagError, FileNotFoundError):
        check_node(arguments.node)
        check_destination(arguments.input, arguments.output)
        with BagReader(arguments.input, make_typestore()) as reader:
            choice = choose_cameras(reader, arguments.topic, arguments.node)
            cameras = choice.cameras
            segmenter, encoded, segmentation, batch = load_engine(arguments, vocabulary)

            from cliptrase_ros.bag.label import BagSettings, Labeller, label_bag
            from cliptrase_ros.bag.points import BagPoints
            from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

            settings = BagSettings(
                arguments.node,
                arguments.storage,
                arguments.compress,
                arguments.rate,
                arguments.overlay,
                arguments.overlay_boxes,
                arguments.sidecar,
            )
            engine = FaultTolerantEngine(segmenter, batch=batch)
            counts = [camera.topic.count for camera in cameras]
            total = None if None in counts else sum(counts)
            with open_view(arguments) as viewer, progress_bar(total) as progress:
                if viewer:
                    points = BagPoints(reader, cameras, _points_shower(viewer))
                summary = label_bag(
                    reader,
                    arguments.output,
                    cameras,
                    Labeller(engine, encoded, segmentation),
                    settings,
                    on_image=progress.update,
                    on_result=_result_shower(viewer, points) if points else lambda *_: None,
                    on_message=points.add_depth if points else lambda _: None,
                )
    refused = choice.refused | summary.refused
    warnings = [f'{arguments.input}: {note}' for note in (*reader.notes, *summary.damage)]
    warnings += [f'{topic}: {n} not labelled: {reason}' for topic, (n, reason) in refused.items()]
    if points:
        warnings += [f'{name}: no points to view: {why}' for name, why in points.refused.items()]
    warnings += _not_kept(summary.not_kept)
    _warn(warnings)
    for camera in cameras:
        print(
            f'{camera.topic.name}: {summary.labelled[camera.name]} images labelled, in '
            f'{arguments.node}/{camera.name}/'
        )
    for topic, reason in choice.left_out.items():
        print(f'{topic}: not labelled: {reason}')
    what = 'the' if arguments.sidecar else f'{summary.messages} messages and the'
    print(f'{what} labels are in {arguments.output}')
    return 1 if summary.damage or refused else 0


def _merge(arguments: argparse.Namespace) -> int:
    for option in ('vocabulary', 'sidecar', 'view'):
        if getattr(arguments, option) not in (None, False):
            raise CommandError(f'--merge labels nothing; leave out --{option}, or --merge')

    from cliptrase_ros.bag.cameras import check_destination
    from cliptrase_ros.bag.folder import BagError
    from cliptrase_ros.bag.merge import merge_bags
    from cliptrase_ros.bag.reader import BagReader
    from cliptrase_ros.messages.typestore import make_typestore

    path = arguments.merge
    # In a folder of results of `batch`, the labels lie one folder deeper.
    deeper = [file.parent for file in path.glob('*/labels.mcap')]
    path = deeper[0] if len(deeper) == 1 else path
    with command_errors(BagError, FileNotFoundError):
        for given in (arguments.input, path):
            check_destination(given, arguments.output)
        typestore = make_typestore()
        with (
            BagReader(arguments.input, typestore) as reader,
            BagReader(path, typestore) as labels,
        ):
            summary = merge_bags(
                reader, labels, arguments.output, arguments.storage, arguments.compress
            )
    warnings = [f'{arguments.input}: {note}' for note in (*reader.notes, *reader.damage)]
    warnings += [f'{path}: {note}' for note in (*labels.notes, *labels.damage)]
    if summary.strangers:
        warnings.append(
            f'{summary.strangers} of {summary.labels} messages of labels have times at which '
            f'{arguments.input} has no message; they may be those of another recording'
        )
    _warn(warnings + _not_kept(summary.not_kept))
    print(
        f'{summary.messages} messages and {summary.labels} messages of labels are in '
        f'{arguments.output}'
    )
    return 1 if reader.damage or labels.damage else 0


def _not_kept(what: str) -> list[str]:
    return [f'SQLite has no place for {what}; --storage mcap keeps them'] if what else []


def _warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        print(f'cliptrase bag: {warning}', file=sys.stderr)


def _result_shower(viewer, points):
    def show(image, result) -> None:
        viewer.set_stamp(image.stamp_ns)
        viewer.show_segmentation(image.camera.name, image.picture, result)
        points.add_labels(image.camera.name, image.header, image.stamp_ns, result.label)

    return show


def _points_shower(viewer):
    def show(camera_name, stamp_ns, positions, labels) -> None:
        viewer.set_stamp(stamp_ns)
        viewer.show_points(camera_name, positions, labels)

    return show
