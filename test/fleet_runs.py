"""`cliptrase batch` with its workers in threads of this process, and what it leaves in storage."""

import contextlib
import hashlib
import json
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import fsspec

from cliptrase_ros.cli import main
from cliptrase_ros.fleet import engines, model_check
from cliptrase_ros.fleet.worker import Worker

WORDS = 'red ball; box: crate, carton'


@dataclass
class ThreadSlot:
    """A worker in this process."""

    job: object
    threads: ThreadPoolExecutor
    worker: Worker | None = None

    def start(self):
        return self.threads.submit(self._start)

    def call(self, method, *arguments):
        return self.threads.submit(getattr(self.worker, method), *arguments)

    def stop(self):
        pass

    def _start(self):
        self.worker = Worker(self.job)


@contextlib.contextmanager
def thread_slots(job, count, gpus):
    """As `engines.local_slots`."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ThreadPoolExecutor(4 * (count or 1)) as threads,
        # Workers have the temporary files of their process in their scratch.
        patch.object(tempfile, 'tempdir'),
    ):
        job = replace(job, scratch=job.scratch or Path(scratch), threads=job.threads or 1)
        slots = [ThreadSlot(job, threads) for _ in range(count or 1)]
        yield slots
        engines._say_goodbye(slots)


@contextlib.contextmanager
def in_threads():
    """Commands need no processes meanwhile."""
    handler = signal.getsignal(signal.SIGTERM)
    with (
        patch.object(engines, 'local_slots', thread_slots),
        patch.object(model_check, 'examine', model_check._examine),
    ):
        yield
    signal.signal(signal.SIGTERM, handler)


def arguments_of(model, *arguments, words=WORDS):
    """`cliptrase batch` on the processor, with a small model."""
    engine = ['--model', model, '--resolution', '64', '--device', 'cpu', '--threads', '1']
    return ['batch', '-v', words, *engine, *(str(argument) for argument in arguments)]


def run_batch(model, *arguments, words=WORDS):
    """Returns the exit status."""
    with in_threads():
        return main(arguments_of(model, *arguments, words=words))


def in_memory(folder):
    """URL of a folder in memory, which then holds nothing else, with the files of another."""
    system = fsspec.filesystem('memory')
    system.store.clear()
    for path, content in contents(folder).items():
        system.pipe_file(f'/{Path(folder).name}/{path}', content)
    return f'memory://{Path(folder).name}'


def processes_of(variable):
    """Command lines by process id, of those with a variable, NAME=VALUE, in their environment."""
    found = {}
    for folder in Path('/proc').glob('[0-9]*'):
        # Others end meanwhile.
        with contextlib.suppress(OSError):
            if variable.encode() in (folder / 'environ').read_bytes().split(b'\0'):
                found[int(folder.name)] = (folder / 'cmdline').read_text()
    # Those that have ended, and that nobody has asked for yet, have no command line any more.
    return {pid: line for pid, line in found.items() if line}


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def contents(url):
    """Content by path of all files below a folder of any storage."""
    system, root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
    return {
        path.removeprefix(root).lstrip('/'): system.cat_file(path) for path in system.find(root)
    }


def only_labelling(files):
    """Files of the only labelling in an output, by their paths in it."""
    # What was being written when its process was killed is nowhere else to be seen.
    files = {path: content for path, content in files.items() if not path.startswith('.partial/')}
    (name,) = {path.partition('/')[0] for path in files}
    return {path.removeprefix(f'{name}/'): content for path, content in files.items()}


def markers(files, of='done'):
    """What is said of tasks, by their inputs' names."""
    about = [json.loads(files[path]) for path in files if path.startswith(f'{of}/')]
    return {entry['source'].rpartition('/')[2]: entry for entry in about}


def assert_whole(files):
    """Every result that is said to be done is there, as its checksums say."""
    for about in markers(files).values():
        folder = about['result']['folder']
        checksums = files[f'{folder}/checksums.txt']
        digest = hashlib.sha256(checksums).hexdigest()
        assert digest == about['result']['checksums_sha256']
        assert folder == f'results/{about["name"]}/{digest[:16]}'
        lines = checksums.decode().splitlines()
        assert len(lines) == about['result']['files'] > 0
        for line in lines:
            expected, _, name = line.partition('  ')
            assert hashlib.sha256(files[f'{folder}/{name}']).hexdigest() == expected, name


def lasting(files):
    """What is equal in all runs: names and contents, but for times, workers and their seconds."""
    result = {}
    for path, content in files.items():
        if path.startswith('workers/'):
            continue
        if path.startswith('done/'):
            about = json.loads(content)
            for key in ('seconds', 'worker', 'finished'):
                del about[key]
            content = about
        elif path == 'labelling.json':
            content = json.loads(content) | {'listed': ''}
        result[path] = content
    return result
