"""`cliptrase segment`: photos, videos and webcams in, labels and overlays out."""

import io
import json
import os
import shutil
import signal
import struct
import sys
import unicodedata
import zlib
from dataclasses import fields
from fractions import Fraction
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image, ImageCms
from scipy import ndimage

from cliptrase_ros.cli import main
from cliptrase_ros.photos.output_names import output_files, unique_names
from cliptrase_ros.photos.reading import UnreadableError, read_photo
from cliptrase_ros.photos.results import OverlayVideo, coco_run_lengths
from cliptrase_ros.photos.segment import OutputSettings, segment_sources
from cliptrase_ros.photos.sources import Source, find_sources
from cliptrase_ros.photos.videos import read_video
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import class_color, parse_vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

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


def needs_videos():
    return pytest.importorskip('av', reason='PyAV is not installed; `make test` brings it')


def save_video(path, frames, per_second=10.0, code='mp4v'):
    needs_videos()
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), per_second, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_video(
    path, times, frames=None, codec='libx264', form=None, tick=0.001, audio_s=0.0, **options
):
    """A video whose frames are shown at these times, with so much silence."""
    av = needs_videos()
    frames = frames or [picture(seed) for seed in range(len(times))]
    with av.open(str(Path(path).absolute()), 'w', format=form, options=options) as container:
        stream = container.add_stream(codec)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = 'yuv420p'
        tick = stream.codec_context.time_base = Fraction(tick).limit_denominator(1000)
        stream.codec_context.gop_size = 5
        audio = container.add_stream('aac', rate=8000, layout='mono') if audio_s else None
        for time_s, pixels in zip(times, frames, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
            frame.pts, frame.time_base = round(time_s / tick), tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            silence = np.zeros((1, round(audio_s * 8000)), np.float32)
            samples = av.AudioFrame.from_ndarray(silence, 'fltp', 'mono')
            samples.sample_rate = 8000
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return Path(path)


def times_of(path, rate=0.0):
    return [frame.time_s for frame in read_video(path, rate)]


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
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
    encoded = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
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
@pytest.mark.parametrize('suffix', ['.png', '.tif', '.webp'])
def test_exif_orientation(tmp_path, orientation, suffix):
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
    path = tmp_path / f'x{suffix}'
    stored.save(path, exif=exif, lossless=True)
    assert (read_photo(path) == upright).all()


def exif_data(*tags):
    """EXIF data with entries (tag, type, count, value or offset) and rationals from byte 200 on."""
    entries = b''.join(struct.pack('<HHII', *tag) for tag in tags)
    head = b'II*\0' + struct.pack('<IH', 8, len(tags)) + entries + struct.pack('<I', 0)
    return b'Exif\0\0' + head.ljust(200, b'\0') + struct.pack('<ii', -1, 0) * 2


TURNED = (0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    ('exif', 'upright'),
    [
        (exif_data(TURNED, (0x011A, 10, 1, 200)), True),  # a resolution of -1/0
        (exif_data(TURNED, (0x011A, 5, 2, 200)), True),  # two where there is one
        (exif_data(TURNED, (0x8769, 4, 1, 9999)), True),  # further data beyond the end
        (exif_data((0x0112, 2, 1, 6)), False),  # an orientation that is text
        (exif_data((0x0112, 3, 1, 77)), False),
        (b'Exif\0\0II*\0nonsense', False),
        (b'Exif\0\0', False),
    ],
)
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_odd_exif_data(tmp_path, exif, upright):
    path = save(tmp_path / 'x.jpg', picture(0, 40, 60), exif=exif)
    assert read_photo(path).shape == ((60, 40, 3) if upright else (40, 60, 3))


def test_no_word_of_pillow_about_odd_photos(run, in_folder):
    save('x.jpg', picture(0), exif=b'Exif\0\0II*\0nonsense')
    with pytest.warns(UserWarning, match='Corrupt EXIF data'):
        read_photo(Path('x.jpg'))
    assert run('x.jpg', '-o', 'out')[::2] == (0, '')


def test_heic(run, in_folder):
    pillow_heif = pytest.importorskip('pillow_heif', reason='needs pillow-heif; an extra')
    exif = Image.Exif()
    exif[0x0112] = 6
    Path('photos').mkdir()
    turned = Image.fromarray(picture(0)).transpose(Image.Transpose.ROTATE_90)
    pillow_heif.from_pillow(turned).save('photos/x.HEIC', exif=exif.tobytes(), quality=-1)
    assert run('photos', '-o', 'out')[0] == 0
    pixels = read_photo(Path('photos/x.HEIC'))
    assert pixels.shape == (48, 64, 3)
    # Within blocks of one colour, for colours have half the resolution.
    assert np.abs(pixels[8::16, 8::16].astype(int) - picture(0)[8::16, 8::16]).max() <= 5


def test_heic_without_the_package_for_it(run, in_folder, monkeypatch):
    Image.init()
    monkeypatch.setattr(Image, 'ID', [name for name in Image.ID if name != 'HEIF'])
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    save('photos/x.png', picture(0))
    Path('photos/y.heic').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')
    status, out, err = run('photos', '-o', 'out')
    assert (status, '1 labelled' in out) == (1, True)
    assert 'y.heic: HEIC photos need `pip install pillow-heif`' in err


GREY = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)


