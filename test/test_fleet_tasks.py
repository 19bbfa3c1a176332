"""What a batch finds to do in folders, files, patterns and object storage."""

import itertools
import os
import re
import zlib
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from web_server import web_server

from cliptrase_ros.fleet import tasks as fleet_tasks
from cliptrase_ros.fleet.labelling import Labelling
from cliptrase_ros.fleet.storage import Storage, StorageError
from cliptrase_ros.fleet.tasks import SOURCE_BYTES, Task, TaskError, find_tasks
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

FILES = (
    'drive/metadata.yaml',
    'drive/drive_0.mcap',
    'drive/drive_1.mcap',
    'single/a.mcap',
    'single/b.db3',
    'single/b.db3-wal',
    'single/clip.mp4',
    'photos/1.jpg',
    'photos/2.JPG',
    'photos/2.png',
    'photos/below/3.webp',
    'photos/.hidden/4.jpg',
    'photos/.5.jpg',
    'notes.txt',
)


def make_files(folder, names=FILES):
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def put_files(url, names=FILES):
    system, path = fsspec.core.url_to_fs(url)
    for name in names:
        system.pipe_file(f'{path}/{name}', name.encode())
    return url


def find(*inputs, output='/nowhere/out', labelling='words'):
    return list(find_tasks([str(text) for text in inputs], str(output), labelling))


def below_fleet(task):
    """Where the results of a task go, below what comes before the folder `fleet`."""
    return re.sub('^.*?/(?=fleet(/|$))', '', task.name)


def names(tasks):
    return sorted((task.kind, below_fleet(task), task.files) for task in tasks)


def keys(tasks):
    return sorted(task.key for task in tasks)


@pytest.fixture
def folder(tmp_path):
    return make_files(tmp_path / 'fleet')


@pytest.fixture
def memory():
    fsspec.filesystem('memory').store.clear()
    return put_files('memory://fleet')


ALL = [
    ('photos', 'fleet/photos', ('1.jpg', '2.JPG', '2.png')),
    ('photos', 'fleet/photos/below', ('3.webp',)),
    ('recording', 'fleet/drive', ('metadata.yaml', 'drive_0.mcap', 'drive_1.mcap')),
    ('recording', 'fleet/single/a.mcap', ()),
    ('recording', 'fleet/single/b.db3', ()),
    ('video', 'fleet/single/clip.mp4', ()),
]


def test_folder(folder):
    tasks = find(folder)
    assert names(tasks) == ALL
    by_name = {below_fleet(task): task for task in tasks}
    drive = by_name['fleet/drive']
    assert drive.source == f'{folder}/drive'
    assert drive.size == len('drive/metadata.yaml') + 2 * len('drive/drive_0.mcap')
    assert by_name['fleet/single/a.mcap'].source == f'{folder}/single/a.mcap'
    # What its recorder wrote last is of the recording.
    assert by_name['fleet/single/b.db3'].size == len('single/b.db3' + 'single/b.db3-wal')
    assert [Task.from_json(task.to_json()) for task in tasks] == tasks


@pytest.mark.parametrize(
    ('pattern', 'found'),
    [
        ('**/*.mcap', ['drive/drive_0.mcap', 'drive/drive_1.mcap', 'single/a.mcap']),
        ('*/*.mcap', ['drive/drive_0.mcap', 'drive/drive_1.mcap', 'single/a.mcap']),
        ('*.mcap', None),
        ('single/?.*', ['single/a.mcap', 'single/b.db3']),
        ('**/[ac]*.m*', ['single/a.mcap', 'single/clip.mp4']),
        ('photos/*.jpg', ['photos: 1.jpg']),
        ('photos/**/*.*', ['photos/below: 3.webp', 'photos: 1.jpg 2.JPG 2.png']),
        ('dri*', ['drive: metadata.yaml drive_0.mcap drive_1.mcap']),
        ('d*', ['drive: metadata.yaml drive_0.mcap drive_1.mcap']),
        ('*/below', ['photos/below: 3.webp']),
        ('**/nothing/*', None),
    ],
)
@pytest.mark.parametrize('where', ['folder', 'memory'])
def test_patterns(request, where, pattern, found):
    url = f'{request.getfixturevalue(where)}/{pattern}'
    if found is None:
        with pytest.raises(TaskError, match='no recordings, videos or photos found'):
            find(url)
        return
    tasks = find(url)
    root = f'{request.getfixturevalue(where)}/'.replace('memory://', 'memory:///')
    shown = [
        task.source.removeprefix(root).replace('memory://', '').removeprefix('/fleet/')
        + ('' if not task.files else ': ' + ' '.join(task.files))
        for task in tasks
    ]
    assert sorted(shown) == found


