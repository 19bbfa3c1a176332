"""Training in miniature: it learns, it resumes exactly, and what it writes can be loaded."""

import colorsys
import json

import pytest
import torch
from safetensors.torch import load_file

from cliptrase_ros.segmentation.model.weights import load_model_folder
from cliptrase_ros.toybox.training import towers, train, views

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, 'Muon'), reason='training needs PyTorch 2.9 or later'
)

TINY = train.Settings(
    layers=3, steps=30, tokens=400, warmup=5, view_size=96, pool=64, learning_rate=2e-3
)


@pytest.fixture(scope='module')
def config():
    config = towers.read_config()
    config['model_cfg']['vision_cfg'] |= {'layers': 3, 'width': 64, 'image_size': 96}
    config['model_cfg']['text_cfg'] |= {'layers': 1, 'width': 64, 'heads': 2}
    return config


@pytest.fixture(scope='module')
def source():
    image, label = views.render_views(64, 96, seed=1)
    return views.PoolSource((image.numpy(), label.numpy()), seed=0)


def trainer(config, source, **changes):
    settings = train.Settings(**{**vars(TINY), **changes})
    return train.Trainer(settings, config, source, torch.device('cpu'))


def run(trainer, steps):
    return [trainer.step(trainer.steps_done / 100)['loss'] for _ in range(steps)]


@pytest.mark.parametrize('loss', train.LOSSES)
def test_a_few_steps_decrease_the_loss(config, source, loss):
    history = run(trainer(config, source, loss=loss), 30)
    assert sum(history[-5:]) < 0.97 * sum(history[:5])


def test_bfloat16_is_for_processors_with_instructions_for_it(config, source, monkeypatch):
    one = trainer(config, source)
    with_avx512 = {'avx512_f': True, 'avx512_bf16': False}
    for capabilities, expected in (
        (with_avx512, torch.float32),
        ({'neon': True}, torch.float32),
        ({**with_avx512, 'avx512_bf16': True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda c=capabilities: c, raising=False)
        with one._autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected


def test_resuming_gives_the_same_state(config, source, tmp_path):
    straight = trainer(config, source)
    run(straight, 3)
    straight.save(tmp_path)
    expected = run(straight, 3)
    resumed = trainer(config, source, seed=0)
    assert resumed.resume(tmp_path)
    assert resumed.steps_done == 3
    assert run(resumed, 3) == pytest.approx(expected, rel=1e-5)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_other_settings_are_not_resumed(config, source, tmp_path):
    first = trainer(config, source)
    first.save(tmp_path)
    with pytest.raises(SystemExit, match='other settings'):
        trainer(config, source, seed=1).resume(tmp_path)
    assert not first.resume(tmp_path / 'nothing here')


def test_pictures_keep_their_hues_or_lose_all_colors():
    """A false colour could make a combination that training must not see."""
    red, green, blue = 200, 90, 40
    pixels = torch.tensor([red, green, blue], dtype=torch.uint8)[None, :, None, None]
    image, colorless = views.augment(pixels.expand(64, 3, 32, 32), torch.Generator().manual_seed(0))
    shown = image.mean((2, 3))
    assert (shown[colorless].amax(1) < 1.25 * shown[colorless].amin(1)).all()
    for color in shown[~colorless].tolist():
        hue, saturation, _ = colorsys.rgb_to_hsv(*color)
        true, full, _ = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        assert 360 * abs(hue - true) < 6
        assert saturation > 0.5 * full


def test_augmented_pictures_stay_pictures():
    pixels = torch.randint(0, 256, (64, 3, 40, 48), dtype=torch.uint8)
    image, colorless = views.augment(pixels, torch.Generator().manual_seed(0))
    again, _ = views.augment(pixels, torch.Generator().manual_seed(0))
    assert image.shape == pixels.shape and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    assert torch.equal(image, again)
    assert 0.1 < colorless.float().mean() < 0.6


def test_batches_depend_on_seed_and_step_alone(source):
    first, again, other = (source.batch(step, 4, 64, 48) for step in (5, 5, 6))
    assert torch.equal(first.pixels, again.pixels)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.pixels.shape == (4, 3, 64, 48)
    assert torch.allclose(first.coverage.sum(1), torch.ones(4))


def test_fresh_views_need_no_pool():
    fresh = views.FreshSource(64, 0, torch.device('cpu'))
    batch = fresh.batch(3, 2, 48, 64)
    assert batch.pixels.shape == (2, 3, 48, 64)
    assert torch.equal(batch.pixels, fresh.batch(3, 2, 48, 64).pixels)


def test_a_pool_is_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setattr(views, 'SHARD', 4)
    monkeypatch.setattr(views, 'ProcessPoolExecutor', _InProcess)
    image, label = views.load_pool(tmp_path, 7, 32, 0, 1)
    assert image.shape == (8, 32, 32, 3) and label.shape == (8, 32, 32)
    monkeypatch.setattr(views, '_render_shard', None)
    again, _ = views.load_pool(tmp_path, 7, 32, 0, 1)
    assert (image == again).all()


class _InProcess:
    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False

    map = staticmethod(map)


def test_the_export_is_what_was_trained(config, source, tmp_path):
    trained = trainer(config, source)
    run(trained, 1)
    trained.save(tmp_path)
    state = load_file(tmp_path / towers.WEIGHTS_NAME)
    assert state['token_embedding.weight'].shape[0] == len(state['token_ids']) < 2000
    assert json.loads((tmp_path / towers.CONFIG_NAME).read_text()) == config
    loaded = load_model_folder(tmp_path)
    text = ['a photo of a red ball.', 'a brick wall']
    with torch.no_grad():
        expected = trained.model.encode_text(trained.tokenizer(text))
        actual = loaded.model.encode_text(loaded.tokenizer(text))
        assert torch.allclose(expected, actual, atol=2e-2)
        pixels = torch.randn(1, 3, 96, 96)
        expected = trained.model.encode_image(pixels)
        assert torch.allclose(expected, loaded.model.encode_image(pixels), atol=2e-2)


def test_the_plain_tokens_are_the_unmodified_towers(config):
    model = towers.make_model(config['model_cfg'], 200).eval()
    tower = towers.ImageTower(model.visual)
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        plain = tower(pixels)[0][:, 0]
        expected = torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)
    assert torch.allclose(plain, expected, atol=1e-5)


def test_training_ends_in_time_and_saves(config, source, tmp_path):
    limited = trainer(config, source, steps=100_000)
    train.train(limited, tmp_path, minutes=0.02)
    assert 0 < limited.steps_done < 1000
    assert (tmp_path / towers.WEIGHTS_NAME).exists()
