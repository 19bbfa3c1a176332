"""`cliptrase segment`: photos, videos and webcams in, labels and overlays out."""

import json
import shutil
from dataclasses import fields
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from cliptrase_ros.cli import main
from cliptrase_ros.photos.reading import UnreadableError, read_photo, read_video
from cliptrase_ros.photos.results import coco_run_lengths
from cliptrase_ros.photos.sources import find_sources, output_files, unique_names
from cliptrase_ros.segmentation.segmenter import (
    SegmentationSettings,
    Segmenter,
    load_segmenter,
)
from cliptrase_ros.segmentation.vocabulary import class_color, parse_over_background

WORDS = 'red ball; box: crate, carton'


@pytest.fixture
def run(capfd, tiny_model):
    def run(*arguments, words=WORDS):
        status = main(
            ['segment', '-v', words, '--model', tiny_model, '--resolution', '64', '--device', 'cpu']
            + [str(argument) for argument in arguments]
        )
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(seed, height=48, width=64):
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


def save(path, pixels, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def save_video(path, frames, per_second=10.0, code='mp4v'):
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), per_second, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def report(folder):
    return json.loads((folder / 'segmentation.json').read_text())


def files_in(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


def test_folder(run, in_folder, tiny_model):
    save('photos/x.png', picture(1))
    save('photos/x.bmp', picture(2))
    save('photos/a/x.png', picture(3))
    save('photos/b/x.png', picture(4, 32, 80))
    save('photos/b/.hidden.png', picture(5))
    Path('photos/notes.txt').write_text('nothing to see')
    status, out, err = run('photos', '-o', 'out', '--batch', '2')
    assert (status, err) == (0, '')
    assert '4 labelled, in out' in out
    assert files_in(in_folder / 'out') == [
        'labels/a/x.png',
        'labels/b/x.png',
        'labels/x.bmp.png',
        'labels/x.png.png',
        'overlays/a/x.jpg',
        'overlays/b/x.jpg',
        'overlays/x.bmp.jpg',
        'overlays/x.png.jpg',
        'segmentation.json',
    ]
    content = report(in_folder / 'out')
    assert [entry['file'] for entry in content['images']] == [
        'photos/a/x.png',
        'photos/b/x.png',
        'photos/x.bmp',
        'photos/x.png',
    ]
    names = [field.name for field in fields(SegmentationSettings)]
    given = SegmentationSettings(**{name: content[name] for name in names})
    assert given == SegmentationSettings(resolution=64)
    assert content['vocabulary']['classes'][1] == {
        'id': 1,
        'name': 'box',
        'synonyms': ['crate', 'carton'],
        'color': list(class_color(1)),
    }
    assert content['vocabulary']['background'] == ['wall', 'floor', 'ceiling', 'sky', 'building']

    segmenter = load_segmenter(tiny_model, device='cpu')
    encoded = segmenter.encode_vocabulary(parse_over_background(WORDS))
    for entry, seed in zip(content['images'], (3, 4, 2, 1), strict=True):
        pixels = picture(seed, 32, 80) if seed == 4 else picture(seed)
        (expected,) = segmenter.segment([pixels], encoded, SegmentationSettings(resolution=64))
        with Image.open(in_folder / 'out' / entry['label']) as image:
            assert image.mode == 'P'
            assert tuple(image.getpalette()[:6]) == (*class_color(0), *class_color(1))
            label = np.asarray(image)
        assert label.dtype == np.uint8
        assert (label == expected.label).all()
        assert (entry['height'], entry['width']) == label.shape
        assert entry['unlabelled_area'] == (label == 255).sum()
        assert {c['id']: c['area'] for c in entry['classes']} == {
            i: (label == i).sum() for i in (0, 1) if (label == i).any()
        }
        for present in entry['classes']:
            mean = expected.confidence[label == present['id']].mean() / 255
            assert present['confidence'] == pytest.approx(mean, abs=1e-4)
        with Image.open(in_folder / 'out' / entry['overlay']) as image:
            assert image.size == label.shape[::-1]


def test_again_into_the_same_folder(run, in_folder):
    save('x.png', picture(1))
    assert run('x.png', '-o', 'out')[0] == 0
    assert run('x.png', '-o', 'out', words='dog')[0] == 0
    assert report(in_folder / 'out')['vocabulary']['classes'][0]['name'] == 'dog'


def test_again_with_less_leaves_nothing_of_before(run, in_folder):
    for name in ('x.png', 'a/y.png'):
        save(f'photos/{name}', picture(1))
    save_video('photos/v.avi', [picture(seed) for seed in range(3)], code='MJPG')
    assert run('photos', '-o', 'out')[0] == 0
    Path('out/mine.txt').write_text('not of the report')
    assert len(files_in(in_folder / 'out')) == 2 * 2 + 3 + 1 + 2
    assert run('photos/x.png', '-o', 'out', words='dog')[0] == 0
    assert files_in(in_folder / 'out') == [
        'labels/x.png',
        'mine.txt',
        'overlays/x.jpg',
        'segmentation.json',
    ]


def test_report_of_before_deletes_nothing_elsewhere(run, in_folder):
    save('x.png', picture(1))
    save('precious.png', picture(2))
    entries = [{'label': '../precious.png', 'overlay': '../precious.png'}]
    Path('out').mkdir()
    for text in (json.dumps({'images': entries}), '{"images": 5}', 'no JSON'):
        Path('out/segmentation.json').write_text(text)
        assert run('x.png', '-o', 'out')[0] == 0
    assert Path('precious.png').exists()


def test_output_within_the_input(run, in_folder):
    save('photos/x.png', picture(1))
    for _ in range(2):
        assert run('photos', '-o', 'photos/out')[0] == 0
        assert len(report(in_folder / 'photos/out')['images']) == 1


def test_pattern_and_repeated_inputs(run, in_folder):
    for name in ('one/x.png', 'two/x.png', 'two/y.png'):
        save(name, picture(1))
    Path('two/table.csv').write_text('1,2')
    status, _, _ = run('*/x.png', 'two/**', 'two', in_folder / 'one' / 'x.png', '-o', 'out')
    assert status == 0
    assert [entry['label'] for entry in report(in_folder / 'out')['images']] == [
        'labels/one/x.png.png',
        'labels/two/x.png.png',
        'labels/y.png',
    ]


def test_unreadable_files_do_not_stop_the_rest(run, in_folder):
    save('photos/a.png', picture(1))
    whole = save('photos/b.jpg', picture(2, 200, 300)).read_bytes()
    Path('photos/b.jpg').write_bytes(whole[: len(whole) // 2])
    Path('photos/c.jpg').write_text('no picture')
    Path('photos/d.png').touch()
    save('photos/e.png', picture(3, 2, 300))
    Path('photos/f.mp4').write_text('no video')
    save('photos/g.png', picture(4))
    status, out, err = run('photos', '-o', 'out', '--batch', '4')
    assert status == 1
    assert '2 labelled, in out' in out
    assert '5 could not be labelled' in out
    named = [line.split(':')[1].strip() for line in err.splitlines() if 'cliptrase' in line]
    assert sorted(named) == [f'photos/{n}' for n in ('b.jpg', 'c.jpg', 'd.png', 'e.png', 'f.mp4')]
    assert 'truncated' in err
    assert 'too elongated' in err
    assert 'Traceback' not in err
    content = report(in_folder / 'out')
    assert len(content['images']) == 2
    assert {entry['file'] for entry in content['unreadable']} == set(named)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    from PIL import ImageOps

    upright = picture(0, 40, 60)
    # Stored as a camera held that way would.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    inverse |= {3: Image.Transpose.ROTATE_180, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    inverse |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE}
    inverse |= {7: Image.Transpose.TRANSVERSE}
    stored = Image.fromarray(upright)
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / 'x.png', exif=exif)
    assert ImageOps.exif_transpose(stored) is not None
    assert (read_photo(tmp_path / 'x.png') == upright).all()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'F'])
