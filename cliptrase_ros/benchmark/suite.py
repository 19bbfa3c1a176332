"""The suite: which measurements, and their report."""

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import torch
from tqdm import tqdm

from cliptrase_ros.benchmark.cases import (
    EngineCase,
    make_segmenter,
    measure_agreement,
    measure_clustering,
    measure_engine,
    measure_labels,
    measure_text,
)
from cliptrase_ros.benchmark.subject import ARCHITECTURE, CLASSES
from cliptrase_ros.benchmark.timing import device_name

_FIGURES = ('encoder ms', 'engine ms', 'ratio', 'MB')
_VERSIONS = ('torch', 'open_clip_torch', 'numpy')

# Of vocabularies, for labels alone.
_COLUMNS = (16, 100)


@dataclass(frozen=True)
class Suite:
    """What to measure, on random weights.

    Attributes:
        sizes: Sides of squares, pixels, each measured with each of `batches`.
        frames: (height, width) of whole frames labelled at preset `robot`, each at each of
            `frame_sizes`.
        frame_sizes: Shorter sides fed to CLIP, pixels.
        methods: Preset, refinement and window of further cases, of the first frame at the first
            of `frame_sizes`.
        many_classes: Number of classes of a further case, of the last frame at the first of
            `frame_sizes`; None for no such case.
        patches: Numbers of patches for DBSCAN alone.
        phrases: Number of new phrases to encode.
        agreement: Frames on which to compare half precision with float32.
    """

    architecture: str = ARCHITECTURE
    precisions: tuple[str, ...] = ('float32',)
    sizes: tuple[int, ...] = (224, 336, 448)
    batches: tuple[int, ...] = (1, 2, 4, 8)
    frames: tuple[tuple[int, int], ...] = ((480, 640), (720, 1280))
    frame_sizes: tuple[int, ...] = (336, 560)
    methods: tuple[tuple[str, str, int], ...] = (
        ('robot', 'edges', -1),
        ('robot', 'pamr', -1),
        ('plus', 'none', -1),
        ('sc_clip', 'none', 0),
        ('sc_clip', 'none', -1),
        ('sc_clip', 'pamr', -1),
    )
    many_classes: int | None = 100
    patches: tuple[int, ...] = (196, 441, 784, 2000)
    phrases: int = 1
    agreement: int = 1
    runs: int = 5


def quick(suite: Suite) -> Suite:
    """A suite that takes seconds: one case of each kind, too few runs for figures to be quoted."""
    return replace(
        suite,
        sizes=(224,),
        batches=(1,),
        frames=((480, 640),),
        frame_sizes=(224,),
        methods=(('robot', 'edges', -1), ('plus', 'none', -1), ('sc_clip', 'none', 0)),
        many_classes=None,
        patches=(196,),
        phrases=1,
        agreement=0,
        runs=2,
    )


def run_suite(suite: Suite, device: torch.device) -> dict:
    """Measure everything; returns what JSON can hold, with keys as docs/performance.md says."""
    report = {**report_head(suite.architecture, device), 'runs': suite.runs, 'results': []}
    cases = list(_engine_cases(suite))
    with tqdm(total=len(suite.precisions) * len(cases), unit='case') as progress:
        for precision in suite.precisions:
            segmenter = make_segmenter(suite.architecture, device, precision)
            for case in cases:
                progress.set_postfix_str(f'{case.size} px x {case.batch}, {precision}')
                for graph in (False, True) if segmenter.fixed_calls is not None else (False,):
                    report['results'].append(
                        measure_engine(segmenter, case, precision, graph, suite.runs)
                    )
                progress.update()
    report['text'] = measure_text(segmenter, suite.phrases, min(suite.runs, 3))
    report['dbscan'] = measure_clustering(suite.patches, suite.runs, device)
    report['labels'] = measure_labels(_COLUMNS, suite.runs, device)
    if suite.agreement:
        report['labels_equal_to_float32'] = {
            precision: measure_agreement(
                suite.architecture, device, precision, suite.agreement, min(suite.sizes)
            )
            for precision in ('float16', 'bfloat16')
        }
    return report


def _engine_cases(suite: Suite) -> Iterator[EngineCase]:
    for size in suite.sizes:
        for batch in suite.batches:
            yield EngineCase(size, batch)
    for size in suite.frame_sizes:
        for frame in suite.frames:
            yield EngineCase(size, 1, frame, 'robot')
    for size, frame in zip(suite.frame_sizes[:1], suite.frames[:1], strict=False):
        for method in suite.methods:
            yield EngineCase(size, 1, frame, *method)
    if suite.many_classes is not None:
        size, frame = suite.frame_sizes[0], suite.frames[-1]
        yield EngineCase(size, 1, frame, 'robot', classes=suite.many_classes)


