"""`cliptrase batch`: results, markers, reports and datasets of all kinds of inputs."""

import errno
import glob
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import bags
import cv2
import fsspec
import numpy as np
import pytest
import torch

pytest.importorskip('av', reason='PyAV is not installed; `make test` brings it')
pytest.importorskip('pycocotools', reason='the extra `fleet` is not installed')
import fleet_runs
from fleet_runs import (
    WORDS,
    arguments_of,
    assert_whole,
    contents,
    in_memory,
    lasting,
    markers,
    only_labelling,
)

from cliptrase_ros.cli import main
from cliptrase_ros.fleet import batch, heartbeat, labeller, status
from cliptrase_ros.fleet.status import read_status

FORMATS = 'coco,parquet'


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), bags.picture(seed)[..., ::-1])
    return path


def save_video(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for seed in range(4):
        writer.write(bags.picture(seed))
    writer.release()
    return path


def make_fleet(folder):
    folder.mkdir()
    bags.write_bag(folder / 'drive')
    save_video(folder / 'clip.mp4')
    for name in ('photos/1.png', 'photos/2.jpg', 'photos/below/3.png'):
        save(folder / name, len(name))
    return folder


@pytest.fixture(scope='module')
def fleet(tmp_path_factory):
    """A recording, a video and three photos in two folders."""
    return make_fleet(tmp_path_factory.mktemp('fleet') / 'fleet')


@pytest.fixture(scope='module')
def labelled(fleet, tiny_model, tmp_path_factory):
    """Output of a batch of them."""
    output = tmp_path_factory.mktemp('labelled') / 'out'
    assert fleet_runs.run_batch(tiny_model, fleet, '-o', output) == 0
    return output


@pytest.fixture
def run(capfd, tiny_model):
    def run(*arguments, words=WORDS):
        status = fleet_runs.run_batch(tiny_model, *arguments, words=words)
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def files(labelled):
    return only_labelling(contents(labelled))


def result_of(files, name):
    folder = markers(files)[name]['result']['folder']
    return {
        path.removeprefix(f'{folder}/'): content
        for path, content in files.items()
        if path.startswith(f'{folder}/')
    }


def described(report):
    return [
        {key: value for key, value in image.items() if key not in ('file', 'overlay')}
        for image in json.loads(report)['images']
    ]


def test_labels_are_those_of_the_other_commands(fleet, files, tiny_model, tmp_path):
    engine = ['-v', WORDS, '--model', tiny_model, '--resolution', '64', '--device', 'cpu']
    recording = [str(fleet / 'drive'), str(tmp_path / 'labels'), '--sidecar', '--no-overlay']
    assert main(['bag', *engine, *recording]) == 0
    expected = contents(tmp_path / 'labels')
    result = result_of(files, 'drive')
    assert {name: result[name] for name in expected} == expected
    assert set(result) - set(expected) == {'checksums.txt'}
    for inputs in ('clip.mp4', 'photos', 'photos/below'):
        named = [fleet / inputs]
        if inputs == 'photos':
            named = [fleet / 'photos' / name for name in ('1.png', '2.jpg')]
        output = tmp_path / inputs.replace('/', '_')
        assert main(['segment', *engine, *map(str, named), '-o', str(output), '--no-overlay']) == 0
        result, expected = result_of(files, Path(inputs).name), contents(output)
        assert result.keys() - {'checksums.txt'} == expected.keys()
        for name, content in expected.items():
            if name == 'segmentation.json':
                assert described(result[name]) == described(content)
            else:
                assert result[name] == content


def test_what_is_said_of_results(fleet, labelled, files):
    assert_whole(files)
    done = markers(files)
    assert {name: (about['kind'], about['images']) for name, about in done.items()} == {
        'drive': ('recording', 8),
        'clip.mp4': ('video', 4),
        'photos': ('photos', 2),
        'below': ('photos', 1),
    }
    for name, about in done.items():
        result = result_of(files, name)
        assert about['result_bytes'] == sum(map(len, result.values())) - len(
            result['checksums.txt']
        )
        assert (about['damage'], about['device']) == ([], 'cpu')
        assert set(about['seconds']) == {'fetch', 'label', 'store'}
        assert f'done/{about["key"]}.json' in files
    assert done['clip.mp4']['bytes'] == (fleet / 'clip.mp4').stat().st_size
    assert done['drive']['cameras'] == {
        'front': '/front/image_raw',
        'rear': '/rear/image_raw/compressed',
    }
    about = json.loads(files['labelling.json'])
    assert (about['tasks'], about['photos']) == (4, 3)
    assert about['kinds'] == {'recording': 1, 'video': 1, 'photos': 2}
    assert about['bytes'] == sum(entry['bytes'] for entry in done.values())
    assert [entry['name'] for entry in about['vocabulary']['classes']] == ['red ball', 'box']
    # Nothing half-written, and nothing but what is described.
    assert {path.partition('/')[0] for path in files} == {
        *('labelling.json', 'done', 'results', 'workers')
    }
    for path in labelled.glob('*/results/**/checksums.txt'):
        check = subprocess.run(
            ['sha256sum', '-c', 'checksums.txt'], cwd=path.parent, text=True, capture_output=True
        )
        assert check.returncode == 0, check.stdout


def test_what_is_done_is_not_done_again(run, fleet, labelled, monkeypatch, tmp_path):
    output = shutil.copytree(labelled, tmp_path / 'out')
    before = lasting(only_labelling(contents(output)))
    with monkeypatch.context() as patch:
        # No worker is needed.
        patch.setattr(fleet_runs, 'thread_slots', None)
        state, out, err = run(fleet, '-o', output)
    assert state == 0 and '4 are done, 0 have failed, 0 are left' in out
    assert lasting(only_labelling(contents(output))) == before

    # Other words are other work.
    assert run(fleet, '-o', output, words='red ball; crate')[0] == 0
    assert len(list(output.glob('[0-9a-f]*'))) == 2
    state, out, err = run('--status', '-o', output)
    assert state == 0 and 'red ball, box' in out and 'red ball, crate' in out


def test_what_is_added_is_labelled_alone(run, tmp_path, monkeypatch):
    photos = tmp_path / 'photos'
    save(photos / '1' / 'a.png', 1)
    assert run(photos, '-o', tmp_path / 'out')[0] == 0
    save(photos / '2' / 'a.png', 2)
    state, out, _ = run(photos, '-o', tmp_path / 'out')
    assert state == 0 and '1 are done, 0 have failed, 1 are left' in out
    assert '1 tasks done, 1 images labelled' in out
    assert_whole(only_labelling(contents(tmp_path / 'out')))


def test_dry_run_writes_nothing(run, fleet, tmp_path):
    state, out, _ = run(fleet, '-o', tmp_path / 'out', '--dry-run', '--export', 'coco')
    assert state == 0
    assert out.startswith('1 recordings, 1 videos, 3 photos in 2 parts')
    assert '0 are done, 0 have failed, 4 are left' in out
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp('damaged') / 'damaged'
    save(folder / 'good' / '1.png', 1)
    save(folder / 'mixed' / '1.png', 1)
    (folder / 'mixed' / '2.png').write_bytes(b'\x89PNG and no more')
    (folder / 'broken').mkdir()
    (folder / 'broken' / '1.jpg').write_bytes(b'nothing')
    # Larger than a chunk, so that there is something before the break.
    images = [
        (bags.START + i, bags.image(bags.picture(i, 400, 500), stamp=bags.START + i))
        for i in range(5)
    ]
    topic = ('/camera/image_raw', 'sensor_msgs/msg/Image', [bags.qos()], images)
    bags.write_bag(folder / 'whole', [topic])
    (whole,) = (folder / 'whole').glob('*.mcap')
    content = whole.read_bytes()
    shutil.rmtree(folder / 'whole')
    (folder / 'cut.mcap').write_bytes(content[: int(0.7 * len(content))])
    (folder / 'none.mcap').write_bytes(b'no recording')
    (folder / 'none.db3').write_bytes(b'no recording')
    (folder / 'old.bag').write_bytes(b'#ROSBAG V2.0\n' + bytes(100))
    (folder / 'none.mp4').write_bytes(b'no video')
    return folder


FAILED = {'none.mcap', 'none.db3', 'old.bag', 'none.mp4', 'broken'}
DAMAGED = {'cut.mcap', 'mixed'}


def test_damaged_inputs(run, damaged, tmp_path):
    output = tmp_path / 'out'
    state, out, err = run(damaged, '-o', output)
    assert state == 1
    assert out.splitlines()[-1].startswith('3 tasks done, ')
    assert out.splitlines()[-1].endswith(' 5 failed, 2 of damaged inputs')
    lines = err.splitlines()
    for name in FAILED:
        assert sum(f'{damaged}/{name}: not labelled: ' in line for line in lines) == 1, err
    for name in DAMAGED:
        assert sum(f'{damaged}/{name}: damaged: ' in line for line in lines) == 1
    assert 'Traceback' not in err

    files = only_labelling(contents(output))
    assert_whole(files)
    done, failed, lacking = (markers(files, of) for of in ('done', 'failed', 'damaged'))
    assert done.keys() == {'good', *DAMAGED}
    assert failed.keys() == FAILED and lacking.keys() == DAMAGED
    assert 'rosbags-convert' in failed['old.bag']['reason']
    for about in failed.values():
        assert about['tries'] == 1 and about['reason'] and about['host'] and about['time']
        # As the user knows it.
        assert 'scratch' not in about['reason'] and 'Traceback' not in about['reason']
    assert done['good']['damage'] == []
    for name in DAMAGED:
        assert done[name]['damage'] == lacking[name]['damage'] != []
    assert '2.png' in done['mixed']['damage'][0] and done['mixed']['images'] == 1
    assert 0 < done['cut.mcap']['images'] < 5

    # Told again, not tried again.
    before = contents(output)
    state, out, err = run(damaged, '-o', output)
    assert state == 1 and '5 have failed before' in out and '--retry-failed' in out
    assert '3 are done, 5 have failed, 0 are left' in out
    after = contents(output)
    assert {path for path in after if after[path] != before.get(path)} == {
        path for path in after if path.endswith('/labelling.json')
    } or before.keys() == after.keys()
    state, out, err = run('--status', '-o', output)
    status = dict(line.rsplit(maxsplit=1) for line in out.splitlines())
    states = ('tasks', 'done', 'damaged', 'failed', 'running', 'left')
    assert [int(status[state]) for state in states] == [8, 3, 2, 5, 0, 0]

    state, out, err = run(damaged, '-o', output, '--retry-failed')
    assert state == 1 and '5 failed' in out
    failed = markers(only_labelling(contents(output)), 'failed')
    assert {name: about['tries'] for name, about in failed.items()} == dict.fromkeys(FAILED, 2)


def test_datasets_have_what_could_be_labelled(run, damaged, tmp_path):
    from pycocotools.coco import COCO

    output = tmp_path / 'out'
    state, out, err = run(damaged, '-o', output, '--export', 'coco')
    assert state == 1 and 'not exported' not in err
    (document,) = output.glob('*/export/coco/annotations/instances_default.json')
    done = markers(only_labelling(contents(output)))
    assert len(COCO(document).imgs) == sum(about['images'] for about in done.values())


def test_odd_names(run, tmp_path):
    photos = tmp_path / 'photos'
    for number, name in enumerate(['x.png', 'x.jpg', 'X.png', 'a b%20#?.png', 'Straße.png']):
        save(photos / name, number)
    for name in (os.fsdecode(b'caf\xe9'), os.fsdecode(b'caf\xe8')):
        (photos / name).mkdir()
        shutil.copy(photos / 'x.png', photos / name / f'{name}.png')
    output = tmp_path / 'out'
    state, out, err = run(photos, '-o', output, '--export', FORMATS)
    assert (state, err) == (0, '')
    files = only_labelling(contents(output))
    assert_whole(files)
    assert sum(about['images'] for about in markers(files).values()) == 7
    (document,) = output.glob('*/export/coco/annotations/instances_default.json')
    names = [image['file_name'] for image in json.loads(document.read_text())['images']]
    assert len(set(names)) == 7


def test_two_workers_with_the_same_task_end_with_one_result(run, fleet, tmp_path, monkeypatch):
    label = batch.label

    def twice(plan, store, slots, *arguments):
        for slot in slots:
            slot.start().result()
        task = next(plan.shard_tasks())
        calls = [slot.call('run', task) for slot in slots]
        assert [call.result().state for call in calls] == ['done', 'done']
        return label(plan, store, slots, *arguments)

    # Both begin before either is done.
    monkeypatch.setattr(fleet_runs.Worker, '_run', together(fleet_runs.Worker._run, 2))
    monkeypatch.setattr(batch, 'label', twice)
    photo = fleet / 'photos' / 'below'
    assert run(photo, '-o', tmp_path / 'out', '--workers', '2')[0] == 0
    files = only_labelling(contents(tmp_path / 'out'))
    assert_whole(files)
    assert len([path for path in files if path.endswith('checksums.txt')]) == 1


def together(function, count):
    begun = threading.Barrier(count)
    calls = itertools.count()

    def together(self, *arguments):
        if next(calls) < count:
            begun.wait(60)
        return function(self, *arguments)

    return together


def test_worker_of_another_version_does_nothing(run, fleet, tmp_path, monkeypatch):
    slots = fleet_runs.thread_slots

    def others(job, *arguments):
        return slots(replace(job, digest='of another version'), *arguments)

    monkeypatch.setattr(fleet_runs, 'thread_slots', others)
    state, out, err = run(fleet, '-o', tmp_path / 'out')
    assert state == 2 and len(err.splitlines()) == 1
    assert 'another version than where the command runs' in err


def test_retried_where_the_machine_was_at_fault(run, tmp_path):
    """An input for which there was no room is labelled where there is."""
    for seed in range(2):
        save(tmp_path / 'photos' / f'{seed}/a.png', seed)
    photos, limit = in_memory(tmp_path / 'photos'), 10 / (1 << 30)
    state, out, err = run(photos, '-o', tmp_path / 'out', '--scratch-gib', limit)
    assert state == 1
    assert err.count('not labelled: it has 0.0 GiB, and --scratch-gib leaves 0.0') == 2
    state, out, err = run(photos, '-o', tmp_path / 'out', '--retry-failed')
    assert (state, err) == (0, '') and '2 tasks done' in out
    files = only_labelling(contents(tmp_path / 'out'))
    assert not markers(files, 'failed')
    assert_whole(files)


def test_object_storage_gives_the_same_results(run, fleet, files, tmp_path):
    scratch = tmp_path / 'scratch'
    state, out, err = run(
        *(in_memory(fleet), '-o', 'memory://out', '--scratch', scratch, '--workers', '2')
    )
    assert state == 0
    assert not list(scratch.iterdir())
    stored = only_labelling(contents('memory://out'))
    assert_whole(stored)
    for name in ('drive', 'clip.mp4', 'photos', 'below'):
        expected, result = result_of(files, name), result_of(stored, name)
        assert result.keys() == expected.keys()
        for path in expected.keys() - {'checksums.txt', 'segmentation.json'}:
            assert result[path] == expected[path]
    assert (
        '"memory:///fleet/photos/2.jpg"'
        in result_of(stored, 'photos')['segmentation.json'].decode()
    )


def test_inputs_that_are_gone_when_their_turn_comes(run, fleet, tmp_path, monkeypatch):
    inputs, memory = in_memory(fleet), fsspec.filesystem('memory')
    label = batch.label

    def gone(*arguments):
        memory.rm_file('/fleet/clip.mp4')
        memory.rm_file('/fleet/photos/2.jpg')
        return label(*arguments)

    monkeypatch.setattr(batch, 'label', gone)
    state, out, err = run(inputs, '-o', tmp_path / 'out')
    assert state == 1
    files = only_labelling(contents(tmp_path / 'out'))
    assert markers(files, 'failed')['clip.mp4']['reason'] == 'it is not there any more'
    assert '2.jpg' in markers(files, 'damaged')['photos']['damage'][0]


def test_status_while_a_batch_is_going(run, tmp_path, monkeypatch):
    output = tmp_path / 'out'
    for seed in range(3):
        save(tmp_path / 'photos' / str(seed) / 'a.png', seed)
    monkeypatch.setattr(heartbeat, 'HEARTBEAT_S', 0.02)
    monkeypatch.setattr(status, 'HEARTBEAT_S', 100.0)
    seen = []
    label = labeller.Labeller.label

    def watched(self, task, *arguments):
        done = len(seen)
        deadline = time.monotonic() + 30
        while True:
            (now,) = read_status(str(output))
            if now.done == done and now.running and now.images == done:
                break
            assert time.monotonic() < deadline, now
            time.sleep(0.01)
        seen.append(now)
        return label(self, task, *arguments)

    monkeypatch.setattr(labeller.Labeller, 'label', watched)
    assert run(tmp_path / 'photos', '-o', output)[0] == 0
    assert [(now.tasks, now.done, now.failed, now.left) for now in seen] == [
        *((3, 0, 0, 3), (3, 1, 0, 2), (3, 2, 0, 1))
    ]
    # One is labelled, another one fetched or stored.
    assert all(1 <= now.running <= 2 for now in seen)
    (now,) = read_status(str(output))
    assert (now.tasks, now.done, now.damaged, now.failed, now.running, now.left, now.images) == (
        *(3, 3, 0, 0, 0, 0, 3),
    )
    assert now.words == ('red ball', 'box') and now.hours_left == 0 and now.per_hour > 0
    assert 0 <= now.cpu_hours < 1 and now.gpu_hours == 0
    # A worker that was killed runs no more, as soon as its heart has stopped for long enough.
    about = json.loads(next(output.glob('*/workers/*.json')).read_text())
    killed = about | {'ended': False, 'tasks': ['x'], 'updated_s': time.time() - 399}
    path = next(output.glob('*/workers')) / 'other.json'
    path.write_text(json.dumps(killed))
    assert next(read_status(str(output))).running == 1
    path.write_text(json.dumps(killed | {'updated_s': time.time() - 401}))
    assert next(read_status(str(output))).running == 0


@pytest.mark.parametrize(
    ('arguments', 'reason'),
    [
        (['photos', '-o', 'out', '--shard', '3/3'], "'3/3' is not I/N with I from 0 to N-1"),
        (['photos', '-o', 'out', '--shard', 'x'], "'x' is not I/N with I from 0 to N-1"),
        (['photos', '-o', 'out', '--workers', '0'], '--workers'),
        (['-o', 'out'], 'give at least one INPUT and the words'),
        (['photos', '-o', 'out', '--export', 'coco,voc'], "the format 'voc' is not known"),
        (['photos', '-o', 'foo://out'], 'foo://out: Protocol not known: foo'),
        (['foo://photos', '-o', 'out'], 'foo://photos: Protocol not known: foo'),
        (['photos', '-o', 'gs://out'], 'gcsfs'),
        (['photos', '-o', 'photos/a.png/out'], 'Not a directory'),
        (['photos', '-o', '/proc/out'], '/proc/out'),
        (['nowhere', '-o', 'out'], 'nowhere does not exist'),
        (['notes', '-o', 'out'], 'notes: no recordings, videos or photos found there'),
        (['photos', '-o', 'photos'], 'photos is where results go, too'),
        (['photos', '-o', 'out', '--node', 'a b'], 'a b'),
        (['photos', '-o', 'out', '--model', 'no-such-model'], 'no-such-model'),
        (['--status', '-o', 'notes'], 'notes has no results of `cliptrase batch`'),
        (['--status', '-o', 'nowhere'], 'nowhere has no results of `cliptrase batch`'),
        (['photos', '-o', 'out', '--scratch', 'photos/a.png'], 'photos/a.png'),
    ],
)
def test_what_cannot_be_is_said_in_a_line(run, tmp_path, monkeypatch, capfd, arguments, reason):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'photos' / 'a.png', 1)
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'notes.txt').write_text('')
    try:
        state, out, err = run(*arguments)
    except SystemExit as end:
        state, err = end.code, capfd.readouterr().err
    assert state == 2
    assert err.splitlines()[-1].startswith('cliptrase batch: error: ') and reason in err
    assert len(err.splitlines()) == 1 or err.startswith('usage: ')
    assert not list(tmp_path.glob('out/*/done'))


