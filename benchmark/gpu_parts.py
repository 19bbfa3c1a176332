"""What `gpu_check.py` checks, one function a part, the most valuable first.

A part makes checks and returns figures; nothing that takes long or is slow fails. On a CPU
(`--dry`) every part runs with a tiny model, calls of fixed shape stand in for CUDA graphs, and
nothing is provoked that a CPU does not have.
"""

import json
import math
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
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from parts import Checks, Part
from reference_weights import reference_clip
from tiny_clip import TINY_CONFIG

from cliptrase_ros.benchmark.cases import (
    EngineCase,
    make_segmenter,
    measure_agreement,
    measure_clustering,
    measure_engine,
    measure_text,
)
from cliptrase_ros.benchmark.subject import ARCHITECTURE, BACKGROUND, VOCABULARY, camera_frame
from cliptrase_ros.benchmark.suite import versions
from cliptrase_ros.benchmark.timing import device_ms, device_name, synchronise
from cliptrase_ros.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.segmentation import median
from cliptrase_ros.segmentation.graphs import CudaGraphs, Direct, FixedCalls
from cliptrase_ros.segmentation.label_table import label_table
from cliptrase_ros.segmentation.preprocessing import network_input, resize, whole_frame_framing
from cliptrase_ros.segmentation.segmenter import (
    EncodedVocabulary,
    Segmentation,
    SegmentationSettings,
    Segmenter,
)
from cliptrase_ros.segmentation.vocabulary import UNLABELLED, parse_vocabulary
from cliptrase_ros.segmentation.weights import LoadedModel
from cliptrase_ros.verify import HALF_PRECISION_SHARE, Verifier, read_recording

ROOT = Path(__file__).resolve().parent.parent

PARTS: list[Part] = []


def part(limit_s: float) -> Callable:
    """Make a function a part of the check; it hangs after `limit_s`."""

    def add(function: Callable[[Checks], dict]) -> Callable[[Checks], dict]:
        PARTS.append(Part(function, limit_s))
        return function

    return add


def has_gpu() -> bool:
    """Whether PyTorch can use one."""
    return torch.cuda.is_available()


def is_usable() -> bool:
    """Whether the GPU still answers; one that is lost answers nothing in this process."""
    try:
        synchronise(_device)
    except RuntimeError:
        return False
    return True


def set_up(is_dry: bool) -> None:
    """Choose between the GPU and the CPU, and between the paper's model and a tiny one."""
    global _is_dry, _device, _architecture
    _is_dry, _device, _architecture = is_dry, torch.device('cuda', 0), ARCHITECTURE
    if is_dry:
        _device, _architecture = torch.device('cpu'), 'tiny-ViT'
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f'{_architecture}.json'
            path.write_text(json.dumps(TINY_CONFIG), encoding='utf-8')
            open_clip.add_model_config(path)


_is_dry = False
_device = torch.device('cpu')
_architecture = ''


@cache
def _segmenter(precision: str) -> Segmenter:
    return _with_calls(make_segmenter(_architecture, _device, precision))


def _reference_model() -> LoadedModel:
    """The small model of the recordings."""
    return LoadedModel(
        reference_clip(),
        open_clip.get_tokenizer('ViT-B-16'),
        open_clip.OPENAI_DATASET_MEAN,
        open_clip.OPENAI_DATASET_STD,
        'the small model',
    )


def _segmenter_of(loaded: LoadedModel) -> Segmenter:
    return _with_calls(
        Segmenter(loaded.model, loaded.tokenizer, loaded.mean, loaded.std, _device, 'float32')
    )


def _with_calls(segmenter: Segmenter) -> Segmenter:
    if segmenter.fixed_calls is None:
        segmenter.fixed_calls = FixedCalls(segmenter.pipeline, Direct(_device))
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


@contextmanager
def _eager(segmenter: Segmenter) -> Iterator[None]:
    """Within it the segmenter labels without graphs."""
    calls, segmenter.fixed_calls = segmenter.fixed_calls, None
    try:
        yield
    finally:
        segmenter.fixed_calls = calls


@contextmanager
def _busy(checks: Checks, work: Callable[[], object]) -> Iterator[None]:
    """Within it another thread does some work again and again."""
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


def _equal_share(some: Sequence[Segmentation], others: Sequence[Segmentation]) -> list[float]:
    """Share of equal labels, 0..1, of each frame."""
    return [float((a.label == b.label).mean()) for a, b in zip(some, others, strict=True)]