def test_kinds_of_pixels(tmp_path, mode):
    grey = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
    image = Image.fromarray(grey)
    if mode == 'I;16':
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / ('x.png' if mode in ('1', 'L', 'LA', 'P', 'RGBA', 'I;16') else 'x.tif')
    image.save(path)
    pixels = read_photo(path)
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    if mode not in ('1', 'CMYK'):
        assert np.abs(pixels[..., 1].astype(int) - grey).max() <= 2


def test_unreadable_photo(tmp_path):
    with pytest.raises(UnreadableError, match='No such file'):
        read_photo(tmp_path / 'missing.png')


def test_video(run, in_folder):
    save_video('clip.mp4', [picture(0)] * 5 + [picture(1)] * 5, 10)
    save('clip.png', picture(2))
    status, out, err = run('clip.mp4', 'clip.png', '-o', 'out', '--rate', '5', '--batch', '2')
    assert status == 0, err
    assert '6 labelled' in out
    content = report(in_folder / 'out')
    video = [entry for entry in content['images'] if 'frame' in entry]
    assert [(entry['frame'], entry['time_s']) for entry in video] == [
        (0, 0.0),
        (2, 0.2),
        (4, 0.4),
        (6, 0.6),
        (8, 0.8),
    ]
    assert [entry['label'] for entry in video] == [
        f'labels/clip.mp4/{number:06d}.png' for number in (0, 2, 4, 6, 8)
    ]
    capture = cv2.VideoCapture(str(in_folder / 'out' / video[0]['overlay']))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(5)
    capture.release()