def test_pattern_that_is_none(folder):
    with pytest.raises(TaskError, match=r"photos/a\*\*: .*'\*\*' can only be an entire path"):
        find(f'{folder}/photos/a**')


def test_pattern_does_not_look_where_nothing_can_match(folder, monkeypatch):
    looked = []
    entries = Storage.entries
    monkeypatch.setattr(
        Storage, 'entries', lambda self, path: looked.append(path) or entries(self, path)
    )
    find(f'{folder}/single/*.mcap')
    assert looked == [f'{folder}/single']


@pytest.mark.parametrize('order', [1, -1])
def test_same_work_however_it_is_named(folder, order):
    """What was labelled of a folder is known again by its path, a pattern or file names."""
    files = [f'{folder}/single/{name}' for name in ('a.mcap', 'b.db3', 'clip.mp4')]
    whole = keys(find(f'{folder}/single'))
    assert len(whole) == 3
    for inputs in (
        files,
        [f'{folder}/single/*'],
        [f'{folder}/s*'],
        [f'file://{folder}/single/'],
        [f'{folder}/photos/../single'],
        [f'{folder}/single', *files],
        [f'{folder}/single', f'{folder}/single/'],
        [f'{folder}/**/*.mp4', f'{folder}/single', f'{folder}/*/a.mcap'],
        [f'{folder}/**/*.mp4', f'{folder}/*/?.mcap', f'{folder}/*/*.db3'],
    ):
        assert keys(find(*inputs[::order])) == whole


@pytest.mark.parametrize('order', [1, -1])
def test_what_is_in_a_folder_that_is_named_is_found_once(folder, order):
    everything = keys(find(folder))
    for inputs in (
        [folder, f'{folder}/photos'],
        [folder, f'{folder}/drive'],
        [folder, f'{folder}/photos/1.jpg', f'{folder}/drive/drive_0.mcap'],
        [folder, f'{folder}/photos/*.jpg', f'{folder}/**/*.mcap'],
    ):
        assert keys(find(*inputs[::order])) == everything


def test_keys_do_not_depend_on_where_the_command_runs(folder, monkeypatch):
    expected = keys(find(f'{folder}/photos'))
    for place, text in [
        ('.', 'photos'),
        ('.', './photos/'),
        ('photos', '.'),
        ('drive', '../photos'),
    ]:
        monkeypatch.chdir(folder / place)
        assert keys(find(text)) == expected
        monkeypatch.chdir('/')


def test_keys_change_with_content_and_labelling(folder):
    before = {below_fleet(task): task.key for task in find(folder)}
    assert not before.keys() - {below_fleet(task) for task in find(folder, labelling='other words')}
    assert not set(before.values()) & set(keys(find(folder, labelling='other words')))

    (folder / 'single' / 'a.mcap').write_text('more of it than before')
    # Of the same size, later.
    photo = folder / 'photos' / 'below' / '3.webp'
    os.utime(photo, ns=(1, photo.stat().st_mtime_ns + 1))
    (folder / 'drive' / 'drive_2.mcap').write_text('a third part')
    (folder / 'single' / 'b.db3-wal').unlink()
    after = {below_fleet(task): task.key for task in find(folder)}
    assert {name for name in before if before[name] != after[name]} == {
        'fleet/single/a.mcap',
        'fleet/photos/below',
        'fleet/drive',
        'fleet/single/b.db3',
    }


