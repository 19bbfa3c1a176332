"""Figures of docs/fleet.md: what `cliptrase batch` costs beside labelling.

    python benchmark/fleet.py --json benchmark/results/fleet.json

measures all parts in about ten minutes on two idle cores; `--quick` tries them in two, with numbers
that mean little. Everything runs on this machine: an S3 server of moto stands for object storage.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import queue
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import fsspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / 'test')]

import bags  # noqa: E402

from cliptrase_ros.fleet.batch import describe, label  # noqa: E402
from cliptrase_ros.fleet.engines import Slot, local_slots  # noqa: E402
from cliptrase_ros.fleet.labelling import Job, Labelling  # noqa: E402
from cliptrase_ros.fleet.model_check import examine  # noqa: E402
from cliptrase_ros.fleet.plan import make_plan  # noqa: E402
from cliptrase_ros.fleet.result_store import ResultStore  # noqa: E402
from cliptrase_ros.fleet.storage import Storage  # noqa: E402
from cliptrase_ros.fleet.tasks import Outcome, Task, find_tasks  # noqa: E402
from cliptrase_ros.fleet.work import Work  # noqa: E402
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings  # noqa: E402
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary  # noqa: E402

WORKERS = 2
WORDS = 'ball; box; cone; floor; wall'
# Of what a camera adds to a rendered picture, grey levels: without it JPEG has nothing to keep.
_NOISE = 4.0


def _picture(height: int, width: int) -> np.ndarray:
    image = _photograph(height, width).image
    noise = np.random.default_rng(0).normal(0, _NOISE, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def _photograph(height: int, width: int) -> Any:
    # The toybox loads PyTorch, which would hide the memory of listings.
    from cliptrase_ros.toybox.scenes import sample_room
    from cliptrase_ros.toybox.sequences import photograph

    return photograph(sample_room(7), 2.0, height, width)


def _jpeg(image: np.ndarray) -> bytes:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    return cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def overhead(folder: Path, quick: bool) -> dict:
    """All that is not labelling, of two workers with a core each, from a disk and from S3."""
    photos, tasks, recordings = (6, 4, 2) if quick else (50, 24, 4)
    image = _picture(480, 640)
    for number in range(tasks):
        part = folder / 'inputs' / f'photos{number:02}'
        part.mkdir(parents=True)
        for name in range(photos):
            (part / f'{name:03}.jpg').write_bytes(_jpeg(image))
    for number in range(recordings):
        frames = [
            (bags.START + i * bags.STEP, bags.compressed(image, bags.START + i * bags.STEP, '.jpg'))
            for i in range(photos)
        ]
        topic = ('/camera/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', [], frames)
        bags.write_bag(folder / 'inputs' / f'drive{number}', [topic])
    inputs, (job, examine_s) = str(folder / 'inputs'), _job(str(folder / 'disk'))
    report = {
        'tasks': tasks + recordings,
        'images': photos * (tasks + recordings),
        'alone_s': _label_alone(inputs, job),
        'disk': _batch(inputs, job, examine_s),
    }
    with _s3_server(folder / 'requests.log') as server:
        Storage('s3://fleet').store(folder / 'inputs', 'fleet/inputs')
        log, cpu_s = (folder / 'requests.log').stat().st_size, _cpu_seconds(server.pid)
        report['s3'] = _batch('s3://fleet/inputs', *_job('s3://fleet/labels'))
        report['s3']['server_cpu_s'] = round(_cpu_seconds(server.pid) - cpu_s, 1)
        requests = _requests((folder / 'requests.log').read_text()[log:])
        report['s3']['requests_a_task'] = {
            kind: round(count / report['tasks'], 1) for kind, count in requests.items()
        }
    return report


def _job(output: str) -> tuple[Job, float]:
    """A job of the toy model, and how many seconds it took to look at the model."""
    began = time.monotonic()
    model, vocabulary = ModelSettings(model='toybox'), parse_vocabulary(WORDS, ('ceiling',))
    facts = examine(model, vocabulary, is_here=True)
    examine_s = time.monotonic() - began
    labelling = Labelling(
        *(model, facts.weights, vocabulary, SegmentationSettings(), 0.0, False, (), '/cliptrase')
    )
    job = Job(labelling, labelling.digest, output, 'cpu', 1, None, None, 20.0)
    return job, examine_s


@dataclass
class _TimedSlot:
    """Notes when a slot was ready, had its first task and was through with its last."""

    slot: Slot
    start_s: float = 0.0
    began: float = math.inf
    ended: float = 0.0

    def start(self) -> Future:
        asked = time.monotonic()
        future = self.slot.start()
        future.add_done_callback(lambda _: setattr(self, 'start_s', time.monotonic() - asked))
        return future

    def call(self, method: str, *arguments) -> Future:
        future = self.slot.call(method, *arguments)
        if method == 'run':
            self.began = min(self.began, time.monotonic())
            future.add_done_callback(lambda _: setattr(self, 'ended', time.monotonic()))
        return future

    def stop(self) -> None:
        self.slot.stop()


def _batch(inputs: str, job: Job, examine_s: float) -> dict:
    store = ResultStore(Storage(job.output), job.digest)
    began = time.monotonic()
    plan = make_plan(find_tasks([inputs], job.output, job.digest), store)
    plan_s = time.monotonic() - began
    with plan:
        describe(store, job.labelling, plan)
        driver_s = time.process_time()
        with local_slots(job, WORKERS, gpus=0) as slots:
            timed = [_TimedSlot(slot) for slot in slots]
            summary = label(plan, store, timed)
            driver_s = time.process_time() - driver_s
        assert summary.states['done'] == plan.tasks.total(), summary
    done = [store.read(f'done/{entry.name}') for entry in store.markers('done')]
    seconds = {s: sum(d['seconds'][s] for d in done) for s in ('fetch', 'label', 'store')}
    end = max(slot.ended for slot in timed)
    available = sum(end - slot.began for slot in timed)
    return {
        'wall_s': round(available / WORKERS, 2),
        'overhead_percent': round(100 * (1 - seconds['label'] / available), 2),
        'of_it_end_percent': round(100 * sum(end - m.ended for m in timed) / available, 2),
        'seconds': {stage: round(value, 2) for stage, value in seconds.items()},
        'start_s': {
            'model_and_words_examined': round(examine_s, 2),
            'listed_and_looked_up': round(plan_s, 2),
            'workers_started': round(max(slot.start_s for slot in timed), 2),
        },
        'driver_cpu_ms_a_task': round(1000 * driver_s / len(done), 1),
        'result_bytes_an_image': {
            kind: round(
                sum(d['result_bytes'] for d in done if d['kind'] == kind)
                / sum(d['images'] for d in done if d['kind'] == kind)
            )
            for kind in {d['kind'] for d in done}
        },
    }


def _label_alone(inputs: str, job: Job) -> float:
    """Seconds that as many processes take for the same inputs with nothing but labelling."""
    tasks = list(find_tasks([inputs], job.output, job.digest))
    with ProcessPoolExecutor(WORKERS, get_context('spawn'), _load, (job,)) as processes:
        spans = list(processes.map(_label, tasks))
    first = {pid: min(began for p, began, _ in spans if p == pid) for pid, _, _ in spans}
    end = max(ended for _, _, ended in spans)
    return round(sum(end - began for began in first.values()) / WORKERS, 2)


_of_this_process: dict[str, Any] = {}


def _load(job: Job) -> None:
    from cliptrase_ros.fleet.labeller import Labeller

    _of_this_process['labeller'] = Labeller(job)


def _label(task: Task) -> tuple[int, float, float]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _of_this_process['labeller'].label(task, Path(task.source), Path(folder) / 'labels')
    return os.getpid(), began, time.monotonic()


@contextlib.contextmanager
def _s3_server(log: Path) -> Iterator[subprocess.Popen]:
    """A bucket `fleet` on loopback, which this process and its children find; it logs requests."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    os.environ |= {
        'AWS_ENDPOINT_URL': f'http://127.0.0.1:{port}',
        **dict.fromkeys(('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'), 'test'),
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    command = [sys.executable, '-m', 'moto.server', '-p', str(port)]
    with log.open('w') as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                socket.create_connection(('127.0.0.1', port)).close()
                break
            time.sleep(0.1)
        fsspec.filesystem('s3').mkdir('fleet')
        yield server
    finally:
        server.terminate()
        server.wait()


