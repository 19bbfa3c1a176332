"""The measurements, one function each."""

import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F

from cliptrase_ros.benchmark.subject import (
    BACKGROUND,
    CLASSES,
    VOCABULARY,
    bare_encoder,
    camera_frame,
    random_clip,
    vocabulary_of,
)
from cliptrase_ros.benchmark.timing import (
    PeakMemory,
    device_ms,
    interleaved,
    stages_ms,
    synchronise,
)
from cliptrase_ros.segmentation.device_faults import describe
from cliptrase_ros.segmentation.method.clustering import dbscan, dbscan_parameters
from cliptrase_ros.segmentation.method.enlarging import largest_enlarged, largest_of_all
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.model.prompts import PROMPT_TEMPLATES
from cliptrase_ros.segmentation.model.text import TextEncoder
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.graphs import (
    LARGEST_BATCH,
    EagerQueue,
    FixedCall,
    GraphQueue,
    batches,
)
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

# Mean and std of pixels do not matter to time.
_HALF = (0.5, 0.5, 0.5)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineCase:
    """One size, batch and kind of frame.

    Attributes:
        size: Shorter side fed to CLIP, pixels.
        frame: (height, width) of the camera, pixels.
        preset: `paper` sees a square, as the encoder usually does; others the whole frame.
        refinement, window: The settings of these names.
        classes: How many there are, besides the background.
    """

    size: int
    batch: int
    frame: tuple[int, int] = (480, 640)
    preset: str = 'paper'
    refinement: str = SegmentationSettings.refinement
    window: int = SegmentationSettings.window
    classes: int = CLASSES


def make_segmenter(architecture: str, device: torch.device, precision: str) -> Segmenter:
    """A segmenter on random weights."""
    tokenizer = open_clip.get_tokenizer(architecture)
    loaded = LoadedModel(random_clip(architecture), tokenizer, _HALF, _HALF, architecture)
    return Segmenter(loaded, device, precision)


