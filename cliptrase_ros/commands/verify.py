"""`cliptrase verify`: comparison with recorded outputs."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptrase_ros.commands.common import CommandError, command_errors
from cliptrase_ros.commands.options import add_settings
from cliptrase_ros.segmentation.settings import PRECISIONS, ModelSettings

if TYPE_CHECKING:
    from cliptrase_ros.evaluation.verify import Verifier


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Run the engine on recorded inputs and compare with the recorded outputs, of CLIPtrase and '
        'of SC-CLIP; what is in a file says of which. Exit status 0 only if all agree. CLIPtrase: '
        'clusters, raw labels and labels are equal in every entry, except where two classes tie in '
        'the sixth digit and the rounding of the processor decides. SC-CLIP: stage by stage from '
        'the resized picture on, what is counted is equal, features and logits differ by no more '
        'than 0.00001, other numbers by no more than docs/commands.md says, and 99.99 % of the '
        'labels are equal. In half precision 99.5 % and 99 % of the labels have to be equal. The '
        'stages run one by one, without CUDA graphs.'
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
    from cliptrase_ros.evaluation.recordings import Recording, read_recording
    from cliptrase_ros.evaluation.recordings_sc_clip import ScClipRecording
    from cliptrase_ros.evaluation.verify import Verifier
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
        recordings = [(path, read_recording(path)) for path in arguments.files]
        loaded = load_model(arguments.model, arguments.checkpoint)
        verifier = Verifier(loaded, arguments.precision, device)

    where = f'{arguments.precision} on {device_name(device)}'
    exact = arguments.precision == 'float32'
    passed: list[bool] = []
    for kind, verify in ((Recording, _verify_cliptrase), (ScClipRecording, _verify_sc_clip)):
        chosen = [(path, one) for path, one in recordings if isinstance(one, kind)]
        if chosen:
            passed += verify(verifier, chosen, where, exact)
    return 0 if all(passed) else 1


def _verify_cliptrase(
    verifier: 'Verifier', recordings: list[tuple[Path, Any]], where: str, exact: bool
) -> list[bool]:
    """Print a table of recordings; which of them agree."""
    from cliptrase_ros.evaluation.verify import HALF_PRECISION_SHARE

    print(f'{where}, CLIPtrase: share of equal entries, and largest absolute differences')
    heads = ('clusters', 'raw labels', 'labels', 'correlation', 'patch logits', 'text features')
    passed, ties = [], 0
    for row, agreement in _rows(heads, verifier.compare, recordings):
        shares = (agreement.clusters, agreement.raw_labels, agreement.labels)
        differences = (agreement.correlation, agreement.patch_logits, agreement.text_features)
        row([_percent(share) for share in shares] + [f'{value:.1e}' for value in differences])
        passed.append(agreement.equal if exact else agreement.labels >= HALF_PRECISION_SHARE)
        ties += agreement.ties if exact else 0
    tied = f'{_but_for(ties)} where two classes tie' if ties else ''
    print(_verdict(passed, exact, HALF_PRECISION_SHARE) + tied)
    return passed


def _verify_sc_clip(
    verifier: 'Verifier', recordings: list[tuple[Path, Any]], where: str, exact: bool
) -> list[bool]:
    """The same. In half precision, where every stage differs somewhat, none is named."""
    from cliptrase_ros.evaluation.verify_sc_clip import SC_CLIP_HALF_PRECISION_SHARE

    begins = ', and the first stage that differs' if exact else ''
    print(f'{where}, SC-CLIP: share of equal labels, largest absolute differences{begins}')
    numbers = ('features', 'window logits', 'logits')
    heads = ('labels', *numbers, *(['stage'] if exact else []))
    passed, different = [], 0
    for row, agreement in _rows(heads, verifier.compare_sc_clip, recordings):
        labels, difference = agreement.stages['labels'], agreement.first_difference
        cells = [_percent(labels.share)] + [
            f'{agreement.stages[name].largest:.1e}' for name in numbers
        ]
        row([*cells, difference or '-'] if exact else cells)
        passed.append(difference is None if exact else labels.share >= SC_CLIP_HALF_PRECISION_SHARE)
        different += labels.different if exact and passed[-1] else 0
    print(_verdict(passed, exact, SC_CLIP_HALF_PRECISION_SHARE) + _but_for(different))
    return passed


def _rows(
    heads: Sequence[str], compare: Callable[[Any], Any], recordings: list[tuple[Path, Any]]
) -> Iterator[tuple[Callable[[Sequence[str]], None], Any]]:
    """Print the heads of a table, then give for each recording what prints its row, and ours."""
    from cliptrase_ros.evaluation.recording_checks import RecordingError

    width = max(len(path.name) for path, _ in recordings)

    def print_row(name: str, cells: Sequence[str]) -> None:
        print(f'{name:{width}}', *(f'{cell:>13}' for cell in cells), flush=True)

    print_row('file', heads)
    for path, recording in recordings:
        with command_errors(RecordingError, before=f'{path}: '):
            agreement = compare(recording)
        yield partial(print_row, path.name), agreement


def _verdict(passed: list[bool], exact: bool, half_precision_share: float) -> str:
    verdict = 'equal' if exact else f'with {half_precision_share:.1%} of their labels equal'
    return f'{sum(passed)} of {len(passed)} {verdict}'


def _but_for(pixels: int) -> str:
    return f', but for {pixels} pixel{"" if pixels == 1 else "s"}' if pixels else ''


def _percent(share: float) -> str:
    # 100 % is said of nothing less, however it rounds.
    return '100 %' if share == 1 else f'{min(share, 0.999999):.4%}'