def _requests(log: str) -> Counter:
    found = re.findall(r'"(?:\x1b\[\d+m)*([A-Z]+) (\S+) HTTP', log)
    return Counter('LIST' if 'list-type' in path else method for method, path in found)


def scheduling(folder: Path, quick: bool) -> dict:
    """Processor time of the driver for a task, with workers that do nothing for a while."""
    return {
        f'{workers} workers': _schedule(workers, 50 if quick else 300)
        for workers in (10, 100, 1000)
    }


def _schedule(workers: int, count: int) -> dict:
    count += 2 * workers
    running: queue.Queue = queue.Queue()
    slots = [_Idle(running) for _ in range(workers)]
    tasks = (Task(f'{number:032x}', 'photos', 'a', 'a', (), 0) for number in range(count))

    def finish() -> None:
        for _ in range(count):
            future = running.get()
            time.sleep(0.01)
            future.set_result(Outcome('done'))

    thread = threading.Thread(target=finish)
    thread.start()
    began, cpu_s = time.monotonic(), time.thread_time()
    Work(slots, 'run', tasks, count, lambda task, outcome: None).run()
    cpu_s, wall_s = time.thread_time() - cpu_s, time.monotonic() - began
    thread.join()
    return {'cpu_ms_a_task': round(1000 * cpu_s / count, 2), 'tasks_a_second': count / wall_s}


