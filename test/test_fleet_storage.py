"""Batches in object storage whose requests fail now and then."""

import bags
import cv2
import pytest
import tenacity
from fleet_runs import assert_whole, contents, markers, only_labelling, run_batch
from object_storage import CUT, INTERNAL_ERROR, SLOW_DOWN

from cliptrase_ros.fleet import storage as fleet_storage
from cliptrase_ros.fleet.storage import Storage, StorageError

TASKS = 200


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(fleet_storage._retrying, 'wait', tenacity.wait_fixed(0.01))


def test_one_request_in_twenty_fails_and_no_task_does(
    object_storage, bucket, tiny_model, tmp_path, capfd
):
    photos = [cv2.imencode('.png', bags.picture(seed, 12, 16))[1].tobytes() for seed in range(5)]
    inputs, output = f'{bucket}/photos', f'{bucket}/out'
    object_storage.put(inputs, {f'{n:03d}/a.png': photos[n % 5] for n in range(TASKS)})
    scratch = tmp_path / 'scratch'
    with object_storage.failing(1 / 20, seed=7) as failures:
        status = run_batch(
            *(tiny_model, inputs, '-o', output, '--workers', '2', '--scratch', scratch),
        )
    out, err = capfd.readouterr()
    assert (status, err) == (0, '')
    assert f'{TASKS} tasks done, {TASKS} images labelled, 0 failed, 0 of damaged inputs' in out
    assert len(failures.failed) > failures.requests / 30
    assert {kind for kind, _, _ in failures.failed} == {SLOW_DOWN, INTERNAL_ERROR, CUT}
    assert {method for _, method, _ in failures.failed} >= {'GET', 'PUT'}
    assert not list(scratch.iterdir())

    files = only_labelling(object_storage.contents(output))
    assert len(markers(files)) == TASKS and not markers(files, 'failed')
    assert_whole(files)
    # Nothing twice, and nothing but what is described.
    results = {path.rpartition('/labels/')[0] for path in files if '/labels/' in path}
    assert len(results) == TASKS
    assert {path.partition('/')[0] for path in files} == {
        *('labelling.json', 'done', 'results', 'workers')
    }


def test_storage_that_does_not_answer_is_named(object_storage, bucket, tmp_path):
    storage = Storage(f'{bucket}/out')
    (tmp_path / 'a.png').write_text('content')
    with object_storage.failing(1.0, [INTERNAL_ERROR]) as failures:
        for use in (
            lambda: list(storage.entries(storage.path)),
            lambda: storage.entry(storage.path),
            lambda: storage.read(storage.child('a.png')),
            lambda: storage.write(storage.child('a.png'), b''),
            lambda: storage.fetch(storage.child('a.png'), tmp_path / 'b.png'),
            lambda: storage.store(tmp_path, storage.path),
        ):
            before = failures.requests
            with pytest.raises(StorageError, match=f'^{bucket}/out: .'):
                use()
            assert failures.requests - before >= 3


def test_what_is_refused_is_not_asked_for_again(object_storage, bucket, tmp_path):
    storage = Storage('s3://no-such-bucket/out')
    with object_storage.failing(0) as requests:
        for use in (
            lambda: storage.read(storage.child('a.png')),
            lambda: storage.entry(storage.child('a.png')),
            lambda: storage.fetch(storage.child('a.png'), tmp_path / 'b.png'),
            lambda: storage.write(storage.child('a.png'), b''),
        ):
            before = requests.requests
            with pytest.raises(FileNotFoundError):
                use()
            assert requests.requests - before <= 3
        assert list(storage.entries(storage.path)) == []
        storage.remove(storage.child('a.png'))


@pytest.mark.parametrize('where', ['local', 'memory', 's3'])
def test_files_of_any_storage(request, tmp_path, where):
    if where == 's3':
        url = request.getfixturevalue('bucket')
    else:
        url = {'local': str(tmp_path / 'out'), 'memory': f'memory://{tmp_path.name}'}[where]
    storage = Storage(f'{url}/')
    assert list(storage.entries(storage.path)) == []
    (tmp_path / 'in' / 'b').mkdir(parents=True)
    for name in ('a', 'b/c', 'b/d'):
        (tmp_path / 'in' / name).write_text(name)
    storage.store(tmp_path / 'in', storage.child('new'))
    storage.write(storage.child('new/z'), b'more')
    storage.write(storage.child('new/z'), b'other')
    entries = list(storage.entries(storage.child('new')))
    assert sorted((entry.name, entry.is_folder) for entry in entries) == [
        *(('a', False), ('b', True), ('z', False))
    ]
    (last,) = (entry for entry in entries if entry.name == 'z')
    assert last.size == 5 and storage.entry(last.path) == last
    assert storage.read(storage.child('new/b/c')) == b'b/c'
    storage.fetch(storage.child('new/b/d'), tmp_path / 'fetched' / 'd')
    assert (tmp_path / 'fetched' / 'd').read_text() == 'b/d'
    storage.remove(last.path)
    storage.remove(last.path)
    with pytest.raises(FileNotFoundError):
        storage.entry(last.path)
    with pytest.raises(FileNotFoundError):
        storage.read(last.path)
    assert sorted(contents(url)) == ['new/a', 'new/b/c', 'new/b/d']


def test_local_files_appear_whole(tmp_path, monkeypatch):
    """A file that is being written is not to be seen, nor what a full disk left of it."""
    storage = Storage(str(tmp_path))
    storage.write(storage.child('done/1.json'), b'before')

    def fail(path, source):
        with open(path, 'wb') as file:  # noqa: PTH123
            file.write(b'half')
        assert contents(tmp_path / 'done') == {'1.json': b'before'}
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(fleet_storage, '_write_through', fail)
    with pytest.raises(OSError, match='No space left'):
        storage.write(storage.child('done/1.json'), b'after')
    assert contents(tmp_path) == {'done/1.json': b'before'}