def test_words_are_needed(tmp_path, capfd, tiny_model):
    arguments = arguments_of(tiny_model, tmp_path, '-o', tmp_path / 'out')
    assert main([arguments[0], *arguments[3:]]) == 2
    assert capfd.readouterr().err == (
        'cliptrase batch: error: give at least one INPUT and the words, --vocabulary WORDS\n'
    )


@pytest.fixture(scope='module')
def exported(fleet, labelled, tiny_model, tmp_path_factory):
    output = shutil.copytree(labelled, tmp_path_factory.mktemp('exported') / 'out')
    assert fleet_runs.run_batch(tiny_model, fleet, '-o', output, '--export', FORMATS) == 0
    return output


def test_exports(exported, files):
    from pycocotools.coco import COCO

    duckdb = pytest.importorskip('duckdb', reason='duckdb is not installed; `make test` brings it')
    (folder,) = exported.glob('*/export')
    coco = COCO(folder / 'coco' / 'annotations' / 'instances_default.json')
    assert len(coco.imgs) == 15
    assert [entry['name'] for entry in coco.cats.values()] == ['red ball', 'box']
    result = result_of(files, 'below')
    label = cv2.imdecode(np.frombuffer(result['labels/3.png'], np.uint8), cv2.IMREAD_UNCHANGED)
    (image,) = (entry for entry in coco.imgs.values() if '/below/' in entry['file_name'])
    pixels = sum(int(coco.annToMask(ann).sum()) for ann in coco.imgToAnns[image['id']])
    areas = described(result['segmentation.json'])[0]['classes']
    assert label is not None and 0 < pixels <= label.size and len(areas) == 2
    rows = duckdb.sql(f"select * from '{folder}/parquet/**/*.parquet'").fetchall()
    assert len(rows) == 15


