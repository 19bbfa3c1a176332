"""`cliptrase verify`: comparison with recorded outputs."""

import argparse
from pathlib import Path

from cliptrase_ros.commands.common import CommandError, command_errors
from cliptrase_ros.commands.options import add_settings
from cliptrase_ros.segmentation.settings import PRECISIONS, ModelSettings


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Run the engine on recorded inputs and compare with the recorded outputs. Exit status 0 '
        'only if clusters, raw labels and labels are equal in every entry of every file, except '
        'where two classes tie in the sixth digit and the rounding of the processor decides; in '
        'half precision, if 99.5 % of the labels of every file are equal. The stages run one by '
        'one, without CUDA graphs.'
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
    add_settings(
        command,
        ModelSettings,
        only=('model', 'device', 'precision'),
        model={'help': 'open_clip architecture of the weights (default: %(default)s)'},
        device={
            'default': 'cpu',
            'help': 'auto, cpu, cuda or cuda:N (default: %(default)s, where the recordings were '
            'made)',
        },
        precision={
            'default': 'float32',
            'choices': PRECISIONS,
            'help': 'of the image tower (default: %(default)s)',
        },
    )
    command.add_argument('files', nargs='+', type=Path, metavar='FILE.npz', help='recordings')
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from cliptrase_ros.benchmark.timing import device_name
    from cliptrase_ros.evaluation.verify import (
        HALF_PRECISION_SHARE,
        RecordingError,
        Verifier,
        read_recording,
    )
    from cliptrase_ros.segmentation.model.weights import (
        ModelError,
        load_model,
        names_architecture,
        select_device,
    )

    if not names_architecture(arguments.model):
        raise CommandError(
            f'--model is {arguments.model!r}, which brings its own weights; name the architecture '
            'of the checkpoint'
        )
    if not Path(arguments.checkpoint).is_file():
        raise CommandError(f'the checkpoint {arguments.checkpoint} does not exist or is no file')
    with command_errors(ModelError, ValueError):
        device = select_device(arguments.device)
        recordings = [read_recording(path) for path in arguments.files]
        loaded = load_model(arguments.model, arguments.checkpoint)
        verifier = Verifier(loaded, arguments.precision, device)

    print(
        f'{arguments.precision} on {device_name(device)}: share of equal entries, and largest '
        'absolute differences'
    )
    width = max(len(path.name) for path in arguments.files)
    heads = ('clusters', 'raw labels', 'labels', 'correlation', 'patch logits', 'text features')
    print(f'{"file":{width}}', *(f'{head:>13}' for head in heads))
    agreements = []
    for path, recording in zip(arguments.files, recordings, strict=True):
        with command_errors(RecordingError, before=f'{path}: '):
            agreement = verifier.compare(recording)
        agreements.append(agreement)
        shares = (agreement.clusters, agreement.raw_labels, agreement.labels)
        differences = (agreement.correlation, agreement.patch_logits, agreement.text_features)
        print(
            f'{path.name:{width}}',
            *(f'{_percent(share):>13}' for share in shares),
            *(f'{difference:13.1e}' for difference in differences),
            flush=True,
        )
    exact = arguments.precision == 'float32'
    passed = [a.equal if exact else a.labels >= HALF_PRECISION_SHARE for a in agreements]
    ties = sum(agreement.ties for agreement in agreements) if exact else 0
    verdict = 'equal' if exact else f'with {HALF_PRECISION_SHARE:.1%} of their labels equal'
    pixels = 'pixel' if ties == 1 else 'pixels'
    tied = f', but for {ties} {pixels} where two classes tie' if ties else ''
    print(f'{sum(passed)} of {len(passed)} {verdict}{tied}')
    return 0 if all(passed) else 1


def _percent(share: float) -> str:
    # 100 % is said of nothing less, however it rounds.
    return '100 %' if share == 1 else f'{min(share, 0.999999):.4%}'