def report_head(architecture: str, device: torch.device) -> dict:
    """Describe where and with what a report was measured."""
    return {
        'device': device_name(device),
        'device_type': device.type,
        'architecture': architecture,
        'versions': _versions(device),
    }


def _versions(device: torch.device) -> dict[str, str | None]:
    found = {'python': platform.python_version(), **{name: _version(name) for name in _VERSIONS}}
    if device.type == 'cuda':
        found |= {
            'triton': _version('triton'),
            'cuda': torch.version.cuda,
            'cudnn': str(torch.backends.cudnn.version()),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(report: dict) -> str:
    """The report as text, in Markdown."""
    lines = [
        f'{report["device"]}; {report["architecture"]}; torch {report["versions"]["torch"]}; '
        f'medians of {report["runs"]} interleaved runs (least to most)',
        '',
        *markdown_rows(
            ('input', 'preset', 'batch', 'precision', 'graph', *_FIGURES),
            (
                (
                    *_input_and_preset(r),
                    r['batch'],
                    r['precision'],
                    'yes' if r['graph'] else 'no',
                    _with_spread(r['encoder_ms'], r['encoder_ms_spread']),
                    _with_spread(r['engine_ms'], r['engine_ms_spread']),
                    f'{r["ratio"]:.2f}',
                    '' if r['peak_memory_mb'] is None else f'{r["peak_memory_mb"]:.0f}',
                )
                for r in report['results']
            ),
        ),
        '',
        *_graph_rows([r for r in report['results'] if 'graph_ratio' in r]),
        *_stage_rows([r for r in report['results'] if r['batch'] == 1 and not r['graph']]),
        '',
    ]
    text = report['text']
    lines += [
        f'Text: {text["phrases"]} new phrases in {text["templates"]} templates: whole context '
        f'{text["whole_context_ms"]:.0f} ms, cut {text["cut_ms"]:.0f} ms; '
        f'{text["cached_phrases"]} phrases from disk {text["cached_ms"]:.0f} ms.',
        'DBSCAN: '
        + ', '.join(f'{d["patches"]} patches {d["ms"]:.1f} ms' for d in report['dbscan'])
        + '.',
    ]
    if report.get('labels'):
        lines.append(
            'Labels of 592 x 336 pixels, patches alike: '
            + ', '.join(
                f'{r["columns"]} columns {r["ms"]:.1f} ms (all enlarged {r["all_ms"]:.1f})'
                for r in report['labels']
            )
            + '.'
        )
    for precision, share in report.get('labels_equal_to_float32', {}).items():
        lines.append(f'Labels in {precision} equal to float32: {100 * share:.2f} %.')
    return '\n'.join(lines)


def preset_name(result: dict) -> str:
    """Preset of one of a report's results, with refinement, window and classes where chosen."""
    parts = [result['preset']]
    if result.get('refinement', 'none') != 'none':
        parts.append(result['refinement'])
    if result.get('window', -1) >= 0:
        parts.append(f'window {result["window"]}')
    if result.get('classes', CLASSES) != CLASSES:
        parts.append(f'{result["classes"]} classes')
    return ', '.join(parts)


def _input_and_preset(result: dict) -> tuple[str, str]:
    height, width = result['network']
    return f'{width} x {height}', preset_name(result)


def _graph_rows(results: Sequence[dict]) -> list[str]:
    """Graphs alone, and the parts of a call from host to host; nothing where there are none."""
    if not results:
        return []
    parts = list(results[0]['parts_ms'])
    rows = markdown_rows(
        ('graphs, ms', 'preset', 'batch', 'precision', 'encoder', 'engine', 'ratio', *parts),
        (
            (
                *_input_and_preset(r),
                r['batch'],
                r['precision'],
                f'{r["encoder_graph_ms"]:.3f}',
                f'{r["engine_graph_ms"]:.3f}',
                f'{r["graph_ratio"]:.2f}',
                *(f'{r["parts_ms"][part]:.3f}' for part in parts),
            )
            for r in results
        ),
    )
    return [*rows, '']


def _stage_rows(results: Sequence[dict]) -> list[str]:
    names = list(dict.fromkeys(name for r in results for name in r['stages_ms']))
    return markdown_rows(
        ('stages, ms', 'preset', 'precision', *names),
        (
            (
                *_input_and_preset(r),
                r['precision'],
                *(f'{r["stages_ms"].get(name, 0):.2f}' for name in names),
            )
            for r in results
        ),
    )


def markdown_rows(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table in Markdown, its columns aligned."""
    cells = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        f'| {" | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True))} |' for row in cells
    ]
    return [lines[0], f'|{"|".join("-" * (w + 1) + ":" for w in widths)}|', *lines[1:]]


def _with_spread(value: float, spread: Sequence[float]) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f'{value:.{digits}f} ({spread[0]:.{digits}f} to {spread[1]:.{digits}f})'