def test_exports_go_on_where_they_stopped(run, exported, fleet, tmp_path, monkeypatch):
    output = shutil.copytree(exported, tmp_path / 'out')
    before = contents(output)
    exports = []
    export = fleet_runs.Worker.export
    monkeypatch.setattr(
        fleet_runs.Worker,
        'export',
        lambda self, task, *last: exports.append(task.name) or export(self, task, *last),
    )
    (parts,) = output.glob('*/export/coco.parts')
    assert len(list(parts.iterdir())) == 4
    lost = next(path for path in parts.iterdir())
    lost.unlink()
    (document,) = output.glob('*/export/coco/annotations/instances_default.json')
    document.unlink()
    state, out, err = run(fleet, '-o', output, '--export', FORMATS)
    assert state == 0 and len(exports) == 1
    after = contents(output)
    assert {path: content for path, content in after.items() if '/export/' in path} == {
        path: content for path, content in before.items() if '/export/' in path
    }
    assert run(fleet, '-o', output, '--export', FORMATS)[0] == 0 and len(exports) == 1


def test_shards_are_joined_into_what_one_command_makes(run, exported, fleet, tmp_path):
    output = tmp_path / 'out'
    tasks = []
    for shard in ('0/2', '1/2'):
        state, out, err = run(fleet, '-o', output, '--export', FORMATS, '--shard', shard)
        assert (state, err) == (0, '')
        assert 'without --shard joins the datasets' in out
        tasks.append(int(out.rpartition(' tasks done')[0].rpartition('\n')[2] or 0))
    assert sum(tasks) == 4
    # The other shard's tasks are not the first one's.
    state, out, err = run(fleet, '-o', output, '--export', FORMATS)
    assert state == 0 and '4 are done, 0 have failed, 0 are left' in out
    assert lasting(only_labelling(contents(output))) == lasting(only_labelling(contents(exported)))


