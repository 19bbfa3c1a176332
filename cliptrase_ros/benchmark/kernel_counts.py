"""How many kernels a GPU runs for a frame, counted and their time estimated without a GPU.

A call runs on tensors without contents, on a device called `cuda`. Operations are taken apart as
PyTorch does it; each that is left is a kernel there, unless it only looks otherwise at what there
is. Some are more than one: these stand below. What cuBLAS and cuDNN do is counted as one kernel.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cliptrase_ros.benchmark.subject import ARCHITECTURE
from cliptrase_ros.segmentation.kernels import Launch, no_kernels, recorded_launches
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.run.graphs import Bounds, EagerQueue, FixedCall, Shape
from cliptrase_ros.segmentation.run.pipeline import Pipeline
from cliptrase_ros.segmentation.settings import SegmentationSettings

# What is estimated of a data-centre GPU: microseconds until a kernel of a graph has begun and
# ended, bytes and operations a microsecond.
_KERNEL_US = 2.0
_BYTES_PER_US = 3e6
_HALF_FLOP_PER_US = 4e8
_FLOAT32_FLOP_PER_US = 3e7

# Kernels of operations that copy or fill before they do their work, or are made of others.
_KERNELS = {
    'baddbmm': 2,
    'constant_pad_nd': 2,
    'cumsum': 2,
    'eye': 2,
    'logsumexp': 9,
    'masked_fill': 2,
    'scatter': 2,
    'scatter_add': 2,
    'scatter_reduce': 2,
    'topk': 2,
}

# Operations that first copy an input whose elements do not lie in order,
_IN_ORDER = {
    '_adaptive_avg_pool2d',
    '_softmax',
    'avg_pool2d',
    'cumsum',
    'native_layer_norm',
    'upsample_bilinear2d',
}
# and those that first convert one of another type than their result.
_OF_ONE_TYPE = {'cumsum', 'sum'}

_DEVICE = torch.device('cuda', 0)

# Of the vocabulary, each with one phrase.
_COLUMNS = 16

# What PyTorch calls operations that consist of others.
_PARTS = torch._C.DispatchKey.CompositeImplicitAutograd
_has_parts = torch._C._dispatch_has_kernel_for_dispatch_key


@dataclass
class Cost:
    """What a stage costs: kernels, and their estimated microseconds."""

    kernels: int = 0
    microseconds: float = 0.0


def count_kernels(
    settings: SegmentationSettings,
    frame: tuple[int, int] = (480, 640),
    triton: bool = True,
    architecture: str = ARCHITECTURE,
) -> dict[str, Cost]:
    """Cost of each stage of a replay for one frame and 16 columns, in float16.

    Args:
        frame: (height, width) of the camera, pixels.
        triton: Whether with the project's own kernels.

    Returns:
        By the stage's name; what is in none is 'copies'.
    """
    with _no_contents() as launches, nullcontext() if triton else no_kernels():
        call = _fixed_call(settings, frame, architecture)
        return _count(call.replay, launches)


def count_encoder_kernels(size: tuple[int, int], architecture: str = ARCHITECTURE) -> Cost:
    """Cost of open_clip's own `encode_image` for one image of (height, width), in float16."""
    config = open_clip.get_model_config(architecture)
    config['vision_cfg'] = {**config['vision_cfg'], 'image_size': size}
    with _no_contents() as launches:
        visual = _half_visual(config)
        pixels = torch.empty(1, 3, *size, dtype=torch.float16, device=_DEVICE)
        return _count(lambda: visual(pixels), launches)['copies']


def recorded_kernels(settings: SegmentationSettings) -> list[Launch]:
    """The project's own kernels that a call starts, with arguments without contents."""
    with _no_contents() as launches:
        _fixed_call(settings, (480, 640), ARCHITECTURE)
    return launches


@contextmanager
def _no_contents() -> Iterator[list[Launch]]:
    with recorded_launches() as launches, FakeTensorMode(), torch.inference_mode():
        yield launches


def _fixed_call(
    settings: SegmentationSettings, frame: tuple[int, int], architecture: str
) -> FixedCall:
    visual = _half_visual(open_clip.get_model_config(architecture))
    with _DEVICE:
        pixels, number = torch.empty(3, 1, 1), torch.empty((), dtype=torch.int64)
        table = LabelTable(
            torch.empty(_COLUMNS, visual.proj.shape[1]),
            torch.empty(_COLUMNS, dtype=torch.int64),
            number,
            number,
            torch.empty(_COLUMNS + 1, dtype=torch.uint8),
            255,
            100.0,
        )
    method, patch_size = settings.method, visual.conv1.kernel_size[0]
    framing = framing_of(method.frame, frame, settings.resolution, patch_size)
    shape = Shape(1, framing, method, table.size, table.ids.dtype, table.unlabelled)
    pipeline = Pipeline(DenseBackbone(visual), pixels, pixels)
    return FixedCall(pipeline, shape, Bounds(), table, EagerQueue(_DEVICE))