def lab(pixels):
    profiles = [ImageCms.createProfile(name) for name in ('sRGB', 'LAB')]
    return ImageCms.profileToProfile(Image.fromarray(pixels), *profiles, outputMode='LAB')


def with_nan(values):
    values = values.copy()
    values[0, :4] = np.nan, np.inf, -np.inf, 1.02
    return values


@pytest.mark.parametrize(
    ('image', 'suffix'),
    [
        (Image.fromarray(GREY), '.png'),
        (Image.fromarray(GREY).convert('LA'), '.png'),
        (Image.fromarray(GREY).convert('CMYK'), '.tif'),
        (Image.fromarray(GREY).convert('CMYK'), '.jpg'),
        (Image.fromarray(GREY.astype(np.float32) / 255), '.tif'),
        (Image.fromarray(GREY.astype(np.float32)), '.tif'),
        (Image.fromarray(GREY.astype(np.float32) * 257), '.tif'),
        (Image.fromarray(with_nan(GREY.astype(np.float32) / 255)), '.tif'),
        (Image.fromarray(GREY.astype(np.uint16)), '.png'),
        (Image.fromarray(GREY.astype(np.uint16) * 4), '.tif'),
        (Image.fromarray(GREY.astype(np.uint16) * 16), '.png'),
        (Image.fromarray(GREY.astype(np.uint16) * 257), '.png'),
        (Image.fromarray(GREY.astype(np.int32)), '.tif'),
        (Image.fromarray(GREY.astype(np.int32) * 257), '.tif'),
    ],
)
def test_types_of_samples(tmp_path, image, suffix):
    image.save(tmp_path / f'x{suffix}')
    pixels = read_photo(tmp_path / f'x{suffix}')
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    grey = GREY.astype(int)
    if image.mode == 'F' and np.isnan(np.asarray(image)).any():
        grey[0, :4] = 0, 255, 0, 255
    assert np.abs(pixels - grey[..., None]).max() <= 3


@pytest.mark.parametrize('values', [-0.5, 37.0, np.nan, 2.0**20])
def test_floats_whose_white_nobody_knows(tmp_path, values):
    Image.fromarray(np.full((4, 4), values, np.float32)).save(tmp_path / 'x.tif')
    with pytest.raises(UnreadableError, match='its values go from|no number'):
        read_photo(tmp_path / 'x.tif')


def test_temperatures_are_refused(tmp_path):
    path = tmp_path / 'kiln.tif'
    Image.fromarray(np.linspace(-20, 280, 48, dtype=np.float32).reshape(6, 8)).save(path)
    with pytest.raises(UnreadableError, match='its values go from -20 to 280'):
        read_photo(path)


@pytest.mark.parametrize('value', [-5, 70000])
def test_integers_whose_white_nobody_knows(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / 'x.tif')
    with pytest.raises(UnreadableError, match=f'its values go from {value}'):
        read_photo(tmp_path / 'x.tif')


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('factor', [257, 16])
@pytest.mark.parametrize('alpha', [False, True])
def test_colours_of_12_and_16_bits(tmp_path, suffix, factor, alpha):
    colours = picture(0)
    values = colours[..., ::-1].astype(np.uint16) * factor
    if alpha:
        values = np.dstack([values, np.full((48, 64), 30000, np.uint16)])
    cv2.imwrite(str(tmp_path / f'x{suffix}'), values)
    assert np.abs(read_photo(tmp_path / f'x{suffix}').astype(int) - colours).max() <= 1