def test_export_that_cannot_be_made_is_named(run, exported, fleet, tmp_path):
    """A result that was deleted from the storage."""
    output = shutil.copytree(exported, tmp_path / 'out')
    for path in output.glob('*/results/**/photos/below/*/segmentation.json'):
        path.unlink()
    state, out, err = run(fleet, '-o', output, '--export', 'yolo')
    assert state == 1
    assert f'{fleet}/photos/below: not exported: ' in err
    assert len(err.splitlines()) == 1


def test_datasets_are_of_all_commands_and_not_of_what_has_changed(run, tmp_path):
    monday = save(tmp_path / 'monday' / '1.png', 1)
    save(tmp_path / 'tuesday' / '1.png', 2)
    output = tmp_path / 'out'
    rows = f'{output}/*/export/parquet/*.parquet'

    def labelled_of(*inputs):
        named = [tmp_path / name for name in inputs]
        assert run(*named, '-o', output, '--export', FORMATS)[0] == 0
        (document,) = output.glob('*/export/coco/annotations/instances_default.json')
        images = json.loads(document.read_text())['images']
        assert len(glob.glob(rows)) == len(images)  # noqa: PTH207
        return sorted(Path(image['file_name']).parent.name for image in images)

    assert labelled_of('monday') == ['monday']
    assert labelled_of('tuesday') == ['monday', 'tuesday']
    save(monday, 3)
    assert labelled_of('monday') == ['monday', 'tuesday']


