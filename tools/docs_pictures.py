"""Draw the pictures of the documentation: `make docs-pictures`.

One image of a toybox room and every output of it; the panel of `cliptrase top` and the viewer while
the demo runs. Both want a machine with nothing else to do. The viewer needs a graphics adapter
(Mesa's llvmpipe will do); without one its picture stays as it is.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cliptrase_ros.commands.common import require_ros
from cliptrase_ros.messages.depth import Intrinsics, labelled_points
from cliptrase_ros.photos.results import write_label
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.statistics import classes_present
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.toybox.renderer import intrinsics, render
from cliptrase_ros.toybox.scenes import camera_pose, sample_room

SEED, TIME_S, HEIGHT, WIDTH = 1, 2.0, 240, 320
WORDS = 'ball; box; cone; cylinder; floor; wall'
BACKGROUND = ('ceiling', 'door', 'window')
#: A pixel (x, y) on the box, for `cliptrase explain`.
EXPLAINED = '120,140'
#: Of the demo: long enough for a report, and for the words to change.
PHASE_S = 8.0
VIEWER_WIDTH = 1200
# Nothing else listens there.
VIEWER_PORT = 9898


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', type=Path, default=Path('docs/images'), metavar='FOLDER')
    parser.add_argument('--without-demo', action='store_true', help='only what needs no ROS')
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw_outputs(arguments.output)
    if not arguments.without_demo:
        require_ros('the demo is drawn', 'use --without-demo')
        # Other nodes of this machine report to /diagnostics as well.
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
        with tempfile.TemporaryDirectory() as folder:
            draw_demo(arguments.output, Path(folder))


def draw_outputs(output: Path) -> None:
    """Draw one image, and what the engine makes of it."""
    room = sample_room(SEED, 'held_out')
    views = render([room], [camera_pose(room, TIME_S)], HEIGHT, WIDTH)
    picture, depth = views.image[0].numpy(), views.depth[0].numpy()
    segmenter = load_segmenter('toybox', device='cpu')
    words = segmenter.encode_vocabulary(parse_vocabulary(WORDS, BACKGROUND))
    (result,) = segmenter.segment([picture], words, SegmentationSettings(resolution=336))

    save(output / 'output_image.jpg', picture)
    save(output / 'output_overlay.jpg', draw_overlay(picture, result.label, result.vocabulary))
    save(output / 'output_confidence.png', result.confidence)
    write_label(output / 'output_label.png', result)
    print(output / 'output_label.png')
    save(output / 'output_masks.png', draw_masks(result), colors=16)
    fx, fy, cx, cy = intrinsics(HEIGHT, WIDTH)
    points = labelled_points(
        depth, Intrinsics(fx, fy, cx, cy), picture, result.label, result.confidence
    )
    save(output / 'output_points.png', draw_points(points, result.vocabulary.palette), colors=64)

    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / 'room.png'
        Image.fromarray(picture).save(photo)
        panel = Path(folder) / 'explanation.png'
        command = ['explain', photo, '--at', EXPLAINED, '-v', WORDS, '-o', panel]
        run_cliptrase(*command, '--background', '; '.join(BACKGROUND), '--model', 'toybox')
        save(output / 'explain.jpg', np.array(Image.open(panel).convert('RGB')))


def draw_masks(result) -> np.ndarray:
    """Every class present as a mask with its box, two in a row."""
    tiles = []
    for present in classes_present(result):
        mask = result.label == present.entry.id
        tile = np.zeros((*mask.shape, 3), np.uint8)
        tile[mask] = 255
        rows, columns = np.nonzero(mask)
        corners = [(int(f(columns)), int(f(rows))) for f in (np.min, np.max)]
        cv2.rectangle(tile, *corners, present.entry.color, 2)
        text = f'{present.entry.name} {present.confidence:.2f}'
        cv2.putText(tile, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 5, cv2.LINE_AA)
        cv2.putText(
            tile, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, present.entry.color, 2, cv2.LINE_AA
        )
        tiles.append(np.pad(tile, ((1, 1), (1, 1), (0, 0)), constant_values=90))
    if len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    return cv2.resize(np.vstack(rows), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


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
    demo = start_cliptrase(
        'demo', '--output', folder / 'demo', '--phase', PHASE_S, '--view', recording
    )
    try:
        draw_panel(output / 'top.svg', demo)
        if demo.wait() != 0:
            raise SystemExit(f'the demo failed; its logs were in {folder / "demo"}')
    finally:
        demo.kill()
        demo.wait()
    overview = np.array(Image.open(folder / 'demo' / 'overview.png').convert('RGB'))
    save(output / 'demo.png', overview, colors=256)
    draw_viewer(output / 'viewer.jpg', recording, folder)


def draw_panel(path: Path, demo: subprocess.Popen) -> None:
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


def run_cliptrase(*arguments) -> None:
    """Run the command; raises SystemExit where it fails."""
    if start_cliptrase(*arguments).wait() != 0:
        raise SystemExit(f'cliptrase {arguments[0]} failed')


def start_cliptrase(*arguments) -> subprocess.Popen:
    """Start the command."""
    command = [sys.executable, '-m', 'cliptrase_ros.cli', *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)


def save(path: Path, picture: np.ndarray, colors: int = 0) -> None:
    """Write a picture, small. colors: of a palette, 0 for all."""
    image = Image.fromarray(picture)
    if colors:
        image = image.quantize(colors)
    options = {'quality': 88} if path.suffix == '.jpg' else {'optimize': True}
    image.save(path, **options)
    print(path)


if __name__ == '__main__':
    main()