def with_orientation(content):
    """A PNG or TIFF file with the tag `TURNED`."""
    if content.startswith(b'II'):
        (start,) = struct.unpack_from('<I', content, 4)
        (count,) = struct.unpack_from('<H', content, start)
        entries = [content[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        entries.append(struct.pack('<HHII', *TURNED))
        tags = sorted(entries, key=lambda entry: struct.unpack_from('<H', entry))
        listed = struct.pack('<H', len(tags)) + b''.join(tags) + bytes(4)
        return content[:4] + struct.pack('<I', len(content)) + content[8:] + listed
    data = exif_data(TURNED)[6:]
    chunk = struct.pack('>I', len(data)) + b'eXIf' + data
    chunk += struct.pack('>I', zlib.crc32(chunk[4:]))
    return content[:33] + chunk + content[33:]


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
def test_colours_of_16_bits_are_turned_upright(tmp_path, suffix):
    colours, path = picture(0), tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), colours[..., ::-1].astype(np.uint16) * 16)
    path.write_bytes(with_orientation(path.read_bytes()))
    expected = np.rot90(colours, -1)
    assert np.abs(read_photo(path).astype(int) - expected).max() <= 1


def test_one_bit(tmp_path):
    Image.fromarray(GREY > 100).save(tmp_path / 'x.tif')
    assert (read_photo(tmp_path / 'x.tif')[..., 0] == np.where(GREY > 100, 255, 0)).all()


def test_lab(tmp_path):
    lab(picture(0)).save(tmp_path / 'x.tif')
    assert np.abs(read_photo(tmp_path / 'x.tif').astype(int) - picture(0)).max() <= 20


@pytest.mark.parametrize('suffix', ['.png', '.gif'])
def test_transparency_is_left_out(tmp_path, recwarn, suffix):
    """What is under it counts: renderers and cameras that write it mean nothing by it."""
    colours = np.repeat(np.repeat(np.array([[[200, 30, 30], [30, 200, 30]]], np.uint8), 8, 0), 8, 1)
    image = Image.fromarray(colours).quantize(2)
    transparency = 0 if suffix == '.gif' else bytes([0, 100])
    image.save(tmp_path / f'x{suffix}', transparency=transparency)
    assert (read_photo(tmp_path / f'x{suffix}') == colours).all()
    image = Image.fromarray(np.dstack([colours, np.zeros((8, 16), np.uint8)]))
    image.save(tmp_path / 'y.png')
    assert (read_photo(tmp_path / 'y.png') == colours).all()
    assert not recwarn.list


def test_photo_of_too_many_pixels(run, in_folder, monkeypatch):
    save('large.png', picture(0))
    save('small.png', picture(0, 40, 60))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40 * 60 // 2)
    status, out, err = run('large.png', 'small.png', '-o', 'out')
    assert (status, '1 labelled' in out) == (1, True)
    assert err.startswith('cliptrase segment: large.png: Image size (3072 pixels) exceeds limit')
    assert err.count('\n') == 1


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


