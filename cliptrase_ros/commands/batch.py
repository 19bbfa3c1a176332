"""`cliptrase batch`: the recordings, videos and photos of a fleet."""

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cliptrase_ros.commands.common import CommandError, command_errors, progress_bar
from cliptrase_ros.commands.options import (
    add_engine,
    add_words,
    at_least_one,
    model_settings,
    parse_words,
    segmentation_settings,
)

if TYPE_CHECKING:
    from tqdm import tqdm

    from cliptrase_ros.fleet.engines import Slot
    from cliptrase_ros.fleet.labelling import Job, Labelling
    from cliptrase_ros.fleet.plan import Plan
    from cliptrase_ros.fleet.result_store import ResultStore
    from cliptrase_ros.fleet.storage import Storage

# So many inputs with faults are named at the end; all of them are in the storage.
_NAMED = 20

# Where there is no terminal, progress is a line in so many seconds.
_LOG_PERIOD_S = 60.0


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Label many recordings, videos and photos, of this machine or in object storage, with many '
        'workers. Results go to a folder of their own in OUTPUT for each labelling (words, model, '
        'settings). What is done is never done again: started again, the command goes on where it '
        'stopped. Exit status: 0, or 1 if an input is damaged or could not be labelled (the rest '
        'is done), or 2 if nothing was done.'
    )
    command = commands.add_parser(
        'batch', help='label a fleet of recordings, videos and photos', description=description
    )
    command.add_argument(
        'inputs',
        nargs='*',
        metavar='INPUT',
        help='recording, video, photo, folder of them, or pattern; a path, or a URL that fsspec '
        "knows, such as 's3://fleet/2026-11/**/*.mcap'",
    )
    command.add_argument(
        '-o', '--output', required=True, metavar='OUTPUT', help='path or URL where results go'
    )
    add_words(command, required=False)
    command.add_argument('--dry-run', action='store_true', help='count what there is to do')
    command.add_argument(
        '--status',
        action='store_true',
        help='show how far the labellings in OUTPUT are; needs neither INPUT nor words',
    )
    command.add_argument(
        '--retry-failed', action='store_true', help='try again what could not be labelled before'
    )
    command.add_argument(
        '--shard',
        type=_shard,
        default=(0, 1),
        metavar='I/N',
        help='do the Ith of N parts of the work, I from 0 to N-1, as one of N jobs of an array',
    )
    command.add_argument(
        '--topic',
        action='append',
        default=[],
        metavar='TOPIC[=CAMERA]',
        help='image topic of recordings to label, and what to call its camera; may be repeated '
        '(default: every topic with pictures)',
    )
    command.add_argument(
        '--node',
        default='/cliptrase',
        metavar='NAME',
        help='node name that the new topics of recordings are under (default: %(default)s)',
    )
    command.add_argument(
        '--overlay',
        action='store_true',
        help='results have overlays as well: pictures for people, and large',
    )
    command.add_argument(
        '--export',
        type=lambda text: tuple(dict.fromkeys(name.strip() for name in text.split(','))),
        default=(),
        metavar='FORMAT,...',
        help='make datasets of the results: coco, coco-polygons, yolo, palette, parquet, fiftyone',
    )
    command.add_argument(
        '--export-images',
        action='store_true',
        help='copy the images into the datasets as well: photos as they are, where any program '
        'reads them, all others as JPEG',
    )
    workers = command.add_argument_group('workers')
    workers.add_argument(
        '--workers',
        type=at_least_one,
        metavar='N',
        help='how many; those of this machine share its cores (default: one for each GPU, or one)',
    )
    workers.add_argument(
        '--ray',
        metavar='ADDRESS',
        help="run them on a Ray cluster: 'auto' for the one that this machine is of, 'local' for "
        'one of its own, or its address (default: processes of this machine, without Ray)',
    )
    workers.add_argument(
        '--scratch',
        type=Path,
        metavar='FOLDER',
        help='where inputs are fetched to (default: the folder for temporary files)',
    )
    workers.add_argument(
        '--scratch-gib',
        type=_positive,
        default=20.0,
        metavar='GIB',
        help='most that fetched inputs of a worker take there (default: %(default)g)',
    )
    add_engine(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from cliptrase_ros.fleet.storage import StorageError
    from cliptrase_ros.fleet.tasks import TaskError

    if not arguments.output:
        raise CommandError('--output is empty; give a path or URL')
    with command_errors(StorageError, TaskError, OSError), _stopped_once():
        if arguments.status:
            return _show_status(arguments.output)
        try:
            return _label(arguments)
        except KeyboardInterrupt:
            print('cliptrase batch: stopped; the same command goes on from here', file=sys.stderr)
            raise


@contextlib.contextmanager
def _stopped_once() -> 'Iterator[None]':
    """Within it SIGTERM, which ends jobs of a cluster, is as Ctrl-C, and the first one counts.

    A second one, of an impatient user or of `timeout`, would interrupt the end of the workers, and
    is ignored until this process has ended, too.
    """
    is_stopped = False

    def stop(*_: object) -> None:
        nonlocal is_stopped
        is_stopped = True
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if not is_stopped:
                signal.signal(number, handler)


def _label(arguments: argparse.Namespace) -> int:
    if not all((arguments.inputs, *arguments.inputs, arguments.vocabulary)):
        raise CommandError('give at least one INPUT and the words, --vocabulary WORDS')

    from cliptrase_ros.exports.export import check_formats
    from cliptrase_ros.exports.results import ExportError
    from cliptrase_ros.fleet.batch import describe
    from cliptrase_ros.fleet.plan import make_plan
    from cliptrase_ros.fleet.result_store import ResultStore
    from cliptrase_ros.fleet.storage import Storage
    from cliptrase_ros.fleet.tasks import find_tasks

    with command_errors(ExportError):
        check_formats(arguments.export)
    labelling, gpus = _labelling(arguments)
    store = ResultStore(Storage(arguments.output), labelling.digest)
    found = find_tasks(arguments.inputs, arguments.output, labelling.digest)
    with progress_bar(None, 'task', 'looking') as bar:
        plan = make_plan(found, store, arguments.shard, arguments.retry_failed, bar.update)
    with plan:
        _print_plan(plan, store.url, arguments.shard)
        if arguments.dry_run:
            return 0
        with command_errors(OSError, before=f'results cannot be written to {store.url}: '):
            store.storage.remove_abandoned()
            describe(store, labelling, plan)
            job = _job(arguments, labelling, store.storage)
            has_faults = _run_tasks(arguments, plan, store, job, gpus)
        if job.formats:
            has_faults |= _export(arguments, plan, store, job)
    return 1 if has_faults else 0


def _run_tasks(
    arguments: argparse.Namespace, plan: 'Plan', store: 'ResultStore', job: 'Job', gpus: int
) -> bool:
    """Label what is left and say what came of it; returns whether any input has a fault."""
    from cliptrase_ros.fleet.batch import label

    if plan.states['failed']:
        print(
            f'{plan.states["failed"]} have failed before, see {store.url}/failed/; --retry-failed '
            'tries them again'
        )
    if plan.damaged:
        print(f'{plan.damaged} of those done are of damaged inputs, see {store.url}/damaged/')
    has_faults = bool(plan.states['failed'] or plan.damaged)
    if not plan.states['left']:
        return has_faults
    with (
        _slots(arguments, job, gpus) as slots,
        progress_bar(plan.states['left'], 'task') as bar,
    ):
        summary = label(plan, store, slots, _progress_shower(bar))
    _print_faults('not labelled', summary.failed)
    _print_faults('not finished', summary.unfinished)
    if summary.was_stopped:
        print(
            f'cliptrase batch: stopped after {len(summary.unfinished)} such inputs in a row; the '
            'same command goes on when their cause is mended',
            file=sys.stderr,
        )
    _print_faults('damaged', [(source, '; '.join(d)) for source, d in summary.damaged])
    print(
        f'{summary.states["done"]} tasks done, {summary.images} images labelled, '
        f'{summary.states["failed"]} failed, {len(summary.damaged)} of damaged inputs'
    )
    return has_faults or bool(summary.failed or summary.unfinished or summary.damaged)


def _progress_shower(bar: 'tqdm') -> 'Callable[[int, int, int], None]':
    """What shows tasks that are done, images that are labelled, and workers: a bar, or a log."""
    shown_s = time.monotonic()

    def show(tasks: int, images: int, workers: int) -> None:
        nonlocal shown_s
        bar.set_postfix_str(f'{images} images, {workers} workers', refresh=False)
        bar.update(tasks - bar.n)
        # Without a terminal there is no bar.
        if bar.disable and time.monotonic() - shown_s >= _LOG_PERIOD_S:
            shown_s = time.monotonic()
            print(f'{tasks} of {bar.total} tasks, {images} images, {workers} workers', flush=True)

    return show


def _export(arguments: argparse.Namespace, plan: 'Plan', store: 'ResultStore', job: 'Job') -> bool:
    """Make the datasets; returns whether one lacks anything."""
    from cliptrase_ros.fleet.datasets import Datasets

    datasets = Datasets(plan, store, job.datasets)
    left = datasets.keys_left()
    failed = []
    if left:
        job = replace(job, device='cpu', needs_model=False)
        with (
            _slots(arguments, job, gpus=0) as slots,
            progress_bar(len(left), 'task', 'exporting') as bar,
        ):
            failed = datasets.make_parts(left, slots, bar.update)
    _print_faults('not exported', failed)
    if arguments.shard[1] > 1:
        print('the same command without --shard joins the datasets when all shards are done')
        return bool(failed)
    datasets.join(job.labelling.vocabulary, job.scratch)
    for name, path in datasets.paths.items():
        print(f'{name}: {store.url}/{path}')
    if 'yolo' in datasets.paths and not job.with_images:
        print('training with yolo needs the images beside the labels: --export-images')
    return bool(failed)


def _labelling(arguments: argparse.Namespace) -> 'tuple[Labelling, int]':
    """What is asked for, and how many GPUs this machine has. Raises CommandError."""
    vocabulary = parse_words(arguments)
    model, settings = model_settings(arguments), segmentation_settings(arguments)

    from cliptrase_ros.bag.cameras import check_node
    from cliptrase_ros.bag.folder import BagError
    from cliptrase_ros.fleet.labelling import Labelling
    from cliptrase_ros.fleet.model_check import ModelFault, examine

    with command_errors(BagError, ModelFault):
        check_node(arguments.node)
        facts = examine(model, vocabulary, is_here=not arguments.ray)
    labelling = Labelling(
        *(model, facts.weights, vocabulary, settings, arguments.rate, arguments.overlay),
        *(tuple(arguments.topic), arguments.node),
    )
    return labelling, facts.gpus


def _job(arguments: argparse.Namespace, labelling: 'Labelling', storage: 'Storage') -> 'Job':
    from cliptrase_ros.fleet.labelling import Job

    # Workers on a cluster are in other working directories.
    output = storage.path if storage.is_local else arguments.output
    scratch = arguments.scratch and arguments.scratch.absolute()
    return Job(
        labelling,
        labelling.digest,
        output,
        arguments.device,
        arguments.threads,
        arguments.batch,
        scratch,
        arguments.scratch_gib,
        arguments.export,
        arguments.export_images,
    )


@contextlib.contextmanager
def _slots(arguments: argparse.Namespace, job: 'Job', gpus: int) -> 'Iterator[list[Slot]]':
    """Slots for the workers that the options ask for. Raises CommandError."""
    from cliptrase_ros.fleet.engines import EngineError, local_slots, ray_slots

    where = ray_slots if arguments.ray else local_slots
    with (
        command_errors(EngineError),
        where(job, arguments.workers, arguments.ray or gpus) as slots,
    ):
        yield slots


def _print_plan(plan: 'Plan', url: str, shard: tuple[int, int]) -> None:
    tasks = plan.tasks
    number, count = shard
    print(
        f'{tasks["recording"]} recordings, {tasks["video"]} videos, {plan.photos} photos in '
        f'{tasks["photos"]} parts, {_size(plan.bytes)}: {tasks.total()} tasks'
    )
    states = plan.states
    of_shard = f'of shard {number}/{count} ' if count > 1 else ''
    print(
        f'{of_shard}{states["done"]} are done, {states["failed"]} have failed, {states["left"]} '
        f'are left ({_size(plan.bytes_left)}); results are in {url}'
    )


def _size(count: int) -> str:
    from rich.filesize import decimal

    return decimal(count)


def _print_faults(what: str, faults: 'Sequence[tuple[str, str]]') -> None:
    for source, reason in faults[:_NAMED]:
        print(f'cliptrase batch: {source}: {what}: {reason}', file=sys.stderr)
    if len(faults) > _NAMED:
        print(f'cliptrase batch: and {len(faults) - _NAMED} more {what}', file=sys.stderr)


def _show_status(output: str) -> int:
    from rich.console import Console
    from rich.table import Table

    from cliptrase_ros.fleet.status import read_status

    labellings = list(read_status(output))
    if not labellings:
        raise CommandError(f'{output} has no results of `cliptrase batch`')
    # A column for each: of one there is mostly, and a terminal has few columns.
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row('labelling', *(status.name for status in labellings))
    table.add_row('words', *(', '.join(status.words) for status in labellings))
    for count in ('tasks', 'done', 'damaged', 'failed', 'running', 'left', 'images'):
        table.add_row(count, *(str(getattr(status, count)) for status in labellings))
    table.add_row('tasks an hour', *(f'{status.per_hour:.0f}' for status in labellings))
    table.add_row('hours left', *(_hours(status.hours_left) for status in labellings))
    table.add_row('GPU hours', *(_hours(status.gpu_hours) for status in labellings))
    table.add_row('CPU hours', *(_hours(status.cpu_hours) for status in labellings))
    # A file or another program gets all of it.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table, highlight=False)
    return 0


def _hours(hours: float | None) -> str:
    return '?' if hours is None else f'{hours:.2f}'


def _shard(text: str) -> tuple[int, int]:
    """Read I/N, I from 0 to N-1; for argparse."""
    number, _, count = text.partition('/')
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f'{text!r} is not I/N with I from 0 to N-1, such as 0/64')
    return int(number), int(count)


def _positive(text: str) -> float:
    """Read a number above 0; for argparse."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f'{text} is not above 0')
    return number
