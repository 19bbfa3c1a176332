"""How many images of how many cameras the node keeps up with, beside an engine as fast as a GPU.

Cameras, listener and node are processes of their own. `make throughput` writes the figures of this
version into benchmark/results/throughput.json and the tables of docs/performance.md; those of
another one stay in the file (`--version before` wrote them).
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from markdown_tables import table, write
from processes import PIPES, ROOT, WORDS, Observer, ask, end, observer, process, segment_node, tell

from cliptrase_ros.messages.maker import CAMERA_OUTPUTS

RESULTS = ROOT / 'benchmark' / 'results' / 'throughput.json'
PAGE = ROOT / 'docs' / 'performance.md'
BEGIN, END = '<!-- begin of what make throughput writes -->', '<!-- end of throughput -->'
HERE = Path(__file__).parent
#: What this version is called beside others.
NOW = 'now'
#: Milliseconds of a call of the engine, and of each image in it.
CALL_MS, IMAGE_MS = 2.0, 1.0
OUTPUTS = {
    'label + masks': ('label', 'masks'),
    'label': ('label',),
    'all': tuple(CAMERA_OUTPUTS),
}
#: What is counted of a camera, for images that were not labelled.
LOSSES = ('dropped_busy', 'dropped_rate', 'dropped_unwanted', 'refused', 'failed')


@dataclass(frozen=True)
class Case:
    """What is sent to the node, and what is asked of it."""

    cameras: int
    rate: int
    encoding: str = 'rgb8'
    width: int = 640
    height: int = 480
    outputs: str = 'label + masks'
    together: bool = False


CASES = (
    Case(1, 10),
    Case(1, 30),
    Case(8, 10),
    Case(8, 30),
    Case(8, 30, together=True),
    Case(8, 60),
    Case(8, 60, outputs='label'),
    Case(8, 30, encoding='bgr8'),
    Case(8, 30, encoding='jpeg'),
    Case(8, 30, width=1280, height=720),
    Case(2, 30, outputs='all'),
)


@contextlib.contextmanager
def script(name: str, folder: Path, *arguments: object) -> Iterator[subprocess.Popen]:
    """Run a script of this folder that answers lines, and ends with its input."""
    command = [sys.executable, str(HERE / name), *map(str, arguments)]
    with process(command, folder / f'{name}.log', **PIPES) as started:
        yield started
        # In order: Fast DDS leaves the shared memory of what is killed behind.
        started.stdin.close()
        started.wait(timeout=30)


def counts(watcher: Observer, cameras: list[str]) -> dict[str, int]:
    """Return what the node has counted, of all cameras, once it counts no more."""
    # Reports come every second.
    watcher.spin(2.2)
    reports = [watcher.reports.get(f'camera {camera}', {}) for camera in cameras]
    names = ('received', 'labelled', *LOSSES)
    return {name: sum(int(report.get(name, 0)) for report in reports) for name in names}


def measure(case: Case, seconds: float, folder: Path) -> dict:
    """Run a node, its cameras and a listener; returns figures."""
    cameras = [f'camera_{i}' for i in range(case.cameras)]
    transport = 'compressed' if case.encoding == 'jpeg' else 'raw'
    parameters = {'cameras': cameras, 'rate': 0.0, 'transport': transport}
    parameters |= {'vocabulary': list(WORDS), 'background': ['sky']}
    log = folder / 'node.log'
    node_script, engine_ms = HERE / 'bench_node.py', f'{CALL_MS} {IMAGE_MS}'
    sent_as = ['--width', case.width, '--height', case.height, '--encoding', case.encoding]
    sent_as += ['--rate', case.rate, *(['--together'] if case.together else [])]
    with (
        observer() as watcher,
        segment_node(
            log, parameters, folder, node_script, pipes=PIPES, ENGINE='timed', ENGINE_MS=engine_ms
        ) as node,
    ):
        watcher.wait_until_active(node)
        outputs = OUTPUTS[case.outputs]
        with (
            script('listener.py', folder, '--cameras', *cameras, '--outputs', *outputs) as listener,
            script('camera_rig.py', folder, '--cameras', *cameras, *sent_as) as rig,
        ):
            ask(rig, 3.0)
            before, parts = counts(watcher, cameras), json.loads(ask(node))
            tell(listener)
            tell(rig, seconds)
            watcher.spin(seconds)
            sent, elapsed_s = json.loads(rig.stdout.readline()).values()
            # Until the last ones are labelled.
            watcher.spin(0.3)
            parts_after = json.loads(ask(node))
            after = counts(watcher, cameras)
            arrived = json.loads(ask(listener))
            tell(rig, seconds)
            answers_ms = answer_times_ms(watcher, seconds)
            _, elapsed_again_s = json.loads(rig.stdout.readline()).values()
            with_parameters = counts(watcher, cameras)
        end(node, log)
    new = {name: after[name] - before[name] for name in after}
    latencies_ms = np.array(arrived['label'])
    labelled = max(1, new['labelled'])
    calls = parts_after['counts']['engine'] - parts['counts']['engine']
    return {
        **asdict(case),
        'sent_hz': round(sent / elapsed_s, 1),
        'labels_hz': round(len(latencies_ms) / elapsed_s, 1),
        'lost': {
            'not_received': sent - new['received'],
            **{name: new[name] for name in LOSSES if new[name]},
            'not_delivered': new['labelled'] - len(latencies_ms),
        },
        'messages': {output: len(arrived.get(output, ())) for output in outputs},
        'engine_ms': round(CALL_MS * calls / labelled + IMAGE_MS, 2),
        'batch': round(labelled / max(1, calls), 2),
        'latency_ms': percentiles(latencies_ms),
        'cpu_ms': cpu_by_part(parts, parts_after, labelled),
        'while_setting_parameters': {
            'answer_ms': percentiles(np.array(answers_ms)),
            'labels_hz': round(
                (with_parameters['labelled'] - after['labelled']) / elapsed_again_s, 1
            ),
        },
    }


def answer_times_ms(watcher: Observer, seconds: float) -> list[float]:
    """Set a parameter ten times a second, for some time; returns milliseconds to each answer."""
    taken_ms = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        _, taken_s = watcher.set_parameters(min_confidence=0.1 * (len(taken_ms) % 2))
        taken_ms.append(1e3 * taken_s)
        watcher.spin(0.1)
    return taken_ms


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Median, 95th and 99th percentile."""
    return {f'p{q}': round(float(np.percentile(values, q)), 2) for q in (50, 95, 99)}


