"""Kernels of a frame by stage, of PyTorch alone and with the project's own, as a table."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module

import open_clip

from cliptrase_ros.benchmark.kernel_counts import Cost, count_encoder_kernels, count_kernels
from cliptrase_ros.benchmark.subject import ARCHITECTURE
from cliptrase_ros.benchmark.suite import markdown_rows
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.run.pipeline import STAGES
from cliptrase_ros.segmentation.settings import SegmentationSettings

_FRAME = (480, 640)
_SIZE = 336

_METHODS = {
    'paper': {'preset': 'paper'},
    'robot': {'preset': 'robot'},
    'robot, edges': {'preset': 'robot', 'refinement': 'edges'},
    'robot, smoothing': {'preset': 'robot', 'smoothing': 0.5},
    'robot, pamr': {'preset': 'robot', 'refinement': 'pamr'},
    'plus': {'preset': 'plus'},
    'sc_clip, window 0': {'preset': 'sc_clip', 'window': 0},
    'sc_clip': {'preset': 'sc_clip'},
}

_HEAD = f"""\
A frame of {_FRAME[1]} x {_FRAME[0]} at {_SIZE}, batch 1, 16 columns, float16: PyTorch alone / with
the project's kernels, or one number where both are the same. The microseconds are an estimate for
a data-centre GPU, plus or minus a third: 2 a kernel, bytes at 3 TB/s, products at 400 TFLOP/s in
half precision and 30 in float32. The ratio is to the bare encoder at the same input."""


@dataclass(frozen=True)
class _Counted:
    """Cost by stage of PyTorch alone and with the project's kernels, and that of the encoder."""

    alone: dict[str, Cost]
    own: dict[str, Cost]
    encoder: Cost


def kernel_table(architecture: str = ARCHITECTURE) -> str:
    """The counts and the estimate as text, in Markdown; nothing is timed, and no GPU needed.

    Raises:
        ImportError: There is no Triton, and PyTorch would stand in for every kernel.
    """
    import_module('triton')
    counted = dict(_count(architecture))
    stages = [name for name in (*STAGES, 'copies') if any(name in c.own for c in counted.values())]
    kernels = (
        (name, *_by_stage(c, stages, lambda cost: cost.kernels)) for name, c in counted.items()
    )
    microseconds = (
        (name, *_by_stage(c, stages, lambda cost: cost.microseconds), _ratio(c))
        for name, c in counted.items()
    )
    return '\n'.join(
        [
            _HEAD,
            '',
            *markdown_rows(('kernels', *stages, 'all'), kernels),
            '',
            *markdown_rows(('microseconds', *stages, 'all', 'ratio'), microseconds),
        ]
    )


def _count(architecture: str) -> Iterator[tuple[str, _Counted]]:
    config = open_clip.get_model_config(architecture)
    patch_size = config['vision_cfg']['patch_size']
    encoders = {}
    for name, choices in _METHODS.items():
        settings = SegmentationSettings(resolution=_SIZE, **choices)
        crop = framing_of(settings.method.frame, _FRAME, _SIZE, patch_size).crop
        size = tuple(side // patch_size * patch_size for side in crop)
        if size not in encoders:
            encoders[size] = count_encoder_kernels(size, architecture=architecture)
        alone, own = (
            count_kernels(settings, _FRAME, triton=triton, architecture=architecture)
            for triton in (False, True)
        )
        yield name, _Counted(alone, own, encoders[size])
    for (height, width), cost in encoders.items():
        by_stage = {'tower': cost}
        yield f'bare encoder, {width} x {height}', _Counted(by_stage, by_stage, cost)


def _by_stage(
    counted: _Counted, stages: Iterable[str], figure: Callable[[Cost], float]
) -> Iterator[str]:
    for stage in stages:
        yield _both(
            *(figure(costs.get(stage, Cost())) for costs in (counted.alone, counted.own)), digits=0
        )
    yield _both(
        *(sum(map(figure, costs.values())) for costs in (counted.alone, counted.own)), digits=0
    )


def _ratio(counted: _Counted) -> str:
    return _both(
        *(
            sum(cost.microseconds for cost in costs.values()) / counted.encoder.microseconds
            for costs in (counted.alone, counted.own)
        ),
        digits=2,
    )


def _both(alone: float, own: float, digits: int) -> str:
    """One figure where both are written alike; nothing where there is nothing."""
    texts = dict.fromkeys(f'{value:.{digits}f}' if value else '' for value in (alone, own))
    return ' / '.join(text or '0' for text in texts) if any(texts) else ''
