"""Weights from everywhere they may come from, and from files that are not what they seem."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_clip import TINY_CONFIG

from cliptrase_ros.segmentation.model.checkpoint import CheckpointError, read_state_dict
from cliptrase_ros.segmentation.model.weights import ModelError, load_model, select_device

DEFAULT = 'ViT-B-16-quickgelu'


def assert_same(model, state):
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), name


def save(state, path):
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pt', 'name says nothing'])
def test_local_file(tiny_architecture, tiny_state, tmp_path, name):
    path = tmp_path / name
    loaded = load_model(tiny_architecture, save(tiny_state, path))
    assert_same(loaded.model, tiny_state)
    assert loaded.name == f'{tiny_architecture} ({name})'
    assert not loaded.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in loaded.model.parameters())
    assert loaded.tokenizer(['a red ball']).shape == (1, 77)
    assert loaded.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert loaded.std == pytest.approx((0.269, 0.261, 0.276), abs=1e-3)


def test_kind_of_file_is_told_by_content(tiny_architecture, tiny_state, tmp_path):
    path = tmp_path / 'weights.pt'
    safetensors.torch.save_file(tiny_state, path)
    assert_same(load_model(tiny_architecture, str(path)).model, tiny_state)


def test_half_precision_becomes_float32(tiny_architecture, tiny_state, tmp_path):
    half = {name: tensor.half() for name, tensor in tiny_state.items()}
    loaded = load_model(tiny_architecture, save(half, tmp_path / 'half.safetensors'))
    assert loaded.model.visual.conv1.weight.dtype == torch.float32
    assert_same(loaded.model, half)


def test_training_checkpoint(tiny_architecture, tiny_state, tmp_path):
    checkpoint = {
        'epoch': 32,
        'name': 'a run',
        'state_dict': {f'module.{name}': tensor for name, tensor in tiny_state.items()},
    }
    loaded = load_model(tiny_architecture, save(checkpoint, tmp_path / 'epoch_32.pt'))
    assert_same(loaded.model, tiny_state)


def test_settings_and_scalar_scale_of_openai_files(tiny_architecture, tiny_state, tmp_path):
    state = dict(tiny_state, input_resolution=torch.tensor(64), context_length=torch.tensor(77))
    state['vocab_size'] = torch.tensor(49408)
    state['logit_scale'] = tiny_state['logit_scale'].reshape(1)
    assert_same(load_model(tiny_architecture, save(state, tmp_path / 'w.pt')).model, tiny_state)


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('how', ['torch', 'torch_in_state_dict', 'torch_legacy', 'pickle'])
def test_pickle_is_not_run(tiny_architecture, tiny_state, tmp_path, how):
    victim, path = tmp_path / 'created', tmp_path / 'weights.pt'
    payload = Payload(victim)
    if how == 'torch':
        torch.save(payload, path)
    elif how == 'torch_in_state_dict':
        torch.save({**tiny_state, 'extra': payload}, path)
    elif how == 'torch_legacy':
        torch.save(payload, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(payload))
    with pytest.raises(ModelError, match='weights.pt') as caught:
        load_model(tiny_architecture, str(path))
    assert not victim.exists()
    # What PyTorch would advise here is the very thing that must not be done.
    assert 'weights_only' not in str(caught.value)
    # The payload is one that works.
    if how == 'pickle':
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert victim.exists()


def test_torchscript_is_not_run(tiny_architecture, tmp_path):
    path = tmp_path / 'ViT-B-16.pt'
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(ModelError, match='TorchScript'):
        load_model(tiny_architecture, str(path))


def damaged_files(state, folder):
    whole = {}
    for name in ('whole.safetensors', 'whole.pt'):
        save(state, folder / name)
        whole[name] = (folder / name).read_bytes()
    yield 'empty.pt', b''
    yield 'text.pt', b'<html>not found</html>'
    yield 'noise.safetensors', bytes(range(256)) * 64
    yield 'json_start.safetensors', b'\x10\0\0\0\0\0\0\0{"no json at all'
    for name, data in whole.items():
        suffix = Path(name).suffix
        yield f'start{suffix}', data[:1000]
        yield f'cut{suffix}', data[: len(data) // 2]
        yield f'one_less{suffix}', data[:-1]


def test_damaged_file(tiny_architecture, tiny_state, tmp_path):
    tried = 0
    for name, data in damaged_files(tiny_state, tmp_path):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ModelError, match=re.escape(str(path))) as caught:
            load_model(tiny_architecture, str(path))
        assert 'model: toybox' in str(caught.value)
        tried += 1
    assert tried == 10


def test_a_pickle_cut_off_anywhere_is_damaged_and_holds_no_objects(tmp_path):
    whole, cut = tmp_path / 'whole.pt', tmp_path / 'cut.pt'
    torch.save({'weight': torch.zeros(2)}, whole, _use_new_zipfile_serialization=False)
    data = whole.read_bytes()
    assert read_state_dict(whole).keys() == {'weight'}
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match='damaged or cut off'):
            read_state_dict(cut)


def test_numbers_that_are_not_finite(tiny_architecture, tiny_state, tmp_path):
    state = dict(tiny_state)
    state['visual.proj'] = state['visual.proj'].clone()
    state['visual.proj'][0, 0] = torch.nan
    with pytest.raises(ModelError, match=r'visual\.proj holds numbers that are not finite'):
        load_model(tiny_architecture, save(state, tmp_path / 'w.safetensors'))


def test_checkpoint_of_another_architecture(tiny_architecture, tiny_state, tmp_path):
    path = save(tiny_state, tmp_path / 'tiny.safetensors')
    with pytest.raises(ModelError) as caught:
        load_model('ViT-S-16', path)
    message = str(caught.value)
    assert 'another architecture than ViT-S-16' in message
    assert re.search(r'\d+ of another shape \(.* is \(.*\) where \(.*\) is needed', message)
    assert re.search(r'\d+ missing \(visual\.transformer\.resblocks\.3', message)
    assert len(message) < 1500


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([torch.zeros(1)], 'no state dict'),
        ({}, 'no state dict'),
        ({'lr': 0.1}, "'lr' is a float"),
        ({'weight': torch.zeros(1)}, 'missing'),
    ],
)
def test_tensors_of_something_else(tiny_architecture, tmp_path, content, message):
    with pytest.raises(ModelError, match=message):
        load_model(tiny_architecture, save(content, tmp_path / 'w.pt'))


@pytest.mark.parametrize(
    ('model', 'pretrained', 'message'),
    [
        ('ViT-B16-quickgelu', 'openai', f'Did you mean {DEFAULT}'),
        ('', 'openai', 'not an architecture'),
        ('clip.safetensors', 'openai', 'a weights file goes into `pretrained`'),
        ('RN50', 'openai', 'vision transformer'),
        ('coca_ViT-B-32', 'laion2b_s13b_b90k', 'more than an image and a text tower'),
        ('xlm-roberta-base-ViT-B-32', 'laion5b_s13b_b90k', "not CLIP's own"),
        ('ViT-B/16', 'openai', f'use model: {DEFAULT}'),
        (DEFAULT, 'opnai', 'Did you mean openai'),
        (DEFAULT, '', 'openai, dfn2b'),
        (DEFAULT, 'no/such/weights', 'no/such/weights does not exist'),
        (DEFAULT, 'missing.safetensors', 'missing.safetensors does not exist'),
        (DEFAULT, '/', '/ is a folder'),
        ('local-dir:/no/such/folder', '', '/no/such/folder/open_clip_config.json'),
    ],
)
def test_wrong_names(model, pretrained, message):
    with pytest.raises(ModelError, match=f'(?i){re.escape(message)}') as caught:
        load_model(model, pretrained)
    assert '\n' not in str(caught.value)


def tiny_folder(state, folder, **changes):
    config = {'model_cfg': TINY_CONFIG, 'preprocess_cfg': {'mean': [0.5] * 3, 'std': [0.25] * 3}}
    (folder / 'open_clip_config.json').write_text(json.dumps({**config, **changes}))
    save(state, folder / 'open_clip_model.safetensors')
    return folder


def test_folder_with_rows_of_some_tokens(tiny_state, tmp_path):
    ids = torch.tensor([5, 320, 49406, 49407])
    state = {name: tensor.half() for name, tensor in tiny_state.items()}
    state['token_embedding.weight'] = state['token_embedding.weight'][ids]
    tiny_folder({**state, 'token_ids': ids}, tmp_path)

    loaded = load_model(f'local-dir:{tmp_path}', 'openai')

    table = loaded.model.token_embedding.weight
    assert table.shape == (49408, 64)
    assert torch.equal(table[ids], state['token_embedding.weight'].float())
    assert table.any(1).sum() == len(ids)
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.25,) * 3)
    assert loaded.name == tmp_path.name


@pytest.mark.parametrize(
    'ids', [torch.tensor([1, 2, 3]), torch.tensor([1, 49408]), torch.tensor([1.0, 2.0])]
)
def test_folder_with_wrong_token_ids(tiny_state, tmp_path, ids):
    state = dict(tiny_state, token_ids=ids)
    state['token_embedding.weight'] = state['token_embedding.weight'][:2].clone()
    tiny_folder(state, tmp_path)
    with pytest.raises(ModelError, match='token_ids'):
        load_model(f'local-dir:{tmp_path}')


@pytest.mark.parametrize('model_cfg', [None, {}, {'embed_dim': 8}, {**TINY_CONFIG, 'embed_dim': 8}])
def test_folder_with_wrong_config(tiny_state, tmp_path, model_cfg):
    tiny_folder(tiny_state, tmp_path, model_cfg=model_cfg)
    with pytest.raises(ModelError, match=tmp_path.name):
        load_model(f'local-dir:{tmp_path}')


@pytest.mark.parametrize(
    'vision_change', [{'patch_size': 0}, {'head_width': 0}, {'width': -64}, {'layers': 'three'}]
)
def test_folder_with_impossible_settings(tiny_state, tmp_path, vision_change):
    vision = {**TINY_CONFIG['vision_cfg'], **vision_change}
    tiny_folder(tiny_state, tmp_path, model_cfg={**TINY_CONFIG, 'vision_cfg': vision})
    with pytest.raises(ModelError, match=tmp_path.name):
        load_model(f'local-dir:{tmp_path}')


@pytest.mark.parametrize(
    'preprocessing',
    [
        {'mean': 0.5},
        {'mean': [0.5]},
        {'mean': 'abc'},
        {'std': [0, 0, 0]},
        {'std': [1e999] * 3},
        [1],
    ],
)
def test_folder_with_wrong_preprocessing(tiny_state, tmp_path, preprocessing):
    tiny_folder(tiny_state, tmp_path, preprocess_cfg=preprocessing)
    with pytest.raises(ModelError, match='preprocessing'):
        load_model(f'local-dir:{tmp_path}')


@pytest.mark.parametrize(
    ('name', 'change'),
    [
        ('visual.proj', torch.Tensor.to_sparse),
        ('visual.proj', lambda t: t.to(torch.complex64)),
        ('visual.proj', lambda t: t.to('meta')),
        ('visual.proj', torch.Tensor.long),
        ('visual.proj', lambda t: t.double() + 1e300),
        ('logit_scale', lambda t: t + 1000),
    ],
    ids=['sparse', 'complex', 'meta', 'integer', 'overflow', 'logit_scale'],
)
def test_tensors_of_odd_kinds(tiny_architecture, tiny_state, tmp_path, name, change):
    path = tmp_path / 'weights.pt'
    torch.save({**tiny_state, name: change(tiny_state[name])}, path)
    with pytest.raises(ModelError, match=name):
        load_model(tiny_architecture, str(path))


def test_toybox():
    loaded = load_model('toybox')
    assert loaded.name == 'toybox'
    tokens = loaded.tokenizer(['a red ball'])
    assert loaded.model.encode_text(tokens).isfinite().all()


def test_offline_says_at_once_how_to_get_the_weights(tmp_path):
    default = tmp_path / 'default'
    code = (
        'import time\n'
        'from cliptrase_ros.segmentation.model.weights import ModelError, load_model\n'
        f'for folder in ({str(tmp_path)!r}, ""):\n'
        '    start = time.monotonic()\n'
        '    try:\n'
        '        load_model(cache_dir=folder)\n'
        '    except ModelError as error:\n'
        '        print(round(time.monotonic() - start), error)\n'
    )
    # Nothing listens on port 9, so this is what a machine without internet sees.
    environment = {'HF_ENDPOINT': 'http://127.0.0.1:9', 'NO_PROXY': '127.0.0.1'}
    done = subprocess.run(
        [sys.executable, '-c', code],
        env={**os.environ, **environment, 'HF_HUB_CACHE': str(default)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    seconds, message = done.stdout.split(' ', 1)
    assert int(seconds) < 10
    # An empty `cache_dir` is the default cache.
    assert f'the cache {default}' in message
    for part in (
        DEFAULT,
        "'openai'",
        str(tmp_path),
        'hf download timm/vit_base_patch16_clip_224.openai open_clip_model.safetensors',
        'set pretrained to its path',
        'model: toybox',
    ):
        assert part in message


def test_cached_weights_need_no_network(tmp_path):
    repository = tmp_path / 'models--timm--vit_base_patch16_clip_224.openai'
    snapshot = repository / 'snapshots' / ('0' * 40)
    snapshot.mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0' * 40)
    (snapshot / 'open_clip_model.safetensors').write_bytes(b'cut off')
    # That it complains about this very file shows that it took it.
    with pytest.raises(ModelError, match=f'{snapshot}.* damaged'):
        load_model(cache_dir=str(tmp_path))


def test_device():
    cuda = torch.cuda.is_available()
    assert select_device('cpu') == torch.device('cpu')
    assert select_device('auto').type == ('cuda' if cuda else 'cpu')
    for word in ('', 'gpu', 'cpu:0', 'cuda:', 'cuda:x', 'cuda:-1', 'CUDA'):
        with pytest.raises(ValueError, match='it must be'):
            select_device(word)
    with pytest.raises(ModelError, match='CUDA devices'):
        select_device('cuda:99')
    if not cuda:
        with pytest.raises(ModelError, match='finds 0 CUDA devices'):
            select_device('cuda')
