"""--view: what the commands show, recorded and read back with the SDK of the viewer."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import bags
import numpy as np
import pytest
from PIL import Image
from recordings import classes, labels, pictures, read_recording, stamps_ns
from rosbags.rosbag2 import Reader

from cliptrase_ros.cli import main
from cliptrase_ros.point_messages import PointsError, read_points
from cliptrase_ros.viewer import ShownClass, Viewer

WORDS = 'red ball; box: crate, carton'


@pytest.fixture
def run(capsys, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('DISPLAY', 'WAYLAND_DISPLAY'):
        monkeypatch.delenv(name, raising=False)

    def run(command, *arguments):
        engine = ['--model', tiny_model, '--resolution', '64', '--device', 'cpu']
        status = main([command, *map(str, arguments), '-v', WORDS, *engine])
        return status, *capsys.readouterr()

    return run


def save_photos(folder):
    folder.mkdir()
    for seed, (height, width) in enumerate([(48, 64), (64, 48)]):
        Image.fromarray(bags.picture(seed, height, width)).save(folder / f'{seed} ä.png')


def test_photos(run, tmp_path):
    pytest.importorskip('rerun')
    save_photos(tmp_path / 'photos')
    status, _, err = run('segment', 'photos', '-o', 'out', '--view', 'run.rrd')
    assert (status, err) == (0, '')
    content = read_recording(tmp_path / 'run.rrd')
    expected = [np.array(Image.open(f'out/labels/{seed} ä.png')) for seed in range(2)]
    for shown, written in zip(labels(content, 'photos'), expected, strict=True):
        np.testing.assert_array_equal(shown, written)
    for seed, picture in enumerate(pictures(content, 'photos')):
        original = np.array(Image.open(f'photos/{seed} ä.png'))
        assert picture.shape == original.shape
        assert np.abs(picture.astype(int) - original).mean() < 20  # JPEG; of another picture 80
    assert classes(content, 'photos') == [{0: 'red ball', 1: 'box', 255: 'unlabelled'}]
    titles = content['/photos/title', 'TextDocument:text']
    assert [(t['photo'].as_py(), text) for t, text in titles] == [
        (0, ['photos/0 ä.png']),
        (1, ['photos/1 ä.png']),
    ]
    report = json.loads(Path('out/segmentation.json').read_text())
    for (_, names), entry in zip(
        content['/photos/masks', 'Boxes2D:labels'], report['images'], strict=True
    ):
        assert names == [f'{c["name"]} {c["confidence"]:.2f}' for c in entry['classes']]


def test_bag(run, tmp_path):
    pytest.importorskip('rerun')
    bags.write_bag(tmp_path / 'in')
    status, _, err = run('bag', 'in', 'out', '--view', 'run.rrd')
    assert (status, err) == (0, '')
    content = read_recording(tmp_path / 'run.rrd')
    expected = [bags.START + i * bags.STEP for i in range(4)]
    assert stamps_ns(content, '/front/label', 'SegmentationImage:buffer') == expected
    assert len(labels(content, 'rear')) == 4
    with Reader(tmp_path / 'out') as reader:
        wanted = [c for c in reader.connections if c.topic == '/cliptrase/front/label']
        for shown, (_, _, data) in zip(
            labels(content, 'front'), reader.messages(wanted), strict=True
        ):
            message = bags.STORE.deserialize_cdr(data, 'sensor_msgs/msg/Image')
            np.testing.assert_array_equal(shown, message.data.reshape(shown.shape))


def test_classes_that_change(tmp_path):
    pytest.importorskip('rerun')
    with Viewer(tmp_path / 'run.rrd') as viewer:
        for stamp, names in ((1, ['road']), (2, ['road']), (3, ['road', 'grass'])):
            viewer.set_stamp(stamp)
            viewer.show_classes('front', [ShownClass(i, n, (9, 9, 9)) for i, n in enumerate(names)])
            viewer.show_label('front', np.zeros((2, 3), np.uint8))
    content = read_recording(tmp_path / 'run.rrd')
    assert stamps_ns(content, '/front', 'AnnotationContext:context') == [1, 3]
    assert classes(content, 'front')[1] == {0: 'road', 1: 'grass', 255: 'unlabelled'}


@pytest.mark.parametrize('command', ['segment', 'bag', 'demo'])
def test_errors(run, tmp_path, capsys, command, monkeypatch):
    pytest.importorskip('rerun')
    arguments = {'segment': ['.', '-o', 'out'], 'bag': ['in', 'out'], 'demo': []}[command]
    Path('there.rrd').write_text('precious')
    for view, message in (
        ([], 'no display'),
        (['run.txt'], 'must end in .rrd'),
        (['there.rrd'], 'exists already'),
        (['nowhere/run.rrd'], 'nowhere is no folder'),
    ):
        if command == 'demo':
            status, (_, err) = main(['demo', '--view', *view]), capsys.readouterr()
        else:
            status, _, err = run(command, *arguments, '--view', *view)
        assert status == 2
        assert err.startswith(f'cliptrase {command}: error: --view: ')
        assert message in err
        assert err.count('\n') == 1
    assert [p.name for p in tmp_path.iterdir()] == ['there.rrd']
    assert Path('there.rrd').read_text() == 'precious'


def test_missing_sdk(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rerun', None)
    status, _, err = run('segment', '.', '-o', 'out', '--view', 'run.rrd')
    assert status == 2
    assert 'pip install rerun-sdk' in err
    assert err.count('\n') == 1
    assert not list(tmp_path.iterdir())


def cloud(points, **changes):
    names = {'f4': 7, 'u4': 6, 'u1': 2}
    fields = [
        SimpleNamespace(name=name, offset=offset, datatype=names[kind.str[1:]], count=1)
        for name, (kind, offset) in points.dtype.fields.items()
    ]
    height, width = points.shape
    message = SimpleNamespace(
        height=height,
        width=width,
        fields=fields,
        is_bigendian=False,
        point_step=points.dtype.itemsize,
        row_step=points.dtype.itemsize * width,
        data=points.tobytes(),
    )
    return SimpleNamespace(**{**vars(message), **changes})


def some_points(label='u4'):
    points = np.zeros((2, 3), [('x', '<f4'), ('y', '<f4'), ('label', f'<{label}'), ('z', '<f4')])
    points['x'] = [[0, 1, 2], [3, np.nan, 5]]
    points['label'] = [[0, 7, 255], [3, 4, 5]]
    points['z'] = [[1, 1, 1], [1, 1, np.inf]]
    return points


@pytest.mark.parametrize('label', ['u4', 'u1'])
def test_points(label):
    positions, ids = read_points(cloud(some_points(label)))
    assert positions.tolist() == [[0, 0, 1], [1, 0, 1], [2, 0, 1], [3, 0, 1]]
    assert ids.tolist() == [0, 7, 255, 3]


def test_points_with_row_padding():
    points = some_points()
    rows = [row.tobytes() + b'\x99' * 5 for row in points]
    padded = cloud(points, data=b''.join(rows), row_step=len(rows[0]))
    assert read_points(padded)[1].tolist() == [0, 7, 255, 3]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'fields': []}, 'without x, y, z, label'),
        ({'data': b''}, '0 bytes, which needs 96'),
        ({'point_step': 4}, 'do not fit'),
        ({'row_step': 7}, 'do not fit'),
    ],
)
def test_points_that_cannot_be(changes, message):
    with pytest.raises(PointsError, match=message):
        read_points(cloud(some_points(), **changes))


def test_no_points():
    positions, ids = read_points(cloud(some_points()[:0]))
    assert positions.shape == (0, 3)
    assert ids.shape == (0,)