def test_labelling_changes_with_what_labels_depend_on():
    def labelling(
        words='red ball; box', weights=('1', ''), model=(), settings=(), rate=0.0, **other
    ):
        about = {'overlay': False, 'topics': (), 'node': '/cliptrase'} | other
        return Labelling(
            ModelSettings(**dict(model)),
            weights,
            parse_vocabulary(words),
            SegmentationSettings(**dict(settings)),
            rate,
            **about,
        ).digest

    same = labelling()
    # Where it runs is not of it.
    for model in ({'device': 'cuda'}, {'threads': 3}, {'cache_dir': '/elsewhere'}):
        assert labelling(model=model) == same
    others = {
        labelling('red ball; crate'),
        labelling('box; red ball'),
        labelling(weights=('2', '')),
        labelling(model={'model': 'ViT-L-14'}),
        labelling(model={'precision': 'float32'}),
        labelling(settings={'resolution': 320}),
        labelling(rate=2.0),
        labelling(overlay=True),
        labelling(topics=('/front/image_raw',)),
        labelling(node='/other'),
    }
    assert len(others) == 10 and same not in others


def test_labelling_changes_with_the_version(monkeypatch):
    def labelling():
        return Labelling(
            *(ModelSettings(), ('1',), parse_vocabulary('ball; box'), SegmentationSettings()),
            *(0.0, False, (), '/cliptrase'),
        ).digest

    before = labelling()
    monkeypatch.setattr('cliptrase_ros.__version__', '99.0.0')
    assert labelling() != before


@pytest.mark.parametrize('output', ['fleet/out', '.', 'fleet/../fleet/photos/out', 'another'])
def test_results_are_no_input(folder, monkeypatch, output):
    """Neither those in the output, wherever that is, nor those of another batch."""
    before = keys(find(folder))
    monkeypatch.chdir(folder.parent)
    labelling = Path('fleet/out' if output == 'another' else output, '0123456789ab')
    make_files(labelling, ['labelling.json', 'results/fleet/photos/abc/labels/1.png'])
    assert keys(find(folder, output=output)) == before


def test_output_that_is_the_input(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for text in (folder, '.', '*/*.mcap'):
        with pytest.raises(TaskError, match='is where results go, too; choose another --output'):
            find(text, output='../fleet')


def test_links_are_followed_and_may_lead_round_in_a_circle(tmp_path):
    make_files(tmp_path / 'elsewhere', ['a.jpg', 'below/b.jpg'])
    make_files(tmp_path / 'fleet', ['c.jpg'])
    (tmp_path / 'fleet' / 'link').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'fleet' / 'broken').symlink_to(tmp_path / 'nowhere')
    (tmp_path / 'elsewhere' / 'below' / 'back').symlink_to(tmp_path / 'fleet')
    (tmp_path / 'elsewhere' / 'itself').symlink_to('.')
    assert [below_fleet(task) for task in find(tmp_path / 'fleet')] == [
        'fleet',
        'fleet/link',
        'fleet/link/below',
    ]


def test_names_that_are_no_text(tmp_path):
    odd = os.fsdecode(b'caf\xe9.jpg')
    (tmp_path / 'in').mkdir()
    Path(os.fsencode(tmp_path / 'in').decode(), odd).write_text('photo')
    os.mkdir(os.fsencode(tmp_path) + b'/in/caf\xe9')  # noqa: PTH102
    make_files(Path(tmp_path, 'in', os.fsdecode(b'caf\xe9')), ['a.mcap'])
    photos, recording = find(tmp_path / 'in')
    assert photos.files == (odd,)
    assert recording.source == f'{tmp_path}/in/{os.fsdecode(bytes([*b"caf", 0xE9]))}/a.mcap'
    # What it is called in storage is text.
    assert recording.name == f'{tmp_path}/in/caf%E9/a.mcap'[1:]
    assert Task.from_json(recording.to_json()) == recording


