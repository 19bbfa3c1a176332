"""`cliptrase bench`: the engine's time against the bare encoder's."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from cliptrase_ros.commands.common import CommandError
from cliptrase_ros.commands.options import add_threads, at_least_one


def add(commands) -> None:
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
    command.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    command.add_argument(
        '--precision',
        nargs='+',
        choices=('float32', 'float16', 'bfloat16'),
        help='of the image tower (default: float16 and float32 on CUDA, float32 on a CPU)',
    )
    command.add_argument('--sizes', type=at_least_one, nargs='+', metavar='PX', help='of squares')
    command.add_argument('--batches', type=at_least_one, nargs='+', metavar='N')
    command.add_argument(
        '--runs', type=at_least_one, metavar='N', help='of which medians are taken'
    )
    add_threads(command)
    command.add_argument(
        '--architecture',
        metavar='NAME',
        help="open_clip architecture (default: the paper's, ViT-B-16-quickgelu)",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import torch

    from cliptrase_ros.benchmark.suite import Suite, quick, run_suite, table
    from cliptrase_ros.segmentation.model.backbone import UnsupportedModelError
    from cliptrase_ros.segmentation.model.weights import (
        ModelError,
        check_architecture,
        select_device,
    )
    from cliptrase_ros.segmentation.segmenter import limit_threads
    from cliptrase_ros.segmentation.settings import SegmentationSettings

    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise CommandError(f'--json: there is no folder {arguments.json.absolute().parent}')
    try:
        for size in arguments.sizes or ():
            SegmentationSettings(resolution=size)
        device = select_device(arguments.device)
        if arguments.architecture:
            check_architecture(arguments.architecture)
    except (ModelError, ValueError) as error:
        raise CommandError(error) from error

    suite = Suite()
    if device.type == 'cuda':
        suite = Suite(precisions=('float16', 'float32'), phrases=100, agreement=8, runs=100)
    if arguments.architecture:
        suite = replace(suite, architecture=arguments.architecture)
    if arguments.quick:
        suite = quick(suite)
    chosen = {
        'precisions': arguments.precision,
        'sizes': arguments.sizes,
        'batches': arguments.batches,
        'runs': arguments.runs,
    }
    suite = replace(suite, **{k: v if k == 'runs' else tuple(v) for k, v in chosen.items() if v})

    before = torch.get_num_threads()
    limit_threads(arguments.threads or before)
    try:
        report = run_suite(suite, device)
    except UnsupportedModelError as error:
        raise CommandError(error) from error
    finally:
        limit_threads(before)
    print(table(report))
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            raise CommandError(f'{arguments.json} cannot be written: {error}') from error
    return 0
