"""How many kernels a GPU runs for a frame, counted and their time estimated without a GPU.

A call runs on tensors without contents, on a device called `cuda`; every operation that is no view
is a kernel there, some are two.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import open_clip
import torch
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

# Operations that copy before they do their work.
_TWO_KERNELS = {'masked_fill', 'scatter_reduce', 'scatter', 'constant_pad_nd', 'topk'}

_DEVICE = torch.device('cuda', 0)


@dataclass
class Cost:
    """What a stage costs: kernels, and their estimated microseconds."""

    kernels: int = 0
    microseconds: float = 0.0


def count_kernels(
    settings: SegmentationSettings,
    frame: tuple[int, int] = (480, 640),
    batch: int = 1,
    phrases: int = 16,
    triton: bool = True,
    architecture: str = ARCHITECTURE,
) -> dict[str, Cost]:
    """Cost of each stage of a replay, in float16, by name; what is in none is 'copies'.

    Args:
        frame: (height, width) of the camera, pixels.
        phrases: Of the vocabulary, each a column.
        triton: Whether with the project's own kernels.
    """
    with _no_contents(), no_kernels() if not triton else nullcontext():
        call = _fixed_call(settings, frame, batch, phrases, architecture)
        with _Counter() as counter:
            call.replay()
    return dict(counter.stages)


def count_encoder_kernels(size: tuple[int, int], batch: int = 1) -> Cost:
    """Cost of open_clip's own `encode_image` for images of (height, width), in float16."""
    config = open_clip.get_model_config(ARCHITECTURE)
    config['vision_cfg'] = {**config['vision_cfg'], 'image_size': size}
    with _no_contents():
        visual = _half_visual(config)
        with _Counter() as counter:
            visual(torch.empty(batch, 3, *size, dtype=torch.float16))
    return counter.stages['copies']


def recorded_kernels(settings: SegmentationSettings, **choices: object) -> list[Launch]:
    """The project's own kernels that a call starts, with arguments without contents."""
    with _no_contents() as launches:
        _fixed_call(settings, **choices)
    return launches


@contextmanager
def _no_contents() -> Iterator[list[Launch]]:
    with (
        recorded_launches() as launches,
        FakeTensorMode(),
        torch.inference_mode(),
        torch.device(_DEVICE),
    ):
        yield launches


def _fixed_call(
    settings: SegmentationSettings,
    frame: tuple[int, int] = (480, 640),
    batch: int = 1,
    phrases: int = 16,
    architecture: str = ARCHITECTURE,
) -> FixedCall:
    visual = _half_visual(open_clip.get_model_config(architecture))
    pixels, number = torch.empty(3, 1, 1), torch.empty((), dtype=torch.int64)
    table = LabelTable(
        torch.empty(phrases, visual.proj.shape[1]),
        torch.empty(phrases, dtype=torch.int64),
        number,
        number,
        torch.empty(phrases + 1, dtype=torch.uint8),
        255,
        100.0,
    )
    method, patch_size = settings.method, visual.conv1.kernel_size[0]
    framing = framing_of(method.frame, frame, settings.resolution, patch_size)
    shape = Shape(batch, framing, method, table.size, table.ids.dtype, table.unlabelled)
    pipeline = Pipeline(DenseBackbone(visual), pixels, pixels)
    return FixedCall(pipeline, shape, Bounds(), table, EagerQueue(_DEVICE))


def _half_visual(config: dict) -> torch.nn.Module:
    torch.set_default_dtype(torch.float16)
    try:
        return open_clip.CLIP(**config).visual.eval()
    finally:
        torch.set_default_dtype(torch.float32)


class _Counter(TorchDispatchMode):
    """Adds up what is dispatched, and what Triton is asked for, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, Cost] = defaultdict(Cost)
        self._open: list[str] = []
        self._recording = recorded_launches()

    def __enter__(self) -> '_Counter':
        self._launches = self._recording.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._take_launches()
        self._recording.__exit__(*error)

    def __torch_dispatch__(
        self, function: Callable, types: tuple, arguments: tuple = (), named: dict | None = None
    ) -> object:
        self._take_launches()
        result = function(*arguments, **(named or {}))
        name = function.overloadpacket.__name__
        if name == 'scaled_dot_product_attention':
            # Fused attention leaves its result as the next product wants it.
            result = result.transpose(1, 2).contiguous().transpose(1, 2)
        if name.startswith('_record_function_enter'):
            self._open.append(arguments[0])
        elif name.startswith('_record_function_exit'):
            self._open.pop()
        else:
            inputs = _tensors((arguments, named))
            outputs = _tensors(result)
            if outputs and not _is_view(name, inputs, outputs):
                flop = _flop(name, inputs, outputs)
                self._add(1 + (name in _TWO_KERNELS), [*inputs, *outputs], flop)
        return result

    def _take_launches(self) -> None:
        for launch in self._launches:
            self._add(1, _tensors(launch.arguments), 0)
        self._launches.clear()

    def _add(self, kernels: int, tensors: list[Tensor], flop: float) -> None:
        moved = {id(t.untyped_storage()): _bytes(t) for t in tensors if t.is_cuda}
        is_half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
        rate = _HALF_FLOP_PER_US if is_half else _FLOAT32_FLOP_PER_US
        stage = self.stages[self._open[-1] if self._open else 'copies']
        stage.kernels += kernels
        stage.microseconds += (
            _KERNEL_US * kernels + sum(moved.values()) / _BYTES_PER_US + flop / rate
        )


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


def _flop(name: str, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    if name in ('linear', 'matmul', 'mm', 'bmm', 'addmm', 'baddbmm'):
        factor = inputs[-1] if name == 'baddbmm' else inputs[0]
        return 2.0 * outputs[0].numel() * factor.shape[-1 if name != 'baddbmm' else -2]
    if name == 'scaled_dot_product_attention':
        return 4.0 * math.prod(inputs[0].shape) * inputs[1].shape[-2]
    return 0.0
