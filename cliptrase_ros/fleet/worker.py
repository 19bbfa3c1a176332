"""A worker: holds the model and does one task after the other, each from input to `done`."""

import atexit
import contextlib
import hashlib
import re
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cliptrase_ros
from cliptrase_ros.exports.export import write_part
from cliptrase_ros.exports.results import ExportError, Result
from cliptrase_ros.fleet.faults import InputFault, WorkerUnfit, sentence
from cliptrase_ros.fleet.heartbeat import Heartbeat
from cliptrase_ros.fleet.labelling import Job
from cliptrase_ros.fleet.result_store import ResultStore, parts_of, utc_now
from cliptrase_ros.fleet.scratch import Scratch, ScratchError
from cliptrase_ros.fleet.storage import Entry, Storage, in_parallel
from cliptrase_ros.fleet.tasks import DESCRIPTION, SQLITE_LOG, Outcome, Task

if TYPE_CHECKING:
    from cliptrase_ros.fleet.labeller import Labeller

#: In the folder of a result: digests of its files, as `sha256sum --check` takes them.
CHECKSUMS = 'checksums.txt'


class Worker:
    """Does tasks of a job, several at a time in threads of their own, at different stages."""

    def __init__(self, job: Job):
        """Load the model.

        Raises:
            WorkerUnfit: It is not the model, the version or the output that the job is about.
        """
        self._job = job
        if job.labelling.digest != job.digest:
            raise WorkerUnfit(
                f'cliptrase_ros on {socket.gethostname()} is {cliptrase_ros.__version__}, another '
                'version than where the command runs'
            )
        self._store = ResultStore(Storage(job.output), job.digest)
        if self._store.read(DESCRIPTION) is None:
            # The command has written it: this would be a folder of the same name elsewhere.
            raise WorkerUnfit(
                f'{socket.gethostname()} does not see what is in {self._store.url}; workers of '
                'several machines need an output that all of them reach'
            )
        self._scratch = Scratch(job.scratch, job.scratch_gib)
        atexit.register(self._scratch.close)
        # Recordings that are compressed as files are unpacked where there is room.
        tempfile.tempdir = str(self._scratch.path)
        self._labeller = _load(job) if job.needs_model else None
        self._fetching = threading.Lock()
        self._labelling = threading.Lock()
        device = self._labeller.device if self._labeller else 'none'
        self._heartbeat = Heartbeat(self._store, device)

    def ready(self) -> None:
        """Return when the worker is there; for engines that make it later."""

    def progress(self) -> int:
        """How many images were labelled so far."""
        return self._labeller.images if self._labeller else 0

    def run(self, task: Task, is_last_try: bool = False) -> Outcome:
        """Fetch, label and store the results of a task, then say that it is done.

        Args:
            is_last_try: Whether to make do without images that are too large for the device.

        Raises:
            WorkerUnfit: The task is to be done by another worker, and all others as well.
        """
        with self._heartbeat.task(task.shown_source):
            try:
                outcome = self._run(task, is_last_try)
            except InputFault as error:
                outcome = Outcome('failed', str(error))
            except WorkerUnfit:
                raise
            except Exception as error:
                # Storage that does not answer, a full disk, whatever libraries make of odd files.
                outcome = Outcome('again', sentence(error))
            self._heartbeat.count[outcome.state] += 1
            return outcome

    def export(self, task: Task, is_last_try: bool = False) -> Outcome:
        """Make a finished task's part of the datasets of the job; all tries are alike."""
        with self._heartbeat.task(task.shown_source):
            try:
                self._export(task)
            except (ExportError, InputFault) as error:
                return Outcome('failed', str(error))
            except Exception as error:
                return Outcome('again', sentence(error))
            return Outcome('done')

    def close(self) -> None:
        """Say that the worker has ended, and delete what was fetched."""
        self._heartbeat.close()
        self._scratch.close()

    def _run(self, task: Task, is_last_try: bool) -> Outcome:
        done = self._store.read(f'done/{task.key}.json')
        if done is not None:
            # By another command, or by a worker that ended right after it.
            return Outcome('done', damage=tuple(done['damage']), images=done['images'])
        seconds: dict[str, float] = {}
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self._scratch.folder())
            with contextlib.ExitStack() as fetched:
                with self._fetching:
                    began = time.monotonic()
                    source = self._fetch(task, folder / 'input', fetched)
                    seconds['fetch'] = time.monotonic() - began
                with self._labelling:
                    began = time.monotonic()
                    labels = self._labeller.label(task, source, folder / 'labels')
                    seconds['label'] = time.monotonic() - began
                if labels.fault and not is_last_try:
                    raise labels.fault
            began = time.monotonic()
            result, size = self._put(task, folder / 'labels')
            seconds['store'] = time.monotonic() - began
        about = {
            'key': task.key,
            'kind': task.kind,
            'name': task.name,
            'source': task.shown_source,
            'bytes': task.size,
            'images': labels.images,
            'damage': labels.damage,
            'cameras': labels.cameras,
            'result': result,
            'result_bytes': size,
            'seconds': {stage: round(value, 3) for stage, value in seconds.items()},
            'device': self._labeller.device,
            'worker': self._heartbeat.name,
            'finished': utc_now(),
        }
        self._store.mark_done(task, about, labels.damage)
        self._heartbeat.add(labels.images, seconds['label'])
        return Outcome('done', damage=tuple(labels.damage), images=labels.images)

    def _fetch(self, task: Task, folder: Path, stack: contextlib.ExitStack) -> Path:
        """Where on this machine the input of a task is."""
        storage = Storage(task.source)
        if storage.is_local:
            return Path(storage.path)
        try:
            stack.enter_context(self._scratch.room(task.size))
        except ScratchError as error:
            raise InputFault(str(error)) from error
        # Before others have the room.
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        if not task.files:
            path = folder / Entry(storage.path, False).name
            try:
                storage.fetch(storage.path, path)
            except FileNotFoundError as error:
                raise InputFault('it is not there any more') from error
            if path.suffix == '.db3':
                with contextlib.suppress(FileNotFoundError):
                    storage.fetch(storage.path + SQLITE_LOG, path.with_name(path.name + SQLITE_LOG))
            return path
        folder.mkdir()

        def fetch(name: str) -> None:
            # One that is not there any more is missed when it is read.
            with contextlib.suppress(FileNotFoundError):
                storage.fetch(storage.child(name), folder / name)

        in_parallel(fetch, list(task.files))
        return folder

    def _put(self, task: Task, folder: Path) -> tuple[dict[str, Any], int]:
        """Store results under a name that says what is in them; returns where, and bytes.

        Whoever does the same task, and stops anywhere, stores equal files at equal places, or
        others elsewhere: what `done` points to is never written to again.
        """
        files = sorted(file for file in folder.rglob('*') if file.is_file())
        size = sum(file.stat().st_size for file in files)
        lines = [_checksum(file, file.relative_to(folder).as_posix()) for file in files]
        checksums = ''.join(lines).encode()
        (folder / CHECKSUMS).write_bytes(checksums)
        digest = hashlib.sha256(checksums).hexdigest()
        path = f'results/{task.name}/{digest[:16]}'
        self._store.storage.store(folder, f'{self._store.path}/{path}')
        return {'folder': path, 'files': len(files), 'checksums_sha256': digest}, size

    def _export(self, task: Task) -> None:
        about = self._store.read(f'done/{task.key}.json')
        if about is None:
            raise ExportError(f'{self._store.url}/done/{task.key}.json is gone')
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(self._scratch.folder())
            inputs, source = None, task.shown_source
            if self._job.with_images:
                inputs = self._fetch(task, folder / 'input', stack)
            if task.kind == 'photos' and not task.files:
                # A single one, of which its folder is wanted.
                source = source.rpartition('/')[0]
                inputs = inputs and inputs.parent
            result = Result(
                *(task.key, task.kind, task.name, source),
                self._get(about['result'], folder / 'labels'),
                inputs,
                about['cameras'],
            )
            write_part(result, self._job.formats, folder / 'export')
            for name, path in self._job.datasets.items():
                files, parts = folder / 'export' / name, folder / f'parts-{name}'
                if (files / 'parts').is_dir():
                    (files / 'parts').rename(parts)
                self._store.storage.store(files, f'{self._store.path}/{path}')
                # What says that a part is there comes last. Not every format has anything to join.
                parts.mkdir(exist_ok=True)
                (parts / f'{task.key}.jsonl').touch()
                self._store.storage.store(parts, f'{self._store.path}/{parts_of(path)}')

    def _get(self, result: dict[str, Any], folder: Path) -> Path:
        """Where on this machine stored results are."""
        storage, path = self._store.storage, f'{self._store.path}/{result["folder"]}'
        if storage.is_local:
            return Path(path)
        checksums = storage.read(f'{path}/{CHECKSUMS}').decode()
        names = [_name_in(line) for line in checksums.split('\n')[:-1]]
        in_parallel(lambda name: storage.fetch(f'{path}/{name}', folder / name), names)
        return folder


def _load(job: Job) -> 'Labeller':
    # Datasets are made without PyTorch.
    from cliptrase_ros.fleet.labeller import Labeller

    return Labeller(job)


def _checksum(file: Path, name: str) -> str:
    """A line for `sha256sum --check`, which begins with a backslash where the name has escapes."""
    escaped = name.replace('\\', r'\\').replace('\n', r'\n').replace('\r', r'\r')
    mark = '' if escaped == name else '\\'
    return f'{mark}{_sha256(file)}  {escaped}\n'


def _name_in(line: str) -> str:
    """The name in a line of checksums."""
    name = line.partition('  ')[2]
    if not line.startswith('\\'):
        return name
    return re.sub(r'\\(.)', lambda match: {'n': '\n', 'r': '\r'}.get(match[1], match[1]), name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