def measure_engine(
    segmenter: Segmenter, case: EngineCase, precision: str, graph: bool, runs: int
) -> dict:
    """Time frames to labels, both in host memory, against the bare encoder.

    The encoder is the model's own `encode_image` on pixels that are on the device already, in one
    pass over as many whole patches, in the same precision, and with a graph if the engine has one.

    Args:
        precision: Of the segmenter, for the result.
        graph: Whether to use CUDA graphs, if the segmenter has some. The two graphs are then timed
            alone as well, by the device's clock. Where they cannot be captured the result says so.

    Returns:
        Figures that JSON can hold, with keys as docs/performance.md says.
    """
    device, dtype = segmenter.device, segmenter.pipeline.backbone.dtype
    frames = [camera_frame(seed, *case.frame) for seed in range(case.batch)]
    settings = SegmentationSettings(
        case.preset, case.size, refinement=case.refinement, window=case.window
    )
    encoded = segmenter.encode_vocabulary(parse_vocabulary(vocabulary_of(case.classes), BACKGROUND))
    patch_size = segmenter.pipeline.backbone.patch_size
    framing = framing_of(settings.method.frame, case.frame, case.size, patch_size)
    network = tuple(side // patch_size * patch_size for side in framing.crop)

    calls = segmenter.fixed_calls
    alone = {}
    try:
        memory = PeakMemory(device)
        if graph:
            segmenter.warm_up([case.frame], case.batch, encoded, settings)
            graph = len(calls) == min(case.batch, LARGEST_BATCH).bit_length()
        if not graph:
            segmenter.fixed_calls = None
        segmenter.segment(frames, encoded, settings)
        peak = memory.megabytes()
        with torch.inference_mode():
            encode = bare_encoder(segmenter.name, network, device, dtype)
            pixels = torch.randn(case.batch, 3, *network, device=device).to(dtype)
            run_encoder = partial(encode, pixels)
            replay = _capture_encoder(calls.queue, run_encoder) if graph else None
            graph = replay is not None
            if not graph:
                segmenter.fixed_calls = None
            taken = interleaved(
                {
                    'encoder': replay or run_encoder,
                    'engine': lambda: segmenter.segment(frames, encoded, settings),
                },
                runs,
                device,
            )
            if graph and list(batches(case.batch)) == [case.batch]:
                alone = _time_graphs_alone(calls.latest, replay, runs, device, taken['engine'])
            segmenter.fixed_calls = None  # stages are told apart without a graph only
            stages = stages_ms(
                lambda: segmenter.segment(frames, encoded, settings), min(runs, 3), device
            )
    finally:
        segmenter.fixed_calls = calls
        if calls is not None:
            calls.clear()
    ratios = [b / a for a, b in zip(taken['encoder'], taken['engine'], strict=True)]
    return {
        **asdict(case),
        'precision': precision,
        'graph': graph,
        'network': list(network),
        **_figures('encoder_ms', taken['encoder']),
        **_figures('engine_ms', taken['engine']),
        **_figures('ratio', ratios),
        'frames_per_second': 1e3 * case.batch / statistics.median(taken['engine']),
        'stages_ms': stages,
        'peak_memory_mb': peak,
        **alone,
    }


def _capture_encoder(
    queue: GraphQueue | EagerQueue, function: Callable[[], object]
) -> Callable[[], None] | None:
    """Return what replays the encoder; None, and a line in the log, where it cannot be captured."""
    try:
        return queue.capture(function)
    except RuntimeError as error:
        _log.warning('the bare encoder cannot be a CUDA graph: %s', describe(error))
        return None


def _time_graphs_alone(
    call: FixedCall,
    encoder: Callable[[], object],
    runs: int,
    device: torch.device,
    engine_ms: Sequence[float],
) -> dict:
    """The two graphs without the host, and what a call from host to host consists of."""
    graphs = device_ms({'encoder': encoder, 'engine': call.replay}, runs, device)
    ratios = [b / a for a, b in zip(graphs['encoder'], graphs['engine'], strict=True)]
    copies = device_ms({'upload': call.upload, 'download': call.download}, runs, device)
    taken = {'upload': copies['upload'], 'graph': graphs['engine'], 'download': copies['download']}
    parts = {name: statistics.median(values) for name, values in taken.items()}
    return {
        'encoder_graph_ms': statistics.median(graphs['encoder']),
        'engine_graph_ms': parts['graph'],
        **_figures('graph_ratio', ratios),
        'parts_ms': {**parts, 'host': statistics.median(engine_ms) - sum(parts.values())},
    }


def measure_text(segmenter: Segmenter, phrases: int, runs: int) -> dict:
    """Time the features of new phrases: with the whole context, cut to the prompts, and from disk.

    The last, `cached_ms`, is for a vocabulary of 100 phrases that are on disk, in a new process.
    """
    model, device = segmenter.model, segmenter.device
    tokenizer = open_clip.get_tokenizer(segmenter.name)
    words = [f'new word {i}' for i in range(phrases)]

    def whole_context() -> None:
        for word in words:
            tokens = tokenizer([template(word) for template in PROMPT_TEMPLATES])
            model.encode_text(tokens.to(device), normalize=True).mean(0)

    with torch.inference_mode():
        taken = interleaved(
            {
                'whole': whole_context,
                'cut': lambda: TextEncoder(model, tokenizer).encode(words),
            },
            runs,
            device,
        )
        cached = _cached_ms(segmenter, runs)
    return {
        'phrases': phrases,
        'templates': len(PROMPT_TEMPLATES),
        'whole_context_ms': statistics.median(taken['whole']),
        **_figures('cut_ms', taken['cut']),
        'cached_phrases': 100,
        **_figures('cached_ms', cached),
    }


def _cached_ms(segmenter: Segmenter, runs: int) -> list[float]:
    model = segmenter.model
    tokenizer = open_clip.get_tokenizer(segmenter.name)
    words = [f'word {i}' for i in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        writer = TextEncoder(model, tokenizer, Path(folder))
        writer.missing(words)
        width = model.text_projection.shape[1]
        features = torch.nn.functional.normalize(torch.randn(100, width), dim=-1).numpy()
        writer.cache.store(dict(zip(words, features, strict=True)))
        taken = []
        for _ in range(runs):
            reader = TextEncoder(model, tokenizer, Path(folder))
            reader.missing(['never met'])  # the fingerprint of the weights, once per process
            begin = time.perf_counter()
            reader.check(words)
            reader.encode(words)
            synchronise(segmenter.device)
            taken.append(1e3 * (time.perf_counter() - begin))
        return taken


def measure_clustering(patches: Sequence[int], runs: int, device: torch.device) -> list[dict]:
    """Time DBSCAN on rows of about as many clusters as frames have."""
    results = []
    for count in patches:
        generator = torch.Generator().manual_seed(0)
        centres = torch.rand(8, count, generator=generator)
        rows = centres[torch.arange(count) * 8 // count] * 0.5
        rows += 0.02 * torch.rand(count, count, generator=generator)
        rows = rows[None].to(device)
        run = partial(dbscan, rows, *dbscan_parameters(count))
        taken = interleaved({'dbscan': run}, runs, device)['dbscan']
        results.append({'patches': count, **_figures('ms', taken)})
    return results


def measure_labels(columns: Sequence[int], runs: int, device: torch.device) -> list[dict]:
    """Time labels of 592 x 336 pixels, from maps whose neighbouring patches are alike.

    Those of trained models are; of random weights they are not. `all_ms` is for enlarging the maps
    of all columns.
    """
    results = []
    for count in columns:
        generator = torch.Generator().manual_seed(0)
        scenery = torch.randn(1, count, 5, 9, generator=generator)
        maps = F.interpolate(scenery, size=(21, 37), mode='bicubic', align_corners=False)
        maps = (maps + 0.05 * torch.randn(maps.shape, generator=generator)).to(device)
        functions = {'ms': largest_enlarged, 'all_ms': largest_of_all}
        taken = interleaved(
            {name: partial(f, maps, (336, 592)) for name, f in functions.items()}, runs, device
        )
        figures = {name: statistics.median(ms) for name, ms in taken.items()}
        results.append({'columns': count, **figures})
    return results


def measure_agreement(
    architecture: str, device: torch.device, precision: str, frames: int, size: int
) -> float:
    """Share of pixels, 0..1, whose label is that of float32, over frames at preset `robot`.

    Preset `paper` gives these frames one and the same label nearly everywhere.
    """
    images = [camera_frame(seed, 480, 640) for seed in range(frames)]
    settings = SegmentationSettings(preset='robot', resolution=size)
    labels = []
    for tower_precision in ('float32', precision):
        segmenter = make_segmenter(architecture, device, tower_precision)
        encoded = segmenter.encode_vocabulary(parse_vocabulary(VOCABULARY, BACKGROUND))
        labels.append([r.label for i in images for r in segmenter.segment([i], encoded, settings)])
    return float(np.mean([a == b for a, b in zip(*labels, strict=True)]))


def _figures(name: str, values: Sequence[float]) -> dict:
    return {name: statistics.median(values), f'{name}_spread': [min(values), max(values)]}
