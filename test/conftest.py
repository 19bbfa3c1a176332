"""What all tests share: processors and ROS domains of their own, and a tiny CLIP."""

import gc
import json
import os
import tempfile
from pathlib import Path

import pytest
from object_storage import ObjectStorage
from ray_cluster import two_nodes
from tiny_clip import TINY_CONFIG, add_architecture

ROOT = Path(__file__).resolve().parent.parent
WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))

try:
    from hypothesis import settings
except ImportError:
    # A borrowed GPU machine may not have it; tests that need it are then left out.
    pass
else:
    # No test is a matter of time.
    settings.register_profile('untimed', deadline=None)
    settings.load_profile('untimed')

# Before rclpy reads them. Workers have neighbouring process ids, so each has a ROS domain of its
# own; 1 to 100 are free of the ports that the system hands out.
os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
# A run must not know phrases that an earlier one has encoded.
_caches = tempfile.TemporaryDirectory()
os.environ['XDG_CACHE_HOME'] = _caches.name


def pytest_configure(config):
    """Give each worker its share of the cores: those that each take all wait for one another."""
    # Workers inherit what the process that starts them sets.
    if not config.getoption('numprocesses', None):
        os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // WORKERS)))
        import torch

        if not torch.cuda.is_available():
            # Kernels then run in Triton's interpreter, which it decides when it is imported.
            os.environ['TRITON_INTERPRET'] = '1'


def pytest_collection_finish():
    """Spare the garbage collector what is imported: going through it all takes it half a second."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc):
    """Tests of `device` run on every device there is; `pytest -m cuda` is those on a GPU alone."""
    if 'device' not in metafunc.fixturenames:
        return
    import torch

    devices = ['cpu']
    if torch.cuda.is_available():
        devices.append(pytest.param('cuda', marks=pytest.mark.cuda))
    metafunc.parametrize('device', devices, indirect=True, scope='session')


@pytest.fixture(scope='session')
def device(request):
    """Where a test runs: the processor, and a GPU where there is one."""
    import torch

    return torch.device(request.param)


@pytest.fixture(scope='session')
def make_queue():
    """A function that gives what runs calls of fixed shape on a device: graphs, or none."""
    from cliptrase_ros.segmentation.run.graphs import EagerQueue, GraphQueue

    return lambda device: GraphQueue(device) if device.type == 'cuda' else EagerQueue(device)


@pytest.fixture(scope='session')
def shared():
    """Folder of recordings that are too large for the repository; skips where it is not there."""
    folder = ROOT.parent / 'shared'
    if not folder.is_dir():
        pytest.skip(f'{folder} is not there')
    return folder


@pytest.fixture(scope='session')
def tiny_architecture(tmp_path_factory):
    """Name of a very small CLIP architecture, made known to open_clip."""
    add_architecture(tmp_path_factory.mktemp('architecture'), 'tiny-ViT', TINY_CONFIG)
    return 'tiny-ViT'


@pytest.fixture(scope='session')
def tiny_state(tiny_architecture):
    """State dict of the tiny CLIP with random weights, always the same."""
    import open_clip
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CLIP(**TINY_CONFIG).state_dict()


@pytest.fixture(scope='session')
def tiny_model_folder(tmp_path_factory, tiny_state):
    """A folder with the tiny CLIP, as `local-dir:FOLDER` loads it."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp('tiny_clip')
    state = {name: tensor.contiguous() for name, tensor in tiny_state.items()}
    save_file(state, folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': TINY_CONFIG}))
    return folder


@pytest.fixture(scope='session')
def tiny_model(tiny_model_folder):
    """What `--model` takes for the tiny CLIP."""
    return f'local-dir:{tiny_model_folder}'


@pytest.fixture(scope='session')
def tiny_sam(tmp_path_factory):
    """A folder with a SAM of random weights, small enough for tests."""
    transformers = pytest.importorskip('transformers', reason='the extra `sam` is not installed')
    import torch

    folder = tmp_path_factory.mktemp('sam')
    vision = transformers.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        num_pos_feats=8,
        mlp_dim=64,
    )
    prompts = transformers.SamPromptEncoderConfig(
        hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=16, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.SamModel(config).save_pretrained(folder)
    transformers.SamImageProcessor(
        size={'longest_edge': 64}, pad_size={'height': 64, 'width': 64}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope='session')
def object_storage():
    """An S3 server on loopback; `failing` makes its requests fail."""
    pytest.importorskip('moto', reason='a local S3 server needs moto[s3], flask and flask-cors')
    pytest.importorskip('s3fs', reason='the extra `s3` is not installed')
    with ObjectStorage() as storage:
        yield storage


@pytest.fixture
def bucket(object_storage, monkeypatch):
    """URL of an empty bucket, which this process and those it starts find by their environment."""
    for name, value in object_storage.environment.items():
        monkeypatch.setenv(name, value)
    return f's3://{object_storage.make_bucket()}'


@pytest.fixture(scope='module')
def ray_cluster(object_storage):
    """Two nodes of Ray, whose workers find the S3 server; takes four seconds."""
    pytest.importorskip('ray', reason='the extra `fleet` is not installed')
    with two_nodes(object_storage.environment) as cluster:
        yield cluster
