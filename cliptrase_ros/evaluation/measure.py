"""The engine on a benchmark: from an opened dataset to a result."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from cliptrase_ros.evaluation.class_indices import index_table, label_by_method
from cliptrase_ros.evaluation.datasets import Dataset
from cliptrase_ros.evaluation.protocols import Protocol
from cliptrase_ros.evaluation.reading import Benchmark
from cliptrase_ros.evaluation.report import Result, write_json
from cliptrase_ros.evaluation.run import Labeller, Notes, ResumeError, run_benchmark
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, Method, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import (
    Vocabulary,
    VocabularyClass,
    name_and_synonyms,
)

#: The published figures are of this network with OpenAI's weights, which may come from a file.
PUBLISHED_MODEL = re.compile(r'ViT-B-16-quickgelu \((openai|.*\..*)\)')

# A result of the same name that differs in one of these is of something else.
_DISTINGUISHING = (
    'root',
    'samples',
    'model',
    'weights',
    'sam_model',
    'sam_weights',
    'precision',
    'classes',
    'background',
)

#: The steps of the ablation: what is switched off.
ABLATION: Mapping[str, Mapping[str, bool]] = {
    'plain CLIP': {'recovery': False, 'clustering': False, 'denoising': False},
    '+ recovery': {'clustering': False, 'denoising': False},
    '+ clustering': {'denoising': False},
    '+ denoising': {},
}


def measure(
    segmenter: Segmenter,
    benchmark: Benchmark,
    protocol: Protocol,
    settings: SegmentationSettings,
    output: Path,
    ablation: bool = False,
    batch: int = 1,
    workers: int = 4,
    step: Callable[[int], object] = lambda count: None,
) -> Result:
    """Run a benchmark, or go on with it, and write its figures to `output`.

    settings: of the engine; on the datasets where the paper uses the image prior it is added
    with preset `paper`. ablation: measure the steps of the method instead of all of it.
    batch, workers, step: see `run_benchmark`. The notes stay, for a run of several benchmarks to go
    on behind those that are done; remove them in the end (`Result.notes`).
    Raises ResumeError, also where `output` holds this result for another model or other images
    (`--limit` too), OSError, and VocabularyError for a class name that the model cannot read.
    """
    dataset = benchmark.dataset
    if settings.preset == 'paper':
        settings = replace(settings, image_prior=dataset.image_prior)
    off = ABLATION if ablation else {settings.preset: {}}
    methods = {name: replace(settings.method, **switches) for name, switches in off.items()}
    stem = f'{dataset.name}-{protocol.name}-{settings.preset}-{settings.resolution}'
    if settings.refinement != 'none':
        stem += f'-{settings.refinement}'
    if settings.window:
        stem += f'-window-{settings.window}-{settings.stride}'
    if ablation:
        stem += '-ablation'
    sam = segmenter.mask_source if settings.refinement == 'sam' else None
    described = {
        'dataset': dataset.name,
        'root': str(benchmark.root.resolve()) if benchmark.root else None,
        'samples': [len(benchmark.names), benchmark.names[0], benchmark.names[-1]],
        'protocol': protocol.name,
        'model': segmenter.name,
        'weights': segmenter.weights_digest,
        'sam_model': getattr(sam, 'name', None),
        'sam_weights': getattr(sam, 'weights_digest', None),
        'precision': str(segmenter.pipeline.dtype).removeprefix('torch.'),
        **asdict(settings),
        'ids': benchmark.ids,
        'classes': dataset.classes,
        'background': dataset.background,
        'steps': {name: asdict(method) for name, method in methods.items()},
    }
    path = output / f'{stem}.json'
    _keep_other_results(path, described)
    table = index_table(segmenter, make_vocabulary(dataset))

    def labeller(method: Method) -> Labeller:
        def label(images: Sequence[np.ndarray]) -> list[np.ndarray]:
            return label_by_method(segmenter, images, table, settings, method)

        return label

    notes = Notes(output / f'{stem}.partial.npz', described)
    progress = run_benchmark(
        benchmark,
        {name: labeller(method) for name, method in methods.items()},
        protocol,
        notes,
        batch,
        workers,
        step,
    )
    as_published = (
        protocol.name == 'paper'
        and settings.refinement == 'none'
        and settings.method == replace(PRESETS['paper'], image_prior=dataset.image_prior)
        and PUBLISHED_MODEL.fullmatch(segmenter.name)
    )
    published = dataset.published.get(settings.resolution) if as_published else None
    result = Result(dataset, protocol, settings.resolution, described, progress, notes, published)
    write_json(result, path)
    return result


def _keep_other_results(path: Path, described: Mapping) -> None:
    """Raise ResumeError where a file holds the result of another model or of other images."""
    if not path.exists():
        return
    try:
        earlier = json.loads(path.read_text())
        ours = json.loads(json.dumps({key: described[key] for key in _DISTINGUISHING}))
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
