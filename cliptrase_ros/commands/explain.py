"""`cliptrase explain`: the stages of the method on one picture, as one patch sees them."""

import argparse
import re
from pathlib import Path

from cliptrase_ros.commands.common import command_errors, quiet_pillow
from cliptrase_ros.commands.options import (
    ALL_THREADS,
    add_settings,
    add_words,
    load_model,
    parse_words,
    segmentation_settings,
)
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings


def add(commands: argparse._SubParsersAction) -> None:
    description = (
        'Draw what the [CLS] token and a patch attend to in plain CLIP, and what the method makes '
        'of it: the recovered correlation of the patch, the same without what [CLS] correlates '
        'with, and the clusters; with --vocabulary, the labels as well.'
    )
    command = commands.add_parser(
        'explain', help='draw the stages of the method on a picture', description=description
    )
    command.add_argument('image', type=Path, metavar='IMAGE')
    command.add_argument(
        '--at',
        type=_pixel,
        required=True,
        metavar='X,Y',
        help='a pixel of the image; its patch is explained',
    )
    command.add_argument(
        '-o',
        '--output',
        type=Path,
        default=Path('explanation.png'),
        metavar='FILE.png',
        help='where the picture goes (default: %(default)s)',
    )
    add_words(command, required=False)
    model = command.add_argument_group('model')
    add_settings(model, ModelSettings, without=('sam_model', 'spin_ms'), threads=ALL_THREADS)
    segmentation = command.add_argument_group('segmentation')
    add_settings(segmentation, SegmentationSettings, only=('preset', 'resolution'))
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_pillow()
    vocabulary = parse_words(arguments) if arguments.vocabulary else None

    from PIL import Image

    from cliptrase_ros.explain import draw_explanation, explain
    from cliptrase_ros.photos.reading import UnreadableError, read_photo

    settings = segmentation_settings(arguments)
    with command_errors(UnreadableError, before=f'{arguments.image}: '):
        image = read_photo(arguments.image)
    segmenter = load_model(arguments)
    with command_errors(ValueError):
        explanation = explain(segmenter, image, arguments.at, settings)
        encoded = segmenter.encode_vocabulary(vocabulary) if vocabulary else None
    panel = draw_explanation(segmenter, explanation, settings, encoded)
    with command_errors(OSError, ValueError, before=f'{arguments.output} could not be written: '):
        Image.fromarray(panel).save(arguments.output)
    row, column = explanation.patch
    print(f'The patch in row {row}, column {column} is explained in {arguments.output}')
    return 0


def _pixel(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r'\s*(\d+)\s*,\s*(\d+)\s*', text)
    if not numbers:
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y, as in 320,240')
    return int(numbers[1]), int(numbers[2])