def test_instances(run, in_folder):
    save('x.png', picture(1))
    save_video('v.avi', [picture(seed) for seed in (0, 0, 3)], code='FFV1')
    options = ('--rle', '--overlay-boxes', '--min-instance-area', '0.01')
    assert run('x.png', 'v.avi', '-o', 'out', *options)[0] == 0
    photo, *frames = report(in_folder / 'out')['images']
    for entry in (photo, *frames):
        label = np.asarray(Image.open(in_folder / 'out' / entry['label']))
        regions = [
            [
                area
                for area in np.bincount(numbers.ravel())[1:].tolist()
                if area >= 0.01 * label.size
            ]
            for numbers, _ in (ndimage.label(label == i, np.ones((3, 3))) for i in (0, 1))
        ]
        found = [[e['area'] for e in entry['instances'] if e['category_id'] == i] for i in (0, 1)]
        assert [sorted(areas) for areas in found] == [sorted(areas) for areas in regions]
    ids = [[instance['id'] for instance in entry['instances']] for entry in (photo, *frames)]
    assert ids[0] == list(range(1, len(ids[0]) + 1))
    # Frames that are alike have the same ids.
    assert ids[1] == ids[2] and min(ids[1]) == 1

    assert run('x.png', '-o', 'plain')[0] == 0
    overlays = [
        np.asarray(Image.open(in_folder / folder / photo['overlay'])) for folder in ('out', 'plain')
    ]
    assert (overlays[0] != overlays[1]).any()


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
    words = segmenter.encode_vocabulary(parse_vocabulary(WORDS))
    settings = SegmentationSettings(resolution=64, smoothing=0.9)
    frames = [frame.picture for frame in read_video(Path('clip.avi'))]
    history, differ = None, False
    for number, frame in enumerate(frames):
        (smooth,) = segmenter.segment([frame], words, settings, [history])
        history = smooth.history
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
    assert f'of 2.0 s, {len(labelled)} frames' in err
    assert 'clip.avi: it breaks off after ' in err
    assert len(times_of(in_folder / 'out/overlays/clip.mp4')) == len(labelled)


#: One second at 10 frames, two at 4.
UNEVEN = [i / 10 for i in range(10)] + [1 + i / 4 for i in range(8)]


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('x.mp4', {}),
        ('x.mov', {'codec': 'mpeg4'}),
        ('x.mkv', {}),
        ('x.webm', {'codec': 'libvpx-vp9'}),
        ('x.flv', {'codec': 'flv1'}),
        ('x.mkv', {'codec': 'mpeg4', 'audio_s': 5.0}),
    ],
)
def test_times_are_those_of_the_container(tmp_path, name, options):
    video = write_video(tmp_path / name, UNEVEN, **options)
    np.testing.assert_allclose(times_of(video), UNEVEN, atol=0.002)
    some = times_of(video, rate=5.0)
    assert [sum(time < 1 for time in some), sum(time >= 1 for time in some)] == [5, 8]


def test_time_begins_with_the_first_frame(tmp_path):
    even = [i / 25 for i in range(10)]
    later = write_video(tmp_path / 'x.mkv', [7 + time for time in even])
    np.testing.assert_allclose(times_of(later), even, atol=0.002)
    # MPEG transport streams begin anywhere, and may be joined.
    stream = write_video(tmp_path / 'x.mts', even, codec='mpeg2video', form='mpegts', tick=1 / 25)
    stream.write_bytes(stream.read_bytes() * 2)
    np.testing.assert_allclose(times_of(stream), [i / 25 for i in range(20)], atol=0.002)


def test_stream_without_times(tmp_path):
    video = write_video(tmp_path / 'x.264', [i / 25 for i in range(10)], form='h264')
    np.testing.assert_allclose(times_of(video), [i / 25 for i in range(10)], atol=0.002)


def test_overlay_video_shows_frames_at_their_times(run, in_folder):
    write_video('x.mkv', UNEVEN)
    assert run('x.mkv', '-o', 'out')[0] == 0
    overlay = in_folder / 'out/overlays/x.mp4'
    np.testing.assert_allclose(times_of(overlay), UNEVEN, atol=0.002)
    with needs_videos().open(str(overlay)) as container:
        assert container.streams.video[0].codec_context.name == 'h264'
    times = [entry['time_s'] for entry in report(in_folder / 'out')['images']]
    np.testing.assert_allclose(times, UNEVEN, atol=0.002)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('x.mkv', {}),
        ('x.mp4', {'movflags': 'faststart'}),
        ('x.webm', {'codec': 'libvpx-vp9'}),
        ('x.avi', {'codec': 'mpeg4', 'tick': 0.1}),
        ('x.flv', {'codec': 'flv1'}),
    ],
)
def test_video_that_breaks_off(tmp_path, name, options):
    times = [i / 10 for i in range(30)]
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), np.uint8)
    video = write_video(tmp_path / name, times, list(noise), **options)
    assert len(times_of(video)) == 30
    read = []
    with pytest.raises(UnreadableError, match=r'it breaks off after [01]\.\d of [23]\.\d s'):
        for frame in read_video(cut(video, 0.5)):
            read.append(frame.time_s)
    assert 5 <= len(read) <= 20
    np.testing.assert_allclose(read, times[: len(read)], atol=0.002)


