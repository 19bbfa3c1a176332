"""`cliptrase evaluate`: benchmarks."""

import argparse
import sys
from pathlib import Path

from cliptrase_ros.commands.common import (
    CommandError,
    command_errors,
    progress_bar,
    quiet_pillow,
)
from cliptrase_ros.commands.options import (
    ALL_THREADS,
    add_batch,
    add_settings,
    at_least_one,
    batch_size,
    load_model,
    segmentation_settings,
)
from cliptrase_ros.evaluation.datasets import DATASETS, EIGHT, PAPER, SC_CLIP, TOYBOX
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings

NAMES = (*DATASETS, *TOYBOX, 'folder')
GROUPS = {'paper': PAPER, 'eight': EIGHT}


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Measure the engine on benchmarks: pAcc, mAcc, fwIoU and mIoU, beside the published '
        'figures where there are any. A run that was cut short goes on where it stopped when it '
        'is started again. Exit status: 0, or 1 if an image could not be read or a dataset not '
        'measured (the rest is counted), or 2 if nothing was done.'
    )
    command = commands.add_parser(
        'evaluate', help='measure the engine on benchmarks', description=description
    )
    command.add_argument(
        'datasets',
        nargs='+',
        choices=(*NAMES, *GROUPS),
        metavar='DATASET',
        help=f'{", ".join(NAMES)}; or paper, for the nine of the paper; or eight, for those that '
        f'methods without training are compared on: {", ".join(EIGHT)}',
    )
    command.add_argument(
        '--root', type=Path, metavar='DIR', help='where the datasets are (toybox needs none)'
    )
    command.add_argument(
        '--protocol',
        choices=('paper', 'whole'),
        help="paper: the centred square of the network's input; whole: every pixel, at the "
        "label's own size (default: paper, or whole with --preset sc_clip)",
    )
    command.add_argument(
        '--ablation',
        action='store_true',
        help='plain CLIP, then with correlation recovery, clustering and denoising added in turn',
    )
    command.add_argument('--limit', type=at_least_one, metavar='N', help='only the first N images')
    command.add_argument(
        '-o',
        '--output',
        type=Path,
        default=Path('cliptrase_evaluation'),
        metavar='FOLDER',
        help='where results go (default: %(default)s)',
    )
    command.add_argument(
        '--workers',
        type=at_least_one,
        default=4,
        metavar='N',
        help='threads that read images (default: %(default)s)',
    )
    model = command.add_argument_group('model')
    add_settings(model, ModelSettings, without=('spin_ms',), threads=ALL_THREADS)
    engine = command.add_argument_group('segmentation')
    add_settings(
        engine,
        SegmentationSettings,
        without=('smoothing', 'min_confidence', 'min_instance_area'),
        preset={
            'default': None,
            'help': 'robot, plus, paper or sc_clip, which takes words and settings of its authors '
            'on the eight (default: paper, or robot with --protocol whole)',
        },
        resolution={
            'default': None,
            'nargs': '+',
            'help': 'shorter side fed to CLIP; several are measured one after the other (default: '
            f'{SegmentationSettings.resolution}; with sc_clip what its authors take)',
        },
    )
    add_batch(engine)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_pillow()
    names = dict.fromkeys(
        name for given in arguments.datasets for name in GROUPS.get(given, (given,))
    )

    from cliptrase_ros.evaluation.measure import Measurement
    from cliptrase_ros.evaluation.protocols import Protocol
    from cliptrase_ros.evaluation.reading import DatasetError, open_dataset
    from cliptrase_ros.evaluation.report import table

    protocol = arguments.protocol or ('whole' if arguments.preset == 'sc_clip' else 'paper')
    runs = {name: _settings(arguments, name, protocol) for name in names}
    with command_errors(DatasetError, OSError):
        benchmarks = [open_dataset(name, arguments.root, arguments.limit) for name in names]
        arguments.output.mkdir(parents=True, exist_ok=True)
    for benchmark in benchmarks:
        _warn_of_missing(benchmark, arguments.limit)
    segmenter = load_model(arguments)
    results, failures = [], []
    for benchmark in benchmarks:
        for settings in runs[benchmark.dataset.name]:
            measurement = Measurement(
                benchmark, Protocol(protocol, settings.resolution), settings, arguments.ablation
            )
            try:
                results.append(_measure(arguments, measurement, segmenter))
            except CommandError as error:
                failures.append(error)
    if not results:
        raise failures[0]
    print(table(results))
    for result in results:
        result.notes.remove()
    print(f'Figures of every class are in {arguments.output}')
    failures += [reason for r in results for reason in r.progress.unreadable.values()]
    for reason in dict.fromkeys(map(str, failures)):
        print(f'cliptrase evaluate: {reason}', file=sys.stderr)
    return 1 if failures else 0


def _settings(
    arguments: argparse.Namespace, dataset: str, protocol: str
) -> list[SegmentationSettings]:
    """Settings of each run of a dataset: what the options say, or else what suits it."""
    preset = arguments.preset or {'paper': 'paper', 'whole': 'robot'}[protocol]
    usual = SegmentationSettings.resolution
    if preset == 'sc_clip' and dataset in SC_CLIP:
        usual = SC_CLIP[dataset].resolution
    runs = [
        segmentation_settings(arguments, preset=preset, resolution=resolution)
        for resolution in arguments.resolution or [usual]
    ]
    if arguments.ablation and not runs[0].method.clustering:
        raise CommandError(
            '--ablation takes apart a method with clusters: choose preset paper or robot, and no '
            f'refinement pamr; these are {preset} and {runs[0].refinement}'
        )
    return runs


def _warn_of_missing(benchmark, limit: int | None) -> None:
    if benchmark.unpaired:
        print(
            f'cliptrase evaluate: {len(benchmark.unpaired)} images or label images without the '
            f'other are left out, the first is {benchmark.unpaired[0]}',
            file=sys.stderr,
        )
    found, wanted = len(benchmark.names), benchmark.dataset.images
    if wanted and limit is None and found != wanted:
        print(
            f'cliptrase evaluate: {benchmark.dataset.name}: {found} images, where the benchmark '
            f'has {wanted}',
            file=sys.stderr,
        )


def _measure(arguments: argparse.Namespace, measurement, segmenter):
    from cliptrase_ros.evaluation.measure import measure
    from cliptrase_ros.evaluation.run import ResumeError
    from cliptrase_ros.segmentation.vocabulary import VocabularyError

    benchmark = measurement.benchmark
    with progress_bar(len(benchmark.names)) as progress:
        # Encoding hundreds of classes takes minutes on a CPU.
        progress.set_description('encoding words')

        def step(count: int) -> None:
            progress.set_description(f'{benchmark.dataset.name} {measurement.settings.resolution}')
            progress.update(count)

        batch = batch_size(arguments, segmenter)
        with (
            command_errors(ResumeError, VocabularyError),
            command_errors(OSError, before='results could not be written: '),
        ):
            return measure(segmenter, measurement, arguments.output, batch, arguments.workers, step)