def cpu_by_part(before: dict, after: dict, images: int) -> dict[str, float]:
    """Processor milliseconds an image: of the whole process, and of its parts."""

    def part(kind: str, name: str) -> float:
        return 1e3 * (after[kind].get(name, 0.0) - before[kind].get(name, 0.0)) / images

    def threads(*names: str) -> float:
        return sum(part('threads', name) for name in names)

    total = 1e3 * (after['process'] - before['process']) / images
    parts = {name: part('parts', name) for name in after['parts']}
    # All that these threads do; they decode nothing.
    receive = threads('MainThread', 'reception', 'listeners')
    label = threads('inference', 'publishing', 'decoding')
    python = threads(*after['threads'])
    return {
        'total': round(total, 3),
        'receive': round(receive, 3),
        **{name: round(value, 3) for name, value in parts.items()},
        'other': round(label - sum(parts.values()), 3),
        'middleware': round(total - python, 3),
    }


def throughput_table(versions: dict[str, list[dict]]) -> str:
    """What comes out and how late, as Markdown: of each case, before and now."""
    titles = ('cameras', 'size', 'encoding', 'outputs', 'images/s in', 'labels/s out')
    titles += ('lost %', 'latency p50, p95, p99 ms', 'engine ms an image, as set', 'CPU ms a label')
    titles += ('parameter p99 ms', 'labels/s meanwhile')
    rows = []
    for of_versions in zip(*versions.values(), strict=True):
        case = of_versions[0]

        def each(value: Callable[[dict], object], of_versions: tuple = of_versions) -> str:
            # Of each version, bold now.
            *before, now = (str(value(figures)) for figures in of_versions)
            return ' → '.join([*before, f'**{now}**'])

        row = (
            f'{case["cameras"]} x {case["rate"]} Hz' + (' together' if case['together'] else ''),
            f'{case["width"]} x {case["height"]}',
            case['encoding'],
            case['outputs'],
            f'{case["sent_hz"]:g}',
            each(lambda f: f'{f["labels_hz"]:g}'),
            each(lambda f: f'{100 * (1 - f["labels_hz"] / f["sent_hz"]):.1f}'),
            each(lambda f: ', '.join(f'{ms:.0f}' for ms in f['latency_ms'].values())),
            each(lambda f: f'{f["engine_ms"]:.1f}'),
            each(lambda f: f'{f["cpu_ms"]["total"]:.2f}'),
            each(lambda f: f'{f["while_setting_parameters"]["answer_ms"]["p99"]:.1f}'),
            each(lambda f: f'{f["while_setting_parameters"]["labels_hz"]:g}'),
        )
        rows.append(row)
    return table(titles, rows)


def parts_table(versions: dict[str, list[dict]]) -> str:
    """Where the processor time of a label goes, as Markdown."""
    names = ('receive', 'decode', 'engine', 'label', 'masks', 'publish', 'other', 'middleware')
    titles = ('milliseconds a label', '', *names, 'other outputs', 'total')
    rows = []
    for number, case in enumerate(CASES):
        what = f'{case.cameras} x {case.rate} Hz{" together" if case.together else ""}'
        what += f', {case.encoding}, {case.width} x {case.height}, {case.outputs}'
        for version, figures in versions.items():
            cpu = figures[number]['cpu_ms']
            values = [cpu.get(name, 0.0) for name in names]
            values += [max(0.0, cpu['total'] - sum(values)), cpu['total']]
            rows.append([what, version, *(f'{ms:.2f}' for ms in values)])
    return table(titles, rows)


def write_tables(reports: dict[str, dict]) -> None:
    """Put the tables into the page."""
    names = [*(name for name in reports if name != NOW), NOW]
    versions = {name: reports[name]['figures'] for name in names}
    machines = ', '.join(dict.fromkeys(reports[name]['machine'] for name in names))
    tables = f'{throughput_table(versions)}\n\n{parts_table(versions)}'
    write(PAGE, BEGIN, END, f'{machines}: {" → ".join(names)}\n\n{tables}')


def main() -> int:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=8.0, help='of each case')
    parser.add_argument('--version', default=NOW, help='name of the figures in the file')
    parser.add_argument('--cases', type=int, nargs='+', help='only these, from 0; writes nothing')
    parser.add_argument('--table', action='store_true', help='only make the tables again')
    arguments = parser.parse_args()
    if arguments.table:
        write_tables(json.loads(RESULTS.read_text()))
        return 0
    chosen = CASES if arguments.cases is None else [CASES[i] for i in arguments.cases]
    figures = []
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            figures.append(measure(case, arguments.seconds, Path(folder)))
        print(json.dumps(figures[-1]), flush=True)
    if arguments.cases is None:
        reports = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        machine = f'{platform.machine()}, {os.cpu_count()} processors'
        reports[arguments.version] = {'machine': machine, 'figures': figures}
        RESULTS.write_text(json.dumps(reports, indent=2) + '\n')
        write_tables(reports)
    return 0


if __name__ == '__main__':
    sys.exit(main())
