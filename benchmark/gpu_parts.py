"""What `gpu_check.py` checks, one function a part, the most valuable first.

A part makes checks and returns figures; nothing that takes long or is slow fails. On a CPU
(`--dry`) every part runs with a tiny model, calls of fixed shape stand in for CUDA graphs, and
nothing is provoked that a CPU does not have.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from kernel_cases import CASES, KernelCases, moved, on_host
from parts import Checks, Part
from reference_weights import outlier_clip, reference_clip
from tiny_clip import TINY_CONFIG, add_architecture
from torch.autograd import DeviceType

from cliptrase_ros.benchmark.cases import (
    EngineCase,
    make_segmenter,
    measure_agreement,
    measure_clustering,
    measure_engine,
    measure_text,
)
from cliptrase_ros.benchmark.subject import ARCHITECTURE, BACKGROUND, VOCABULARY, camera_frame
from cliptrase_ros.benchmark.suite import Suite, report_head
from cliptrase_ros.benchmark.timing import device_ms, synchronise
from cliptrase_ros.evaluation.recordings import Recording, read_recording
from cliptrase_ros.evaluation.verify import HALF_PRECISION_SHARE, Verifier, recording_table
from cliptrase_ros.evaluation.verify_sc_clip import SC_CLIP_HALF_PRECISION_SHARE
from cliptrase_ros.segmentation import kernels as own_kernels
from cliptrase_ros.segmentation.memo import reuse_constants_in
from cliptrase_ros.segmentation.model.preprocessing import (
    mmcv_framing,
    network_input,
    whole_frame_framing,
)
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.process_settings import exact_float32
from cliptrase_ros.segmentation.run.graphs import EagerQueue, FixedCalls, GraphQueue
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, parse_vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

ROOT = Path(__file__).resolve().parent.parent

PARTS: list[Part] = []


def part(limit_s: float) -> Callable:
    """Make a function a part of the check; after `limit_s` it counts as hanging."""

    def add(function: Callable[[Checks], dict]) -> Callable[[Checks], dict]:
        PARTS.append(Part(function, limit_s))
        return function

    return add


def is_usable() -> bool:
    """Whether the GPU still answers and can capture; if not, it never will in this process."""
    try:
        synchronise(_device)
    except RuntimeError:
        return False
    return not GraphQueue._has_failed


def set_up(is_dry: bool) -> None:
    """Choose between the GPU and the CPU, and between the paper's model and a tiny one."""
    global _is_dry, _device, _architecture
    _is_dry, _device, _architecture = is_dry, torch.device('cuda', 0), ARCHITECTURE
    if is_dry:
        _device, _architecture = torch.device('cpu'), 'tiny-ViT'
        with tempfile.TemporaryDirectory() as folder:
            add_architecture(Path(folder), _architecture, TINY_CONFIG)


_is_dry = False
_device = torch.device('cpu')
_architecture = ''


@cache
def _segmenter(precision: str) -> Segmenter:
    return _with_calls(make_segmenter(_architecture, _device, precision))


def _loaded(model: torch.nn.Module) -> LoadedModel:
    """A small model of recordings."""
    return LoadedModel(
        model,
        open_clip.get_tokenizer('ViT-B-16'),
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
        'the small model',
    )


def _segmenter_of(loaded: LoadedModel) -> Segmenter:
    return _with_calls(Segmenter(loaded, _device))


def _with_calls(segmenter: Segmenter) -> Segmenter:
    if segmenter.fixed_calls is None:
        segmenter.fixed_calls = FixedCalls(segmenter.pipeline, EagerQueue(_device))
    return segmenter


def _half() -> str:
    return 'float32' if _is_dry else 'float16'


def _batch() -> int:
    """Most frames of one call."""
    return 2 if _is_dry else 8


def _settings(**choices: object) -> SegmentationSettings:
    return SegmentationSettings(resolution=64 if _is_dry else 336, **choices)


def _frames(count: int, seed: int = 0) -> list[np.ndarray]:
    size = (72, 96) if _is_dry else (480, 640)
    return [camera_frame(seed + i, *size) for i in range(count)]


