"""Which model, from where, and what to say when it is not there."""

import difflib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import open_clip
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor, nn

from cliptrase_ros.segmentation.device_faults import first_line
from cliptrase_ros.segmentation.model.checkpoint import CheckpointError, fill_model, read_state_dict
from cliptrase_ros.segmentation.model.prompts import Tokenizer
from cliptrase_ros.segmentation.model.text_cache import fingerprint
from cliptrase_ros.segmentation.settings import ModelSettings

TOYBOX = 'toybox'
LOCAL_FOLDER_PREFIX = 'local-dir:'

TOYBOX_FOLDER = Path(__file__).parents[2] / 'toybox' / 'model'
CONFIG_NAME = 'open_clip_config.json'
WEIGHTS_NAME = 'open_clip_model.safetensors'
# What a repository without safetensors calls the same weights.
_PICKLED_WEIGHTS_NAME = 'open_clip_pytorch_model.bin'
_WEIGHTS_SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin', '.ckpt')
# The hub's own client retries for half a minute; a robot without internet should say so sooner.
_HUB_TIMEOUT_S = 5.0
_TRY_TOYBOX = (
    f'To try everything without any download, use model: {TOYBOX} (a small model of a toy room).'
)


class ModelError(RuntimeError):
    """A model cannot be had; the message says which, where it was looked for and what to do."""


@dataclass(frozen=True)
class LoadedModel:
    """A CLIP model with what belongs to its input.

    Attributes:
        model: An open_clip.CLIP; as loaded, in evaluation mode, on the CPU, float32.
        mean: Of its training pixels, RGB, for values 0..1.
        std: Their standard deviation.
        name: For people.
    """

    model: nn.Module
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = ''


def load_model(
    model: str = ModelSettings.model,
    pretrained: str = ModelSettings.pretrained,
    cache_dir: str | None = None,
) -> LoadedModel:
    """Load a CLIP model; code from a file is never run.

    Args:
        model: `toybox` (comes with this package), an open_clip architecture, or
            `local-dir:FOLDER` with open_clip_config.json and open_clip_model.safetensors.
        pretrained: For an architecture: a tag open_clip knows for it, looked up in the hub's cache
            and downloaded when it is not there, or a weights file: safetensors, or a PyTorch state
            dict.
        cache_dir: The hub's cache folder; None or '' for its default.

    Raises:
        ModelError: The model cannot be had, or does not suit the method.
    """
    if model == TOYBOX:
        return load_model_folder(TOYBOX_FOLDER, name=TOYBOX)
    if not names_architecture(model):
        return load_model_folder(Path(model.removeprefix(LOCAL_FOLDER_PREFIX)).expanduser())

    architecture = model.replace('/', '-')
    config = check_architecture(architecture)
    tag = open_clip.get_pretrained_cfg(architecture, pretrained)
    if tag:
        _check_activation(architecture, config, pretrained, tag)
        path = _fetch(architecture, pretrained, tag['hf_hub'], cache_dir)
        source = pretrained
    else:
        path = _weights_file(architecture, pretrained)
        source = path.name
    return _load(config, tag, path, f'{architecture} ({source})', architecture)


def names_architecture(model: str) -> bool:
    """Whether a model name is an architecture, whose weights `pretrained` tells."""
    return model != TOYBOX and not model.startswith(LOCAL_FOLDER_PREFIX)


def load_model_folder(folder: Path, name: str = '') -> LoadedModel:
    """Load a model from a folder with open_clip_config.json and open_clip_model.safetensors.

    The weights may hold `token_embedding.weight` for some tokens only: those whose numbers an
    int64 tensor `token_ids` lists; the other tokens' rows are zero.

    Args:
        name: For people; the folder's where it is empty.

    Raises:
        ModelError: The folder has no model in it, or one that does not suit the method.
    """
    name = name or folder.resolve().name
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding='utf-8'))
        model_config = config['model_cfg']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f'Model {name!r} cannot be loaded: {folder / CONFIG_NAME} is missing or is not an '
            f'open_clip model configuration ({type(error).__name__}: {error}).'
        ) from error
    _check_supported(name, model_config)
    preprocessing = config.get('preprocess_cfg') or {}
    return _load(model_config, preprocessing, folder / WEIGHTS_NAME, name, name)


