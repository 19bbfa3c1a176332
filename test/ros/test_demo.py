"""The demo as `make demo` runs it, with shorter phases."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from cliptrase_ros.ros.executable import own_domain
from cliptrase_ros.segmentation.model.weights import select_device

MODULE = 'import sys; from cliptrase_ros.cli import main; sys.exit(main())'


@pytest.fixture(scope='module')
def demo_output(tmp_path_factory):
    folder = tmp_path_factory.mktemp('demo')
    done = subprocess.run(
        [sys.executable, '-c', MODULE, 'demo', '--output', str(folder), '--phase', '2'],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f'export ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}\n' in done.stderr
    return folder


def test_demo_has_a_domain_of_its_own_unless_one_is_set(monkeypatch):
    # Put back what `own_domain` writes.
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    assert own_domain() == '7'
    monkeypatch.delenv('ROS_DOMAIN_ID')
    assert 1 <= int(own_domain()) <= 100
    assert own_domain() == os.environ['ROS_DOMAIN_ID']


def test_report_tells_of_both_cameras_and_both_vocabularies(demo_output):
    report = json.loads((demo_output / 'report.json').read_text())
    assert report['model'] == 'toybox'
    assert report['device'] == str(select_device('auto'))
    for camera in ('front', 'rear'):
        counts = report['cameras'][camera]
        assert counts['frames_in'] > 0 and counts['frames_out'] > 0
        assert counts['label_rate_hz'] > 0
    assert 0 < report['latency_ms_p50'] <= report['latency_ms_p95']
    assert report['vocabulary_switch_s'] > 0
    # The words are those of the rooms: far above what guessing among them gives.
    assert min(report['miou_before'], report['miou_after']) > 0.3


@pytest.mark.parametrize('camera', ['front', 'rear'])
@pytest.mark.parametrize('name', ['before', 'after'])
def test_pictures_show_image_overlay_and_truth(demo_output, name, camera):
    with Image.open(demo_output / f'{name}_{camera}.png') as picture:
        assert picture.size == (3 * 320, 240)
        image, overlay, truth = (
            picture.crop((x, 0, x + 320, 240)).getcolors(320 * 240) for x in (0, 320, 640)
        )
    assert image != overlay
    assert 1 < len(truth) < 20 < len(image)


def test_animation_has_frames_of_both_vocabularies(demo_output):
    with Image.open(demo_output / 'animation.gif') as animation:
        words = []
        for frame in (0, animation.n_frames - 1):
            animation.seek(frame)
            words.append(animation.convert('L').crop((0, 0, animation.width, 24)).tobytes())
    assert words[0] != words[1]