@pytest.mark.parametrize('fault', ['always', 'once'])
def test_photo_that_is_too_large_for_the_device(run, fleet, tmp_path, monkeypatch, fault):
    """It costs itself alone, and only where the device lacks memory in every try."""
    from cliptrase_ros.segmentation.segmenter import Segmenter

    segment = Segmenter.segment
    faults = itertools.count()

    def lack_memory(self, images, *arguments):
        is_first = (images[0][0, 0] == first).all()
        if is_first and (fault == 'always' or next(faults) < 2):
            raise torch.OutOfMemoryError('CUDA out of memory')
        return segment(self, images, *arguments)

    first = cv2.imread(str(fleet / 'photos' / '1.png'))[0, 0, ::-1]
    monkeypatch.setattr(Segmenter, 'segment', lack_memory)
    photos = [fleet / 'photos' / name for name in ('1.png', '2.jpg')]
    state, out, err = run(*photos, '-o', tmp_path / 'out')
    if fault == 'once':
        assert (state, err) == (0, '') and '2 images labelled' in out
        return
    assert state == 1 and '1 images labelled, 0 failed, 1 of damaged inputs' in out
    assert 'damaged: 1.png: ' in err and 'memory' in err


def test_what_storage_keeps_from_being_done_is_left_and_stops_the_batch(run, tmp_path, monkeypatch):
    for number in range(30):
        save(tmp_path / 'in' / str(number) / '1.png', number)
    output = tmp_path / 'out'
    with monkeypatch.context() as patch:
        patch.setattr(fleet_runs.Worker, '_put', raise_full)
        state, out, err = run(tmp_path / 'in', '-o', output)
    assert state == 1
    assert err.count('not finished: OSError: [Errno 28] No space left on device') == 10
    assert 'stopped after 10 such inputs in a row' in err
    assert not list(output.glob('*/failed/*'))
    # The next command goes on, and needs no option for it.
    state, out, err = run(tmp_path / 'in', '-o', output)
    assert (state, err) == (0, '') and '30 tasks done' in out


def raise_full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')
