"""`cliptrase explain` and the arrays behind its pictures."""

import numpy as np
import pytest
from PIL import Image

from cliptrase_ros.cli import main
from cliptrase_ros.explain import explain, patch_at
from cliptrase_ros.segmentation.model.preprocessing import centre_crop_framing, whole_frame_framing
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings


@pytest.fixture(scope='module')
def picture():
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    return blocks.repeat(24, 0).repeat(24, 1)


@pytest.fixture(scope='module')
def file(picture, tmp_path_factory):
    path = tmp_path_factory.mktemp('picture') / 'picture.png'
    Image.fromarray(picture).save(path)
    return path


@pytest.mark.parametrize(
    ('at', 'framing', 'patch'),
    [
        ((0, 0), whole_frame_framing((96, 144), 64, 16), (0, 0)),
        ((143, 95), whole_frame_framing((96, 144), 64, 16), (3, 5)),
        ((24, 0), centre_crop_framing((96, 144), 64, 16), (0, 0)),
        ((119, 95), centre_crop_framing((96, 144), 64, 16), (3, 3)),
    ],
)
def test_patch_of_a_pixel(at, framing, patch):
    assert patch_at(at, framing, 16) == patch


def test_pixels_that_the_network_does_not_see():
    framing = centre_crop_framing((96, 144), 64, 16)
    for x in (23, 120):
        with pytest.raises(ValueError, match='outside the square'):
            patch_at((x, 50), framing, 16)
    with pytest.raises(ValueError, match='not in the image of 144 x 96'):
        patch_at((144, 0), framing, 16)


def test_stages_fit_together(picture, tiny_model, device):
    segmenter = load_segmenter(tiny_model, device=str(device), precision='float32')
    result = explain(segmenter, picture, (70, 50), SegmentationSettings(resolution=64))
    assert result.crop.shape == (64, 96, 3)
    assert result.patch == (2, 2)
    for attention in (result.cls_attention, result.attention):
        assert attention.shape == (4, 6) and attention.min() > 0 and 0.5 < attention.sum() < 1
    assert result.recovered[result.patch] == pytest.approx(1, abs=1e-5)
    # The same, what [CLS] correlates with, is taken from what every patch correlates with.
    other = explain(segmenter, picture, (0, 0), SegmentationSettings(resolution=64))
    left = (result.denoised > 0) & (other.denoised > 0)
    assert left.any() and min(result.denoised.min(), other.denoised.min()) >= 0
    taken = [stages.recovered[left] - stages.denoised[left] for stages in (result, other)]
    np.testing.assert_allclose(*taken, atol=1e-5)
    assert (result.regions is None) == (result.clusters.max() < 0)
    if result.regions is not None:
        assert result.regions.shape == (64, 96)
        assert result.regions.max() <= result.clusters.max()


@pytest.mark.parametrize('words', [(), ('-v', 'red ball; blue box')])
def test_the_command_draws(words, capsys, file, tiny_model, tmp_path):
    path = tmp_path / 'why.png'
    arguments = ['--at', '70,50', '-o', str(path), '--model', tiny_model, '--resolution', '64']
    status = main(['explain', str(file), *arguments, *words])
    assert (status, capsys.readouterr().err) == (0, '')
    width, height = Image.open(path).size
    # A column more for the labels.
    assert (width > 1200) == bool(words) and height > 500


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--at', '500,50'], 'not in the image'),
        (['--at', '0,50', '--preset', 'paper'], 'outside the square'),
        (['--at', '1,1', '--preset', 'none'], 'preset'),
        (['--at', '1,1', '--preset', 'sc_clip'], 'choose one of paper, robot, plus'),
        (['--at', '1,1', '-o', 'nowhere/why.png'], 'could not be written'),
    ],
)
def test_errors_are_one_line(arguments, said, capsys, file, tiny_model):
    status = main(['explain', str(file), '--model', tiny_model, '--resolution', '64', *arguments])
    err = capsys.readouterr().err
    assert status == 2 and said in err and err.count('\n') == 1


def test_a_file_that_is_no_picture(capsys, tmp_path):
    path = tmp_path / 'text.png'
    path.write_text('no picture')
    assert main(['explain', str(path), '--at', '1,1']) == 2
    assert 'text.png: ' in capsys.readouterr().err
