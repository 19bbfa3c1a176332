"""The demo: two simulated cameras and the node as processes of their own; the words change."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from cliptrase_ros.evaluation.metrics import class_iou, confusion
from cliptrase_ros.ros.demo_observer import CameraRecord, DemoObserver, ObservedFrame
from cliptrase_ros.ros.executable import initialized, own_domain
from cliptrase_ros.segmentation.vocabulary import class_color
from cliptrase_ros.toybox.scenes import true_labels

#: Camera name -> seed of the room it is in.
CAMERAS = {'front': 1, 'rear': 0}
#: Keeps its topics apart from those of whatever else runs in the domain.
NAMESPACE = '/cliptrase_demo'
MODEL = 'toybox'
VOCABULARY_BEFORE = ('floor', 'wall', 'ball', 'box', 'cone', 'cylinder')
VOCABULARY_AFTER = (
    *('wooden floor', 'tiled floor', 'brick wall', 'concrete wall', 'plaster wall'),
    *('green ball', 'dotted box', 'blue box', 'yellow cone', 'blue cylinder'),
)
BACKGROUND = ('ceiling', 'door', 'window')
RESOLUTION = 224
CAMERA_RATE_HZ = 6.0
#: A loaded model and labels by new words are waited for this long, seconds.
START_LIMIT_S = 120.0
ANIMATION_FRAMES = 60
ANIMATION_FRAME_MS = 180
_BAR = '{desc:>14}: {bar:24} {n:5.1f} s{postfix}'


def run_demo(output: Path, phase_s: float, view: str | None = None) -> int:
    """Run the demo and leave pictures, an animation and report.json in a folder.

    It has a ROS domain of its own, unless ROS_DOMAIN_ID is set.

    Args:
        phase_s: How long each vocabulary is watched, seconds.
        view: Whether to run the viewer as well: '' with a window, or the file it records to.

    Returns:
        The exit status: 0, or 1 with a message on stderr if a process ended or fell silent.
    """
    output.mkdir(parents=True, exist_ok=True)
    domain = own_domain()
    print(f'In ROS domain {domain}; to look on: export ROS_DOMAIN_ID={domain}', file=sys.stderr)
    with initialized(None):
        observer = DemoObserver(list(CAMERAS), NAMESPACE)
        try:
            with _processes(output, view) as processes:
                called_s = _watch(observer, processes, phase_s)
            report = _report(observer, called_s)
            _draw(observer, output)
        except DemoError as error:
            print(f'demo: {error}', file=sys.stderr)
            return 1
        finally:
            observer.destroy_node()
    (output / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
    print(json.dumps(report, indent=2))
    print(f'Pictures: {output.resolve()}')
    return 0


class DemoError(Exception):
    """A process of the demo ended or fell silent; the message says which and where its log is."""


@contextlib.contextmanager
def _processes(output: Path, view: str | None) -> Iterator[dict[str, subprocess.Popen]]:
    """Start the cameras and the node; end them with SIGINT, as a terminal does."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as logs:
        processes = {}
        try:
            for name, module, parameters in _programs(view):
                parameter_file = Path(folder) / f'{name}.yaml'
                # JSON is YAML, and the wildcard spares the node's full name.
                parameter_file.write_text(json.dumps({'/**': {'ros__parameters': parameters}}))
                processes[name] = subprocess.Popen(
                    [
                        *(sys.executable, '-m', f'cliptrase_ros.ros.{module}', '--ros-args'),
                        *('--params-file', str(parameter_file), '-r', f'__ns:={NAMESPACE}'),
                    ],
                    stdout=logs.enter_context((output / f'{name}.log').open('w')),
                    stderr=subprocess.STDOUT,
                    # More threads would render small views no faster, and the node needs them.
                    env={**os.environ, 'OMP_NUM_THREADS': '1'} if name in CAMERAS else None,
                )
            yield processes
        finally:
            for process in processes.values():
                process.send_signal(signal.SIGINT)
            for process in processes.values():
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()


def _programs(view: str | None) -> Iterator[tuple[str, str, dict]]:
    """Name, module and parameters of each process."""
    yield (
        'segment_node',
        'segment_node',
        {
            'cameras': list(CAMERAS),
            'vocabulary': list(VOCABULARY_BEFORE),
            'background': list(BACKGROUND),
            'model': MODEL,
            'resolution': RESOLUTION,
            'rate': 0.0,
            # Points for the viewer.
            'depth': view is not None,
        },
    )
    for camera, seed in CAMERAS.items():
        yield (
            camera,
            'toybox_camera',
            {'camera': camera, 'seed': seed, 'split': 'held_out', 'rate': CAMERA_RATE_HZ},
        )
    if view is not None:
        yield 'rerun_viewer', 'rerun_viewer', {'save': view}


def _watch(observer: DemoObserver, processes: dict[str, subprocess.Popen], phase_s: float) -> float:
    """Watch both vocabularies; returns the system time of the parameter call, seconds."""
    wait = partial(_wait, observer, processes)
    wait('starting', START_LIMIT_S, for_version=1)
    wait('vocabulary 1', phase_s)
    called_s = time.time()
    try:
        observer.set_vocabulary(VOCABULARY_AFTER, START_LIMIT_S)
    except RuntimeError as error:
        raise DemoError(str(error)) from error
    wait('switching', START_LIMIT_S, for_version=2)
    wait('vocabulary 2', phase_s)
    if not observer.engine:
        raise DemoError('the node published no diagnostics; see segment_node.log')
    return called_s


