"""Odd names, clusters and ends of `cliptrase batch`."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import bags
import cv2
import pytest

pytest.importorskip('av', reason='PyAV is not installed; `make test` brings it')
import fleet_runs
import fsspec
from web_server import web_server

from cliptrase_ros.commands import batch
from cliptrase_ros.fleet import engines
from cliptrase_ros.fleet.result_store import ResultStore
from cliptrase_ros.fleet.status import read_status
from cliptrase_ros.fleet.storage import Storage
from cliptrase_ros.fleet.tasks import find_tasks
from cliptrase_ros.fleet.worker import _checksum, _name_in


def save(path, seed=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(os.fspath(path), bags.picture(seed)[..., ::-1])
    return path


def find(*inputs):
    return list(find_tasks([str(text) for text in inputs], '/nowhere/out', 'words'))


def test_colons_in_names_are_names(tmp_path, tiny_model):
    # To fsspec, `a::b` is a place in an archive.
    save(tmp_path / 'in/a::b/1.png')
    save(tmp_path / 'in/a/other.png')
    (tmp_path / 'in/c::d.mcap').write_bytes(b'')
    (task,) = find(tmp_path / 'in/a::b')
    assert task.name == f'{tmp_path}/in/a::b'[1:] and task.files == ('1.png',)
    for task in find(tmp_path / 'in'):
        assert Storage(task.source).path == task.source
    status = fleet_runs.run_batch(tiny_model, tmp_path / 'in/a::b', '-o', tmp_path / 'o::o')
    assert status == 0
    (label,) = (tmp_path / 'o::o').rglob('labels/*.png')
    assert label.name == '1.png'


def test_slashes_in_a_row_in_keys(bucket):
    system = fsspec.filesystem('s3', use_listings_cache=False)
    for key in ('in//x.mcap', 'in/a//b.mcap', 'in/c.mcap'):
        system.pipe_file(f'{bucket}/{key}', b'1')
    sources = {task.source.removeprefix(bucket) for task in find(f'{bucket}/in')}
    assert sources == {'/in//x.mcap', '/in/a//b.mcap', '/in/c.mcap'}
    for source in sources:
        assert Storage(bucket + source).read(f'{bucket[5:]}{source}') == b'1'


def test_a_file_of_the_web_may_take_hours():
    pytest.importorskip('aiohttp', reason='aiohttp is not installed; `make test` brings it')
    timeout = Storage('https://localhost/x.mcap')._fs.client_kwargs['timeout']
    assert timeout.total is None and timeout.sock_read


def test_names_that_are_no_text_stay_different(tmp_path):
    for name in (b'a\xfe', b'a\xff'):
        folder = os.fsencode(tmp_path) + b'/in/' + name
        os.makedirs(folder)  # noqa: PTH103
        Path(os.fsdecode(folder), 'x.mcap').write_bytes(b'')
    names = [task.name.removeprefix(f'{tmp_path}/in/'[1:]) for task in find(tmp_path / 'in')]
    assert names == ['a%FE/x.mcap', 'a%FF/x.mcap']


@pytest.mark.parametrize(
    'name', ['a b.png', 'new\nline.png', 'back\\nslash.png', 'r\r.png', 'line\u2028.png']
)
def test_checksums_of_odd_names(tmp_path, name):
    (tmp_path / name).write_text(name)
    line = _checksum(tmp_path / name, name)
    assert line.count('\n') == 1
    assert _name_in(line.removesuffix('\n')) == name
    (tmp_path / 'checksums.txt').write_text(line, newline='')
    subprocess.run(['sha256sum', '--check', 'checksums.txt'], cwd=tmp_path, check=True)


def test_files_of_others_among_markers(tmp_path):
    store = ResultStore(Storage(str(tmp_path)), 'labelling')
    store.write('done/00ff.json', {})
    for name in ('.DS_Store', 'notes.json', '._00ff.json'):
        (tmp_path / 'labelling/done' / name).write_text('')
    assert store.keys('done') == {b'\x00\xff'}


@pytest.fixture
def web(tmp_path):
    with web_server(tmp_path) as url:
        yield url


def test_signed_photos_are_exported(tmp_path, web, tiny_model):
    pytest.importorskip('aiohttp', reason='aiohttp is not installed; `make test` brings it')
    photo = save(tmp_path / 'in/1.png')
    url = f'{web}/in/1.png'
    export = ['--export', 'coco-polygons', '--export-images']
    output = tmp_path / 'out'
    assert fleet_runs.run_batch(tiny_model, f'{url}?token=secret', '-o', output, *export) == 0
    (dataset,) = output.glob('*/export/coco-polygons-with-images')
    (image,) = json.loads((dataset / 'annotations/instances_default.json').read_text())['images']
    assert image['source'] == url
    assert (dataset / 'images' / image['file_name']).read_bytes() == photo.read_bytes()


def test_output_is_where_the_command_runs(tmp_path, tiny_model, monkeypatch):
    """Workers of a cluster are in other working directories."""
    save(tmp_path / 'in/1.png')
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    start = fleet_runs.ThreadSlot._start

    def start_elsewhere(slot):
        os.chdir('elsewhere')
        start(slot)

    monkeypatch.setattr(fleet_runs.ThreadSlot, '_start', start_elsewhere)
    assert fleet_runs.run_batch(tiny_model, 'in', '-o', 'out') == 0
    assert list(tmp_path.glob('out/*/done/*.json'))
    assert not list(tmp_path.glob('elsewhere/*'))


def test_machine_that_does_not_have_the_output_is_named(tmp_path, tiny_model, monkeypatch, capfd):
    save(tmp_path / 'in/1.png')
    start = fleet_runs.ThreadSlot._start

    def start_on_another_machine(slot):
        slot.job = engines.replace(slot.job, output=str(tmp_path / 'its own'))
        start(slot)

    monkeypatch.setattr(fleet_runs.ThreadSlot, '_start', start_on_another_machine)
    assert fleet_runs.run_batch(tiny_model, tmp_path / 'in', '-o', tmp_path / 'out') == 2
    assert 'does not see what is in' in capfd.readouterr().err


def test_room_on_nodes():
    nodes = [{'CPU': 3.0}, {'CPU': 8.0, 'GPU': 2.0}, {'CPU': 2.0, 'GPU': 4.0}, {'memory': 1.0}]
    assert engines._room(nodes, 2, with_gpu=False) == 1 + 4 + 1
    assert engines._room(nodes, 2, with_gpu=True) == 2 + 1
    assert engines._room(nodes, 9, with_gpu=False) == 0


def test_what_is_left_of_inputs_that_have_changed(tmp_path, tiny_model):
    save(tmp_path / 'in/1.png')
    output = tmp_path / 'out'
    assert fleet_runs.run_batch(tiny_model, tmp_path / 'in', '-o', output) == 0
    save(tmp_path / 'in/1.png', seed=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, '_run_tasks', lambda *_: False)
        fleet_runs.run_batch(tiny_model, tmp_path / 'in', '-o', output)
    (status,) = read_status(str(output))
    assert (status.tasks, status.done, status.left) == (1, 1, 1)


_PARENT = """
import multiprocessing, time
from cliptrase_ros.fleet.engines import _Manager, end_with_parent
if __name__ == '__main__':
    manager = _Manager(('127.0.0.1', 0), ctx=multiprocessing.get_context('spawn'))
    manager.start(end_with_parent)
    print(manager._process.pid, flush=True)
    time.sleep(60)
"""


def test_processes_end_with_a_command_that_is_killed_at_its_start(tmp_path):
    script = tmp_path / 'parent.py'
    script.write_text(_PARENT)
    command = [sys.executable, script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        # The child has the same end of the pipe.
        assert parent.stdout.read() == ''
    for _ in range(100):
        try:
            os.kill(child, signal.SIG_DFL)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError('it is still there')


def test_workers_that_are_stopped_while_they_start_load_no_model():
    is_over = threading.Event()
    is_over.set()
    with engines.ThreadPoolExecutor(1) as threads:
        slot = engines.LocalSlot(None, threads, is_over)
        slot.start().result()
        assert slot._manager is None and slot._worker is None
    assert not multiprocessing.active_children()
