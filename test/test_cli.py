"""The `cliptrase` command as a user meets it."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from reference_weights import MODEL_CONFIG, outlier_clip, reference_clip
from tiny_clip import add_architecture

from cliptrase_ros.cli import main
from cliptrase_ros.segmentation.model.label_table import label_table
from cliptrase_ros.segmentation.model.weights import load_model
from cliptrase_ros.segmentation.run.pipeline import trace
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS

ROOT = Path(__file__).resolve().parent.parent
FOREGROUND = ('red ball', 'blue box', 'dog')
BACKGROUND = ('wall', 'floor')


@pytest.fixture(scope='module')
def checkpoint(tiny_state, tmp_path_factory):
    path = tmp_path_factory.mktemp('checkpoint') / 'tiny.safetensors'
    safetensors.torch.save_file(tiny_state, path)
    return str(path)


@pytest.fixture(scope='module')
def recorded(tiny_architecture, checkpoint):
    """Arrays of a recording that the engine itself made with the tiny model."""
    from cliptrase_ros.segmentation.model.text import TextEncoder

    loaded = load_model(tiny_architecture, checkpoint)
    features = TextEncoder(loaded.model, loaded.tokenizer).encode([*FOREGROUND, *BACKGROUND])
    return record(loaded, features)


def record(loaded, features):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    segmenter = Segmenter(loaded)
    scale = float(loaded.model.logit_scale.exp())
    table = label_table(features, range(len(features)), range(len(FOREGROUND)), 255, 255, scale)
    pixels = segmenter.pipeline.normalise(torch.from_numpy(image).permute(2, 0, 1)[None], 'centre')
    with torch.inference_mode():
        result = trace(segmenter.pipeline.backbone, pixels, table, PRESETS['paper'])
    return {
        'input': image,
        'text_features': features.numpy(),
        'foreground': np.array(FOREGROUND),
        'background': np.array(BACKGROUND),
        'mode': np.array('background'),
        'correlation': result.correlation[0].numpy(),
        'patch_logits': result.patch_logits[0].numpy(),
        'clusters': result.clusters[0].numpy().astype(np.int16),
        'raw_labels': result.raw_labels[0].numpy().astype(np.uint8),
        'labels': result.labels[0].numpy().astype(np.uint8),
    }


def verify(capsys, architecture, checkpoint, *files):
    arguments = ['verify', '--model', architecture, '--checkpoint', checkpoint, *map(str, files)]
    status = main(arguments)
    return status, *capsys.readouterr()


def test_verify_equal(capsys, tiny_architecture, checkpoint, recorded, tmp_path):
    np.savez(tmp_path / 'one.npz', **recorded)
    np.savez_compressed(tmp_path / 'two.npz', **recorded)
    status, out, err = verify(
        capsys, tiny_architecture, checkpoint, tmp_path / 'one.npz', tmp_path / 'two.npz'
    )
    assert (status, err) == (0, '')
    assert out.count('100 %') == 6
    assert out.endswith('2 of 2 equal\n')


def test_verify_on_every_device(capsys, device, tmp_path):
    add_architecture(tmp_path, 'reference', MODEL_CONFIG)
    checkpoint = tmp_path / 'reference.safetensors'
    safetensors.torch.save_file(reference_clip().state_dict(), checkpoint)
    files = sorted((ROOT / 'test' / 'golden').glob('small_*.npz'))
    assert len(files) == 3
    for precision, verdict in (
        ('float32', '3 of 3 equal'),
        ('float16', '3 of 3 with 99.5% of their labels equal'),
    ):
        arguments = ['--device', str(device), '--precision', precision]
        status, out, err = verify(capsys, 'reference', str(checkpoint), *files, *arguments)
        assert (status, err) == (0, ''), out
        assert out.startswith(f'{precision} on ')
        assert verdict in out.splitlines()[-1]


@pytest.fixture(scope='module')
def outliers(tmp_path_factory):
    folder = tmp_path_factory.mktemp('outliers')
    add_architecture(folder, 'reference', MODEL_CONFIG)
    safetensors.torch.save_file(outlier_clip().state_dict(), folder / 'outliers.safetensors')
    return str(folder / 'outliers.safetensors')


def test_verify_both_methods(capsys, outliers):
    """Recordings of SC-CLIP in a table of their own; that of CLIPtrase has other weights."""
    golden = ROOT / 'test' / 'golden'
    files = [golden / name for name in ('sc_whole.npz', 'small_224_background.npz', 'sc_pamr.npz')]
    status, out, err = verify(capsys, 'reference', outliers, *files)
    assert (status, err) == (1, '')
    lines = out.splitlines()
    assert [line.split()[0] for line in lines if '.npz' in line] == [
        'small_224_background.npz',
        'sc_whole.npz',
        'sc_pamr.npz',
    ]
    assert '0 of 1 equal' in lines
    assert lines[-1] == '2 of 2 equal'

    files, half = [golden / 'sc_whole.npz'], ['--precision', 'float16']
    status, out, err = verify(capsys, 'reference', outliers, *files, *half)
    assert (status, err) == (0, '')
    assert out.endswith('1 of 1 with 99.0% of their labels equal\n')


def test_verify_names_the_stage_that_differs(capsys, outliers, tmp_path):
    arrays = dict(np.load(ROOT / 'test' / 'golden' / 'sc_whole.npz'))
    arrays['repaired'] = ~arrays['repaired']
    np.savez(tmp_path / 'one.npz', **arrays)
    status, out, _ = verify(capsys, 'reference', outliers, tmp_path / 'one.npz')
    assert status == 1
    assert out.splitlines()[-2].split()[-1] == 'repaired'
    assert out.endswith('0 of 1 equal\n')


def test_verify_wrong_device(capsys, tiny_architecture, checkpoint, tmp_path):
    for device, message in (('gpu', "device is 'gpu'"), ('cuda:99', 'CUDA devices')):
        status, out, err = verify(
            capsys, tiny_architecture, checkpoint, tmp_path / 'any.npz', '--device', device
        )
        assert (status, out) == (2, '')
        assert message in err and err.count('\n') == 1


@pytest.mark.parametrize('name', ['clusters', 'raw_labels', 'labels'])
def test_verify_one_entry_differs(capsys, tiny_architecture, checkpoint, recorded, tmp_path, name):
    array = recorded[name].copy()
    array.flat[-1] += 1
    np.savez(tmp_path / 'good.npz', **recorded)
    np.savez(tmp_path / 'bad.npz', **{**recorded, name: array})
    status, out, _ = verify(
        capsys, tiny_architecture, checkpoint, tmp_path / 'good.npz', tmp_path / 'bad.npz'
    )
    assert status == 1
    assert out.count('100 %') == 5
    assert '99.99' in out or '98.4' in out
    assert out.endswith('1 of 2 equal\n')


def test_verify_tells_a_tie_from_an_error(
    capsys, tiny_architecture, checkpoint, recorded, tmp_path
):
    """Two phrases with equal features: every pixel of one could as well be the other's."""
    features = torch.from_numpy(recorded['text_features'])[[0, 0, 2, 3, 4]]
    twins = record(load_model(tiny_architecture, checkpoint), features)
    pixel = tuple(np.argwhere(twins['raw_labels'] == 0)[0])
    for other, ending in (
        (1, '1 of 1 equal, but for 1 pixel where two classes tie'),
        (2, '0 of 1 equal'),
    ):
        twins['raw_labels'][pixel] = other
        np.savez(tmp_path / 'one.npz', **twins)
        status, out, _ = verify(capsys, tiny_architecture, checkpoint, tmp_path / 'one.npz')
        assert status == (other != 1)
        assert out.endswith(f'{ending}\n')