def _are_equal(some: Sequence[Segmentation], others: Sequence[Segmentation]) -> bool:
    return min(_equal_share(some, others)) == 1


@part(limit_s=60)
def environment(checks: Checks) -> dict:
    """What there is; nothing to fail."""
    report = {
        'device': device_name(_device),
        'device_type': _device.type,
        'architecture': _architecture,
        'versions': versions(_device),
        'dry': _is_dry,
    }
    checks.report |= report
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


@part(limit_s=60)
def recordings(checks: Checks) -> dict:
    """The published code's clusters and labels, stage by stage and through graphs."""
    loaded = _reference_model()
    exact = Verifier(loaded, device=_device)
    segmenter = _segmenter_of(loaded)
    figures = {}
    for path in sorted((ROOT / 'test' / 'golden').glob('small_*.npz')):
        recording = read_recording(path)
        agreement = exact.compare(recording)
        checks(agreement.equal, f'{path.stem}: {agreement}')
        # As a program that allows TF32 would have it.
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision('high')
        try:
            allowed = exact.compare(recording)
        finally:
            torch.set_float32_matmul_precision(before)
        checks(allowed.equal, f'{path.stem}, TF32 allowed: {allowed}')
        label = _label_recording(segmenter, recording)
        wanted = recording.labels.copy()
        wanted[wanted == len(recording.foreground)] = UNLABELLED
        others = int((label != wanted).sum())
        checks(others <= agreement.ties, f'{path.stem}, graph: {others} other labels')
        figures[path.stem] = {
            'ties': agreement.ties,
            'correlation': agreement.correlation,
            'patch_logits': agreement.patch_logits,
        }
    segmenter.fixed_calls.clear()
    # Last, because the model is rounded.
    half = Verifier(loaded, 'float16', _device)
    for path in sorted((ROOT / 'test' / 'golden').glob('small_*.npz')):
        share = half.compare(read_recording(path)).labels
        checks(share >= HALF_PRECISION_SHARE, f'{path.stem}, float16: {share:.4f} of the labels')
        figures[path.stem]['labels in float16'] = share
    return figures


def _label_recording(segmenter: Segmenter, recording) -> np.ndarray:
    """Label a recording's input through a graph."""
    features = torch.from_numpy(recording.text_features).to(_device)
    foreground = len(recording.foreground)
    table = label_table(
        features,
        range(len(features)),
        range(foreground),
        UNLABELLED,
        UNLABELLED,
        float(segmenter.model.logit_scale.exp()),
    )
    names = '; '.join(recording.foreground)
    vocabulary = EncodedVocabulary(parse_vocabulary(names, recording.background), table)
    size = recording.input.shape[:2]
    settings = SegmentationSettings(
        preset='paper', resolution=size[0], image_prior=recording.mode == 'image_prior'
    )
    segmenter.warm_up([size], 1, settings, vocabulary)
    return segmenter.segment([recording.input], vocabulary, settings)[0].label


@part(limit_s=90)
def medians(checks: Checks) -> dict:
    """The kernel's medians are those of the network on a CPU; how long both take."""
    begin = time.perf_counter()
    median.median_7x7(torch.zeros(1, 8, 8, device=_device), _every_second(1))
    synchronise(_device)
    figures = {'first_s': time.perf_counter() - begin}
    large = [(1, 2, 56, 56)] if _is_dry else [(1, 32, 84, 84), (8, 32, 84, 112)]
    generator = torch.Generator().manual_seed(0)
    for shape in ((1, 3, 3), (2, 5, 7), (3, 9, 31), *large):
        values = torch.randn(shape, generator=generator)
        for kind, maps in {
            'any': values,
            'tied': (values * 4).round() / 4,
            'flat': values.clamp(min=0),
        }.items():
            absent = _every_second(*shape[:-2])
            found = median.median_7x7(maps.to(_device), absent).cpu()
            expected = median.median_7x7(maps, absent.cpu())
            checks(torch.equal(found, expected), f'{shape}, {kind}: other medians')
    checks(median._use_kernel or _is_dry, 'the kernel failed, and the network stood in')
    for shape in large:
        maps, absent = torch.rand(shape, device=_device), _every_second(*shape[:-2])
        taken = device_ms(
            {
                'kernel': lambda: median.median_7x7(maps, absent),  # noqa: B023
                'network': lambda: median._by_network(maps, absent),  # noqa: B023
            },
            3 if _is_dry else 50,
            _device,
        )
        figures[str(shape)] = {f'{n}_ms': statistics.median(ms) for n, ms in taken.items()}
    return figures


