"""Commands in the documentation are commands that exist."""

import re
import shlex
from pathlib import Path

import pytest

from cliptrase_ros import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def commands(page):
    for block in re.findall(r'^```[^\n]*\n(.*?)^```', page.read_text(), re.M | re.S):
        for line in block.replace('\\\n', ' ').splitlines():
            if line.startswith('cliptrase '):
                yield line


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_parse(page):
    for line in commands(page):
        arguments = shlex.split(line, comments=True)[1:]
        assert cli._parser().parse_args(arguments).run


def test_pages_have_commands():
    assert sum(1 for page in PAGES for _ in commands(page)) >= 6
