"""Weights from files, read without ever running code that a file carries."""

import pickletools
import re
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from cliptrase_ros.segmentation.device_faults import first_line

# Before this version torch.load(weights_only=True) could itself be made to run code.
_SAFE_TORCH = (2, 6)
_CONVERT = (
    'on a machine where you trust it, load it there and save the tensors alone with '
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
)
# Prefixes that wrappers around a model leave on the names of its parameters.
_WRAPPERS = ('module.', '_orig_mod.')
# Entries of OpenAI's and older open_clip's files that are settings or derived, not parameters.
_NOT_PARAMETERS = ('input_resolution', 'context_length', 'vocab_size', 'attn_mask')
_SHOWN = 3


class CheckpointError(ValueError):
    """A file does not hold usable weights; the message says why and what to do."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file or of a PyTorch state dict, by name, on the CPU.

    The kind of file is told by its content. A state dict may be wrapped as open_clip's training
    does: under 'state_dict', names prefixed with 'module.'.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but tensors.
    """
    if path.is_dir():
        raise CheckpointError(f'{path} is a folder, not a weights file')
    if not path.exists():
        raise CheckpointError(f'{path} does not exist')
    try:
        with path.open('rb') as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(f'{path} cannot be read: {error.strerror}') from error
    # A safetensors file starts with the length of its JSON header, eight bytes.
    content = _read_safetensors(path) if start[8:9] == b'{' else _read_torch(path, start)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise CheckpointError(
            f'{path} is a damaged or cut-off safetensors file ({first_line(error)}); copy it again'
        ) from error


def _read_torch(path: Path, start: bytes) -> object:
    if start.startswith(b'PK') and _is_torchscript(path):
        raise CheckpointError(
            f'{path} is a TorchScript program, not weights alone, and is not run; take the '
            f'safetensors file of the same model, or, {_CONVERT}'
        )
    if tuple(map(int, re.findall(r'\d+', torch.__version__)[:2])) < _SAFE_TORCH:
        raise CheckpointError(
            f'{path} is a pickle, which torch {torch.__version__} cannot read safely; use a '
            f'safetensors file, or torch {".".join(map(str, _SAFE_TORCH))} or newer'
        )
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # PyTorch's own message proposes to load with weights_only=False: never repeat it.
        found = re.search(r'GLOBAL (\S+)', str(error))
        if found and (start.startswith(b'PK') or _names_object(path, found[1])):
            raise CheckpointError(
                f'{path} holds Python objects beside tensors ({found[1]}), which could run any '
                f'code when loaded; it was not loaded. If it is known to be good: {_CONVERT}'
            ) from error
        raise CheckpointError(
            f'{path} is neither a safetensors file nor a PyTorch state dict, or it is damaged or '
            f'cut off; copy or download it again'
        ) from error


def _names_object(path: Path, name: str) -> bool:
    """Whether a file begins with pickles, of which a complete one names this object.

    In a file that is cut off, or that is no pickle at all, PyTorch reads names that nobody wrote.
    """
    with path.open('rb') as file:
        try:
            while True:
                operations = list(pickletools.genops(file))
                if any(
                    operation.name == 'GLOBAL' and str(argument).replace(' ', '.') == name
                    for operation, argument, _ in operations
                ):
                    return True
        except Exception:
            # The file has ended, or what follows is no pickle: pickletools raises nearly anything.
            return False


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split('/')[1:2] == ['code'] for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
        content = content['state_dict']
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f'{path} holds no state dict (names with tensors)')
    state = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f'{path} is no state dict: its entry {name!r} is a {type(value).__name__}, '
                'not a tensor'
            )
        for wrapper in _WRAPPERS:
            name = name.removeprefix(wrapper)
        if name not in _NOT_PARAMETERS:
            _check_plain(name, value, path)
            state[name] = value
    return state


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    if tensor.is_quantized:
        found = 'quantised'
    elif tensor.layout != torch.strided or tensor.device.type != 'cpu':
        found = f'{tensor.layout} on {tensor.device.type}'.replace('torch.', '')
    else:
        return
    raise CheckpointError(f'{path} is no state dict of plain numbers: {name} is {found}')


def fill_model(model: nn.Module, state: dict[str, Tensor], path: Path, architecture: str) -> None:
    """Load a state dict into a model of the named architecture, cast to the model's dtypes.

    Args:
        path: Where it comes from, for messages.

    Raises:
        CheckpointError: It does not fit, or holds numbers that are not finite.
    """
    expected = model.state_dict()
    if 'logit_scale' in state and state['logit_scale'].numel() == 1:
        # A scalar or one element, depending on who saved it.
        state = {
            **state,
            'logit_scale': state['logit_scale'].reshape(expected['logit_scale'].shape),
        }
    differences = _differences(expected, state)
    if differences:
        raise CheckpointError(
            f'{path} holds the weights of another architecture than {architecture}: '
            + '; '.join(differences)
        )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise CheckpointError(
                f'{path} holds no weights of a CLIP: {name} is of type {tensor.dtype}'
            )
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f'{path} is damaged: {name} holds numbers that are not finite; copy it again'
            )
    if not torch.isfinite(state['logit_scale'].exp()).all():
        raise CheckpointError(f'{path} is damaged: its logit_scale is {state["logit_scale"]:.0f}')
    model.load_state_dict(state)


def _differences(expected: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    reshaped = [
        f'{name} is {tuple(state[name].shape)} where {tuple(tensor.shape)} is needed'
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    groups = {
        'of another shape': reshaped,
        'missing': [name for name in expected if name not in state],
        'unknown': [name for name in state if name not in expected],
    }
    return [f'{len(names)} {what} ({_shortened(names)})' for what, names in groups.items() if names]


def _shortened(names: list[str]) -> str:
    return ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