def test_every_core_is_used_unless_told(run, in_folder, monkeypatch):
    save('x.png', picture(1))
    before = torch.get_num_threads(), cv2.getNumThreads()
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    try:
        torch.set_num_threads(5)  # as PyTorch does itself where there are five
        assert run('x.png')[0] == 0
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (5, 5)
        assert run('x.png', '--threads', '2')[0] == 0
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_smoothing_joins_the_frames_of_a_video_and_no_photos(run, in_folder, tiny_model):
    noise = np.random.default_rng(0)
    noisy = [
        (picture(0) // 2 + noise.integers(0, 40, (48, 64, 3))).astype(np.uint8) for _ in range(6)
    ]
    save_video('clip.avi', noisy, code='FFV1')
    for number in range(2):
        save(f'{number}.png', picture(number))
    options = ('-o', 'out', '--smoothing', '0.9', '--batch', '4')
    assert run('clip.avi', '0.png', '1.png', *options)[0] == 0
    files = {(e['file'], e.get('frame')): e['label'] for e in report(in_folder / 'out')['images']}

    def label_of(file, frame=None):
        return np.asarray(Image.open(in_folder / 'out' / files[file, frame]))

    segmenter = load_segmenter(tiny_model, device='cpu')
    words = segmenter.encode_vocabulary(parse_over_background(WORDS))
    settings = SegmentationSettings(resolution=64, smoothing=0.9)
    frames = [frame.picture for frame in read_video(*find_sources(['clip.avi'], Path('other')))]
    memory, differ = None, False
    for number, frame in enumerate(frames):
        (smooth,) = segmenter.segment([frame], words, settings, [memory])
        memory = smooth.memory
        label = label_of('clip.avi', number)
        np.testing.assert_array_equal(label, smooth.label)
        differ |= bool((label != segmenter.segment([frame], words, settings)[0].label).any())
    assert differ
    for number in range(2):
        (alone,) = segmenter.segment([picture(number)], words, settings)
        np.testing.assert_array_equal(label_of(f'{number}.png'), alone.label)


def test_video_with_odd_sides_that_breaks_off(run, in_folder):
    frames = [np.random.default_rng(i).integers(0, 256, (47, 63, 3), np.uint8) for i in range(20)]
    save_video('clip.avi', frames, code='MJPG')
    content = Path('clip.avi').read_bytes()
    Path('clip.avi').write_bytes(content[: len(content) // 2])
    status, _, err = run('clip.avi', '-o', 'out')
    labelled = report(in_folder / 'out')['images']
    assert 5 <= len(labelled) < 20
    assert status == 1
    assert f'it breaks off after frame {len(labelled)} of' in err


def test_video_beside_a_folder_of_its_name(run, in_folder):
    Path('all').mkdir()
    save_video('all/clip.mp4', [picture(0)] * 2)
    save('all/clip/000000.png', picture(1))
    assert run('all', '-o', 'out')[0] == 0
    assert [entry['label'] for entry in report(in_folder / 'out')['images']] == [
        'labels/clip/000000.png',
        'labels/clip.mp4/000000.png',
        'labels/clip.mp4/000001.png',
    ]


def test_webcam_that_is_not_there(run, in_folder):
    status, out, err = run('97', '-o', 'out')
    assert status == 1
    assert 'webcam 97: OpenCV cannot open this webcam' in err
    assert '0 labelled' in out


def test_webcam(run, in_folder, monkeypatch):
    class Webcam:
        left = 3

        def __init__(self, location):
            assert location == 0

        def isOpened(self):
            return True

        def get(self, _):
            return -1.0

        def grab(self):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return True

        def retrieve(self):
            return True, picture(self.left)

        def release(self):
            pass

    monkeypatch.setattr(cv2, 'VideoCapture', Webcam)
    status, _, err = run('0', '-o', 'out')
    assert (status, err) == (130, '')
    content = report(in_folder / 'out')
    assert [entry['label'] for entry in content['images']] == [
        f'labels/webcam0/{number:06d}.png' for number in range(3)
    ]
    assert (in_folder / 'out/overlays/webcam0.mp4').stat().st_size > 1000


def test_interruption_keeps_what_was_done(run, in_folder, monkeypatch):
    for number in range(5):
        save(f'photos/{number}.png', picture(number))
    segment = Segmenter.segment
    calls = 0

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return segment(self, *arguments)

    monkeypatch.setattr(Segmenter, 'segment', interrupted)
    status, _, err = run('photos', '-o', 'out')
    assert (status, err) == (130, '')
    assert len(report(in_folder / 'out')['images']) == 3


def test_engine_that_fails_on_one(run, in_folder, monkeypatch):
    for number in range(3):
        save(f'photos/{number}.png', picture(number))
    segment = Segmenter.segment

    def fail(self, images, *arguments):
        if any((image == picture(1)).all() for image in images):
            raise RuntimeError('out of\nmemory')
        return segment(self, images, *arguments)

    monkeypatch.setattr(Segmenter, 'segment', fail)
    status, out, err = run('photos', '-o', 'out', '--batch', '3')
    assert status == 1
    assert '2 labelled' in out
    assert err == 'cliptrase segment: photos/1.png: out of memory\n'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['missing.png'], 'missing.png does not exist'),
        (['empty'], 'empty: no photos or videos found there'),
        (['*.gif'], '*.gif: no photos or videos found there'),
        (['x.png', 'nothing/*'], 'nothing/*: no photos or videos found there'),
        (['x.png', '-o', 'x.png'], 'exists and is no folder'),
        (['x.png', '-o', '.'], 'holds other things than earlier results'),
        (['x.png', '-o', 'full'], 'holds other things than earlier results'),
        (['old/labels/x.png', '-o', 'old'], 'lies in the output folder'),
        (['link.png', '-o', 'old'], 'lies in the output folder'),
        (['x.png', '-o', 'x.png/out'], 'could not be written'),
        (['x.png', '--preset', 'best'], "preset is 'best'"),
        (['x.png', '--resolution', '3'], 'resolution is 3'),
        (['x.png', '--min-confidence', '7'], 'min_confidence is 7'),
        (['x.png', '--device', 'tpu'], "device is 'tpu'"),
        (['x.png', '--model', 'ViT-B-17'], 'not an architecture'),
    ],
)
def test_errors(run, in_folder, arguments, message):
    save('x.png', picture(1))
    save('old/labels/x.png', picture(1))
    Path('old/segmentation.json').write_text('{}')
    Path('link.png').symlink_to('old/labels/x.png')
    Path('empty').mkdir()
    Path('full').mkdir()
    Path('full/notes.txt').write_text('mine')
    before = files_in(in_folder)
    status, out, err = run(*arguments)
    assert (status, out) == (2, '')
    assert message in err
    assert err.startswith('cliptrase segment: error: ')
    assert err.count('\n') == 1
    assert files_in(in_folder) == before


