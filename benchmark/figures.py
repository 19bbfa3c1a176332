"""Figures of docs/performance.md: `make bench-docs`.

Tables and plot are made of the reports in benchmark/results/, each what `cliptrase bench --json
FILE` writes, one file a machine, or what `make gpu-check` writes of a GPU. The kernels of a frame
are counted anew.
"""

import json
from pathlib import Path
from xml.sax.saxutils import escape

from cliptrase_ros.benchmark.kernel_table import kernel_table
from cliptrase_ros.benchmark.suite import preset_name, table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / 'docs' / 'performance.md'
PLOT = ROOT / 'docs' / 'images' / 'performance.svg'
BEGIN, END = '<!-- begin of what make bench-docs writes -->', '<!-- end of it -->'
BEGIN_KERNELS = '<!-- begin of the kernels that make bench-docs counts -->'

# Of the plot, pixels: where bars begin, length of the longest, height of a row and of a heading.
_LABEL, _WIDTH, _ROW, _HEAD = 330, 420, 20, 34
_ENCODER, _REST = '#7a93b8', '#d9822b'


def main() -> None:
    """Rewrite the page's figures and the plot."""
    paths = sorted((ROOT / 'benchmark' / 'results').glob('*.json'))
    contents = [json.loads(path.read_text(encoding='utf-8')) for path in paths]
    # Reports of the soak and of the node lie beside them and have no such key.
    reports = [report for report in contents if 'results' in report]
    PLOT.write_text(draw_plot(reports), encoding='utf-8')
    sections = [make_section(report) for report in reports]
    figures = '\n\n'.join([f'![Engine over encoder](images/{PLOT.name})', *sections])
    page = PAGE.read_text(encoding='utf-8')
    page = _with_section(page, BEGIN_KERNELS, kernel_table())
    PAGE.write_text(_with_section(page, BEGIN, figures), encoding='utf-8')
    print(f'{PAGE.relative_to(ROOT)} and {PLOT.relative_to(ROOT)}: {len(reports)} reports')


def _with_section(page: str, begin: str, text: str) -> str:
    """The page with another text between a mark and the next end."""
    start = page.index(begin) + len(begin)
    return f'{page[:start]}\n\n{text}\n\n{page[page.index(END, start) :]}'


def make_section(report: dict) -> str:
    """What the page says of one machine: tables, and what was checked where it was."""
    if 'parts' not in report:
        return table(report)
    lines = ['', 'What was checked there:', '', '| part | outcome | s |', '|---|---|--:|']
    for name, part in report['parts'].items():
        outcome = 'passed' if part['passed'] else '; '.join(part['failures']).replace('|', '/')
        lines.append(f'| {name} | {outcome} | {part.get("seconds", "")} |')
    return table(report) + '\n' + '\n'.join(lines)


def draw_plot(reports: list[dict]) -> str:
    """Bars of the engine's time in units of the encoder's, as SVG."""
    largest = max(r['ratio'] for report in reports for r in report['results'])
    scale = _WIDTH / max(largest, 1.25)
    parts, y = [], 0
    for report in reports:
        parts.append(_text(8, y + 22, report['device'], 'bold'))
        y += _HEAD
        for result in report['results']:
            height, width = result['network']
            name = f'{width} x {height}, batch {result["batch"]}, {result["precision"]}'
            name += '' if result['preset'] == 'paper' else f', {preset_name(result)}'
            name += ', graph' if result['graph'] else ''
            parts += [
                _text(8, y + 14, name),
                _bar(_LABEL, y + 3, result['ratio'] * scale, _REST),
                _bar(_LABEL, y + 3, min(1, result['ratio']) * scale, _ENCODER),
                _text(
                    _LABEL + result['ratio'] * scale + 6,
                    y + 14,
                    f'{result["ratio"]:.2f}  ({_short(result["engine_ms"])} ms)',
                ),
            ]
            y += _ROW
    width, height = _LABEL + _WIDTH + 130, y + 30
    legend = [
        _bar(_LABEL, y + 10, 14, _ENCODER),
        _text(_LABEL + 20, y + 21, 'bare encoder'),
        _bar(_LABEL + 120, y + 10, 14, _REST),
        _text(_LABEL + 140, y + 21, 'everything else, frame to labels'),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n'
        + '\n'.join([*parts, *legend])
        + '\n</svg>\n'
    )


def _short(value: float) -> str:
    return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def _bar(x: float, y: float, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{colour}"/>'


def _text(x: float, y: float, text: str, weight: str = 'normal') -> str:
    return f'<text x="{x:.1f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'


if __name__ == '__main__':
    main()