def _every_second(*shape: int) -> torch.Tensor:
    """Absent maps: about as many of the slots as in frames."""
    return (torch.arange(math.prod(shape), device=_device) % 2 == 1).view(shape)


@part(limit_s=180)
def graphs_against_eager(checks: Checks) -> dict:
    """Replays give the labels of the same work without a graph, whatever words and thresholds."""
    figures = {}
    choices = [
        {'preset': 'paper'},
        {'preset': 'robot'},
        {'preset': 'robot', 'refinement': 'edges'},
        {'preset': 'plus', 'smoothing': 0.5},
        {'preset': 'robot', 'refinement': 'edges', 'smoothing': 0.5, 'window': 224},
    ]
    if _is_dry:
        choices = [{'preset': 'robot', 'refinement': 'edges', 'smoothing': 0.5, 'window': 64}]
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
    segmenter.warm_up([frames[0].shape[:2]], batch, settings, words)
    figures = {'warm_up_s': time.perf_counter() - begin}
    captured = len(segmenter.fixed_calls)
    checks(captured == batch.bit_length(), f'{name}: {captured} graphs, not {batch.bit_length()}')

    once = segmenter.segment(frames, words, settings)
    again = segmenter.segment(frames, words, settings)
    checks(_are_equal(once, again), f'{name}: a replay gives other labels than the one before')
    other_words = segmenter.encode_vocabulary(parse_vocabulary('lamp; cup', []))
    cases = {
        'all frames': (frames, words, settings),
        'three frames': (frames[:3], words, settings),
        'one frame': (frames[:1], words, settings),
        'other words': (frames, other_words, settings),
        'threshold': (frames, words, replace(settings, min_confidence=0.5)),
    }
    memories = [s.memory for s in once] if settings.smoothing else []
    for case, (some, vocabulary, changed) in cases.items():
        replayed = segmenter.segment(some, vocabulary, changed, memories[: len(some)])
        with _eager(segmenter):
            eager = segmenter.segment(some, vocabulary, changed, memories[: len(some)])
        shares = _equal_share(replayed, eager)
        # Graphs work on more columns, so that sums are rounded otherwise; a stale buffer would
        # change whole regions.
        checks(
            statistics.mean(shares) >= HALF_PRECISION_SHARE and min(shares) >= 0.97,
            f'{name}, {case}: {min(shares):.4f} of the labels of the worst frame are equal',
        )
        figures[case] = {'mean share': statistics.mean(shares), 'least share': min(shares)}
    if not _is_dry:
        torch.cuda.set_sync_debug_mode('error')
        try:
            with torch.inference_mode():
                call = segmenter.fixed_calls.latest
                pending = call.start(frames, words.table, 0.0, [None] * batch, None)
        finally:
            torch.cuda.set_sync_debug_mode('default')
        pending.result()
    return figures


@part(limit_s=180)
def speed(checks: Checks) -> dict:
    """Engine and bare encoder, as `cliptrase bench` measures them; kernels of one replay."""
    runs = 2 if _is_dry else 100
    size, frame = _settings().resolution, _frames(1)[0].shape[:2]
    cases = [
        (EngineCase(size, 1, frame, 'paper'), _half()),
        (EngineCase(size, 1, frame, 'robot'), _half()),
        (EngineCase(size, 1, frame, 'robot', 'edges'), _half()),
        (EngineCase(size, 1, frame, 'plus'), _half()),
        (EngineCase(size, 8, frame, 'robot'), _half()),
        (EngineCase(size, 1, frame, 'paper'), 'bfloat16'),
    ]
    report = checks.report
    report |= {'runs': runs, 'results': []}
    for case, precision in cases[:1] if _is_dry else cases:
        result = measure_engine(_segmenter(precision), case, precision, graph=True, runs=runs)
        report['results'].append(result)
        checks(result['graph'], f'{case}, {precision}: no graph could be captured')
    segmenter = _segmenter(_half())
    report['text'] = measure_text(segmenter, 1 if _is_dry else 100, 2)
    report['dbscan'] = measure_clustering((196,) if _is_dry else (196, 441, 784), runs, _device)
    report['labels_equal_to_float32'] = {
        precision: measure_agreement(_architecture, _device, precision, 4, size)
        for precision in (() if _is_dry else ('float16', 'bfloat16'))
    }
    return {} if _is_dry else {'kernels': _kernels(segmenter)}