def _wait(
    observer: DemoObserver,
    processes: dict[str, subprocess.Popen],
    description: str,
    seconds: float,
    for_version: int | None = None,
) -> None:
    """Receive messages for some time, or until every camera has labels by a vocabulary version.

    Raises:
        DemoError: A process ended, or the labels did not come in time.
    """
    begin = time.monotonic()
    # A log that is read later needs no moving bar.
    interval_s = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=seconds, desc=description, bar_format=_BAR, mininterval=interval_s) as bar:
        while (elapsed_s := time.monotonic() - begin) < seconds:
            bar.set_postfix_str(_counts(observer), refresh=False)
            bar.update(elapsed_s - bar.n)
            for name, process in processes.items():
                if process.poll() is not None:
                    raise DemoError(f'{name} ended; its log is {name}.log')
            if for_version is not None and _all_cameras_have(observer, for_version):
                return
            observer.receive(timeout_s=0.1)
    if for_version is not None:
        raise DemoError(
            f'no labels by vocabulary {for_version} of every camera within {seconds:.0f} s; '
            'see segment_node.log'
        )


def _counts(observer: DemoObserver) -> str:
    return ', '.join(
        f'{camera}: {record.labels} of {record.images} labelled'
        for camera, record in observer.records.items()
    )


def _all_cameras_have(observer: DemoObserver, version: int) -> bool:
    """Return whether among the latest labels of each camera are some by this vocabulary."""
    return all(
        any(frame.vocabulary_version == version for frame in record.complete_frames()[-3:])
        for record in observer.records.values()
    )


def _report(observer: DemoObserver, called_s: float) -> dict:
    records = observer.records
    frames = [frame for record in records.values() for frame in record.complete_frames()]
    latencies_ms = [1e3 * (frame.published_s - frame.stamp_s) for frame in frames]
    first_new_s = min(f.published_s for f in frames if f.vocabulary_version == 2)
    return {
        'cameras': {
            camera: {
                'frames_in': record.images,
                'frames_out': record.labels,
                'label_rate_hz': round(_rate_hz(record), 2),
            }
            for camera, record in records.items()
        },
        'latency_ms_p50': round(float(np.percentile(latencies_ms, 50)), 1),
        'latency_ms_p95': round(float(np.percentile(latencies_ms, 95)), 1),
        'miou_before': round(_mean_iou(observer, frames, 1), 3),
        'miou_after': round(_mean_iou(observer, frames, 2), 3),
        'vocabulary_switch_s': round(first_new_s - called_s, 3),
        'model': observer.engine['model'],
        'device': observer.engine['device'],
    }


def _rate_hz(record: CameraRecord) -> float:
    times = [frame.published_s for frame in record.complete_frames()]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


def _mean_iou(observer: DemoObserver, frames: Sequence[ObservedFrame], version: int) -> float:
    """Mean IoU over the named classes that are in the truth; 0..1.

    Everything else in the rooms counts as one more class, which is not averaged but costs the
    class that claims its pixels.
    """
    classes = observer.vocabularies[version].classes
    other = len(classes)
    position = np.full(256, other)
    position[[c.id for c in classes]] = range(other)
    counts = sum(
        confusion(position[f.label], np.minimum(_truth(f, classes), other), other + 1)
        for f in frames
        if f.vocabulary_version == version
    )
    return float(np.nanmean(class_iou(counts)[:other]))


def _truth(frame: ObservedFrame, classes: Sequence) -> np.ndarray:
    return true_labels(frame.truth, [c.name for c in classes])


def _draw(observer: DemoObserver, output: Path) -> None:
    """Pictures of each camera before and after the change, an overview, and an animation."""
    rows = []
    for name, version in (('before', 1), ('after', 2)):
        classes = observer.vocabularies[version].classes
        row = []
        for camera, record in observer.records.items():
            frames = [f for f in record.complete_frames() if f.vocabulary_version == version]
            frame = max(frames, key=lambda f: len(np.unique(_truth(f, classes))))
            Image.fromarray(_with_truth(frame, classes)).save(output / f'{name}_{camera}.png')
            row += [frame.image, frame.overlay]
        rows.append(_under_words(row, classes))
    Image.fromarray(np.vstack(rows)).save(output / 'overview.png')
    pictures = _animation_pictures(observer)
    pictures[0].save(
        output / 'animation.gif',
        save_all=True,
        append_images=pictures[1:],
        duration=ANIMATION_FRAME_MS,
        loop=0,
    )


def _under_words(pictures: Sequence[np.ndarray], classes: Sequence) -> np.ndarray:
    """Pictures of equal size side by side under the words they are labelled by."""
    row = np.hstack(pictures)
    words = np.zeros((24, row.shape[1], 3), np.uint8)
    text = '; '.join(c.name for c in classes)
    cv2.putText(words, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255,) * 3, 1, cv2.LINE_AA)
    return np.vstack([words, row])


def _with_truth(frame: ObservedFrame, classes: Sequence) -> np.ndarray:
    """Camera image, overlay and true labels side by side. uint8 (H, 3 W, 3) RGB."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(classes)] = [class_color(c.id) for c in classes]
    return np.hstack([frame.image, frame.overlay, colors[_truth(frame, classes)]])


def _animation_pictures(observer: DemoObserver) -> list[Image.Image]:
    """Overlays of all cameras side by side, at most `ANIMATION_FRAMES` of them."""
    rows = zip(*(record.complete_frames() for record in observer.records.values()), strict=False)
    # The cameras' frames are taken at about the same times; around the change one may be ahead.
    rows = [row for row in rows if len({frame.vocabulary_version for frame in row}) == 1]
    return [
        Image.fromarray(
            _under_words(
                [frame.overlay for frame in row],
                observer.vocabularies[row[0].vocabulary_version].classes,
            )
        )
        for row in rows[:: 1 + len(rows) // ANIMATION_FRAMES]
    ]