def select_device(device: str = 'auto') -> torch.device:
    """The device that a setting means.

    Args:
        device: `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ValueError: For another word.
        ModelError: There is no such device.
    """
    if device == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    kind, _, index = device.partition(':')
    if kind not in ('cpu', 'cuda') or (':' in device and (kind == 'cpu' or not index.isdecimal())):
        raise ValueError(f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == 'cuda' and int(index or 0) >= count:
        raise ModelError(
            f'device is {device!r}, but PyTorch {torch.__version__} finds {count} CUDA devices '
            "here; use 'auto' or 'cpu', or check the driver and that this PyTorch is built for CUDA"
        )
    return torch.device(device)


def weights_digest(model: nn.Module) -> str:
    """A name for a model's weights in their precision; takes seconds for a large model."""
    weights = sorted(model.state_dict().items())
    return fingerprint(*(fingerprint(name, _bytes(value)) for name, value in weights))


def _bytes(tensor: Tensor) -> bytes:
    # NumPy has no bfloat16.
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def check_architecture(architecture: str) -> dict:
    """open_clip's settings of an architecture.

    Raises:
        ModelError: open_clip does not know it, or it does not suit the method.
    """
    config = open_clip.get_model_config(architecture) if ':' not in architecture else None
    if config is None:
        close = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.5)
        hint = f' Did you mean {" or ".join(close)}?' if close else ''
        if Path(architecture).suffix in _WEIGHTS_SUFFIXES:
            hint = ' A weights file goes into `pretrained`, its architecture into `model`.'
        raise ModelError(
            f'Model {architecture!r} is not an architecture of open_clip.{hint} {_TRY_TOYBOX}'
        )
    _check_supported(architecture, config)
    return config


def _check_supported(name: str, config: dict) -> None:
    try:
        vision, text = config['vision_cfg'], config['text_cfg']
        problem = None
        if 'timm_model_name' in vision or not isinstance(vision['layers'], int):
            problem = "its image tower is not open_clip's own vision transformer"
        elif 'multimodal_cfg' in config or config.get('custom_text'):
            problem = 'it is more than an image and a text tower'
        elif 'hf_model_name' in text or 'hf_tokenizer_name' in text:
            problem = "its text side is not CLIP's own"
    except (KeyError, TypeError) as error:
        raise ModelError(f'Model {name!r} has an incomplete configuration: {error}') from error
    if problem:
        raise ModelError(
            f'Model {name!r} does not suit the method: {problem}. Choose a plain CLIP vision '
            'transformer, for instance ViT-B-16-quickgelu with pretrained openai.'
        )


def _check_activation(architecture: str, config: dict, pretrained: str, tag: dict) -> None:
    if tag.get('quick_gelu', False) == config.get('quick_gelu', False):
        return
    # open_clip warns and goes on with the wrong activation; the labels would merely be bad.
    suited = f'{architecture}-quickgelu'
    raise ModelError(
        f'The weights {pretrained!r} of {architecture!r} were trained with QuickGELU, which this '
        f'architecture does not use; use model: {suited}.'
    )


def _load(
    config: dict, preprocessing: dict, path: Path, name: str, architecture: str
) -> LoadedModel:
    text = config['text_cfg']
    known = ('embed_dim', 'vision_cfg', 'text_cfg', 'quick_gelu')
    try:
        state = read_state_dict(path)
        model = open_clip.CLIP(**{key: config[key] for key in known if key in config})
        if 'token_ids' in state:
            state = _expand_token_rows(state, model, path)
        fill_model(model, state, path, architecture)
        tokenizer = open_clip.SimpleTokenizer(
            context_length=text.get('context_length', 77), **text.get('tokenizer_kwargs', {})
        )
    except CheckpointError as error:
        raise ModelError(f'Model {name!r} cannot be loaded: {error}. {_TRY_TOYBOX}') from error
    except Exception as error:
        # Settings come from a file; what open_clip and torch raise on odd ones has no bounds.
        raise ModelError(
            f'Model {name!r} cannot be built from its settings: {type(error).__name__}: {error}'
        ) from error
    mean = _three_numbers(name, preprocessing, 'mean', open_clip.OPENAI_DATASET_MEAN)
    std = _three_numbers(name, preprocessing, 'std', open_clip.OPENAI_DATASET_STD)
    if min(std) <= 0:
        raise ModelError(f"Model {name!r}: 'std' of its preprocessing is {std}, not positive")
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, mean, std, name)


