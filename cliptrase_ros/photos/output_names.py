"""What the results of each source are called."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

# Bytes of a part of a path; most file systems take 255, with `.`, `.png` and `.partial` around it.
_LONGEST_PART = 240


def unique_names(
    relatives: Sequence[PurePosixPath], paths: Sequence[Path], kinds: Sequence[str]
) -> list[str]:
    """Find names for results such that no file of one is a file or folder of another.

    A name is the relative path without suffix where that is clear; otherwise with its suffix, then
    the path from the common folder of all, then that with a number in front. Upper and lower case
    count as equal, and so do ways to write an accent, as they do on some file systems. Names are
    text, and short enough for a suffix.

    Args:
        relatives: Path of each source within the input that it was found in.
        paths: Its whole path.
        kinds: See `Source.kind`.
    """
    candidates = list(_candidates(relatives, paths))
    names: list[str | None] = [None] * len(relatives)
    reserved = _ReservedPaths()
    for level in zip(*candidates, strict=True):
        unnamed = [i for i, name in enumerate(names) if name is None]
        uses = Counter(_key(level[i]) for i in unnamed)
        # Photos first: where there are a.mp4 and a/1.jpg, the video gets the longer name.
        for i in sorted(unnamed, key=lambda i: kinds[i] != 'photo'):
            # All of those that share a name get a longer one, not all but the first.
            if uses[_key(level[i])] == 1 and reserved.add(level[i], kinds[i]):
                names[i] = level[i]
    for i, name in enumerate(names):
        number = 1
        while name is None:
            number += 1
            # In front, because what is in the way may be a folder of the name.
            longer = f'{number}/{candidates[i][-1]}'
            name = longer if reserved.add(longer, kinds[i]) else None
        names[i] = name
    return names


def _candidates(
    relatives: Sequence[PurePosixPath], paths: Sequence[Path]
) -> Iterator[tuple[str, str, str]]:
    absolute = [path.absolute() for path in paths]
    common = set(absolute[0].parents) if absolute else set()
    for path in absolute:
        common &= set(path.parents)
    root = max(common, key=lambda folder: len(folder.parts), default=Path('/'))
    for relative, path in zip(relatives, absolute, strict=True):
        full = path.relative_to(root).as_posix() if root in path.parents else path.name
        yield (
            _portable(relative.with_suffix('').as_posix()),
            _portable(relative.as_posix()),
            _portable(full),
        )


def _portable(name: str) -> str:
    """The name without what is not text, and with parts that file systems take."""
    parts = re.sub('[\ud800-\udfff]', '_', name).split('/')
    return '/'.join(part.encode()[:_LONGEST_PART].decode(errors='ignore') for part in parts)


def _key(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize('NFC', name).casefold()


class _ReservedPaths:
    """Files and folders of the results that have names."""

    def __init__(self):
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def add(self, name: str, kind: str) -> bool:
        """Reserve the files of a name; False if any is in the way of another."""
        files = {PurePosixPath(path) for path in output_files(_key(name), kind)}
        folders = {parent for path in files for parent in path.parents}
        if files & self._files or files & self._folders or folders & self._files:
            return False
        self._files |= files
        self._folders |= folders
        return True


def output_files(name: str, kind: str) -> tuple[str, str]:
    """Where the label image and the overlay of a source go, relative to the output folder.

    For a video or webcam the first is a folder, with a label image for each frame, and the second
    is a video.
    """
    if kind == 'photo':
        return f'labels/{name}.png', f'overlays/{name}.jpg'
    return f'labels/{name}', f'overlays/{name}.mp4'
