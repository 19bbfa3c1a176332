"""`cliptrase explain`: the stages of the method on one picture, as one patch sees them."""

import argparse
import re
from pathlib import Path

from cliptrase_ros.commands.common import CommandError, quiet_pillow
from cliptrase_ros.commands.options import add_model, add_words, load_model, parse_words


def add(commands) -> None:
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
    command.add_argument(
        '--preset', default='robot', help='robot (whole image) or paper (default: %(default)s)'
    )
    command.add_argument(
        '--resolution',
        type=int,
        default=336,
        metavar='PIXELS',
        help='shorter side fed to CLIP (default: %(default)s)',
    )
    add_model(command)
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    quiet_pillow()
    vocabulary = parse_words(arguments) if arguments.vocabulary else None

    from PIL import Image

    from cliptrase_ros.explain import draw_explanation, explain
    from cliptrase_ros.photos.reading import UnreadableError, read_photo
    from cliptrase_ros.segmentation.settings import SegmentationSettings

    try:
        settings = SegmentationSettings(arguments.preset, arguments.resolution)
        image = read_photo(arguments.image)
    except UnreadableError as error:
        raise CommandError(f'{arguments.image}: {error}') from error
    except ValueError as error:
        raise CommandError(error) from error
    segmenter, _ = load_model(arguments)
    try:
        explanation = explain(segmenter, image, arguments.at, settings)
        encoded = segmenter.encode_vocabulary(vocabulary) if vocabulary else None
    except ValueError as error:
        raise CommandError(error) from error
    panel = draw_explanation(segmenter, explanation, settings, encoded)
    try:
        Image.fromarray(panel).save(arguments.output)
    except (OSError, ValueError) as error:
        raise CommandError(f'{arguments.output} could not be written: {error}') from error
    row, column = explanation.patch
    print(f'The patch in row {row}, column {column} is explained in {arguments.output}')
    return 0


def _pixel(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r'\s*(\d+)\s*,\s*(\d+)\s*', text)
    if not numbers:
        raise argparse.ArgumentTypeError(f'{text!r} is not X,Y, as in 320,240')
    return int(numbers[1]), int(numbers[2])