def _half_visual(config: dict) -> torch.nn.Module:
    torch.set_default_dtype(torch.float16)
    try:
        with _DEVICE:
            return open_clip.CLIP(**config).visual.eval()
    finally:
        torch.set_default_dtype(torch.float32)


def _count(function: Callable[[], object], launches: list[Launch]) -> dict[str, Cost]:
    """Cost by stage of a function, of which `launches` tells the project's own kernels."""
    launches.clear()
    counter = _Counter(launches)
    with counter:
        function()
    counter.take_launches()
    return dict(counter.stages)


class _Counter(TorchDispatchMode):
    """Adds up what is dispatched, and what Triton was asked for, by stage."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.stages: dict[str, Cost] = defaultdict(Cost)
        self._launches = launches
        self._open: list[str] = []

    def __torch_dispatch__(
        self, function: Callable, types: tuple, arguments: tuple = (), named: dict | None = None
    ) -> object:
        named = named or {}
        self.take_launches()
        name = function.overloadpacket.__name__
        if name.startswith('_record_function_enter'):
            self._open.append(arguments[0])
        elif name.startswith('_record_function_exit'):
            self._open.pop()
        elif name == 'scaled_dot_product_attention':
            # Fused, and its result lies as the next product wants it.
            result = function(*arguments, **named).transpose(1, 2).contiguous().transpose(1, 2)
            self._add(1, [*arguments[:3], result], _flop(name, arguments, result))
            return result
        elif name == '_native_multi_head_attention':
            with self:
                return _attend(*arguments), None
        elif function.namespace == 'aten' and _has_parts(function.name(), _PARTS):
            # Not `decompose`, which prefers what `torch.compile` would do.
            with self:
                return function._op_dk(_PARTS, *arguments, **named)
        result = function(*arguments, **named)
        inputs, outputs = _tensors((arguments, named)), _tensors(result)
        if outputs and not _is_view(name, inputs, outputs):
            kernels = _kernels(name, inputs, outputs)
            self._add(kernels, [*inputs, *outputs], _flop(name, arguments, outputs[0]))
        return result

    def take_launches(self) -> None:
        """Count what Triton was asked for since the last time."""
        for launch in self._launches:
            self._add(1, _tensors(launch.arguments), 0)
        self._launches.clear()

    def _add(self, kernels: int, tensors: Sequence[Tensor], flop: float) -> None:
        moved = {t.untyped_storage()._cdata: _bytes(t) for t in tensors if t.is_cuda}
        is_half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
        rate = _HALF_FLOP_PER_US if is_half else _FLOAT32_FLOP_PER_US
        stage = self.stages[self._open[-1] if self._open else 'copies']
        stage.kernels += kernels
        stage.microseconds += (
            _KERNEL_US * kernels + sum(moved.values()) / _BYTES_PER_US + flop / rate
        )


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    *_: object,
) -> Tensor:
    """What PyTorch's attention of one sequence to itself consists of, where no one trains it."""
    parts = F.linear(query, weight, bias).unflatten(-1, (3, heads, -1))
    attended = F.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4))
    return F.linear(attended.transpose(1, 2).flatten(2), out_weight, out_bias)


def _tensors(values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _is_view(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operation only makes tensors, or looks otherwise at what there is."""
    if name in ('empty', 'empty_like', 'new_empty', 'empty_strided', 'device', 'resize_'):
        return True
    if name.endswith('_') or not inputs:
        return False
    storage = inputs[0].untyped_storage()._cdata
    return all(output.untyped_storage()._cdata == storage for output in outputs)


def _kernels(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    count = _KERNELS.get(name, 1)
    if name in _IN_ORDER:
        formats = (torch.contiguous_format, torch.channels_last)[: 1 + (name == 'avg_pool2d')]
        count += not any(inputs[0].is_contiguous(memory_format=f) for f in formats)
    if name in _OF_ONE_TYPE and inputs[0].dtype != outputs[0].dtype:
        count += 1
    return count


def _flop(name: str, arguments: tuple, result: Tensor) -> float:
    """Of products; nothing else has as many as it moves bytes."""
    if name == 'scaled_dot_product_attention':
        return 4.0 * prod(arguments[0].shape) * arguments[1].shape[-2]
    if name in ('mm', 'bmm', 'addmm', 'baddbmm', 'baddbmm_'):
        left = arguments[-2]
        return 2.0 * result.numel() * left.shape[-1]
    if name == 'convolution':
        return 2.0 * result.numel() * prod(arguments[1].shape[1:])
    return 0.0