def _words(segmenter: Segmenter) -> EncodedVocabulary:
    return segmenter.encode_vocabulary(parse_vocabulary(VOCABULARY, BACKGROUND))


def _warm_up(
    checks: Checks,
    segmenter: Segmenter,
    sizes: Sequence[tuple[int, int]],
    batch: int,
    settings: SegmentationSettings,
    words: EncodedVocabulary,
) -> None:
    """Capture graphs anew; where one is missing, nothing that follows would use it."""
    segmenter.fixed_calls.clear()
    segmenter.warm_up(sizes, batch, words, settings)
    captured, wanted = len(segmenter.fixed_calls), len(sizes) * batch.bit_length()
    checks(captured == wanted, f'{captured} of {wanted} graphs were captured')


def _graph_ms(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each function as a graph, which no host holds up."""
    queue = EagerQueue(_device) if _is_dry else GraphQueue(_device)
    # What is made of sizes alone is copied from the host, which a capture forbids.
    with reuse_constants_in({}):
        replays = {name: queue.capture(function) for name, function in functions.items()}
    taken = device_ms(replays, 3 if _is_dry else 50, _device)
    queue.clear()
    return {name: statistics.median(ms) for name, ms in taken.items()}


@contextmanager
def _busy(checks: Checks, work: Callable[[], object]) -> Iterator[None]:
    """Within it another thread does some work again and again.

    It must not make random numbers there: older PyTorch raises while another thread captures.
    """
    stop = threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                work()
        except RuntimeError as error:
            checks(False, f'the work of another thread failed: {error}')

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _equal_share(
    found: Sequence[Segmentation], wanted: Sequence[Segmentation], tolerance: int = 255
) -> list[float]:
    """Share of equal labels, 0..1, of each frame.

    Some presets give a whole frame one label, so that labels alone say little; then `tolerance`
    tells how far apart confidences may be.
    """
    return [
        float(
            (
                (a.label == b.label)
                & (np.abs(a.confidence.astype(int) - b.confidence) <= tolerance)
            ).mean()
        )
        for a, b in zip(found, wanted, strict=True)
    ]


def _are_equal(found: Sequence[Segmentation], wanted: Sequence[Segmentation]) -> bool:
    return min(_equal_share(found, wanted, tolerance=0)) == 1


@part(limit_s=60)
def environment(checks: Checks) -> dict:
    """What there is; nothing to fail."""
    checks.report |= {**report_head(_architecture, _device), 'dry': _is_dry}
    figures = {
        'float32 products': torch.get_float32_matmul_precision(),
        'TF32 override': os.environ.get('TORCH_ALLOW_TF32_CUBLAS_OVERRIDE'),
    }
    if not _is_dry:
        properties = torch.cuda.get_device_properties(_device)
        figures |= {
            'capability': f'{properties.major}.{properties.minor}',
            'memory MB': properties.total_memory / 2**20,
        }
        kinds = {0: 'math', 1: 'flash', 2: 'efficient', 3: 'cudnn'}
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            q = torch.randn(1, 12, 442, 64, device=_device, dtype=dtype)
            figures[f'attention {dtype}'] = kinds.get(torch._fused_sdp_choice(q, q, q))
    return figures


@part(limit_s=240)
def kernels_against_references(checks: Checks) -> dict:
    """Every kernel gives what its reference gives; microseconds of both as graphs.

    It comes before all that use kernels, because `first_s`, of the first calls, tells how long
    compiling takes where Triton has not compiled them before.
    """
    figures: dict = {'first_s': 0.0}
    checks(_is_dry or own_kernels._has_triton(), 'there is no Triton that compiles the kernels')
    with torch.inference_mode(), exact_float32():
        for name, case in CASES.items():
            random = torch.Generator().manual_seed(0)
            large = next(case.small(random)) if _is_dry else case.large(random)
            on_device = moved(large, _device)
            first_s = _seconds(partial(case.function, *on_device))
            figures['first_s'] += first_s
            _compare_with_reference(checks, f'{name}, large', case, large)
            for seed in range(1 if _is_dry else 2):
                for i, small in enumerate(case.small(torch.Generator().manual_seed(seed))):
                    _compare_with_reference(
                        checks, f'{name}, small input {i} of seed {seed}', case, small
                    )
            ms = _graph_ms(
                {
                    'kernel_us': partial(case.function, *on_device),
                    'reference_us': partial(_reference, case, on_device),
                }
            )
            figures[name] = {'first_s': first_s, **{key: 1e3 * each for key, each in ms.items()}}
    for _, name in sorted(own_kernels._failed):
        checks(False, f'the kernel of {name} was given up, and PyTorch stands in')
    return figures


def _compare_with_reference(
    checks: Checks, label: str, case: KernelCases, arguments: tuple
) -> None:
    found = on_host(case.function(*moved(arguments, _device)))
    expected = _reference(case, arguments)
    try:
        case.check(found, expected)
    except AssertionError as error:
        checks(False, f'{label}: {" ".join(str(error).split())[:200]}')


def _reference(case: KernelCases, arguments: tuple) -> object:
    with own_kernels.no_kernels():
        return case.function(*arguments)


def _seconds(function: Callable[[], object]) -> float:
    synchronise(_device)
    begin = time.perf_counter()
    function()
    synchronise(_device)
    return time.perf_counter() - begin


@part(limit_s=60)
def recordings(checks: Checks) -> dict:
    """The published code's clusters and labels, stage by stage and through graphs."""
    loaded = _loaded(reference_clip())
    exact = Verifier(loaded, device=_device)
    segmenter = _segmenter_of(loaded)
    figures = {}
    paths = sorted((ROOT / 'test' / 'golden').glob('small_*.npz'))
    recorded = {path.stem: read_recording(path) for path in paths}
    for name, recording in recorded.items():
        agreement = exact.compare(recording)
        checks(agreement.equal, f'{name}: {agreement}')
        # As a program that allows TF32 would have it.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('high')
        try:
            allowed = exact.compare(recording)
        finally:
            torch.set_float32_matmul_precision(before)
        checks(allowed.equal, f'{name}, TF32 allowed: {allowed}')
        label = _label_recording(checks, segmenter, recording)
        wanted = recording.labels.copy()
        wanted[wanted == len(recording.foreground)] = UNLABELLED
        # Among more columns other pixels may tie than without a graph.
        others = float((label != wanted).mean())
        checks(others <= 1e-4, f'{name}, graph: {others:.4%} of the labels are others')
        figures[name] = {
            'ties': agreement.ties,
            'other labels of the graph': others,
            'correlation': agreement.correlation,
            'patch_logits': agreement.patch_logits,
        }
    segmenter.fixed_calls.clear()
    figures |= _sc_clip_recordings(checks)
    # Last, because the model is rounded.
    half = Verifier(loaded, 'float16', _device)
    for name, recording in recorded.items():
        share = half.compare(recording).labels
        checks(share >= HALF_PRECISION_SHARE, f'{name}, float16: {share:.4f} of the labels')
        figures[name]['labels in float16'] = share
    return figures


def _sc_clip_recordings(checks: Checks) -> dict:
    """The same of SC-CLIP, whose recordings have other weights, without graphs."""
    paths = sorted((ROOT / 'test' / 'golden').glob('sc_*.npz'))
    recorded = {path.stem: read_recording(path) for path in paths}
    figures = {}
    for precision, share in (('float32', 0.9999), ('float16', SC_CLIP_HALF_PRECISION_SHARE)):
        verifier = Verifier(_loaded(outlier_clip()), precision, _device)
        for name, recording in recorded.items():
            agreement = verifier.compare_sc_clip(recording)
            labels = agreement.stages['labels'].share
            checks(labels >= share, f'{name}, {precision}: {labels:.4f} of the labels')
            figures[f'{name}, {precision}'] = {
                'labels': labels,
                'features': agreement.stages['features'].largest,
                'first difference': agreement.first_difference or '',
            }
    return figures


def _label_recording(checks: Checks, segmenter: Segmenter, recording: Recording) -> np.ndarray:
    """Label a recording's input through a graph."""
    table = recording_table(recording, float(segmenter.model.logit_scale.exp())).to(_device)
    names = '; '.join(recording.foreground)
    vocabulary = EncodedVocabulary(parse_vocabulary(names, recording.background), table)
    size = recording.input.shape[:2]
    settings = SegmentationSettings(
        preset='paper', resolution=size[0], image_prior=recording.mode == 'image_prior'
    )
    _warm_up(checks, segmenter, [size], 1, settings, vocabulary)
    return segmenter.segment([recording.input], vocabulary, settings)[0].label


@part(limit_s=180)
def graphs_against_eager(checks: Checks) -> dict:
    """Replays give the labels of the same calls without a graph, whatever words and thresholds."""
    figures = {}
    choices = [
        {'preset': 'paper'},
        {'preset': 'robot'},
        {'preset': 'robot', 'refinement': 'edges'},
        {'preset': 'plus', 'smoothing': 0.5},
        {'preset': 'robot', 'refinement': 'edges', 'smoothing': 0.5, 'window': 224},
        {'preset': 'robot', 'refinement': 'pamr'},
        {'preset': 'plus', 'refinement': 'pamr', 'smoothing': 0.5},
        {'preset': 'sc_clip'},
        {'preset': 'sc_clip', 'window': 0},
        {'preset': 'sc_clip', 'refinement': 'edges'},
        {'preset': 'sc_clip', 'refinement': 'pamr'},
    ]
    if _is_dry:
        choices = [
            {'preset': 'robot', 'refinement': 'edges', 'smoothing': 0.5, 'window': 64},
            {'preset': 'sc_clip', 'refinement': 'pamr', 'window': 64},
        ]
    for precision in ('float32',) if _is_dry else ('float16', 'bfloat16'):
        segmenter = _segmenter(precision)
        for choice in choices:
            name = ', '.join([precision, *map(str, choice.values())])
            figures[name] = _compare_with_eager(checks, name, segmenter, _settings(**choice))
            segmenter.fixed_calls.clear()
    return figures


def _compare_with_eager(
    checks: Checks, name: str, segmenter: Segmenter, settings: SegmentationSettings
) -> dict:
    batch = _batch()
    words, frames = _words(segmenter), _frames(batch)
    begin = time.perf_counter()
    _warm_up(checks, segmenter, [frames[0].shape[:2]], batch, settings, words)
    figures = {'warm_up_s': time.perf_counter() - begin}
    eager_calls = FixedCalls(segmenter.pipeline, EagerQueue(_device), patience=1)

    once = segmenter.segment(frames, words, settings)
    again = segmenter.segment(frames, words, settings)
    checks(_are_equal(once, again), f'{name}: a replay gives other labels than the one before')
    other_words = segmenter.encode_vocabulary(parse_vocabulary('lamp; cup', background=()))
    cases = {
        'all frames': (frames, words, settings),
        'three frames': (frames[:3], words, settings),
        'one frame': (frames[:1], words, settings),
        'other words': (frames, other_words, settings),
        'threshold': (frames, words, replace(settings, min_confidence=0.5)),
    }
    histories = [segmentation.history for segmentation in once] if settings.smoothing else []
    for case, (images, vocabulary, changed) in cases.items():
        arguments = images, vocabulary, changed, histories[: len(images)]
        replayed = segmenter.segment(*arguments)
        with patch.object(segmenter, 'fixed_calls', eager_calls):
            same = min(_equal_share(replayed, segmenter.segment(*arguments), tolerance=2))
        with patch.object(segmenter, 'fixed_calls', None):
            eager = _equal_share(replayed, segmenter.segment(*arguments))
        checks(same >= 0.999, f'{name}, {case}: without a graph {same:.4f} of the pixels are equal')
        # Other sizes of products and other kernels round otherwise, which in half precision moves
        # whole patches from one cluster to another.
        checks(min(eager) >= 0.9, f'{name}, {case}: eager {min(eager):.4f} of the labels are equal')
        figures[case] = {
            'same calls': same,
            'eager, mean': statistics.mean(eager),
            'eager, least': min(eager),
        }
    with torch.inference_mode(), _forbidden_synchronisation():
        pending = segmenter.fixed_calls.latest.start(frames, other_words.table, 0.0, [None] * batch)
    pending.result()
    return figures


@contextmanager
def _forbidden_synchronisation() -> Iterator[None]:
    """Within it whatever waits for the GPU raises."""
    if _is_dry:
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@part(limit_s=180)
def speed(checks: Checks) -> dict:
    """Engine and bare encoder, as `cliptrase bench` measures them."""
    runs = 2 if _is_dry else 100
    size, frame = _settings().resolution, _frames(1)[0].shape[:2]
    cases = [
        (EngineCase(size, 1, frame, 'paper'), _half()),
        (EngineCase(size, 1, frame, 'robot'), _half()),
        *((EngineCase(size, 1, frame, *method), _half()) for method in Suite.methods),
        (EngineCase(size, 8, frame, 'robot'), _half()),
        (EngineCase(size, 1, frame, 'paper'), 'bfloat16'),
    ]
    report = checks.report
    report |= {'runs': runs, 'results': []}
    report['text'] = measure_text(_segmenter(_half()), 1 if _is_dry else 100, 2)
    report['dbscan'] = measure_clustering((196,) if _is_dry else (196, 441, 784), runs, _device)
    report['labels_equal_to_float32'] = {
        precision: measure_agreement(_architecture, _device, precision, 4, size)
        for precision in (() if _is_dry else ('float16', 'bfloat16'))
    }
    for case, precision in cases[:1] if _is_dry else cases:
        result = measure_engine(_segmenter(precision), case, precision, graph=True, runs=runs)
        report['results'].append(result)
        checks(result['graph'], f'{case}, {precision}: no graph could be captured')
        checks.write()
    return {}


@part(limit_s=60)
def kernels(checks: Checks) -> dict:
    """Number and microseconds of the kernels of one replay, by name, those that take most first."""
    device = 'CPU' if _is_dry else 'CUDA'
    segmenter = _segmenter(_half())
    frames, words = _frames(1), _words(segmenter)
    _warm_up(checks, segmenter, [frames[0].shape[:2]], 1, _settings(), words)
    synchronise(_device)
    activity = getattr(torch.profiler.ProfilerActivity, device)
    with torch.inference_mode(), torch.profiler.profile(activities=[activity]) as profile:
        segmenter.fixed_calls.latest.replay()
        synchronise(_device)
    found = [
        (event.key[:150], event.count, round(event.device_time_total, 1))
        for event in profile.key_averages()
        if event.device_type == getattr(DeviceType, device)
    ]
    segmenter.fixed_calls.clear()
    return {
        'count': sum(count for _, count, _ in found),
        'us': sum(us for *_, us in found),
        'longest': sorted(found, key=lambda kernel: -kernel[2])[:25],
    }


@part(limit_s=60)
def races(checks: Checks) -> dict:
    """Buffers are used again and again, sizes in turn, beside a thread that keeps the GPU busy."""
    segmenter = _segmenter(_half())
    settings = _settings()
    words, frames = _words(segmenter), _frames(2 * _batch() + 1)
    frames += [frame[: len(frame) * 3 // 4] for frame in _frames(_batch() - 1, seed=50)]
    _warm_up(checks, segmenter, {frame.shape[:2] for frame in frames}, _batch(), settings, words)
    wanted = segmenter.segment(frames, words, settings)
    least = 1.0
    numbers = torch.rand(1 << 18, device=_device)
    with _busy(checks, lambda: numbers.sort()[0].sum().item()):
        for seed in range(2 if _is_dry else 100):
            same = segmenter.segment(frames, words, settings)
            checks(_are_equal(same, wanted), f'round {seed}: other labels of the same frames')
            order = np.random.default_rng(seed).permutation(len(frames))
            mixed = segmenter.segment([frames[i] for i in order], words, settings)
            shares = _equal_share(mixed, [wanted[i] for i in order])
            least = min(least, *shares)
    # Another place in a batch rounds otherwise; of another frame at most 87 % are equal.
    checks(least >= 0.97, f'frames in another order: {least:.4f} of the labels of one are equal')
    segmenter.fixed_calls.clear()
    return {'least share': least}


@part(limit_s=60)
def captures_beside_other_work(checks: Checks) -> dict:
    """A thread captures while another one uses the GPU without a pause."""
    segmenter = _segmenter(_half())
    words, frame = _words(segmenter), _frames(1)[0]
    sizes = [(len(frame) - 8 * i, len(frame)) for i in range(2 if _is_dry else 6)]
    numbers = torch.rand(1 << 18, device=_device)

    def work() -> None:
        pinned = torch.zeros(1 << 16, pin_memory=not _is_dry)
        numbers.sort()[0][: 1 << 16].cpu().add_(pinned)

    with _busy(checks, work):
        _warm_up(checks, segmenter, sizes, 1, _settings(), words)
    captured = len(segmenter.fixed_calls)
    segmenter.fixed_calls.clear()
    return {'graphs': captured}


@part(limit_s=90)
def two_segmenters(checks: Checks) -> dict:
    """Two threads capture and label at once; of many segmenters one goes, the others label on."""
    loaded = _loaded(reference_clip())
    first = _segmenter_of(loaded)
    words, settings = _words(first), SegmentationSettings(preset='plus', resolution=96)
    frames = [camera_frame(i, 96, 100 + 16 * i) for i in range(2 if _is_dry else 6)]
    with patch.object(first, 'fixed_calls', None):
        wanted = [first.segment([frame], words, settings)[0] for frame in frames]
    shares = []

    def work() -> None:
        segmenter = _segmenter_of(loaded)
        for frame, labels in zip(frames, wanted, strict=True):
            segmenter.warm_up([frame.shape[:2]], 1, words, settings)
            for _ in range(10):
                found = segmenter.segment([frame], words, settings)
                shares.extend(_equal_share(found, [labels], tolerance=2))
        checks(
            len(segmenter.fixed_calls) == len(frames),
            f'{len(segmenter.fixed_calls)} of {len(frames)} graphs were captured',
        )

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    checks(len(shares) == 20 * len(frames), 'a thread ended before its work was done')
    checks(min(shares, default=0) >= 0.99, f'two threads: {min(shares, default=0):.4f} are equal')

    many = [_segmenter_of(loaded) for _ in range(2 if _is_dry else 14)]
    for segmenter in many:
        _warm_up(checks, segmenter, [frames[0].shape[:2]], 1, settings, words)
    before = [segmenter.segment(frames[:1], words, settings)[0] for segmenter in many]
    many.pop(0).fixed_calls.clear()
    after = [segmenter.segment(frames[:1], words, settings)[0] for segmenter in many]
    checks(_are_equal(before[1:], after), 'other labels after the graphs of another segmenter went')
    return {'least share': min(shares, default=0)}


@part(limit_s=60)
def little_memory(checks: Checks) -> dict:
    """With little memory left every frame is labelled, without graphs or in smaller batches."""
    segmenter = _segmenter(_half())
    settings, batch = _settings(), _batch()
    words, frames = _words(segmenter), _frames(batch)
    size = frames[0].shape[:2]
    # Not of the graphs' size.
    others = [frame[:-8] for frame in frames]
    figures = {}
    for case in ('with graphs', 'without'):
        if case == 'with graphs':
            _warm_up(checks, segmenter, [size], batch, settings, words)
        engine = FaultTolerantEngine(segmenter)
        engine.largest_batch = batch
        with _memory_left(160):
            results = engine.segment_each(others, words, settings)
        labelled = sum(isinstance(result, Segmentation) for result in results)
        fault = engine.fault[0]
        checks(labelled == batch, f'{case}: {labelled} of {batch} frames were labelled: {fault}')
        figures[case] = {
            'batch': engine.largest_batch,
            'graphs left': len(segmenter.fixed_calls),
            'fault': fault,
        }
        segmenter.fixed_calls.clear()
    engine.largest_batch = batch
    engine.warm_up(size, batch, words, settings)
    captured = len(segmenter.fixed_calls)
    checks(captured == batch.bit_length(), f'{captured} graphs come back with the memory')
    segmenter.fixed_calls.clear()
    return figures


@contextmanager
def _memory_left(megabytes: int) -> Iterator[None]:
    if _is_dry:
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(_device).total_memory
    allowed = torch.cuda.memory_reserved(_device) + megabytes * 2**20
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), _device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, _device)


# What both scripts begin with.
SCRIPT = """
import sys
import numpy as np, torch
from cliptrase_ros.segmentation.run.graphs import GraphQueue, EagerQueue
from cliptrase_ros.segmentation.segmenter import load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

device = sys.argv[1]
on_cuda = device == 'cuda'
segmenter = load_segmenter('toybox', device=device)
words = segmenter.encode_vocabulary(parse_vocabulary('red ball; floor', background=()))
settings = SegmentationSettings(resolution=224)
"""

LOSES_THE_DEVICE = """
frame = np.full((120, 160, 3), 90, np.uint8)
engine = FaultTolerantEngine(segmenter, lambda: load_segmenter('toybox', device='cpu'))
engine.warm_up((120, 160), 2, words, settings)
assert engine.segmenter.device.type == device and not engine.fault[0]
if on_cuda:
    torch.zeros(4, device=device)[torch.tensor([9], device=device)]
for _ in range(2):
    for result in engine.segment_each([frame, frame], words, settings):
        assert result.label.shape == (120, 160), result
assert engine.segmenter.device.type == 'cpu'
assert on_cuda == bool(engine.fault[0])
print(engine.fault[0])
"""


@part(limit_s=90)
def lost_device(checks: Checks) -> dict:
    """After an assertion on the GPU the CPU labels on, and the process ends as it should."""
    return {'fault': _run_script(checks, LOSES_THE_DEVICE).rpartition('\n')[2]}


FAILS_TO_CAPTURE = """
blocks = np.random.RandomState(0).randint(0, 256, (3, 5, 3), np.uint8)
frames = [blocks.repeat(40, 0).repeat(side, 1) for side in (32, 40)]
segmenter.warm_up([(120, 160)], 1, words, settings)
wanted = segmenter.segment(frames, words, settings)
queue = GraphQueue(segmenter.device) if on_cuda else EagerQueue(segmenter.device)
numbers = torch.zeros(4, device=segmenter.device)

def asks_for_too_much():
    numbers.add_(1)
    if on_cuda and torch.cuda.is_current_stream_capturing():
        torch.empty(1 << 45, dtype=torch.uint8, device=segmenter.device)

def waits():
    numbers.sum().item()

def expect(error, function):
    try:
        queue.capture(function)
    except error as raised:
        print(type(raised).__name__, str(raised).partition(chr(10))[0])
    else:
        assert not on_cuda, 'it was captured'

expect(torch.OutOfMemoryError, asks_for_too_much)
queue.clear()
replay = queue.capture(lambda: numbers.add_(1))
expect(RuntimeError, waits)
numbers.zero_()
replay()
assert numbers.tolist() == [1] * 4, numbers
torch.rand(4, device=segmenter.device)
# A graph from before, and none for what is new.
assert not on_cuda or len(segmenter.fixed_calls) == 1
segmenter.warm_up([(120, 200)], 1, words, settings)
assert not on_cuda or len(segmenter.fixed_calls) == 1
for result, other in zip(segmenter.segment(frames, words, settings), wanted):
    assert (result.label == other.label).mean() > 0.99
"""


@part(limit_s=90)
def failed_captures(checks: Checks) -> dict:
    """After captures that fail, graphs from before replay, and all else is labelled without."""
    return {'errors': _run_script(checks, FAILS_TO_CAPTURE).splitlines()}


def _run_script(checks: Checks, script: str) -> str:
    """Run a script, which is told the type of the device; returns what it says."""
    return _run(checks, ['-c', SCRIPT + script, _device.type], 80)


def _run(checks: Checks, arguments: Sequence[str], limit_s: float) -> str:
    """Run Python; returns what it says. All of that is shown where it fails."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit_s,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout, flush=True)
        checks(False, f'exit status {done.returncode}: {done.stdout[-1000:]}')
    return done.stdout.strip()


@part(limit_s=60)
def large_frames(checks: Checks) -> dict:
    """Frames of any size are scaled down to the pixels that Pillow and OpenCV make of them."""
    figures = {}
    sizes = [(480, 640), (720, 1280), (2048, 2560), (3200, 4000)]
    for source in sizes[:1] if _is_dry else sizes:
        frames = torch.from_numpy(camera_frame(0, *source))[None]
        for make_framing in (whole_frame_framing, mmcv_framing):
            framing = make_framing(source, 64, 16)
            found = network_input(frames.to(_device), framing).cpu()
            others = float((found != network_input(frames, framing)).float().mean())
            name = f'{source}, {"Pillow" if framing.antialias else "OpenCV"}'
            checks(others == 0, f'{name}: {others:.2%} of the values differ')
            figures[name] = others
    return figures


@part(limit_s=60)
def attention(checks: Checks) -> dict:
    """What each back end of attention takes: for a size that comes first, and 12 times as graph."""
    figures = {}
    backends = torch.nn.attention.SDPBackend
    for name in ('FLASH_ATTENTION', 'CUDNN_ATTENTION', 'EFFICIENT_ATTENTION', 'MATH'):
        with torch.nn.attention.sdpa_kernel(getattr(backends, name)):
            try:
                figures[name] = _attention_ms()
            except RuntimeError as error:
                figures[name] = str(error)[:100]
    return figures


def _attention_ms() -> dict:
    dtype = torch.float32 if _is_dry else torch.float16

    def attend(batch: int, tokens: int) -> Callable[[], torch.Tensor]:
        q = torch.randn(batch, 12, tokens, 64, device=_device, dtype=dtype)
        return lambda: F.scaled_dot_product_attention(q, q, q)

    sizes = (20, 21) if _is_dry else range(450, 610, 20)
    attend(1, sizes[0])()
    synchronise(_device)
    first = []
    for tokens in sizes:
        run = attend(1, tokens + 1)
        synchronise(_device)
        begin = time.perf_counter()
        run()
        synchronise(_device)
        first.append(1e3 * (time.perf_counter() - begin))
    runs = {batch: attend(batch, sizes[0]) for batch in (1, 8)}
    layers = {
        f'batch {b}, 12 layers ms': lambda run=run: [run() for _ in range(12)]
        for b, run in runs.items()
    }
    return {'new size ms': statistics.median(first), **_graph_ms(layers)}


@part(limit_s=60)
def new_words(checks: Checks) -> dict:
    """How long a hundred phrases take that were never met, at first and then."""
    segmenter = _segmenter(_half())
    figures = {}
    for name in ('first', 'second'):
        begin = time.perf_counter()
        phrases = '; '.join(f'{name} thing {i}' for i in range(2 if _is_dry else 100))
        segmenter.encode_vocabulary(parse_vocabulary(phrases, []))
        synchronise(_device)
        figures[f'{name}_s'] = time.perf_counter() - begin
    return figures


@part(limit_s=240)
def tests(checks: Checks) -> dict:
    """The project's tests that need a GPU."""
    if _is_dry:
        return {}
    arguments = ['-m', 'pytest', '-q', '-m', 'cuda', 'test', '--ignore', 'test/ros']
    return {'outcome': _run(checks, arguments, 230).rpartition('\n')[2]}