@pytest.mark.parametrize('words', ['', 'a; a', 'word ' * 90])
def test_bad_vocabulary(run, in_folder, words):
    save('x.png', picture(1))
    status, _, err = run('x.png', words=words)
    assert status == 2
    assert err.count('\n') == 1
    assert files_in(in_folder) == ['x.png']


@pytest.mark.parametrize('option', [['--rate', '-1'], ['--batch', '0'], ['--rate', 'x'], []])
def test_usage(option, capsys):
    arguments = ['segment', 'x.png', '-v', 'a', *option] if option else ['segment', 'x.png']
    with pytest.raises(SystemExit) as exit_status:
        main(arguments)
    assert exit_status.value.code == 2
    assert 'usage: cliptrase segment' in capsys.readouterr().err


@pytest.mark.parametrize('command', [[], ['segment'], ['bag'], ['verify'], ['demo']])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main([*command, '--help'])
    assert exit_status.value.code == 0
    assert 'usage: cliptrase' in capsys.readouterr().out


def test_files_named_like_webcams(in_folder):
    save('0', picture(1), format='PNG')
    (source,) = find_sources(['0'], Path('out'))
    assert source.kind == 'photo'
    source, *others = find_sources(['1', '01', '1'], Path('out'))
    assert (source.kind, source.location, str(source), others) == ('webcam', 1, 'webcam 1', [])


