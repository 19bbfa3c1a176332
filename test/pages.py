"""The pages of the documentation, and the commands in them."""

import functools
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
]
# Of a page's text, what is not a command: output, code, trees of files.
_LANGUAGES = ('python', 'cpp', 'c++', 'yaml', 'xml', 'json', 'text')


@functools.cache
def commands(page):
    """Lines of a page that are commands, as (program, arguments)."""
    found = []
    for info, block in re.findall(r'^```([^\n]*)\n(.*?)^```', page.read_text(), re.M | re.S):
        if info.strip() in _LANGUAGES:
            continue
        for line in block.replace('\\\n', ' ').splitlines():
            line = re.sub(r'\$\([^)]*\)', 'SUBSTITUTED', line)
            for part in re.split(r' && ', line):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:
                    continue
                while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
                    words.pop(0)
                if words and re.match(r'\S', line) and re.fullmatch(r'[a-z0-9_]+', words[0]):
                    found.append((words[0], words[1:]))
    return found


def python_blocks(page):
    """Python code of a page, block by block."""
    return re.findall(r'^```python\n(.*?)^```', page.read_text(), re.M | re.S)


def table(page, first_cell, after=''):
    """Rows of the table of a page in docs/ whose heading begins with a cell, as lists of cells."""
    text = (ROOT / 'docs' / page).read_text()
    lines = text[text.index(after) :].splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f'| {first_cell} |'))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith('|'):
            return rows
        rows.append([cell.strip() for cell in line.strip().strip('|').split('|')])
    return rows


def every(program):
    """(page, arguments) of a program's commands, each once."""
    found = {}
    for page in PAGES:
        for name, arguments in commands(page):
            if name == program:
                found.setdefault(tuple(arguments), page)
    return [(page, list(arguments)) for arguments, page in found.items()]


def ids(entries):
    return [f'{page.stem}: {" ".join(arguments)[:60]}' for page, arguments in entries]