@dataclass
class _Idle:
    """A slot whose tasks someone else ends."""

    running: queue.Queue

    def start(self) -> Future:
        future: Future = Future()
        future.set_result(None)
        return future

    def call(self, method: str, *arguments) -> Future:
        future: Future = Future()
        self.running.put(future)
        return future

    def stop(self) -> None:
        pass


def lookup(folder: Path, quick: bool) -> dict:
    """The command where all is done: empty recordings with done markers, on a disk."""
    count = 2000 if quick else 100_000
    for number in range(count):
        path = folder / 'inputs' / f'{number // 1000:03}' / f'{number:06}.mcap'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    output = str(folder / 'labels')
    first = _command([str(folder / 'inputs'), '-o', output, '--dry-run'])
    digest = re.search(r'results are in \S+/(\w+)\n', first['output'])[1]
    done = folder / 'labels' / digest / 'done'
    done.mkdir(parents=True)
    for task in find_tasks([str(folder / 'inputs')], output, digest):
        about = {'key': task.key, 'source': task.source, 'result': {}, 'images': 300}
        (done / f'{task.key}.json').write_text(json.dumps(about, indent=1) + '\n' + ' ' * 600)
    again = _command([str(folder / 'inputs'), '-o', output])
    assert f'{count} are done' in again['output'], again['output']
    status = _command(['-o', output, '--status'])
    one = _command([str(folder / 'inputs' / '000' / '000000.mcap'), '-o', output, '--dry-run'])
    runs = {'nothing_done': first, 'all_done': again, 'status': status, 'one_task': one}
    return {'tasks': count} | {
        name: {key: value for key, value in run.items() if key != 'output'}
        for name, run in runs.items()
    }


def _command(arguments: list[str]) -> dict:
    """Run `cliptrase batch`; how long it takes, and the most memory of it and its children."""
    program = [sys.executable, '-c', 'from cliptrase_ros.cli import main; main()']
    options = [] if '--status' in arguments else ['-v', WORDS, '--model', 'toybox']
    began = time.monotonic()
    process = subprocess.Popen(
        [*program, 'batch', *arguments, *options], stdout=subprocess.PIPE, text=True
    )
    peak_own, peak = 0, 0
    while process.poll() is None:
        own, of_all = _memory(process.pid)
        peak_own, peak = max(peak_own, own), max(peak, of_all)
        time.sleep(0.02)
    seconds = time.monotonic() - began
    return {
        'seconds': round(seconds, 1),
        'command_mb': round(peak_own / 1e6),
        'with_children_mb': round(peak / 1e6),
        'output': process.stdout.read(),
    }


def _memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and of it and all below it."""
    try:
        own = int(Path(f'/proc/{pid}/statm').read_text().split()[1]) * resource.getpagesize()
        children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    except OSError:
        return 0, 0
    return own, own + sum(_memory(int(child))[1] for child in children)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def listing(folder: Path, quick: bool) -> dict:
    """Tasks of a bucket's folder with a million photos, whose pages come at once."""
    with ProcessPoolExecutor(1, get_context('spawn')) as process:
        return process.submit(_list, 20_000 if quick else 1_000_000).result()


