"""Results of a benchmark as JSON and as a table beside what was published."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.datasets import Dataset, Published
from cliptrase_ros.evaluation.metrics import Scores, class_iou, scores
from cliptrase_ros.evaluation.protocols import Protocol
from cliptrase_ros.evaluation.run import Notes, Progress
from cliptrase_ros.segmentation.vocabulary import name_and_synonyms

_HEADS = ('pAcc', 'mAcc', 'fwIoU', 'mIoU')


@dataclass(frozen=True)
class Result:
    """A finished benchmark.

    Attributes:
        resolution: Shorter side fed to CLIP, pixels.
        description: JSON values; everything that makes a difference to the counts.
        published: Figures of the authors for the last method, where dataset, protocol and
            settings are theirs.
    """

    dataset: Dataset
    protocol: Protocol
    resolution: int
    description: Mapping
    progress: Progress
    notes: Notes
    published: Published | None = None

    @property
    def scores(self) -> dict[str, Scores]:
        """Scores by method."""
        return {
            method: scores(counts, self.protocol.absent_classes_count)
            for method, counts in self.progress.counts.items()
        }


def write_json(result: Result, path: Path) -> None:
    """Write a result with the figures of each class; percentages, null where undefined."""
    names = [name_and_synonyms(entry)[0] for entry in result.dataset.classes]
    if result.dataset.background:
        names.append('background')
    methods = {
        method: {
            **{name: _percent(value) for name, value in asdict(figures).items()},
            'classes': [
                {'name': name, 'iou': _percent(iou), 'true_pixels': int(true)}
                for name, iou, true in zip(
                    names,
                    class_iou(result.progress.counts[method]),
                    result.progress.counts[method].sum(1),
                    strict=True,
                )
            ],
        }
        for method, figures in result.scores.items()
    }
    report = {
        **result.description,
        'images': result.progress.counted,
        'left_out': result.progress.left_out,
        'unreadable': dict(result.progress.unreadable),
        'methods': methods,
        'published': result.published and asdict(result.published),
    }
    path.write_text(json.dumps(report, indent=1) + '\n')


def table(results: Sequence[Result]) -> str:
    """Lines of a table, percentages; below a line, where there are any, the published figures."""
    methods = [method for result in results for method in result.progress.counts]
    width = max(len(name) for name in [*methods, 'published', 'method'])
    named = max(len(name) for name in [*(r.dataset.name for r in results), 'dataset'])
    heads = ''.join(f'{head:>8}' for head in _HEADS)
    lines = [f'{"dataset":{named}}  size  {"method":{width}}  images{heads}']
    for result in results:
        # Dataset, size and number of images stand in the first line of a result alone.
        start = f'{result.dataset.name:{named}}  {result.resolution:4}'
        images = result.progress.counted
        for method, figures in result.scores.items():
            lines.append(f'{start}  {method:{width}}  {images:>6}{_figures(asdict(figures), 100)}')
            start, images = ' ' * len(start), ''
        if result.published:
            figures = _figures(asdict(result.published), 1)
            lines.append(f'{start}  {"published":{width}}  {images:>6}{figures}')
    return '\n'.join(lines)


def _figures(values: Mapping[str, float | None], factor: float) -> str:
    return ''.join(
        f'{"-":>8}' if value is None else f'{factor * value:8.2f}' for value in values.values()
    )


def _percent(value: float | np.floating) -> float | None:
    return None if math.isnan(value) else round(100 * float(value), 4)