def _three_numbers(
    name: str, preprocessing: object, key: str, default: Sequence[float]
) -> tuple[float, float, float]:
    value = preprocessing.get(key) if isinstance(preprocessing, dict) else preprocessing
    value = default if value is None else value
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    ):
        raise ModelError(
            f'Model {name!r}: {key!r} of its preprocessing is {str(value)[:60]!r}; it has to be '
            'three numbers, for red, green and blue'
        )
    red, green, blue = map(float, value)
    return red, green, blue


def _expand_token_rows(state: dict[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    state = dict(state)
    ids = state.pop('token_ids')
    rows = state.get('token_embedding.weight')
    vocabulary, width = model.token_embedding.weight.shape
    if (
        rows is None
        or ids.dtype != torch.int64
        or rows.shape != (ids.numel(), width)
        or not ((ids >= 0) & (ids < vocabulary)).all()
    ):
        raise CheckpointError(f'{path} is damaged: its token_ids do not fit its token embedding')
    full = rows.new_zeros(vocabulary, width)
    full[ids] = rows
    state['token_embedding.weight'] = full
    return state


def _weights_file(architecture: str, pretrained: str) -> Path:
    path = Path(pretrained).expanduser()
    if pretrained and path.exists():
        return path
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = f'known for it: {", ".join(tags)}' if tags else 'open_clip knows no weights for it'
    if pretrained and (path.suffix in _WEIGHTS_SUFFIXES or len(path.parts) > 1):
        raise ModelError(
            f'Model {architecture!r}: the weights file {path.absolute()} does not exist. Give the '
            f'path of a file, or the name of published weights ({known}). {_TRY_TOYBOX}'
        )
    close = difflib.get_close_matches(pretrained, tags, n=3, cutoff=0.5)
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise ModelError(
        f'Model {architecture!r}: pretrained is {pretrained!r}, which is neither the name of '
        f'published weights ({known}) nor a file in {Path.cwd()}.{hint} {_TRY_TOYBOX}'
    )


def _fetch(architecture: str, pretrained: str, hub_entry: str, cache_dir: str | None) -> Path:
    """Path of published weights: from the hub's cache, without any network, or downloaded."""
    repository, _, filename = hub_entry.rpartition('/')
    filename = filename or _PICKLED_WEIGHTS_NAME
    if filename == _PICKLED_WEIGHTS_NAME:
        names = [WEIGHTS_NAME, filename]
    else:
        names = list(dict.fromkeys([str(Path(filename).with_suffix('.safetensors')), filename]))
    cache_dir = str(Path(cache_dir).expanduser()) if cache_dir else None
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached)
    try:
        return _download(repository, names, cache_dir)
    except Exception as error:
        # Whatever the hub's client and the network below it raise: the way out is the same.
        reason = f'{type(error).__name__}: {first_line(error)}'
        raise ModelError(
            f'The weights of model {architecture!r}, pretrained {pretrained!r}, are not on this '
            f'machine and could not be downloaded ({reason}). Looked in the cache '
            f'{cache_dir or huggingface_hub.constants.HF_HUB_CACHE} and then on the Hugging Face '
            f'hub, for {names[0]} of {repository}. On a machine with internet run '
            f'`hf download {repository} {names[0]} --local-dir .`, carry the file to this machine '
            f'and set pretrained to its path. {_TRY_TOYBOX}'
        ) from error


def _download(repository: str, names: Sequence[str], cache_dir: str | None) -> Path:
    *preferred, last = names
    for name in preferred:
        try:
            return _download_file(repository, name, cache_dir)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            continue
    return _download_file(repository, last, cache_dir)


def _download_file(repository: str, name: str, cache_dir: str | None) -> Path:
    # Asked first, once and with a time limit, because the download retries for half a minute.
    huggingface_hub.get_hf_file_metadata(
        huggingface_hub.hf_hub_url(repository, name), timeout=_HUB_TIMEOUT_S
    )
    return Path(huggingface_hub.hf_hub_download(repository, name, cache_dir=cache_dir))
