"""The engine on a benchmark: from an opened dataset to a result."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cliptrase_ros.evaluation.class_indices import index_table, label_by_method
from cliptrase_ros.evaluation.datasets import SC_CLIP, Dataset, Published, Recipe
from cliptrase_ros.evaluation.protocols import Protocol
from cliptrase_ros.evaluation.report import Result, write_json
from cliptrase_ros.evaluation.run import Notes, ResumeError, run_benchmark
from cliptrase_ros.evaluation.samples import Benchmark
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import (
    Vocabulary,
    VocabularyClass,
    name_and_synonyms,
)

#: The published figures are of this network with OpenAI's weights, which may come from a file.
PUBLISHED_MODEL = re.compile(r'ViT-B-16-quickgelu \((openai|.*\..*)\)')

#: The steps of the ablation: what is switched off.
ABLATION: Mapping[str, Mapping[str, Any]] = {
    'plain CLIP': {'features': 'clip', 'clustering': False, 'denoising': False},
    '+ recovery': {'clustering': False, 'denoising': False},
    '+ clustering': {'denoising': False},
    '+ denoising': {},
}


@dataclass(frozen=True)
class Measurement:
    """What is measured; `ablation` measures the steps of the method instead of all of it."""

    benchmark: Benchmark
    protocol: Protocol
    settings: SegmentationSettings
    ablation: bool = False

    @property
    def recipe(self) -> Recipe | None:
        """How the dataset is run with preset sc_clip, where its authors say so."""
        name = self.benchmark.dataset.name
        return SC_CLIP.get(name) if self.settings.preset == 'sc_clip' else None

    @property
    def worded(self) -> Dataset:
        """The dataset with the words that are encoded, which a recipe has of its own."""
        dataset, recipe = self.benchmark.dataset, self.recipe
        if recipe is None:
            return dataset
        return replace(dataset, classes=recipe.classes, background=recipe.background)

    @property
    def engine_settings(self) -> SegmentationSettings:
        """The settings, with the image prior where the paper uses it, or as in the recipe."""
        settings = self.settings
        if self.recipe is not None:
            return replace(settings, min_confidence=self.recipe.min_confidence)
        if settings.preset == 'paper':
            return replace(settings, image_prior=self.benchmark.dataset.image_prior)
        return settings

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that label every sample, by the name they have in the result."""
        whole, recipe = self.engine_settings.method, self.recipe
        if recipe is not None:
            whole = replace(whole, logit_scale=recipe.logit_scale, min_area=recipe.min_area)
        if not self.ablation:
            return {self.settings.preset: whole}
        return {step: replace(whole, **switches) for step, switches in ABLATION.items()}

    @property
    def file_name(self) -> str:
        """Name of the result's files, without suffix."""
        settings = self.settings
        parts = [self.benchmark.dataset.name, self.protocol.name, settings.preset]
        parts.append(str(settings.resolution))
        if settings.refinement != 'none':
            parts.append(settings.refinement)
        preset, method = PRESETS[settings.preset], settings.method
        if (method.window, method.stride) != (preset.window, preset.stride):
            parts.append(f'window-{method.window}-{method.stride}')
        if self.ablation:
            parts.append('ablation')
        return '-'.join(parts)


def measure(
    segmenter: Segmenter,
    measurement: Measurement,
    output: Path,
    batch: int = 1,
    workers: int = 4,
    step: Callable[[int], object] = lambda count: None,
) -> Result:
    """Run a benchmark, or go on with it, and write its figures.

    The notes stay, so that a run of several benchmarks goes on behind those that are done; remove
    them in the end (`Result.notes`).

    Args:
        output: Folder for the figures and the notes.
        batch: See `run_benchmark`, as for `workers` and `step`.

    Raises:
        ResumeError: The notes cannot be used, or `output` holds a result of the same name for
            another model, other images (`--limit` too) or other settings.
        OSError: Notes or figures cannot be written.
        VocabularyError: The model cannot read a class name.
    """
    benchmark, settings = measurement.benchmark, measurement.engine_settings
    description = _describe(segmenter, measurement)
    path = output / f'{measurement.file_name}.json'
    _keep_other_results(path, description)
    vocabulary = make_vocabulary(measurement.worded)
    table = index_table(segmenter, vocabulary, background_first=measurement.recipe is not None)
    labellers = {
        name: partial(label_by_method, segmenter, table=table, settings=settings, method=method)
        for name, method in measurement.methods.items()
    }
    notes = Notes(output / f'{measurement.file_name}.partial.npz', description)
    progress = run_benchmark(
        benchmark, labellers, measurement.protocol, notes, batch, workers, step
    )
    result = Result(
        benchmark.dataset,
        measurement.protocol,
        settings.resolution,
        description,
        progress,
        notes,
        _published_figures(segmenter, measurement),
    )
    write_json(result, path)
    return result


def _describe(segmenter: Segmenter, measurement: Measurement) -> dict:
    """Everything that makes a difference to the counts, as JSON values."""
    benchmark, dataset = measurement.benchmark, measurement.worded
    settings = measurement.engine_settings
    sam = segmenter.mask_source if settings.refinement == 'sam' else None
    return {
        'dataset': dataset.name,
        'root': str(benchmark.root.resolve()) if benchmark.root else None,
        'samples': [len(benchmark.names), benchmark.names[0], benchmark.names[-1]],
        'protocol': measurement.protocol.name,
        'model': segmenter.name,
        'weights': segmenter.weights_digest,
        'sam_model': getattr(sam, 'name', None),
        'sam_weights': getattr(sam, 'weights_digest', None),
        'precision': str(segmenter.pipeline.backbone.dtype).removeprefix('torch.'),
        **asdict(settings),
        'ids': benchmark.ids,
        'classes': dataset.classes,
        'background': dataset.background,
        'steps': {name: asdict(method) for name, method in measurement.methods.items()},
    }


def _published_figures(segmenter: Segmenter, measurement: Measurement) -> Published | None:
    """What the authors reached where model, protocol and settings are theirs."""
    dataset, recipe = measurement.benchmark.dataset, measurement.recipe
    settings = measurement.engine_settings
    if recipe is None:
        protocol, method = 'paper', replace(PRESETS['paper'], image_prior=dataset.image_prior)
    else:
        protocol, method = 'whole', PRESETS['sc_clip']
    is_as_published = (
        measurement.protocol.name == protocol
        and settings.method == method
        and PUBLISHED_MODEL.fullmatch(segmenter.name)
    )
    return (recipe or dataset).published.get(settings.resolution) if is_as_published else None


def _keep_other_results(path: Path, description: Mapping) -> None:
    """Raise ResumeError where a file holds the result of a run of another description."""
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text())
        ours = json.loads(json.dumps(description))
        different = [key for key, value in ours.items() if earlier.get(key) != value]
    except (ValueError, AttributeError):
        different = ['everything']
    if different:
        raise ResumeError(
            f'{path} holds the result of another run, which differed in {", ".join(different)}; '
            'move it away, or write to another --output'
        )


def make_vocabulary(dataset: Dataset) -> Vocabulary:
    """The classes of a dataset, which may be more than a label image of bytes can hold."""
    return Vocabulary(
        tuple(
            VocabularyClass(index, name, tuple(filter(None, synonyms)))
            for index, (name, synonyms) in enumerate(map(name_and_synonyms, dataset.classes))
        ),
        dataset.background,
    )
