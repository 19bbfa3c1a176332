"""The figures of docs/reliability.md: `make reliability`, after `make soak` for its rows.

Every node, camera and listener is a process of its own; they talk over Fast DDS with the profile
that comes with the package.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import numpy as np
from bench_node import make_segmenter
from cliptrase_ros.action import Find
from cliptrase_ros.msg import ClassMasks
from cliptrase_ros.srv import Segment
from markdown_tables import table, write
from processes import (
    ROOT,
    WORDS,
    Observer,
    cameras,
    cpu_seconds,
    end,
    observer,
    segment_node,
    stop_cameras,
)
from rclpy.action import ActionClient
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.segmentation.process_settings import limit_threads, threads_beside_others
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

RESULTS = ROOT / 'benchmark' / 'results'
PAGE = ROOT / 'docs' / 'reliability.md'
BEGIN, END = '<!-- figures -->', '<!-- end of figures -->'
OTHER_WORDS = ('street', 'human', 'truck', 'bush', 'house', 'lawn', 'cat', 'sofa')

#: Where the words do not count: they take long to encode.
FEW_WORDS = {'vocabulary': list(WORDS[:2]), 'background': ['']}


class Run:
    """An active node, an observer, and what the observer receives of the node's one camera.

    Attributes:
        labels: When each label image came, by the monotonic clock, seconds.
        delays_ms: How long after the stamp of its image each came.
        masks: Vocabulary version of each `masks`, and when it came.
    """

    def __init__(self, watcher: Observer, node: Popen, log: Path):
        self.watcher, self.node, self.log = watcher, node, log
        self.labels: list[float] = []
        self.delays_ms: list[float] = []
        self.masks: list[tuple[int, float]] = []

    @contextlib.contextmanager
    def camera(self, rate: int, width: int = 640, height: int = 480) -> Iterator[Popen]:
        """Listen to label images and masks, and run a camera."""
        self.watcher.create_subscription(Image, '/cliptrase/camera/label', self._on_label, 10)
        self.watcher.create_subscription(
            ClassMasks,
            '/cliptrase/camera/masks',
            lambda m: self.masks.append((m.vocabulary_version, time.monotonic())),
            10,
        )
        log = self.log.with_name('camera.log')
        with cameras(log, '--single', width, height, rate) as sender:
            yield sender

    def _on_label(self, label: Image) -> None:
        self.labels.append(time.monotonic())
        stamp = label.header.stamp
        self.delays_ms.append(1e3 * (time.time() - stamp.sec - 1e-9 * stamp.nanosec))

    def wait_for_labels(self, count: int) -> None:
        """Wait for so many label images."""
        self.watcher.wait_for(lambda: len(self.labels) >= count, 'labels')

    def camera_report(self) -> dict[str, str]:
        """Return the latest diagnostics of the camera."""
        return self.watcher.reports['camera camera']


@contextlib.contextmanager
def running(folder: Path, engine: str, **parameters) -> Iterator[Run]:
    """Run an active node around an engine: toybox, or one of bench_node.py."""
    parameters = {'vocabulary': list(WORDS), 'background': ['sky'], **parameters}
    log = folder / f'{engine}.log'
    script = None if engine == 'toybox' else Path(__file__).with_name('bench_node.py')
    with (
        observer() as watcher,
        segment_node(log, parameters, folder, script, ENGINE=engine) as node,
    ):
        watcher.wait_until_active(node)
        yield Run(watcher, node, log)
        if node.poll() is None:
            end(node, log)


def overhead(folder: Path, seconds: float) -> dict:
    """Processor time of the node for a frame of 640 x 480 beside the engine's, and the engine's."""
    with running(folder, 'none', rate=0.0) as run:
        pid = run.node.pid
        idle_s = cpu_seconds(pid)
        run.watcher.spin(seconds / 3)
        idle_share = (cpu_seconds(pid) - idle_s) / (seconds / 3)
        with run.camera(rate=10) as sender:
            run.wait_for_labels(11)
            before_s, begin, first = cpu_seconds(pid), time.monotonic(), len(run.labels)
            run.watcher.spin(seconds)
            used_s, frames = cpu_seconds(pid) - before_s, len(run.labels) - first
            elapsed_s = time.monotonic() - begin
            stop_cameras(sender)
        report = run.camera_report()
    engine = engine_cost()
    per_frame_ms = 1e3 * (used_s - idle_share * elapsed_s) / frames
    return {
        'node_cpu_ms': round(per_frame_ms, 2),
        'node_cpu_ms_with_idle': round(1e3 * used_s / frames, 2),
        'frames': frames,
        'masks': len(run.masks),
        'processing_ms': report.get('processing_ms_mean'),
        **engine,
        'share_of_engine': round(per_frame_ms / engine['engine_cpu_ms'], 4),
    }


def engine_cost() -> dict:
    """Time of the engine for a frame of 640 x 480 at 336: of all processors, and by the clock."""
    # As the node does: threads that wait for each other would count as work.
    limit_threads(threads_beside_others())
    segmenter = make_segmenter(Segmenter)
    # The number of words makes no difference that could be measured.
    vocabulary = segmenter.encode_vocabulary(parse_vocabulary(WORDS[:2], background=()))
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = image.repeat(80, 0).repeat(80, 1)
    cpu_ms, wall_ms = [], []
    for _ in range(8):
        cpu, wall = time.process_time(), time.perf_counter()
        segmenter.segment([image], vocabulary, SegmentationSettings())
        cpu_ms.append(1e3 * (time.process_time() - cpu))
        wall_ms.append(1e3 * (time.perf_counter() - wall))
    return {
        'engine_cpu_ms': round(statistics.median(cpu_ms[1:]), 1),
        'engine_ms': round(statistics.median(wall_ms[1:]), 1),
    }


def answers(folder: Path, seconds: float) -> dict:
    """Time until a parameter is set, while the node labels without a pause."""
    taken_ms = []
    with running(folder, 'random', rate=0.0, **FEW_WORDS) as run, run.camera(rate=30) as sender:
        run.wait_for_labels(3)
        until = time.monotonic() + seconds
        first = len(run.labels)
        while time.monotonic() < until or len(taken_ms) < 100:
            value = 0.1 * (len(taken_ms) % 2)
            (result,), took_s = run.watcher.set_parameters(min_confidence=value)
            assert result.successful
            taken_ms.append(1e3 * took_s)
            run.watcher.spin(0.03)
        stop_cameras(sender)
    return {
        'calls': len(taken_ms),
        'p50_ms': round(float(np.percentile(taken_ms, 50)), 2),
        'p99_ms': round(float(np.percentile(taken_ms, 99)), 2),
        'labels_meanwhile': len(run.labels) - first,
    }


def reception(folder: Path, seconds: float) -> dict:
    """Share of 1080p images at 30 Hz that reach the node, with and without an engine at work."""
    shares = {}
    for engine in ('none', 'random'):
        with running(folder, engine, **FEW_WORDS) as run:
            with run.camera(width=1920, height=1080, rate=30) as sender:
                run.wait_for_labels(1)
                run.watcher.spin(seconds)
                sent = stop_cameras(sender)['camera']['sent']
                run.watcher.spin(2.5)
            received = int(run.camera_report()['received'])
        shares[engine] = {'sent': sent, 'received': received, 'share': round(received / sent, 4)}
    return shares


def swap(folder: Path, changes: int) -> dict:
    """Time from setting a vocabulary, whose phrases are known, to the first masks with it."""
    result = {}
    for engine, parameters in (
        ('toybox', {'model': 'toybox', 'resolution': 224}),
        ('random', {}),
    ):
        taken_ms = []
        with running(folder, engine, rate=0.0, **parameters) as run, run.camera(rate=30) as sender:
            wait_for, masks = run.watcher.wait_for, run.masks
            wait_for(lambda: masks, 'masks')  # noqa: B023
            for i in range(changes + 2):
                version = masks[-1][0]
                begin = time.monotonic()
                run.watcher.set_parameters(vocabulary=list((OTHER_WORDS, WORDS)[i % 2]))
                wait_for(lambda: masks[-1][0] > version, 'the new words')  # noqa: B023
                if i >= 2:  # both are known from here
                    taken_ms.append(1e3 * (masks[-1][1] - begin))
            # A report is of the last second, in which there may have been no frame.
            wait_for(lambda: 'engine_ms_mean' in run.camera_report(), 'the time of a frame')
            frame_ms = float(run.camera_report()['engine_ms_mean'])
            stop_cameras(sender)
        result[engine] = {
            'p50_ms': round(statistics.median(taken_ms), 1),
            'max_ms': round(max(taken_ms), 1),
            'frame_ms': round(frame_ms, 1),
        }
    return result


def requests(folder: Path, seconds: float) -> dict:
    """Delay of labels at 10 Hz alone, beside a search, and beside calls of `segment`; their time.

    The phrases are known: what is measured are images.
    """
    toybox = {'model': 'toybox', 'resolution': 224}
    with running(folder, 'toybox', **toybox) as run, run.camera(rate=10) as sender:
        finder = ActionClient(run.watcher, Find, '/cliptrase/find')
        service = run.watcher.create_client(Segment, '/cliptrase/segment')
        run.watcher.wait_for(
            lambda: finder.server_is_ready() and service.service_is_ready(), 'the servers'
        )
        image = MAKER.make_image(np.zeros((480, 640, 3), np.uint8), 'rgb8', Header())
        known = Segment.Request(image=image, vocabulary=['red ball', 'dog'], background=['sky'])
        calls_ms: list[float] = []

        def call() -> None:
            begin = time.monotonic()
            answer = service.call_async(known)
            run.watcher.wait_for(answer.done, 'an answer')
            assert answer.result().success
            calls_ms.append(1e3 * (time.monotonic() - begin))

        def phase(work: Callable[[], None]) -> dict[str, float]:
            first, until = len(run.labels), time.monotonic() + seconds
            while time.monotonic() < until:
                work()
            delays, gaps = run.delays_ms[first:], 1e3 * np.diff(run.labels[first:])
            return {
                'labels': len(delays),
                'delay_p50_ms': round(float(np.percentile(delays, 50)), 1),
                'delay_p99_ms': round(float(np.percentile(delays, 99)), 1),
                'gap_p99_ms': round(float(np.percentile(gaps, 99)), 1),
            }

        def rest() -> None:
            run.watcher.spin(0.1)

        run.wait_for_labels(11)
        call()
        result = {'alone': phase(rest)}
        frame_ms = float(run.camera_report()['engine_ms_mean'])
        calls_ms.clear()
        result['calls'] = phase(call)
        images = 0

        def count(message: Find.Impl.FeedbackMessage) -> None:
            nonlocal images
            images = message.feedback.images

        sent = finder.send_goal_async(Find.Goal(phrase='red ball'), count)
        run.watcher.wait_for(lambda: images, 'the first image searched')
        before = images
        result['search'] = {**phase(rest), 'images': images - before}
        cancelled = sent.result().cancel_goal_async()
        run.watcher.wait_for(cancelled.done, 'the end of the search')
        stop_cameras(sender)
    result['call'] = {
        'calls': len(calls_ms),
        'p50_ms': round(float(np.percentile(calls_ms, 50)), 1),
        'p99_ms': round(float(np.percentile(calls_ms, 99)), 1),
        'frame_ms': round(frame_ms, 1),
    }
    return result


def ending(folder: Path) -> dict:
    """Seconds from SIGINT to the end of the process, while it loads a model and while it labels."""
    weights = folder / 'weights.pt'
    os.mkfifo(weights)
    loading = {'model': 'ViT-B-16', 'pretrained': str(weights)}
    log = folder / 'end.log'
    with observer() as watcher, segment_node(log, loading, folder) as node:
        watcher.wait_for(
            lambda: watcher.reports.get('engine', {}).get('state') == 'configuring', 'loading'
        )
        result = {'loading_s': round(end(node, log), 2)}
    with running(folder, 'random', rate=0.0, **FEW_WORDS) as run, run.camera(rate=30):
        run.wait_for_labels(3)
        result['labelling_s'] = round(end(run.node, run.log), 2)
    return result


def figures_table(figures: dict, soaked: dict | None) -> str:
    """The figures as Markdown, goals beside them."""
    o, a, r, s, e = (figures[k] for k in ('overhead', 'answers', 'reception', 'swap', 'ending'))
    rows = [
        (
            'node beside the engine, a frame of 640 x 480, label and masks',
            '≤ 5 ms CPU, ≤ 10 % of the engine',
            f'{o["node_cpu_ms"]} ms, {100 * o["share_of_engine"]:.1f} % of {o["engine_cpu_ms"]} ms',
        ),
        (
            'a parameter set while labelling',
            'p99 ≤ 20 ms',
            f'p50 {a["p50_ms"]} ms, p99 {a["p99_ms"]} ms',
        ),
        (
            '1080p at 30 Hz into the node',
            '≥ 99 % received',
            f'{100 * r["none"]["share"]:.1f} %; {100 * r["random"]["share"]:.1f} % while a '
            'ViT-B/16 on the CPU labels',
        ),
        (
            'all words changed, known phrases, to the first frame with them',
            '≤ 100 ms',
            f'median {s["toybox"]["p50_ms"]} ms (toybox, {s["toybox"]["frame_ms"]} ms a frame); '
            f'{s["random"]["p50_ms"]} ms (ViT-B/16, {s["random"]["frame_ms"]} ms a frame)',
        ),
        (
            'SIGINT to the end of the process',
            '< 3 s',
            f'{e["loading_s"]} s while loading, {e["labelling_s"]} s while labelling',
        ),
    ]
    if soaked is not None:
        growth = soaked['growth_after_first_minute']
        rows += [
            (
                f'soak of {soaked["minutes"]:g} minutes',
                '0 crashes, 0 mixed vocabularies, memory < 1 %',
                f'every process alive to its end, {len(soaked["faults"])} faults in '
                f'{soaked["checked_against_their_vocabulary"]} frames by '
                f'{soaked["vocabularies"]} vocabularies, memory '
                + ('too short to tell' if growth is None else f'{100 * growth["memory"]:+.2f} %'),
            ),
            (
                'fuzzed messages',
                '≥ 10,000, 0 crashes, every refusal counted',
                f'{soaked["fuzzed_messages"]} and '
                f'{sum(soaked["fuzzed_parameters"].values())} parameter values, '
                f'every process alive, {sum(soaked["fuzzed_refused"].values())} refused',
            ),
            (
                'a parameter set in the soak, six cameras on two cores',
                '',
                f'p50 {soaked["parameter_answer_ms"]["p50"]} ms, '
                f'p99 {soaked["parameter_answer_ms"]["p99"]} ms',
            ),
        ]
    return table(('what', 'goal', 'measured'), rows)


def main() -> int:
    """Measure, write JSON, and put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--quick', action='store_true', help='a third of the time')
    parser.add_argument('--only', nargs='+', help='measure these alone, and write nothing')
    parser.add_argument('--table', action='store_true', help='only make the table again')
    arguments = parser.parse_args()
    share = 1 / 3 if arguments.quick else 1.0
    measurements = {
        'overhead': lambda folder: overhead(folder, 30.0 * share),
        'answers': lambda folder: answers(folder, 30.0 * share),
        'reception': lambda folder: reception(folder, 30.0 * share),
        'swap': lambda folder: swap(folder, round(20 * share)),
        'requests': lambda folder: requests(folder, 30.0 * share),
        'ending': ending,
    }
    path = RESULTS / 'node.json'
    if arguments.table:
        figures = json.loads(path.read_text())
    else:
        figures = {'machine': f'{platform.machine()}, {os.cpu_count()} processors'}
        for name in arguments.only or measurements:
            with tempfile.TemporaryDirectory() as folder:
                figures[name] = measurements[name](Path(folder))
            print(name, json.dumps(figures[name]), flush=True)
        if arguments.only:
            return 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + '\n')
    soaked = RESULTS / 'soak.json'
    made = figures_table(figures, json.loads(soaked.read_text()) if soaked.exists() else None)
    print(made)
    write(PAGE, BEGIN, END, made)
    return 0


if __name__ == '__main__':
    sys.exit(main())