def test_names_of_results(tmp_path, bucket):
    """They are whole paths, whatever else a command is given."""
    make_files(tmp_path, ['a/x/1.jpg', 'b/x/1.jpg', 'b/x/y.mcap', 'b/z.mcap'])

    def found(*inputs):
        return [task.name for task in find(*(tmp_path / text for text in inputs))]

    root = str(tmp_path)[1:]
    expected = [f'{root}/{name}' for name in ('a/x', 'b/x', 'b/x/y.mcap', 'b/z.mcap')]
    assert found('a/x', 'b/x', 'b/z.mcap') == expected
    assert found('a') == expected[:1] and found('b/z.mcap') == expected[3:]
    put_files(f'{bucket}/drives', ['1.mcap'])
    assert [task.name for task in find(bucket)] == [f'{bucket}/drives/1.mcap'.replace('://', '/')]


def test_keys_tell_sources_apart(folder):
    sources = {task.key[: 2 * SOURCE_BYTES] for task in find(folder)}
    assert len(sources) == len(ALL)
    (folder / 'photos' / 'new.jpg').write_text('new')
    (folder / 'single' / 'a.mcap').write_text('another')
    assert {task.key[: 2 * SOURCE_BYTES] for task in find(folder, labelling='new')} == sources


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(fleet_tasks, 'PHOTOS_A_TASK', 4)


def parts_of(names):
    system = fsspec.filesystem('memory')
    system.store.clear()
    for name in names:
        system.pipe_file(f'/parts/{name}', b'')
    return [task.files for task in find('memory://parts')]