def test_recording_that_was_not_ended(tmp_path):
    video = cut(write_video(tmp_path / 'x.mp4', UNEVEN), 0.7)
    with pytest.raises(UnreadableError, match='an MP4 without its index'):
        next(read_video(video))


def test_damage_within_a_video(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    video = write_video(tmp_path / 'x.mp4', [i / 10 for i in range(20)], list(noise))
    content = bytearray(video.read_bytes())
    begin, end = len(content) // 2, len(content) // 2 + len(content) // 10
    content[begin:end] = bytes(end - begin)
    video.write_bytes(content)
    read = []
    with pytest.raises(UnreadableError, match='of its frames are damaged'):
        for frame in read_video(video):
            read.append(frame.number)
    assert 10 <= len(read) < 20


@pytest.mark.parametrize(
    'matrix',
    [(a, 0, 0, d) for a in (-1, 1) for d in (-1, 1)]
    + [(0, b, c, 0) for b in (-1, 1) for c in (-1, 1)],
)
def test_videos_are_turned_upright(tmp_path, matrix):
    stored = picture(0)
    video = write_video(tmp_path / 'x.mp4', [0.0], [stored], qp='0')
    content = bytearray(video.read_bytes())
    place = content.index(b'tkhd') + 44  # of the track's matrix
    a, b, c, d = matrix
    content[place : place + 36] = struct.pack(
        '>9i', a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30
    )
    video.write_bytes(content)
    (frame,) = read_video(video)
    # As the format says: a pixel at column x and row y is shown at ax + cy, bx + dy.
    y, x = np.mgrid[:48, :64]
    column, row = a * x + c * y, b * x + d * y
    expected = np.zeros((np.ptp(row) + 1, np.ptp(column) + 1, 3), int)
    expected[row - row.min(), column - column.min()] = stored
    assert frame.picture.shape == expected.shape
    assert np.abs(frame.picture[8::16, 8::16].astype(int) - expected[8::16, 8::16]).max() < 20


@pytest.mark.parametrize(
    ('name', 'codec', 'form'),
    [
        ('x.mts', 'mpeg4', 'mpegts'),
        ('x.flv', 'flv1', None),
        ('x.3gp', 'mpeg4', None),
        ('x.asf', 'wmv2', 'asf'),
        ('x.dat', 'mpeg4', 'mp4'),
        ('x.jpg', 'mpeg4', 'mp4'),
        ('12:30', 'libx264', 'matroska'),
    ],
)
def test_a_video_is_one_whatever_its_suffix(in_folder, name, codec, form):
    write_video(name, [i / 25 for i in range(8)], codec=codec, form=form)
    (source,) = find_sources([name], Path('out'))
    assert source.kind == 'video'
    assert len(times_of(source.location)) == 8


def kinds_in(folder):
    return {str(source): source.kind for source in find_sources([str(folder)], Path('out'))}


def test_what_a_folder_holds_is_taken_for_what_it_is(in_folder):
    save('in/photo.jpg', picture(0))
    save('in/IMG_0001', picture(0), format='JPEG')
    save('in/really_a_photo.mp4', picture(0), format='PNG')
    write_video('in/really_a_video.jpg', [0.0, 0.1], form='mp4')
    write_video('in/clip.MTS', [i / 25 for i in range(8)], codec='mpeg4', form='mpegts')
    for name in ('notes.txt', 'labels.json', 'Thumbs.db', 'LICENSE', 'photo.jpg.xmp'):
        Path('in', name).write_text('nothing to see')
    # These are named when they are read.
    for name in ('broken.heic', 'broken.m2ts', 'drawing.jxl'):
        Path('in', name).write_text('nothing to see')
    save('in/raw.dng', picture(0), format='TIFF')
    assert kinds_in('in') == {
        'in/IMG_0001': 'photo',
        'in/broken.heic': 'photo',
        'in/broken.m2ts': 'video',
        'in/clip.MTS': 'video',
        'in/drawing.jxl': 'photo',
        'in/photo.jpg': 'photo',
        'in/raw.dng': 'photo',
        'in/really_a_photo.mp4': 'photo',
        'in/really_a_video.jpg': 'video',
    }
    with pytest.raises(UnreadableError, match='raw photo; save it as JPEG'):
        read_photo(Path('in/raw.dng'))


def test_links_in_folders_are_followed(in_folder):
    save('in/a.png', picture(0))
    save('elsewhere/b.png', picture(0))
    save('out/labels/c.png', picture(0))
    Path('in/linked').symlink_to('../elsewhere')
    Path('elsewhere/back').symlink_to('../in')
    Path('in/round').symlink_to('round')
    Path('in/results').symlink_to('../out')
    Path('in/label.png').symlink_to('../out/labels/c.png')
    for name in ('usb_stick', 'lost.jpg', 'lost.txt'):
        Path('in', name).symlink_to(f'/media/{name}')
    assert kinds_in('in') == {
        'in/a.png': 'photo',
        'in/linked/b.png': 'photo',
        'in/lost.jpg': 'photo',
        'in/round': 'photo',
        'in/usb_stick': 'photo',
    }
    with pytest.raises(UnreadableError, match='No such file'):
        read_photo(Path('in/usb_stick'))
    with pytest.raises(UnreadableError, match='Too many levels|Symlink loop'):
        read_photo(Path('in/round'))


def test_nothing_waits_for_what_is_no_file(in_folder):
    os.mkfifo('pipe.jpg')
    (source,) = find_sources(['pipe.jpg'], Path('out'))
    with pytest.raises(UnreadableError, match='neither a file nor a folder'):
        read_photo(source.location)


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
    needs_videos()

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


@pytest.fixture
def restored_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # As on a terminal: a shell lets what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_what_was_done(run, in_folder, monkeypatch, restored_signals, sent):
    for number in range(5):
        save(f'photos/{number}.png', picture(number))
    segment = Segmenter.segment
    calls = 0

    def interrupted(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            signal.raise_signal(sent)
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


def test_without_overlays(run, in_folder):
    save('x.png', picture(1))
    save_video('v.avi', [picture(seed) for seed in range(2)], code='MJPG')
    assert run('x.png', 'v.avi', '-o', 'out', '--no-overlay')[0] == 0
    assert files_in(in_folder / 'out') == [
        'labels/v/000000.png',
        'labels/v/000001.png',
        'labels/x.png',
        'segmentation.json',
    ]
    assert [list(entry)[:4] for entry in report(in_folder / 'out')['images']] == [
        ['file', 'label', 'height', 'width'],
        ['file', 'frame', 'time_s', 'label'],
        ['file', 'frame', 'time_s', 'label'],
    ]


@pytest.fixture(scope='module')
def label(tiny_model):
    """A function that labels sources into a folder."""
    segmenter = load_segmenter(tiny_model, device='cpu')
    vocabulary = segmenter.encode_vocabulary(parse_vocabulary(WORDS))

    def label(sources, folder, **options):
        engine = FaultTolerantEngine(segmenter)
        settings = SegmentationSettings(resolution=64)
        outcome = segment_sources(
            sources, engine, vocabulary, settings, OutputSettings(folder, **options)
        )
        return outcome, engine

    return label


def test_files_that_were_fetched_are_called_what_they_were(label, tmp_path):
    """Where the copies lay is nowhere in the results, which are equal byte for byte."""
    results = []
    for scratch in (tmp_path / 'one', tmp_path / 'another'):
        save(scratch / 'a.png', picture(1))
        (scratch / 'b.png').write_bytes(b'\x89PNG\r\n\x1a\n')
        save_video(scratch / 'v.avi', [picture(seed) for seed in range(2)], code='MJPG')
        sources = [
            Source(kind, scratch / name, Path(name).stem, f's3://fleet/{name}')
            for kind, name in (('photo', 'a.png'), ('photo', 'b.png'), ('video', 'v.avi'))
        ]
        outcome, _ = label(sources, scratch / 'out', overlay=False)
        assert outcome.labelled == 3 and outcome.write_fault is None
        ((file, reason),) = outcome.unreadable
        assert file == 's3://fleet/b.png' and 's3://fleet/b.png' in reason
        files = files_in(scratch / 'out')
        results.append({name: (scratch / 'out' / name).read_bytes() for name in files})
    assert results[0] == results[1]
    content = report(tmp_path / 'one' / 'out')
    assert {entry['file'] for entry in content['images']} == {
        's3://fleet/a.png',
        's3://fleet/v.avi',
    }
    assert str(tmp_path) not in str(content)


def test_callers_learn_what_the_input_is_not_to_blame_for(label, tmp_path, monkeypatch):
    source = Source('photo', save(tmp_path / 'a.png', picture(1)), 'a')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'labels').touch()
    outcome, engine = label([source], tmp_path / 'full')
    assert isinstance(outcome.write_fault, OSError) and engine.gave_up is None
    error = torch.OutOfMemoryError('CUDA out of memory')

    def fail(*_):
        raise error

    monkeypatch.setattr(Segmenter, 'segment', fail)
    outcome, engine = label([source], tmp_path / 'out')
    assert outcome.unreadable == [(str(source), 'CUDA out of memory')]
    assert engine.gave_up is error and outcome.write_fault is None


def test_names_that_are_no_text(run, in_folder):
    for name in (b'caf\xe9.png', b'caf\xe8.png', b'caf_.png'):
        save(Path('in', os.fsdecode(name)), picture(0))
    write_video(Path('in', os.fsdecode(b'vid\xe9o.mp4')), [0.0, 0.1])
    Path('in', os.fsdecode(b'd\xe9fect.png')).touch()
    status, out, err = run('in', '-o', 'out')
    assert status == 1
    assert '5 labelled' in out
    assert err.startswith('cliptrase segment: in/d\\udce9fect.png: cannot identify')
    content = report(in_folder / 'out')
    names = ('caf_', 'caf\\udce8', 'caf\\udce9', 'vid\\udce9o', 'vid\\udce9o')
    assert [entry['file'].partition('.')[0] for entry in content['images']] == [
        f'in/{name}' for name in names
    ]
    assert [entry['file'] for entry in content['unreadable']] == ['in/d\\udce9fect.png']
    for entry in content['images']:
        assert (in_folder / 'out' / entry['label']).is_file()
        assert (in_folder / 'out' / entry['overlay']).is_file()
    assert all(str(path).isprintable() for path in Path('out').rglob('*'))
    # What is listed is found again.
    assert run('in', '-o', 'out')[0] == 1
    assert len(files_in(in_folder / 'out')) == 3 * 2 + 2 + 1 + 1


def test_long_names(run, in_folder):
    for suffix in ('.png', '.bmp'):
        save('in/' + 'é' * 125 + suffix, picture(0))
    save('in/' + 'x' * 251 + '.png', picture(0))
    assert run('in', '-o', 'out')[::2] == (0, '')
    assert len(report(in_folder / 'out')['images']) == 3
    assert len(files_in(in_folder / 'out')) == 3 * 2 + 1


def test_output_to_a_terminal_of_another_alphabet(run, in_folder, monkeypatch):
    save('é.png', picture(0))
    terminal = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    with monkeypatch.context() as patched:
        patched.setattr(sys, 'stdout', terminal)
        assert run('é.png', '-o', 'ö', words='köttbulle')[0] == 0
    terminal.flush()
    assert b'k\\xf6ttbulle' in terminal.buffer.getvalue()
    assert report(in_folder / 'ö')['images'][0]['file'] == 'é.png'


def test_outputs_that_cannot_be_written_cost_their_input_alone(run, in_folder):
    for name in ('a', 'b', 'c'):
        save(f'in/{name}.png', picture(0))
    write_video('in/v.mp4', [0.0, 0.1, 0.2])
    assert run('in', '-o', 'out')[0] == 0
    for name in ('labels/a.png', 'overlays/b.jpg', 'overlays/v.mp4'):
        Path('out', name).unlink()
        Path('out', name, 'in_the_way').mkdir(parents=True)
    status, out, err = run('in', '-o', 'out')
    assert status == 1
    assert '4 labelled' in out
    named = [line.split(':')[1].strip() for line in err.splitlines()]
    assert named == ['labels/a.png', 'overlays/b.jpg', 'overlays/v.mp4', *INPUTS]
    content = report(in_folder / 'out')
    assert [entry['file'] for entry in content['unreadable']] == named
    assert [entry['file'] for entry in content['images']] == ['in/c.png', *['in/v.mp4'] * 3]
    assert [entry.get('overlay') for entry in content['images']] == ['overlays/c.jpg', *[None] * 3]
    assert files_in(in_folder / 'out') == [
        'labels/c.png',
        *(f'labels/v/{number:06d}.png' for number in range(3)),
        'overlays/c.jpg',
        'segmentation.json',
    ]


#: Those whose outputs are in the way of that test.
INPUTS = ('in/a.png', 'in/b.png', 'in/v.mp4')


def test_frames_that_cannot_be_written_end_their_video(run, in_folder):
    save('x.png', picture(0))
    write_video('v.mp4', [i / 10 for i in range(40)])
    assert run('x.png', '-o', 'out')[0] == 0
    Path('out/labels/v').touch()
    status, out, err = run('v.mp4', 'x.png', '-o', 'out')
    assert status == 1
    assert '1 labelled' in out
    assert err.startswith('cliptrase segment: v.mp4: [Errno')
    assert err.count('\n') == 1
    assert [entry['file'] for entry in report(in_folder / 'out')['images']] == ['x.png']


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


@pytest.mark.parametrize('words', ['', 'a; a', 'word ' * 90, 'caf\udce9'])
def test_bad_vocabulary(run, in_folder, words):
    save('x.png', picture(1))
    status, _, err = run('x.png', words=words)
    assert status == 2
    assert err.count('\n') == 1
    assert files_in(in_folder) == ['x.png']


@pytest.mark.parametrize('before', ['', '\ufeff'], ids=['', 'byte order mark'])
def test_words_from_files(run, in_folder, before):
    save('x.png', picture(1))
    text = f'{before}# the site\n\n  red ball \r\nbox = crate, carton;\n # 2\nlane #2; fence\n'
    Path('words.txt').write_bytes(text.encode())
    Path('rest.txt').write_text('sky\nwall')
    assert run('x.png', '-o', 'out', '--background', 'rest.txt', words='words.txt')[0] == 0
    vocabulary = report(in_folder / 'out')['vocabulary']
    assert [(c['name'], c['synonyms']) for c in vocabulary['classes']] == [
        ('red ball', []),
        ('box', ['crate', 'carton']),
        ('lane #2', []),
        ('fence', []),
    ]
    assert vocabulary['background'] == ['sky', 'wall']


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'No such file'),
        (b'', 'has no words'),
        (b'# road\n\n ;\n', 'has no words'),
        ('caf\u00e9'.encode('latin-1'), 'no text in UTF-8'),
    ],
)
@pytest.mark.parametrize('option', ['--vocabulary', '--background'])
def test_words_from_files_that_have_none(run, in_folder, content, message, option):
    save('x.png', picture(1))
    if content is not None:
        Path('list.txt').write_bytes(content)
    # Of the same options given twice the last counts.
    status, _, err = run('x.png', option, 'list.txt')
    assert status == 2
    assert err.startswith('cliptrase segment: error: ') and err.count('\n') == 1
    assert 'list.txt' in err and message in err


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


def test_names_are_unique_however_accents_are_written():
    forms = [unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD')]
    paths = [PurePosixPath(form) for form in forms]
    first, second = unique_names(paths, [Path('/data', path) for path in paths], ['photo'] * 2)
    assert unicodedata.normalize('NFC', first) != unicodedata.normalize('NFC', second)


def test_overlays_that_cannot_be_encoded_end_their_video(run, in_folder, monkeypatch):
    write_video('v.mp4', [i / 10 for i in range(40)])
    encode = OverlayVideo.write
    written = []

    def full_disk(self, overlay, time_s):
        if len(written) == 3:
            raise OSError(28, 'No space left on device')
        written.append(time_s)
        encode(self, overlay, time_s)

    monkeypatch.setattr(OverlayVideo, 'write', full_disk)
    status, _, err = run('v.mp4', '-o', 'out')
    assert status == 1
    assert err == 'cliptrase segment: v.mp4: [Errno 28] No space left on device\n'
    labelled = report(in_folder / 'out')['images']
    assert 3 <= len(labelled) < 40
    assert times_of(in_folder / 'out/overlays/v.mp4') == pytest.approx([0, 0.1, 0.2], abs=0.002)


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