def test_verify_takes_no_unknown_label_for_a_tie(
    capsys, tiny_architecture, checkpoint, recorded, tmp_path
):
    raw_labels = recorded['raw_labels'].copy()
    raw_labels[tuple(np.argwhere(raw_labels == len(FOREGROUND))[0])] = len(FOREGROUND) + 1
    np.savez(tmp_path / 'one.npz', **{**recorded, 'raw_labels': raw_labels})
    status, out, _ = verify(capsys, tiny_architecture, checkpoint, tmp_path / 'one.npz')
    assert status == 1
    assert out.endswith('0 of 1 equal\n')


def test_verify_other_weights(capsys, tiny_architecture, tiny_state, recorded, tmp_path):
    state = {
        name: tensor if 'ln_' in name else tensor.flip(0) for name, tensor in tiny_state.items()
    }
    state['logit_scale'] = tiny_state['logit_scale']
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, tmp_path / 'other.safetensors')
    np.savez(tmp_path / 'one.npz', **recorded)
    status, out, _ = verify(
        capsys, tiny_architecture, str(tmp_path / 'other.safetensors'), tmp_path / 'one.npz'
    )
    assert status == 1
    assert out.endswith('0 of 1 equal\n')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'clusters': None}, 'clusters is missing'),
        ({'labels': np.zeros((4, 4), np.float32)}, 'labels is float32 of shape (4, 4)'),
        ({'labels': np.zeros((4, 4), np.uint8)}, 'contradicts itself; see its labels'),
        ({'input': np.zeros((128, 128), np.uint8)}, 'input is uint8 of shape (128, 128)'),
        ({'mode': np.array('fancy')}, 'contradicts itself; see its mode'),
        ({'foreground': np.array(['dog'])}, 'see its text_features, patch_logits'),
        ({'text_features': np.zeros((5, 7), np.float32)}, 'another architecture'),
        ({'labels': np.array([{}, {}])}, 'not an .npz file of plain arrays'),
    ],
)
def test_verify_wrong_arrays(
    capsys, tiny_architecture, checkpoint, recorded, tmp_path, changes, message
):
    arrays = {name: array for name, array in {**recorded, **changes}.items() if array is not None}
    np.savez(tmp_path / 'wrong.npz', **arrays)
    status, _, err = verify(capsys, tiny_architecture, checkpoint, tmp_path / 'wrong.npz')
    assert status == 2
    assert message in err
    assert 'wrong.npz' in err
    assert err.count('\n') == 1


