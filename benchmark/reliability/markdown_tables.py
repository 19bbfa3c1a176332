"""Tables in the documentation, between two marks."""

from collections.abc import Iterable
from pathlib import Path


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table as Markdown."""
    titles = list(titles)
    rows = (titles, ['---'] * len(titles), *rows)
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in rows)


def write(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page."""
    head, rest = page.read_text().split(begin)
    page.write_text(f'{head}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}')