def _list(count: int) -> dict:
    storage = Storage('s3://fleet/photos')

    def page(call: str, Prefix: str = '', ContinuationToken: str = '0', **rest) -> dict:
        first = int(ContinuationToken)
        last = min(first + 1000, count)
        modified = datetime(2026, 11, 1, tzinfo=timezone.utc)
        contents = [
            {'Key': f'{Prefix}{n:08}.jpg', 'Size': 450_000, 'ETag': f'"{n:032x}"'}
            | {'LastModified': modified, 'StorageClass': 'STANDARD'}
            for n in range(first, last)
        ]
        return {'Contents': contents, 'IsTruncated': last < count, 'NextContinuationToken': last}

    # fsspec keeps one object for all that name the same storage.
    storage._fs.call_s3 = page
    storage._fs.info = lambda path: {'name': path, 'type': 'directory', 'size': 0}
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = [len(task.files) for task in find_tasks(['s3://fleet/photos'], '/nowhere', 'x')]
    assert sum(sizes) == count
    return {
        'photos': count,
        'tasks': len(sizes),
        'seconds': round(time.monotonic() - began, 1),
        'memory_before_mb': round(before / 1000),
        'peak_memory_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }


def transfer(folder: Path, quick: bool) -> dict:
    """Bytes of an image, and processor time for a gigabyte of what is fetched, read and stored."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    image = _picture(1080, 1920)
    small, jpeg, raw = _jpeg(_picture(480, 640)), _jpeg(image), image.tobytes()
    packed = zstd.compress(raw)
    of_gb = {
        'sha256': (len(raw), partial(hashlib.sha256, raw)),
        'zstd, packing raw': (len(raw), partial(zstd.compress, raw)),
        'zstd, unpacking raw': (len(raw), partial(zstd.decompress, packed)),
        'decoding JPEG': (len(jpeg), partial(cv2.imdecode, np.frombuffer(jpeg, np.uint8), 1)),
    }
    return {
        'bytes_an_image': {
            '1080p raw (rgb8)': len(raw),
            '1080p raw in a compressed recording': len(packed),
            '1080p JPEG (quality 90)': len(jpeg),
            '640 x 480 JPEG (quality 90)': len(small),
        },
        '1080p_recording_beside_the_engine': _beside_the_engine(folder, image, 3 if quick else 40),
        'cpu_seconds_a_gb': {
            name: round(_thread_seconds(do) / size * 1e9, 2) for name, (size, do) in of_gb.items()
        },
    }


def _beside_the_engine(folder: Path, image: np.ndarray, frames: int) -> dict:
    """What a recording of JPEG costs where labels come at once, and bytes of its sidecar."""
    from cliptrase_ros.bag.cameras import choose_cameras
    from cliptrase_ros.bag.label import BagSettings, Labeller, label_bag
    from cliptrase_ros.bag.reader import BagReader
    from cliptrase_ros.messages.typestore import make_typestore
    from cliptrase_ros.segmentation.segmenter import Segmentation

    stamps = [bags.START + i * bags.STEP for i in range(frames)]
    messages = [(stamp, bags.compressed(image, stamp, '.jpg')) for stamp in stamps]
    topic = ('/camera/image_raw/compressed', 'sensor_msgs/msg/CompressedImage', [], messages)
    bags.write_bag(folder / 'drive', [topic])
    label = _photograph(1080, 1920).label
    vocabulary = parse_vocabulary([f'class {number}' for number in range(int(label.max()) + 1)])
    result = Segmentation(label, np.full(label.shape, 200, np.uint8), vocabulary)
    engine = SimpleNamespace(
        largest_batch=8, segment_each=lambda pictures, *rest: [result] * len(pictures)
    )
    labeller = Labeller(engine, SimpleNamespace(vocabulary=vocabulary), SegmentationSettings())
    with BagReader(folder / 'drive', make_typestore()) as reader:
        cameras = choose_cameras(reader, (), '/cliptrase').cameras
        settings = BagSettings(node='/cliptrase', rate=0, overlay=False, sidecar=True)
        began, all_began = time.thread_time(), time.process_time()
        label_bag(reader, folder / 'labels', cameras, labeller, settings)
        cpu_s, all_s = time.thread_time() - began, time.process_time() - all_began
    size = (folder / 'labels' / 'labels.mcap').stat().st_size
    return {
        'one_thread_cpu_ms_an_image': round(1000 * cpu_s / frames, 1),
        'all_threads_cpu_ms_an_image': round(1000 * all_s / frames, 1),
        'label_bytes': size // frames,
    }


def _thread_seconds(do: Callable[[], object]) -> float:
    cv2.setNumThreads(1)
    times = []
    for _ in range(5):
        began = time.thread_time()
        do()
        times.append(time.thread_time() - began)
    return sorted(times)[2]


PARTS = {part.__name__: part for part in (overhead, scheduling, lookup, listing, transfer)}


def main() -> None:
    """Measure, print tables, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the report')
    parser.add_argument('--quick', action='store_true', help='small numbers, to try it')
    parser.add_argument('--only', nargs='+', choices=PARTS, default=list(PARTS), metavar='PART')
    options = parser.parse_args()
    report = {'cores': len(os.sched_getaffinity(0)), 'quick': options.quick, 'fleet': {}}
    for name in options.only:
        folder = Path(tempfile.mkdtemp(prefix='fleet-benchmark-'))
        try:
            report['fleet'][name] = PARTS[name](folder, options.quick)
        finally:
            shutil.rmtree(folder)
        print(f'\n{name}')
        for what, value in _rows(report['fleet'][name]):
            print(f'  {what:50}  {value}')
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')


def _rows(figures: dict, above: str = '') -> Iterator[tuple[str, object]]:
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from _rows(value, f'{above}{key}: ')
        else:
            yield f'{above}{key}'.replace('_', ' '), value


if __name__ == '__main__':
    main()
