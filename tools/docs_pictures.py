"""Draw the pictures of the documentation: `make docs-pictures`.

One image of a toybox room and every output of it; the steps of the method; the panel of
`cliptrase top` and the viewer while the demo runs. The latter want a machine with nothing else to
do. The viewer needs a graphics adapter (Mesa's llvmpipe will do); without one its picture stays as
it is.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliptrase_ros.commands.common import require_ros
from cliptrase_ros.evaluation.class_indices import label_by_method
from cliptrase_ros.evaluation.measure import ABLATION, make_vocabulary
from cliptrase_ros.evaluation.reading import open_dataset
from cliptrase_ros.explain import Tile, draw_explanation, draw_panel, explain
from cliptrase_ros.messages.depth import labelled_points
from cliptrase_ros.messages.rays import CameraModel, model_rays
from cliptrase_ros.photos.results import write_label
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import Segmentation, Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, parse_vocabulary
from cliptrase_ros.toybox.renderer import intrinsics
from cliptrase_ros.toybox.scenes import sample_room
from cliptrase_ros.toybox.sequences import photograph

SEED, TIME_S, HEIGHT, WIDTH = 1, 2.0, 240, 320
WORDS = 'ball; box; cone; cylinder; floor; wall'
BACKGROUND = ('ceiling', 'door', 'window')
#: A pixel (x, y) on the box, to be explained.
BOX_PIXEL = 120, 140
SETTINGS = SegmentationSettings(preset='robot', resolution=336)
#: Another room, for the page of the method, and a pixel (x, y) on the thing that is explained.
METHOD_ROOM, METHOD_PIXEL = '1', (160, 150)
#: What the steps of `ABLATION` do.
STEPS = ('last block as it is', 'like attends to like', 'regions vote', '[CLS] removed before')
#: Of the demo, seconds: long enough for a report, and for the words to change.
PHASE_S = 8.0
VIEWER_WIDTH = 1200
#: A port that nothing else listens on.
VIEWER_PORT = 9898


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=Path('docs/images'), metavar='FOLDER')
    parser.add_argument('--without-demo', action='store_true', help='only what needs no ROS')
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    segmenter = load_segmenter('toybox', device='cpu')
    draw_outputs(segmenter, arguments.output)
    draw_method(segmenter, arguments.output)
    if not arguments.without_demo:
        require_ros('the demo is drawn', 'use --without-demo')
        # Other nodes of this machine report to /diagnostics as well.
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
        with tempfile.TemporaryDirectory() as folder:
            draw_demo(arguments.output, Path(folder))


def draw_outputs(segmenter: Segmenter, output: Path) -> None:
    """Draw one image, and what the engine makes of it."""
    photo = photograph(sample_room(SEED, 'held_out'), TIME_S, HEIGHT, WIDTH)
    picture = photo.image
    words = segmenter.encode_vocabulary(parse_vocabulary(WORDS, BACKGROUND))
    (result,) = segmenter.segment([picture], words, SETTINGS)

    save(output / 'output_image.jpg', picture)
    save(output / 'output_overlay.jpg', draw_overlay(picture, result.label, result.vocabulary))
    save(output / 'output_confidence.png', result.confidence)
    write_label(output / 'output_label.png', result)
    print(output / 'output_label.png')
    save(output / 'output_masks.png', draw_masks(result), colors=64)
    rays = model_rays(CameraModel(*intrinsics(HEIGHT, WIDTH)), WIDTH, HEIGHT)
    points = labelled_points(photo.depth, rays, picture, result.label, result.confidence)
    save(output / 'output_points.png', draw_points(points, result.vocabulary.palette), colors=64)

    explanation = explain(segmenter, picture, BOX_PIXEL, SETTINGS)
    save(output / 'explain.jpg', draw_explanation(segmenter, explanation, SETTINGS, words))


def draw_masks(result: Segmentation) -> np.ndarray:
    """Every class present as a mask with its box, two in a row."""
    present = classes_present(result)
    height, width = result.label.shape
    drawn = Image.new('RGB', (width, (len(present) + 1) // 2 * height // 2))
    for index, of_class in enumerate(present):
        entry = of_class.entry
        mask = Image.fromarray(np.uint8(255) * (result.label == entry.id))
        tile = mask.convert('RGB')
        draw = ImageDraw.Draw(tile)
        draw.rectangle(mask.getbbox(), outline=entry.color, width=2)
        text, font = f'{entry.name} {of_class.confidence:.2f}', ImageFont.load_default(26)
        draw.text((8, 4), text, entry.color, font, stroke_width=2, stroke_fill='black')
        draw.rectangle((0, 0, width - 1, height - 1), outline=(90, 90, 90))
        place = index % 2 * width // 2, index // 2 * height // 2
        drawn.paste(tile.reduce(2), place)
    return np.asarray(drawn)


def draw_method(segmenter: Segmenter, output: Path) -> None:
    """Draw the stages of the method on a picture, and its labels step by step."""
    benchmark = open_dataset('toybox', None)
    sample = benchmark.load(METHOD_ROOM)
    names = benchmark.dataset.classes
    # What is there comes first: colours of small ids differ most.
    order = sorted(range(len(names)), key=lambda index: -np.count_nonzero(sample.truth == index))
    ordered = replace(benchmark.dataset, classes=tuple(names[index] for index in order))
    encoded = segmenter.encode_vocabulary(make_vocabulary(ordered))

    explanation = explain(segmenter, sample.image, METHOD_PIXEL, SETTINGS)
    panel = draw_explanation(segmenter, explanation, SETTINGS, encoded)
    save(output / 'method_patches.jpg', panel, subsampling=0)

    truth = np.full_like(sample.truth, UNLABELLED, np.uint8)
    for position, index in enumerate(order):
        truth[sample.truth == index] = position
    labels = {('Truth', 'as rendered'): truth}
    for (name, switches), caption in zip(ABLATION.items(), STEPS, strict=True):
        method = replace(SETTINGS.method, **switches)
        (labels[name, caption],) = label_by_method(
            segmenter, [sample.image], encoded.table, SETTINGS, method
        )
    tiles = [
        Tile(name, caption, draw_overlay(sample.image, label, encoded.vocabulary, legend=False))
        for (name, caption), label in labels.items()
    ]
    present = np.unique(np.stack(list(labels.values())))
    classes = [entry for entry in encoded.vocabulary.classes if entry.id in present]
    panel = draw_panel([('Labels, step by step', tiles)], classes)
    save(output / 'method_steps.jpg', panel, subsampling=0)


def draw_points(points: np.ndarray, palette: np.ndarray, side: int = 320) -> np.ndarray:
    """Points in the colours of their classes, from a place above and behind the camera."""
    points = points.ravel()
    points = points[np.isfinite(points['z'])]
    places = np.stack([points[axis] for axis in 'xyz'], axis=1)
    colors = palette[points['label'].astype(int)]
    colors[points['label'] == 255] = 70
    middle = np.median(places, axis=0)
    angle = np.deg2rad(35.0)
    turn = np.array(
        [
            [1, 0, 0],
            [0, np.cos(angle), np.sin(angle)],
            [0, -np.sin(angle), np.cos(angle)],
        ]
    )
    seen = (places - middle) @ turn.T
    seen[:, 2] += 1.6 * np.ptp(places[:, 2])
    u, v = (1.2 * side * seen[:, :2] / seen[:, 2:] + side / 2).round().astype(int).T
    inside = (u >= 1) & (v >= 1) & (u < side - 1) & (v < side - 1) & (seen[:, 2] > 0.05)
    order = np.argsort(-seen[inside, 2])
    image = np.full((side, side, 3), 20, np.uint8)
    for x, y, color in zip(u[inside][order], v[inside][order], colors[inside][order], strict=True):
        image[y - 1 : y + 1, x - 1 : x + 1] = color
    return image[side // 8 : -side // 8]


def draw_demo(output: Path, folder: Path) -> None:
    """Draw the panel of `cliptrase top` and the viewer, both from a run of the demo."""
    recording = folder / 'demo.rrd'
    command = [sys.executable, '-m', 'cliptrase_ros.cli', 'demo', '--output', folder / 'demo']
    command += ['--phase', str(PHASE_S), '--view', recording]
    demo = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        draw_top(output / 'top.svg', demo)
        if demo.wait() != 0:
            raise SystemExit(f'the demo failed; its logs were in {folder / "demo"}')
    finally:
        demo.kill()
        demo.wait()
    overview = np.array(Image.open(folder / 'demo' / 'overview.png').convert('RGB'))
    save(output / 'demo.png', overview, colors=256)
    draw_viewer(output / 'viewer.jpg', recording, folder)


def draw_top(path: Path, demo: subprocess.Popen) -> None:
    """Draw what `cliptrase top` shows while the demo is busiest; returns when it has ended."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rich.console import Console

    from cliptrase_ros.ros.executable import initialized
    from cliptrase_ros.ros.panel import Panel

    reports: list[tuple[float, float, DiagnosticArray]] = []

    def take(array: DiagnosticArray) -> None:
        cameras = [status for status in array.status if ': camera ' in status.name]
        values = [{entry.key: entry.value for entry in status.values} for status in cameras]
        rates = [float(value.get('labelled_hz', 0)) for value in values]
        reports.append((min(rates, default=-1), sum(rates), array))

    with initialized([]):
        node = rclpy.create_node('docs_pictures')
        node.create_subscription(DiagnosticArray, '/diagnostics', take, 10)
        while demo.poll() is None:
            rclpy.spin_once(node, timeout_sec=0.1)
        node.destroy_node()
    if not reports:
        raise SystemExit('the demo reported nothing to /diagnostics')
    panel = Panel()
    panel.update(max(reports, key=lambda report: report[:2])[2], 0.0)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(panel.render(0.0))
    console.save_svg(str(path), title='cliptrase top')
    print(path)