def _kernels(segmenter: Segmenter) -> dict:
    """Number and microseconds of the kernels of one replay, by name, those that take most first."""
    frames, words = _frames(1), _words(segmenter)
    segmenter.warm_up([frames[0].shape[:2]], 1, _settings(), words)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        segmenter.fixed_calls.latest.replay()
        synchronise(_device)
    kernels = [
        (event.key[:60], event.count, round(event.device_time_total, 1))
        for event in profile.key_averages()
        if event.device_time_total
    ]
    segmenter.fixed_calls.clear()
    return {
        'count': sum(count for _, count, _ in kernels),
        'us': sum(us for *_, us in kernels),
        'longest': sorted(kernels, key=lambda kernel: -kernel[2])[:25],
    }


@part(limit_s=60)
def races(checks: Checks) -> dict:
    """Buffers are used again and again, sizes in turn, beside a thread that keeps the GPU busy."""
    segmenter = _segmenter(_half())
    settings = _settings()
    words, frames = _words(segmenter), _frames(2 * _batch() + 1)
    frames += [frame[: len(frame) * 3 // 4] for frame in _frames(_batch() - 1, seed=50)]
    segmenter.warm_up({frame.shape[:2] for frame in frames}, _batch(), settings, words)
    wanted = segmenter.segment(frames, words, settings)
    least = 1.0
    with _busy(checks, lambda: torch.rand(1 << 18, device=_device).sort()[0].sum().item()):
        for seed in range(2 if _is_dry else 100):
            same = segmenter.segment(frames, words, settings)
            checks(_are_equal(same, wanted), f'round {seed}: other labels of the same frames')
            order = np.random.default_rng(seed).permutation(len(frames))
            mixed = segmenter.segment([frames[i] for i in order], words, settings)
            shares = _equal_share(mixed, [wanted[i] for i in order])
            least = min(least, *shares)
    # Another frame's labels have little in common; another place in a batch rounds otherwise.
    checks(least >= 0.97, f'frames in another order: {least:.4f} of the labels of one are equal')
    segmenter.fixed_calls.clear()
    return {'least share': least}


@part(limit_s=60)
def captures_beside_other_work(checks: Checks) -> dict:
    """A thread captures while another one uses the GPU without a pause."""
    segmenter = _segmenter(_half())
    words, frame = _words(segmenter), _frames(1)[0]
    sizes = [(len(frame) - 8 * i, len(frame)) for i in range(2 if _is_dry else 6)]

    def work() -> None:
        pinned = torch.zeros(1 << 16, pin_memory=not _is_dry)
        torch.rand(1 << 18, device=_device).sort()[0][: 1 << 16].cpu().add_(pinned)

    with _busy(checks, work):
        thread = threading.Thread(target=segmenter.warm_up, args=(sizes, 1, _settings(), words))
        thread.start()
        thread.join()
    captured = len(segmenter.fixed_calls)
    checks(captured == len(sizes), f'{captured} of {len(sizes)} graphs were captured')
    checks(not CudaGraphs._has_failed, 'a capture failed; there is no other in this process')
    segmenter.fixed_calls.clear()
    return {'graphs': captured}


@part(limit_s=90)
def two_segmenters(checks: Checks) -> dict:
    """Two threads capture and label at once; of many segmenters one goes, the others label on."""
    loaded = _reference_model()
    first = _segmenter_of(loaded)
    words, settings = _words(first), SegmentationSettings(preset='plus', resolution=96)
    frames = [camera_frame(i, 96, 100 + 16 * i) for i in range(2 if _is_dry else 6)]
    with _eager(first):
        wanted = [first.segment([frame], words, settings)[0] for frame in frames]
    shares = []

    def work() -> None:
        segmenter = _segmenter_of(loaded)
        for frame, labels in zip(frames, wanted, strict=True):
            segmenter.warm_up([frame.shape[:2]], 1, settings, words)
            for _ in range(10):
                found = segmenter.segment([frame], words, settings)
                shares.extend(_equal_share(found, [labels]))
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
        segmenter.warm_up([frames[0].shape[:2]], 1, settings, words)
    before = [segmenter.segment(frames[:1], words, settings)[0] for segmenter in many]
    many.pop(0).fixed_calls.clear()
    after = [segmenter.segment(frames[:1], words, settings)[0] for segmenter in many]
    checks(_are_equal(before[1:], after), 'other labels after the graphs of another segmenter went')
    checks(not CudaGraphs._has_failed, 'a capture failed; there is no other in this process')
    return {'least share': min(shares, default=0)}


@part(limit_s=60)
def little_memory(checks: Checks) -> dict:
    """With little memory left every frame is labelled, in smaller batches, and graphs come back."""
    segmenter = _segmenter(_half())
    settings = _settings()
    batch = _batch()
    words, frames = _words(segmenter), _frames(batch)
    figures = {}
    for megabytes in (600, 1200):
        segmenter.fixed_calls.clear()
        engine = FaultTolerantEngine(segmenter)
        engine.largest_batch = batch
        with _memory_left(megabytes):
            results = engine.segment_each(frames, words, settings)
        labelled = sum(isinstance(result, Segmentation) for result in results)
        fault = engine.fault[0]
        checks(labelled == batch, f'{megabytes} MB left: {labelled} of {batch} frames: {fault}')
        figures[f'{megabytes} MB'] = {'batch': engine.largest_batch, 'fault': fault}
    engine.largest_batch = batch
    engine.warm_up(frames[0].shape[:2], batch, words, settings)
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


LOSES_THE_DEVICE = """
import sys
import numpy as np, torch
from cliptrase_ros.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.segmentation.segmenter import SegmentationSettings, load_segmenter
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

device = sys.argv[1]
segmenter = load_segmenter('toybox', device=device)
words = segmenter.encode_vocabulary(parse_vocabulary('red ball; floor'))
settings = SegmentationSettings(resolution=224)
frame = np.full((120, 160, 3), 90, np.uint8)
engine = FaultTolerantEngine(segmenter, lambda: load_segmenter('toybox', device='cpu'))
engine.warm_up((120, 160), 2, words, settings)
assert engine.segmenter.device.type == device and not engine.fault[0]
if device == 'cuda':
    torch.zeros(4, device=device)[torch.tensor([9], device=device)]
for _ in range(2):
    for result in engine.segment_each([frame, frame], words, settings):
        assert result.label.shape == (120, 160), result
assert engine.segmenter.device.type == 'cpu'
assert (device == 'cpu') == (not engine.fault[0])
print(engine.fault[0])
"""


@part(limit_s=90)
def lost_device(checks: Checks) -> dict:
    """After an assertion on the GPU the CPU labels on, and the process ends as it should."""
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, '-c', LOSES_THE_DEVICE, _device.type]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=80, env=environment, check=False
    )
    checks(done.returncode == 0, f'exit status {done.returncode}: {done.stderr[-500:]}')
    return {'fault': done.stdout.strip()}


