"""Time of the engine against the bare CLIP encoder, on random weights: `make bench`."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import open_clip
import torch
from tqdm import tqdm

from cliptrase_ros.segmentation.segmenter import PRECISIONS, SegmentationSettings, Segmenter
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.segmentation.weights import select_device

ARCHITECTURE = 'ViT-B-16-quickgelu'
SIZES = (224, 336)
VOCABULARY = 'road; person; car; tree; building; grass; dog; chair; table; bottle; door; sign'
BACKGROUND = ('sky', 'wall', 'floor')


def main() -> None:
    """Measure, print a table and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, cuda:N')
    parser.add_argument('--precision', default='float32', choices=PRECISIONS)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 2], metavar='N')
    parser.add_argument('--runs', type=int, default=7, help='of which the median counts')
    parser.add_argument('--json', type=Path, metavar='FILE')
    arguments = parser.parse_args()
    device = select_device(arguments.device)

    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE).eval()
    tokenizer = open_clip.get_tokenizer(ARCHITECTURE)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    segmenter = Segmenter(model, tokenizer, mean, std, device, arguments.precision)
    cases = [(size, batch) for size in SIZES for batch in arguments.batches]
    results = []
    for size, batch in tqdm(cases, unit='case'):
        results.append(measure(segmenter, size, batch, arguments))

    report = {
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
        'versions': {
            'python': platform.python_version(),
            **{name: version(name) for name in ('torch', 'open_clip_torch', 'numpy')},
        },
        'results': results,
    }
    print(f'\n{ARCHITECTURE}, {arguments.precision}, {report["device"]}; medians of', end=' ')
    print(f'{arguments.runs} interleaved runs; frames of 640 x 480, preset paper\n')
    print('size  batch  encoder ms  engine ms  ratio')
    for r in results:
        print(
            f'{r["size"]:4}  {r["batch"]:5}  {r["encoder_ms"]:10.1f}  {r["engine_ms"]:9.1f}'
            f'  {r["ratio"]:5.2f}'
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + '\n')


def measure(segmenter: Segmenter, size: int, batch: int, arguments: argparse.Namespace) -> dict:
    """Time one size and batch: the model's own encoder, and frames to labels in host memory.

    The square preset, so that both see as many patches.
    """
    dtype = getattr(torch, arguments.precision)
    pixels = torch.randn(batch, 3, size, size, device=segmenter.device, dtype=dtype)
    encoder = open_clip.create_model(ARCHITECTURE, force_image_size=size).visual.eval()
    encoder.to(segmenter.device, dtype)
    frames = [street_like_frame(seed) for seed in range(batch)]
    encoded = segmenter.encode_vocabulary(parse_vocabulary(VOCABULARY, BACKGROUND))
    settings = SegmentationSettings(preset='paper', resolution=size)

    with torch.inference_mode():
        encoder_s, engine_s = interleaved(
            lambda: encoder(pixels),
            lambda: segmenter.segment(frames, encoded, settings),
            runs=arguments.runs,
        )
    ratios = [b / a for a, b in zip(encoder_s, engine_s, strict=True)]
    return {
        'size': size,
        'batch': batch,
        'precision': arguments.precision,
        'graph': False,
        'encoder_ms': 1e3 * statistics.median(encoder_s),
        'engine_ms': 1e3 * statistics.median(engine_s),
        'ratio': statistics.median(ratios),
        'ratio_spread': [min(ratios), max(ratios)],
    }


def interleaved(*functions: Callable[[], object], runs: int) -> list[list[float]]:
    """Seconds of each run of each function, taken in turn so that drift meets all alike."""
    seconds = [[] for _ in functions]
    for run in range(runs + 1):
        for function, taken in zip(functions, seconds, strict=True):
            begin = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if run:  # the first one warms up
                taken.append(time.perf_counter() - begin)
    return seconds


def street_like_frame(seed: int) -> np.ndarray:
    """A frame with regions, edges and noise, as cameras give: uint8 (480, 640, 3)."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, (6, 8, 3)).repeat(80, 0).repeat(80, 1)
    return (frame * 0.9 + rng.integers(0, 26, frame.shape)).astype(np.uint8)


def cpu_name() -> str:
    """Name of the processor, with its core count."""
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return f'{line.partition(":")[2].strip()}, {torch.get_num_threads()} threads'
    return platform.processor()


if __name__ == '__main__':
    main()
