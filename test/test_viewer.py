"""--view: what the commands show, recorded and read back with the SDK of the viewer."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import bags
import numpy as np
import pytest
from depth_streams import encode_depth
from PIL import Image
from recordings import classes, labels, pictures, read_recording, stamps_ns
from rosbags.rosbag2 import Reader

from cliptrase_ros.cli import main
from cliptrase_ros.messages.points import PointsError, read_points
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


def raw_pixels(message):
    return message.data.view('<u2').reshape(message.height, message.width)


def bag_topics_with_depth(late_s=0.0, height=48, stamped=True, frame='front'):
    """Topics of a recording in which depth comes `late_s` after its image; rows of equal depth."""
    topics = bags.contents(2)
    _, _, _, images = topics[1]
    camera_info, depth = [], []
    for stamp, image in images:
        k = np.array([50.0, 0, 32, 0, 50, 24, 0, 0, 1])
        info = bags.make(
            'sensor_msgs/msg/CameraInfo',
            header=image.header,
            height=48,
            width=64,
            distortion_model='',
            d=np.zeros(0),
            k=k,
            r=np.eye(3).ravel(),
            p=np.zeros(12),
            binning_x=0,
            binning_y=0,
            roi=bags.make(
                'sensor_msgs/msg/RegionOfInterest',
                **dict.fromkeys(('x_offset', 'y_offset', 'height', 'width'), 0),
                do_rectify=False,
            ),
        )
        camera_info.append((stamp - 3, info))
        metres = np.full((height, 64), 2000, np.uint16)
        metres[0] = 0
        message = bags.image(metres, '16UC1', stamp + int(late_s * 1e9), frame=frame)
        depth.append((stamp + 9 if late_s else stamp - 2, message))
    if not stamped:
        for _, message in (*images, *depth):
            message.header = bags.header(0)
    # As drivers send when they start.
    empty = bags.image(np.zeros((1, 1), np.uint16), '16UC1', bags.START - 9)
    empty.height = empty.width = 0
    depth.insert(0, (bags.START - 9, empty))
    topics[3] = ('/front/depth/image_raw', 'sensor_msgs/msg/Image', [], depth)
    topics.append(('/front/camera_info', 'sensor_msgs/msg/CameraInfo', [], camera_info))
    return topics


def bag_with_depth(path, **given):
    return bags.write_bag(path, bag_topics_with_depth(**given))


@pytest.mark.parametrize(('late_s', 'stamped'), [(0.0, True), (0.015, True), (0.0, False)])
def test_points_of_a_bag(run, tmp_path, late_s, stamped):
    pytest.importorskip('rerun')
    bag_with_depth(tmp_path / 'in', late_s=late_s, stamped=stamped)
    status, _, err = run('bag', 'in', 'out', '--view', 'run.rrd')
    assert (status, err) == (0, '')
    content = read_recording(tmp_path / 'run.rrd')
    assert stamps_ns(content, '/front/points', 'Points3D:positions') == [
        bags.START,
        bags.START + bags.STEP,
    ]
    _, positions = content['/front/points', 'Points3D:positions'][1]
    _, ids = content['/front/points', 'Points3D:class_ids'][1]
    assert len(positions) == 47 * 64  # nothing was measured in the first row
    np.testing.assert_allclose(positions[0], [2 * -32 / 50, 2 * -23 / 50, 2], rtol=1e-6)
    np.testing.assert_array_equal(ids, labels(content, 'front')[1][1:].ravel())
    assert ('/rear/points', 'Points3D:positions') not in content


def test_points_of_compressed_depth_of_a_bag(run, tmp_path):
    pytest.importorskip('rerun')
    topics = bag_topics_with_depth()
    name, _, _, depth = topics[3]
    compressed = [
        (
            stamp,
            bags.make(
                'sensor_msgs/msg/CompressedImage',
                header=message.header,
                format='16UC1; compressedDepth rvl',
                # Half the size.
                data=np.frombuffer(encode_depth(raw_pixels(message)[::2, ::2], 'rvl'), np.uint8),
            ),
        )
        for stamp, message in depth[1:]
    ]
    topics[3] = (f'{name}/compressedDepth', 'sensor_msgs/msg/CompressedImage', [], compressed)
    bags.write_bag(tmp_path / 'in', topics)
    status, _, err = run('bag', 'in', 'out', '--view', 'run.rrd')
    assert (status, err) == (0, '')
    content = read_recording(tmp_path / 'run.rrd')
    _, positions = content['/front/points', 'Points3D:positions'][1]
    assert len(positions) == 46 * 64  # nothing was measured in the first two rows
    np.testing.assert_allclose(positions[0], [2 * -32 / 50, 2 * -22 / 50, 2], rtol=1e-6)


def test_depth_that_does_not_belong(run, tmp_path):
    pytest.importorskip('rerun')
    bag_with_depth(tmp_path / 'late', late_s=0.05)
    assert run('bag', 'late', 'out1', '--view', 'one.rrd')[0] == 0
    for name, given, reason in (
        ('two', {'height': 40}, 'depth is of 64 x 40 pixels, the image of 64 x 48'),
        ('three', {'frame': 'depth'}, "depth is in frame 'depth', the image in 'front'"),
    ):
        bag_with_depth(tmp_path / name, **given)
        status, _, err = run('bag', name, f'out {name}', '--view', f'{name}.rrd')
        assert (status, err.count('\n')) == (0, 1)
        assert f'no points to view: {reason}' in err
    for name in ('one.rrd', 'two.rrd', 'three.rrd'):
        content = read_recording(tmp_path / name)
        assert ('/front/points', 'Points3D:positions') not in content
        assert len(labels(content, 'front')) == 2


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