@part(limit_s=60)
def large_frames(checks: Checks) -> dict:
    """Frames of any size are scaled down to the pixels that the same filter gives on a CPU."""
    figures = {}
    for source in ((480, 640), (720, 1280), (3200, 4000)):
        frames = torch.from_numpy(camera_frame(0, *source))[None]
        framing = whole_frame_framing(source, 64, 16)
        found = network_input(frames.to(_device), framing).cpu().int()
        filtered = resize(frames.permute(0, 3, 1, 2).float(), framing.resized)
        difference = (found - filtered.round().clamp(0, 255).int()).abs()
        others = float((difference > 0).float().mean())
        if not _is_dry:
            # A CPU takes Pillow's filter itself.
            checks(
                int(difference.max()) <= 1 and others <= 1e-3,
                f'{source}: {others:.2%} of the pixels differ, by up to {int(difference.max())}',
            )
        figures[str(source)] = others
    return figures


@part(limit_s=60)
def attention(checks: Checks) -> dict:
    """What each back end of attention takes, for a size that comes first and one that came."""
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
    taken = device_ms({str(b): attend(b, sizes[0]) for b in (1, 8)}, 3 if _is_dry else 50, _device)
    return {
        'new size ms': statistics.median(first),
        **{f'batch {b} ms': statistics.median(ms) for b, ms in taken.items()},
    }


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
    command = [sys.executable, '-m', 'pytest', '-q', '-m', 'cuda', 'test', '--ignore', 'test/ros']
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=230, cwd=ROOT, check=False
    )
    checks(done.returncode == 0, f'exit status {done.returncode}: {done.stdout[-1500:]}')
    return {'outcome': done.stdout.strip().rpartition('\n')[2]}