stems = st.text('abcdef', min_size=1, max_size=3)
photo_names = st.sets(
    st.builds('{}{}'.format, stems, st.sampled_from(['.jpg', '.png', '.b.jpg', '.JPG', '-1.jpg'])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60)
@given(photo_names, photo_names)
def test_parts_of_a_folder(names, more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fleet_tasks, 'PHOTOS_A_TASK', 4)
        parts, later = parts_of(names), parts_of(names | more)
    # All of them, in order, once.
    assert [name for part in parts for name in part] == sorted(names)
    for before, after in itertools.pairwise(parts):
        # Names that differ in their suffix alone stay together.
        assert before[-1].partition('.')[0] != after[0].partition('.')[0]
        assert len(before) >= 8 or zlib.crc32(before[-1].partition('.')[0].encode()) % 4 == 0
    for part in parts:
        # Of the last, names of one stem may be more.
        assert len({name.partition('.')[0] for name in part[:-1]}) <= 8
    # After the last end that a name says, and before the first photo that is new, nothing changed.
    first = min(more - names, default='~')
    for part, following in itertools.pairwise(parts):
        if following[0] < first and following[0].partition('.')[0] < first.partition('.')[0]:
            assert part in later


def test_photos_that_are_added_change_the_part_they_fall_into():
    photos = [f'{number:05d}.jpg' for number in range(0, 20_000, 4)]
    before = parts_of(photos)
    assert 3 <= len(before) <= 10 and max(map(len, before)) <= 2000
    after = parts_of([*photos, '09999.jpg', '09998.jpg'])
    assert len(set(before) & set(after)) >= len(before) - 1
    # A day's photos come behind the others.
    assert parts_of([*photos, '30000.jpg'])[: len(before) - 1] == before[:-1]


def test_same_tasks_from_object_storage(folder, memory, bucket):
    local = find(folder)
    bucket = put_files(f'{bucket}/fleet')
    for url in (memory, bucket):
        tasks = find(url)
        assert names(tasks) == names(local)
        assert [task.size for task in tasks] == [task.size for task in local]
        prefix = tasks[0].source.partition('/fleet/')[0]
        assert [task.source.removeprefix(prefix) for task in tasks] == [
            task.source.removeprefix(str(folder.parent)) for task in local
        ]
    before = {below_fleet(task): task.key for task in tasks}
    files = ['single/a.mcap', 'single/b.db3', 'single/clip.mp4']
    assert keys(find(*(f'{bucket}/{name}' for name in files))) == sorted(
        key for name, key in before.items() if '/single/' in name
    )
    assert keys(find(f'{bucket}/**/*')) == keys(tasks)
    assert names(find(f'{bucket}/**/*.mcap')) == names(find(f'{folder}/**/*.mcap'))
    # Put there again, equal content is known again, and other content is new.
    put_files(bucket)
    assert {below_fleet(task): task.key for task in find(bucket)} == before
    fsspec.filesystem('s3').pipe_file(f'{bucket}/single/a.mcap', b'SINGLE/A.MCAP')
    changed = {below_fleet(task): task.key for task in find(bucket)}
    assert [name for name in before if before[name] != changed[name]] == ['fleet/single/a.mcap']
    # Results beside them.
    put_files(f'{bucket}/out/0123456789ab/results', ['1.png'])
    assert len(find(bucket, output=f'{bucket}/out/')) == len(tasks)


def test_listing_goes_page_by_page(object_storage, bucket):
    object_storage.put(f'{bucket}/photos', {f'{n:04d}.jpg': b'' for n in range(2500)})
    storage = Storage(f'{bucket}/photos')
    with object_storage.failing(0) as requests:
        entries = storage.entries(storage.path)
        next(entries)
        assert requests.requests == 1
        assert [entry.name for entry in entries] == [f'{n:04d}.jpg' for n in range(1, 2500)]
        assert requests.requests == 3


@pytest.mark.parametrize('where', ['folder', 'memory'])
def test_inputs_that_are_not_there(request, where):
    root = request.getfixturevalue(where)
    for text in ('nothing', 'photos/nothing.jpg'):
        with pytest.raises(TaskError, match=f'{text} does not exist'):
            find(root, f'{root}/{text}')
    with pytest.raises(TaskError, match='notes.txt is no recording, video or photo by its suffix'):
        find(f'{root}/notes.txt')


def test_nothing_to_label(tmp_path, bucket):
    make_files(tmp_path, ['notes.txt'])
    with pytest.raises(TaskError, match=f'{tmp_path}: no recordings, videos or photos found there'):
        find(tmp_path)
    with pytest.raises(TaskError, match='s3://no-such-bucket/photos does not exist'):
        find('s3://no-such-bucket/photos')
    with pytest.raises(TaskError, match='no recordings, videos or photos found'):
        find('s3://no-such-bucket/**/*.mcap')


@pytest.mark.parametrize(
    ('url', 'reason'),
    [('foo://fleet', 'Protocol not known: foo'), ('gs://fleet/photos', 'gcsfs')],
)
def test_storage_that_is_not_known(url, reason):
    if reason == 'gcsfs' and 'gcsfs' in fsspec.available_protocols():
        pytest.skip('gcsfs is installed')
    with pytest.raises(StorageError, match=f'{url}: .*{reason}'):
        find(url)


@pytest.fixture
def web(folder):
    with web_server(folder) as url:
        yield url


def test_files_of_a_web_server(web, folder, tmp_path):
    pytest.importorskip('aiohttp', reason='aiohttp is not installed; `make test` brings it')
    urls = [f'{web}/single/a.mcap', f'{web}/photos/1.jpg', f'{web}/photos/2.png']
    recording, photos = find(*urls)
    assert (recording.kind, recording.source) == ('recording', urls[0])
    assert recording.size == len('single/a.mcap')
    assert photos.files == ('1.jpg', '2.png') and photos.source == f'{web}/photos'
    assert keys(find(*urls)) == keys([recording, photos])

    # Signed for an hour, it is the same file.
    signed, photo = find(f'{urls[0]}?token=1/2', f'{urls[1]}?token=3/4')
    assert (signed.key, signed.name) == (recording.key, recording.name)
    assert '?' not in signed.shown_source and signed.source.endswith('?token=1/2')
    assert recording.name == f'{web}/single/a.mcap'.replace('://', '/')
    assert (photo.kind, photo.files) == ('photos', ())
    assert photo.name == f'{web}/photos/1.jpg'.replace('://', '/')
    for task, content in ((signed, 'single/a.mcap'), (photo, 'photos/1.jpg')):
        storage = Storage(task.source)
        storage.fetch(storage.path, tmp_path / 'fetched')
        assert (tmp_path / 'fetched').read_text() == content
    later = folder / 'photos' / '1.jpg'
    os.utime(later, (1, later.stat().st_mtime + 10))
    assert keys(find(urls[0])) == [recording.key]
    assert keys(find(*urls[1:])) != [photos.key]
    with pytest.raises(TaskError, match=r'/no\.jpg does not exist'):
        find(f'{web}/no.jpg')
