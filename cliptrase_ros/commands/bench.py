"""`cliptrase bench`: the engine's time against the bare encoder's."""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cliptrase_ros.commands.common import CommandError, command_errors
from cliptrase_ros.commands.options import ALL_THREADS, add_settings, at_least_one
from cliptrase_ros.segmentation.settings import PRECISIONS, ModelSettings, SegmentationSettings

if TYPE_CHECKING:
    from cliptrase_ros.benchmark.suite import Suite


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Time the engine, from frames to labels in host memory, against the bare CLIP encoder at '
        'the same size, precision and graph treatment, on random weights and made-up frames. '
        'Prints tables of medians; docs/performance.md says how to read them.'
    )
    command = commands.add_parser(
        'bench', help='how fast the engine is on this machine', description=description
    )
    command.add_argument('--json', type=Path, metavar='FILE', help='also write the report there')
    command.add_argument('--quick', action='store_true', help='a few cases, in a minute or so')
    command.add_argument(
        '--kernels',
        action='store_true',
        help='time nothing: count the kernels of a frame on CUDA, which needs no GPU, by stage',
    )
    add_settings(
        command,
        ModelSettings,
        only=('device', 'precision', 'threads'),
        precision={
            'default': None,
            'nargs': '+',
            'choices': PRECISIONS,
            'help': 'of the image tower (default: float16 and float32 on CUDA, float32 on a CPU)',
        },
        threads=ALL_THREADS,
    )
    command.add_argument('--sizes', type=at_least_one, nargs='+', metavar='PX', help='of squares')
    command.add_argument('--batches', type=at_least_one, nargs='+', metavar='N')
    command.add_argument(
        '--runs', type=at_least_one, metavar='N', help='of which medians are taken'
    )
    command.add_argument(
        '--architecture',
        metavar='NAME',
        help=f"open_clip architecture (default: the paper's, {ModelSettings.model})",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from cliptrase_ros.benchmark.suite import run_suite, table
    from cliptrase_ros.segmentation.model.backbone import UnsupportedModelError
    from cliptrase_ros.segmentation.model.weights import (
        ModelError,
        check_architecture,
        select_device,
    )
    from cliptrase_ros.segmentation.process_settings import limit_threads

    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise CommandError(f'--json: there is no folder {arguments.json.absolute().parent}')
    before = torch.get_num_threads()
    with command_errors(ModelError, ValueError):
        for size in arguments.sizes or ():
            SegmentationSettings(resolution=size)
        device = select_device(arguments.device)
        if arguments.architecture:
            check_architecture(arguments.architecture)
        if arguments.kernels:
            return _print_kernels(arguments)
        limit_threads(arguments.threads or before)

    try:
        with command_errors(UnsupportedModelError):
            report = run_suite(_suite(arguments, on_cuda=device.type == 'cuda'), device)
    finally:
        limit_threads(before)
    print(table(report))
    if arguments.json:
        with command_errors(OSError, before=f'{arguments.json} cannot be written: '):
            arguments.json.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return 0


def _print_kernels(arguments: argparse.Namespace) -> int:
    names = ('json', 'quick', 'precision', 'threads', 'sizes', 'batches', 'runs')
    given = ', '.join(f'--{name}' for name in names if getattr(arguments, name))
    if given:
        raise CommandError(f'--kernels times nothing, so that {given} says nothing to it')
    from cliptrase_ros.benchmark.kernel_table import kernel_table
    from cliptrase_ros.benchmark.subject import ARCHITECTURE

    with command_errors(ImportError, before='--kernels needs what PyTorch for CUDA has: '):
        print(kernel_table(arguments.architecture or ARCHITECTURE))
    return 0


def _suite(arguments: argparse.Namespace, on_cuda: bool) -> 'Suite':
    from cliptrase_ros.benchmark.suite import Suite, quick

    suite = Suite()
    if on_cuda:
        suite = Suite(precisions=('float16', 'float32'), phrases=100, agreement=8, runs=100)
    if arguments.quick:
        suite = quick(suite)
    changes = {
        'precisions': arguments.precision and tuple(arguments.precision),
        'sizes': arguments.sizes and tuple(arguments.sizes),
        'batches': arguments.batches and tuple(arguments.batches),
        'runs': arguments.runs,
        'architecture': arguments.architecture,
    }
    return replace(suite, **{name: value for name, value in changes.items() if value})