def draw_viewer(path: Path, recording: Path, folder: Path) -> None:
    """Draw the viewer with a recording open, without a window."""
    try:
        import rerun_cli
        from rerun.experimental import ViewerClient
    except ImportError:
        print(f'{path}: not drawn; needs rerun-sdk 0.41 or newer', file=sys.stderr)
        return
    program = Path(rerun_cli.__file__).parent / 'rerun'
    screenshot = folder / 'viewer.png'
    try:
        with ViewerClient.spawn(
            headless=True, port=VIEWER_PORT, executable_path=str(program)
        ) as viewer:
            viewer.open(str(recording))
            deadline = time.monotonic() + 60
            # Until panels have their pictures, and these are the same twice.
            before = None
            while time.monotonic() < deadline:
                time.sleep(4)
                viewer.save_screenshot(str(screenshot))
                now = np.array(Image.open(screenshot).convert('RGB'))
                if before is not None and np.array_equal(before[40:], now[40:]):
                    break
                before = now
    except Exception as error:
        # Without a graphics adapter the viewer's process ends; what comes of that varies.
        print(f'{path}: not drawn; {" ".join(str(error).split())[:300]}', file=sys.stderr)
        return
    picture = Image.fromarray(now)
    # The title bar says that there is no GPU here.
    picture = picture.crop((0, 38, picture.width, picture.height))
    height = round(picture.height * VIEWER_WIDTH / picture.width)
    save(path, np.array(picture.resize((VIEWER_WIDTH, height), Image.Resampling.LANCZOS)))


def save(path: Path, picture: np.ndarray, colors: int = 0, subsampling: int = 2) -> None:
    """Write a picture, uint8 (H, W, 3) RGB or (H, W), small, as JPEG or PNG.

    Args:
        colors: Of the palette of a PNG; 0 for all.
        subsampling: Of the colours of a JPEG, as Pillow counts; 0 for none.
    """
    image = Image.fromarray(picture)
    if colors:
        image = image.quantize(colors)
    if path.suffix == '.jpg':
        image.save(path, quality=88, subsampling=subsampling)
    else:
        image.save(path, optimize=True)
    print(path)


if __name__ == '__main__':
    main()
