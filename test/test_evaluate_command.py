"""`cliptrase evaluate` as a user meets it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cliptrase_ros.cli import main
from cliptrase_ros.evaluation import measure


def evaluate(capsys, *arguments):
    status = main(['evaluate', *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path):
    """A `folder` dataset of two pictures: one half is one thing, the other another."""
    root = tmp_path / 'mine'
    (root / 'images').mkdir(parents=True)
    (root / 'labels').mkdir()
    (root / 'classes.txt').write_text('0 unlabelled\n1 red ball\n2 carpet = rug\n')
    for name, color in (('a', (200, 20, 20)), ('b', (20, 20, 200))):
        Image.new('RGB', (96, 64), color).save(root / 'images' / f'{name}.jpg')
        values = np.repeat(np.array([[1, 2]], np.uint8), 48, 1).repeat(64, 0)
        Image.fromarray(values).save(root / 'labels' / f'{name}.png')
    return root


def test_ablation_on_toybox(capsys, tiny_model, tmp_path):
    arguments = ['toybox', '--ablation', '--model', tiny_model, '--limit', 2]
    status, out, err = evaluate(capsys, *arguments, '--resolution', 64, '-o', tmp_path / 'out')
    assert (status, err) == (0, '')
    steps = ['plain CLIP', '+ recovery', '+ clustering', '+ denoising']
    assert [step for line in out.splitlines() for step in steps if step in line] == steps
    (path,) = (tmp_path / 'out').iterdir()
    report = json.loads(path.read_text())
    assert list(report['methods']) == steps
    assert report['images'] == 2 and report['published'] is None
    pixels = {
        sum(entry['true_pixels'] for entry in method['classes'])
        for method in report['methods'].values()
    }
    assert pixels == {2 * 64 * 64}


def test_whole_images_at_the_labels_size(capsys, tiny_model, folder, tmp_path):
    status, out, err = evaluate(
        capsys, 'folder', '--root', folder, '--protocol', 'whole', '--model', tiny_model,
        '--resolution', 64, '-o', tmp_path / 'out', '--batch', 2,
    )  # fmt: skip
    assert (status, err) == (0, '')
    report = json.loads((tmp_path / 'out' / 'folder-whole-robot-64.json').read_text())
    (method,) = report['methods'].values()
    assert [entry['name'] for entry in method['classes']] == ['red ball', 'carpet']
    assert [entry['true_pixels'] for entry in method['classes']] == [2 * 64 * 48] * 2
    assert f'{method["mean_iou"]:.2f}' in out


def test_windows_and_refinement_are_measured_apart(capsys, tiny_model, folder, tmp_path):
    options = ['--resolution', 96, '--window', 64, '--stride', 32, '--refinement', 'edges']
    status, out, err = evaluate(
        capsys, 'folder', '--root', folder, '--protocol', 'whole', '--model', tiny_model,
        *options, '-o', tmp_path / 'out',
    )  # fmt: skip
    assert (status, err) == (0, '')
    path = tmp_path / 'out' / 'folder-whole-robot-96-edges-window-64-32.json'
    report = json.loads(path.read_text())
    assert (report['window'], report['stride'], report['refinement']) == (64, 32, 'edges')
    assert report['images'] == 2


def test_a_run_of_several_goes_on_behind_those_that_are_done(
    capsys, tiny_model, tmp_path, monkeypatch
):
    arguments = ['toybox', '--model', tiny_model, '--limit', 2, '--resolution', 64, 96]
    labelled = []

    def label(segmenter, images, table, settings, method):
        if settings.resolution == 96 and len(labelled) == 3:
            raise KeyboardInterrupt
        labelled.append(settings.resolution)
        return whole(segmenter, images, table, settings, method)

    whole = measure.label_by_method
    monkeypatch.setattr(measure, 'label_by_method', label)
    assert evaluate(capsys, *arguments, '-o', tmp_path / 'out')[0] == 130
    assert labelled == [64, 64, 96]
    labelled.append(None)  # the next call is not interrupted
    status, out, err = evaluate(capsys, *arguments, '-o', tmp_path / 'out')
    assert status == 0 and labelled[4:] == [96]
    assert [path.suffix for path in (tmp_path / 'out').iterdir()] == ['.json', '.json']


def test_unreadable_images_are_told_and_the_others_counted(capsys, tiny_model, folder, tmp_path):
    (folder / 'images' / 'a.jpg').write_bytes(b'no picture')
    Image.new('RGB', (165, 5)).save(folder / 'images' / 'c.jpg')
    Image.new('L', (165, 5)).save(folder / 'labels' / 'c.png')
    arguments = ['folder', '--root', folder, '--model', tiny_model, '--resolution', 64]
    arguments += ['--protocol', 'whole']
    status, out, err = evaluate(capsys, *arguments, '-o', tmp_path / 'out')
    assert status == 1
    assert 'a.jpg cannot be read' in err and 'c.jpg: an image of 165 x 5 pixels' in err
    report = json.loads((tmp_path / 'out' / 'folder-whole-robot-64.json').read_text())
    assert report['images'] == 1 and list(report['unreadable']) == ['a', 'c']


def test_a_run_does_not_go_on_with_another_folder(
    capsys, tiny_model, folder, tmp_path, monkeypatch
):
    other = shutil.copytree(folder, tmp_path / 'other')
    options = ['--model', tiny_model, '--resolution', 64, '-o', tmp_path / 'out']

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(measure, 'label_by_method', interrupt)
        assert evaluate(capsys, 'folder', '--root', folder, *options)[0] == 130
    status, out, err = evaluate(capsys, 'folder', '--root', other, *options)
    assert (status, out) == (2, '') and 'differed in root' in err
    monkeypatch.chdir(folder)
    assert evaluate(capsys, 'folder', '--root', '.', *options)[0] == 0


def test_results_of_another_folder_are_kept(capsys, tiny_model, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / 'other')
    options = ['--model', tiny_model, '--resolution', 64, '-o', tmp_path / 'out']
    assert evaluate(capsys, 'folder', '--root', folder, *options)[0] == 0
    (path,) = (tmp_path / 'out').iterdir()
    first = path.read_bytes()
    status, out, err = evaluate(capsys, 'folder', '--root', other, *options)
    assert (status, out) == (2, '') and 'differed in root' in err
    assert path.read_bytes() == first
    assert evaluate(capsys, 'folder', '--root', folder, *options)[0] == 0


def test_results_of_other_weights_and_of_all_images_are_kept(capsys, tiny_model, folder, tmp_path):
    options = ['folder', '--root', folder, '--resolution', 64, '-o', tmp_path / 'out', '--model']
    assert evaluate(capsys, *options, tiny_model)[0] == 0
    (path,) = (tmp_path / 'out').iterdir()
    first = path.read_bytes()
    # A folder of the same name, with other weights.
    other = tmp_path / 'other' / Path(tiny_model).name
    shutil.copytree(tiny_model.removeprefix('local-dir:'), other)
    weights = load_file(other / 'open_clip_model.safetensors')
    weights['ln_final.bias'] = weights['ln_final.bias'] + 1
    save_file(weights, other / 'open_clip_model.safetensors')
    for changed, key in (
        ([f'local-dir:{other}'], 'weights'),
        ([tiny_model, '--limit', 1], 'samples'),
        ([tiny_model, '--precision', 'bfloat16'], 'precision'),
    ):
        status, out, err = evaluate(capsys, *options, *changed)
        assert (status, out) == (2, '') and f'differed in {key}' in err.replace('weights, pr', 'pr')
    assert path.read_bytes() == first


def test_what_cannot_be_measured_does_not_cost_the_rest(capsys, tiny_model, folder, tmp_path):
    options = ['folder', '--root', folder, '--model', tiny_model, '-o', tmp_path / 'out']
    taken = tmp_path / 'out' / 'folder-paper-paper-64.json'
    taken.parent.mkdir()
    taken.write_text('{}')
    status, out, err = evaluate(capsys, *options, '--resolution', 64, 96)
    assert status == 1 and len(out.splitlines()) == 3 and 'folder     96' in out
    assert str(taken) in err and len(err.splitlines()) == 1
    assert sorted(path.name for path in taken.parent.iterdir()) == [
        taken.name,
        'folder-paper-paper-96.json',
    ]


def test_names_that_cannot_be_encoded_are_counted(capfd, tiny_model, folder, tmp_path):
    name = os.fsdecode(b'caf\xe9')
    for path in (folder / 'images' / 'a.jpg', folder / 'labels' / 'a.png'):
        path.rename(path.with_stem(name))
    (folder / 'images' / 'b.jpg').rename(folder / 'images' / f'{name}2.jpg')
    (folder / 'labels' / 'b.png').rename(folder / 'labels' / f'{name}2.png')
    (folder / 'images' / f'{name}2.jpg').write_bytes(b'no picture')
    options = ['folder', '--root', folder, '--model', tiny_model, '--resolution', 64]
    status, out, err = evaluate(capfd, *options, '-o', tmp_path / 'out')
    assert status == 1 and 'folder     64' in out and 'caf' in err
    report = json.loads((tmp_path / 'out' / 'folder-paper-paper-64.json').read_text())
    assert report['images'] == 1 and list(report['unreadable']) == [f'{name}2']


def test_results_of_another_sam_are_kept(capsys, tiny_model, tiny_sam, folder, tmp_path):
    options = ['folder', '--root', folder, '--resolution', 64, '--model', tiny_model]
    options += ['--limit', 1, '-o', tmp_path / 'out', '--refinement', 'sam', '--sam-model']
    assert evaluate(capsys, *options, tiny_sam)[0] == 0
    path = tmp_path / 'out' / 'folder-paper-paper-64-sam.json'
    first = path.read_bytes()
    report = json.loads(first)
    assert report['sam_model'] == tiny_sam.name and len(report['sam_weights']) == 64
    # A folder of the same name, with other weights.
    other = shutil.copytree(tiny_sam, tmp_path / 'other' / tiny_sam.name)
    weights = load_file(other / 'model.safetensors')
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, other / 'model.safetensors', {'format': 'pt'})
    status, out, err = evaluate(capsys, *options, other)
    assert (status, out) == (2, '') and 'differed in sam_weights' in err
    assert path.read_bytes() == first
    # It does not count where it is not used.
    unused = ['none' if option == 'sam' else option for option in options]
    assert evaluate(capsys, *unused, other)[0] == 0
    plain = json.loads((tmp_path / 'out' / 'folder-paper-paper-64.json').read_text())
    assert plain['sam_model'] is None and plain['sam_weights'] is None


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['voc20'], '--root'),
        (['voc20', '--root', '.'], 'looked for'),
        (['toybox', '--preset', 'none'], 'preset'),
        (['toybox', '--preset', 'plus', '--ablation'], 'choose preset paper or robot'),
        (['toybox', '--preset', 'sc_clip', '--ablation'], 'these are sc_clip and none'),
        (['toybox', '--refinement', 'pamr', '--ablation'], 'these are paper and pamr'),
        (['eight', '--preset', 'sc_clip'], 'voc21 has to be on disk'),
        (['toybox', '--resolution', '4'], 'resolution'),
        (['toybox', '--stride', '112'], 'there are none: give a --window'),
        (['toybox', '--preset', 'sc_clip', '--window', '0', '--stride', '300'], 'there are none'),
        (['toybox', '--window', '64', '--stride', '65'], 'the window, which is 64'),
        (['toybox', '--stride', '2000'], '0 to 1024 pixels'),
    ],
)
def test_errors_are_one_line_before_anything_is_loaded(capsys, arguments, said, tmp_path):
    status, out, err = evaluate(capsys, *arguments, '-o', tmp_path / 'out')
    assert (status, out) == (2, '')
    assert err.startswith('cliptrase evaluate: error:') and said in err


def test_photos_of_coco(capsys, shared, tiny_model, tmp_path):
    """Real photos with real label images, of which a few classes count."""
    for name in ('images', 'labels'):
        (tmp_path / name).symlink_to(shared / 'photos' / name)
    ids = {'person': 1, 'bottle': 44, 'tree-merged': 184, 'grass-merged': 193}
    lines = [f'{value}\t{name}\n' for name, value in ids.items()]
    (tmp_path / 'classes.txt').write_text(''.join(lines))
    status, out, err = evaluate(
        capsys, 'folder', '--root', tmp_path, '--protocol', 'whole', '--model', tiny_model,
        '--resolution', 64, '-o', tmp_path / 'out',
    )  # fmt: skip
    assert (status, err) == (0, '')
    report = json.loads((tmp_path / 'out' / 'folder-whole-robot-64.json').read_text())
    (method,) = report['methods'].values()
    files = sorted((shared / 'photos' / 'labels').iterdir())
    values = np.concatenate([np.asarray(Image.open(file)).ravel() for file in files])
    assert report['images'] == len(files) == 20
    assert {entry['name']: entry['true_pixels'] for entry in method['classes']} == {
        name: int((values == value).sum()) for name, value in ids.items()
    }