def test_verify_wrong_files(capsys, tiny_architecture, checkpoint, tmp_path):
    (tmp_path / 'text.npz').write_text('no arrays')
    for checkpoint_path, path, message in (
        (checkpoint, 'missing.npz', 'missing.npz does not exist'),
        (checkpoint, tmp_path, 'not a file'),
        (checkpoint, tmp_path / 'text.npz', 'not an .npz file'),
        ('missing.pt', tmp_path / 'text.npz', 'checkpoint missing.pt does not exist'),
    ):
        status, out, err = verify(capsys, tiny_architecture, checkpoint_path, path)
        assert (status, out) == (2, '')
        assert message in err
        assert err.startswith('cliptrase verify: error: ')
        assert err.count('\n') == 1


def test_verify_wrong_model(capsys, tiny_architecture, checkpoint, recorded, tmp_path):
    np.savez(tmp_path / 'one.npz', **recorded)
    for model, message in (
        ('tiny-VT', 'Did you mean tiny-ViT'),
        ('ViT-S-16', 'another architecture than ViT-S-16'),
        ('toybox', 'brings its own weights'),
    ):
        status, _, err = verify(capsys, model, checkpoint, tmp_path / 'one.npz')
        assert status == 2
        assert message in err


def test_verify_published_method(capsys, shared, tmp_path):
    """The recorded outputs of the published code; one file of each kind."""
    sys.path.insert(0, str(shared / 'goldens'))
    try:
        from golden_weights import golden_tensor
    finally:
        sys.path.pop(0)
    # For names and shapes of the weights alone.
    with torch.device('meta'):
        model = open_clip.CLIP(**open_clip.get_model_config('ViT-B-16-quickgelu'))
    state = {
        name: torch.from_numpy(np.asarray(golden_tensor(name, tuple(tensor.shape)), np.float32))
        for name, tensor in model.state_dict().items()
    }
    safetensors.torch.save_file(state, tmp_path / 'golden.safetensors')
    files = [
        shared / 'goldens' / f'{name}.npz'
        for name in (
            '000000000009_224_background',
            '000000000025_224_image_prior',
            'noise_224_plain',
            '000000000030_336_plain',
        )
    ]
    status, out, err = verify(
        capsys, 'ViT-B-16-quickgelu', str(tmp_path / 'golden.safetensors'), *files
    )
    assert (status, err) == (0, '')
    assert out.endswith(f'{len(files)} of {len(files)} equal\n')


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, '-m', 'cliptrase_ros.cli', *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize('command', ['top', 'demo'])
def test_ros_that_cannot_be_imported_is_named(tmp_path, command):
    (tmp_path / 'rclpy.py').write_text('raise ImportError("built for another Python")')
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')])
    result = run_command(command, PYTHONPATH=path)
    assert (result.returncode, result.stdout) == (2, '')
    assert 'no ROS 2 in this Python (built for another Python)' in result.stderr
    assert result.stderr.count('\n') == 1


def test_version_is_that_of_the_package():
    version = ElementTree.parse(ROOT / 'package.xml').getroot().findtext('version')
    done = run_command('--version')
    assert (done.returncode, done.stdout) == (0, f'cliptrase {version}\n')


def test_help_names_the_commands():
    done = run_command('--help')
    assert done.returncode == 0
    assert 'verify' in done.stdout
    assert 'demo' in done.stdout


@pytest.mark.parametrize('arguments', [[], ['fly'], ['verify'], ['verify', 'x.npz']])
def test_wrong_usage(arguments):
    done = run_command(*arguments)
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
