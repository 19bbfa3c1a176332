"""JSON that need not fit into memory: lists in a document, and fragments of them."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from cliptrase_ros.photos.whole_files import whole_file

Append = Callable[[Any], None]


@contextmanager
def fragment(folder: Path, key: str) -> Iterator[Append]:
    """Write `parts/KEY.jsonl` of a format's folder, an entry a line."""
    with (
        whole_file(folder / 'parts' / f'{key}.jsonl') as temporary,
        temporary.open('wb') as file,
    ):
        yield lambda entry: file.write(_encode(entry) + b'\n')


def read_fragments(parts: Iterable[Iterable[bytes]]) -> Iterator[Any]:
    """Entries of fragments, one after the other."""
    for part in parts:
        for line in part:
            yield json.loads(line)


@contextmanager
def document(path: Path, fields: dict, lists: Sequence[str]) -> Iterator[list[Append]]:
    """Write a JSON object: fields, and behind them lists, which are written item by item."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        spools = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in lists]
        yield [partial(_append, spool) for spool in spools]
        file = stack.enter_context(stack.enter_context(whole_file(path)).open('wb'))
        file.write(_encode(fields)[:-1])
        for name, spool in zip(lists, spools, strict=True):
            spool.seek(0)
            file.write(b',\n' + _encode(name) + b':[\n')
            shutil.copyfileobj(spool, file)
            file.write(b'\n]')
        file.write(b'}\n')


def _append(spool: IO[bytes], item: Any) -> None:
    if spool.tell():
        spool.write(b',\n')
    spool.write(_encode(item))


def _encode(item: Any) -> bytes:
    text = json.dumps(item, ensure_ascii=False, separators=(',', ':'))
    return text.encode('utf-8', 'backslashreplace')