PARTS = st.sampled_from(['a', 'A', 'b', 'a.png', 'a.mp4', 'a-2', '000001'])
PATHS = st.builds(
    lambda folders, stem, suffix: PurePosixPath(*folders, stem + suffix),
    st.lists(PARTS, max_size=2),
    PARTS,
    st.sampled_from(['.png', '.jpg', '.mp4', '']),
)


@example([(PurePosixPath('a.mp4'), 0), (PurePosixPath('a/b.png'), 0)])
@example([(PurePosixPath('a.mp4/b.png'), 0), (PurePosixPath('a.mp4'), 1)])
@example([(PurePosixPath('a/b.mp4'), 0), (PurePosixPath('a/b/c.png'), 0)])
@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(PATHS, st.integers(0, 2)), min_size=1, max_size=9))
def test_names_never_collide(files):
    """Whatever the inputs are called, no output is in the way of another, on any file system."""
    files = list(dict.fromkeys(files))
    paths = [Path('/data', f'root{root}', path) for path, root in files]
    kinds = ['video' if path.suffix == '.mp4' else 'photo' for path, _ in files]
    names = unique_names([path for path, _ in files], paths, kinds)
    outputs = []
    for name, kind in zip(names, kinds, strict=True):
        label, overlay = output_files(name.casefold(), kind)
        outputs += [overlay, label]
        if kind == 'video':
            outputs.append(f'{label}/000001.png')
    plain = [PurePosixPath(path) for path in outputs]
    videos = {
        PurePosixPath(output_files(name.casefold(), kind)[0])
        for name, kind in zip(names, kinds, strict=True)
        if kind == 'video'
    }
    assert len(set(plain)) == len(plain)
    folders = {parent for path in plain for parent in path.parents}
    assert not folders & (set(plain) - videos)
    alone = [path for path, _ in files]
    if len({path.with_suffix('').as_posix().casefold() for path in alone}) == len(alone) == 1:
        assert names == [alone[0].with_suffix('').as_posix()]


def decode_coco(text, height, width):
    """Read COCO's compressed run lengths, written from the format's description."""
    lengths, value, shift = [], 0, 0
    for character in text.encode():
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value, shift = 0, 0
    ones = np.arange(len(lengths)) % 2 == 1
    return np.repeat(ones, lengths).reshape(width, height).T


MASKS = npst.arrays(bool, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20))


@given(MASKS, st.integers(1, 40), st.integers(1, 9))
def test_coco_run_lengths(mask, rows, columns):
    mask = np.kron(mask, np.ones((rows, columns), bool))
    encoded = coco_run_lengths(mask)
    assert encoded['size'] == list(mask.shape)
    assert (decode_coco(encoded['counts'], *mask.shape) == mask).all()


def test_coco_run_lengths_in_the_report(run, in_folder):
    save('x.png', picture(1))
    assert run('x.png', '-o', 'out', '--rle')[0] == 0
    (entry,) = report(in_folder / 'out')['images']
    label = np.asarray(Image.open(in_folder / 'out' / entry['label']))
    for present in entry['classes']:
        mask = decode_coco(present['segmentation']['counts'], *label.shape)
        assert (mask == (label == present['id'])).all()


def test_real_photos(run, shared, tmp_path):
    photos = sorted((shared / 'photos' / 'images').glob('*.jpg'))[:3]
    if not photos:
        pytest.skip('there are no photos')
    for photo in photos:
        shutil.copy(photo, tmp_path)
    status, _, err = run(tmp_path, '-o', tmp_path / 'out')
    assert (status, err) == (0, '')
    assert len(report(tmp_path / 'out')['images']) == 3
