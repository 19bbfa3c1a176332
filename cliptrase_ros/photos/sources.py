"""What the user's words for inputs mean, and what the outputs for each are called."""

import glob
import json
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cliptrase_ros.photos.reading import RAW_SUFFIXES, is_photo
from cliptrase_ros.photos.videos import is_video

PHOTO_SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.bmp', '.dib', '.webp', '.tif'),
    *('.tiff', '.ppm', '.pgm', '.pbm', '.pnm', '.pfm', '.gif', '.jp2', '.j2k', '.jpf', '.jpx'),
    *('.heic', '.heif', '.hif', '.avif', '.jxl', '.tga', '.qoi', '.exr', *RAW_SUFFIXES),
)
VIDEO_SUFFIXES = (
    *('.mp4', '.m4v', '.mov', '.qt', '.3gp', '.3g2', '.avi', '.divx', '.mkv', '.webm', '.mpg'),
    *('.mpeg', '.m2v', '.vob', '.ts', '.mts', '.m2ts', '.m2t', '.mxf', '.dv', '.wmv', '.asf'),
    *('.flv', '.f4v', '.ogv', '.ogm', '.h264', '.264', '.h265', '.265', '.hevc', '.mjpeg'),
    *('.mjpg', '.y4m', '.insv'),
)

#: The file that describes all results; it shows an output folder to be one.
REPORT = 'segmentation.json'

# Bytes of a part of a path; most file systems take 255, with `.`, `.png` and `.partial` around it.
_LONGEST_PART = 240


class InputError(Exception):
    """An input or output folder that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """One photo, video or webcam.

    kind: 'photo', 'video' or 'webcam'. location: the file, or the webcam's number.
    name: what outputs are called after it, a relative path without suffix, unique.
    """

    kind: str
    location: Path | int
    name: str

    def __str__(self) -> str:
        if self.kind == 'webcam':
            return f'webcam {self.location}'
        # What is not text in the name of a file is shown as \udc80 to \udcff.
        return str(self.location).encode('utf-8', 'backslashreplace').decode('utf-8')


@dataclass(frozen=True)
class _Found:
    path: Path
    relative: PurePosixPath
    kind: str


def find_sources(inputs: Sequence[str], output: Path) -> list[Source]:
    """Find the photos, videos and webcams that inputs stand for, each file once.

    inputs: files, folders (searched for photos and videos, hidden ones left out; links are
    followed), patterns (`*`, `?`, `**`) or the number of a webcam. What a file is, its content
    says; of those that cannot be identified, what by their suffix ought to be a photo or video,
    folders that cannot be listed and broken links count as sources, too, so that they are named
    when they are read. What lies in the output folder is not found in folders.
    Raises InputError: an input that is not there, that has nothing in it, or that lies in the
    output folder.
    """
    output = _resolve(output)
    webcams = dict.fromkeys(int(text) for text in inputs if _is_webcam(text))
    found: dict[Path, _Found] = {}
    for text in inputs:
        if _is_webcam(text):
            continue
        here = list(_find(text, output))
        if not here:
            raise InputError(f'{text}: no photos or videos found there')
        for file in here:
            resolved = _resolve(file.path)
            if output in resolved.parents:
                raise InputError(
                    f'the input {file.path} lies in the output folder {output}; choose another '
                    '--output'
                )
            found.setdefault(resolved, file)
    files = list(found.values())
    kinds = [f.kind for f in files]
    relatives = [f.relative for f in files] + [PurePosixPath(f'webcam{d}') for d in webcams]
    paths = [f.path for f in files] + [Path(f'webcam{d}') for d in webcams]
    locations = [f.path for f in files] + [*webcams]
    kinds += ['webcam'] * len(webcams)
    names = unique_names(relatives, paths, kinds)
    return [
        Source(kind, location, name)
        for kind, location, name in zip(kinds, locations, names, strict=True)
    ]


def check_output(output: Path) -> None:
    """Refuse an output folder with other things in it than earlier results. InputError."""
    if output.exists() and not output.is_dir():
        raise InputError(f'the output {output} exists and is no folder')
    if output.is_dir() and any(output.iterdir()) and not (output / REPORT).is_file():
        raise InputError(
            f'the output folder {output} holds other things than earlier results; choose another '
            '--output'
        )


def remove_earlier_results(output: Path) -> list[tuple[str, str]]:
    """Delete what the report of an earlier run in an output folder lists, in that folder alone.

    Otherwise label images of another vocabulary could stay among the new ones. Returns what could
    not be deleted, and why.
    """
    try:
        images = json.loads((output / REPORT).read_text(encoding='utf-8'))['images']
        files = {entry[kind] for entry in images for kind in ('label', 'overlay') if kind in entry}
        paths = {file: _resolve(output / file) for file in sorted(files)}
    except (OSError, ValueError, LookupError, TypeError):
        return []
    left = []
    for file, path in paths.items():
        if _resolve(output) in path.parents:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                left.append((file, f'of an earlier run, cannot be deleted: {error.strerror}'))
    return left


def _is_webcam(text: str) -> bool:
    return text.isdecimal() and not Path(text).exists()


def _resolve(path: Path) -> Path:
    # Path.resolve raises over links that lead in a circle.
    return Path(os.path.realpath(path))


def _find(text: str, output: Path) -> Iterator[_Found]:
    path = Path(text)
    if path.is_dir():
        yield from _search(path, output)
    elif path.exists():
        yield _Found(path, PurePosixPath(path.name), _kind(path, named=True))
    elif glob.has_magic(text):
        for match in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207  (as a shell does)
            path = Path(match)
            # Patterns like photos/** pick up notes and tables as well.
            if not path.is_dir() and (kind := _kind(path)):
                yield _Found(path, PurePosixPath(path.name), kind)
    else:
        raise InputError(f'{text} does not exist')


def _search(folder: Path, output: Path) -> Iterator[_Found]:
    found: dict[Path, str] = {}
    seen = {output} - {_resolve(folder)}

    def note_unlisted(error: OSError) -> None:
        found[Path(error.filename)] = 'photo'

    for parent, folders, files in os.walk(folder, onerror=note_unlisted, followlinks=True):
        # A link may lead back to where the search has been.
        if _resolve(Path(parent)) in seen:
            folders.clear()
            continue
        seen.add(_resolve(Path(parent)))
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in files:
            path = Path(parent, name)
            if not name.startswith('.') and output not in _resolve(path).parents:
                found[path] = _kind(path)
    for path in sorted(found):
        if found[path]:
            yield _Found(path, PurePosixPath(*path.relative_to(folder).parts), found[path])


def _kind(path: Path, named: bool = False) -> str | None:
    """'photo' or 'video', by the content, or else by the suffix; None if neither says so.

    named: whether the user named this file, so that it must be one of them.
    """
    suffix = path.suffix.lower()
    known = suffix in PHOTO_SUFFIXES + VIDEO_SUFFIXES
    if suffix and not known and not named:
        return None
    by_suffix = 'video' if suffix in VIDEO_SUFFIXES else 'photo'
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return by_suffix  # a broken link, or no permission: reading it says so
    if regular and suffix not in RAW_SUFFIXES:
        if is_photo(path):
            return 'photo'
        if suffix not in VIDEO_SUFFIXES and is_video(path):
            return 'video'
    return by_suffix if known or named else None


def unique_names(
    relatives: Sequence[PurePosixPath], paths: Sequence[Path], kinds: Sequence[str]
) -> list[str]:
    """Names for outputs such that no file of one is a file or folder of another.

    relatives: paths within the inputs given; their stems are used where that is clear. Otherwise
    the suffix is kept, then the path from the common folder of all, then a number put in front.
    Upper and lower case count as equal, and so do ways to write an accent, as they do on some
    file systems. Names are text, and short enough for a suffix.
    """
    candidates = list(_candidates(relatives, paths))
    names: list[str | None] = [None] * len(relatives)
    taken = _Taken()
    for level in zip(*candidates, strict=True):
        waiting = [i for i, name in enumerate(names) if name is None]
        shared = Counter(_key(level[i]) for i in waiting)
        # Photos first: where there are a.mp4 and a/1.jpg, the video gets the longer name.
        for i in sorted(waiting, key=lambda i: kinds[i] != 'photo'):
            # All of those that share a name move on to a longer one, not all but the first.
            if shared[_key(level[i])] == 1 and taken.take(level[i], kinds[i]):
                names[i] = level[i]
    for i, name in enumerate(names):
        number = 1
        while name is None:
            number += 1
            # In front, because a folder may be what is in the way.
            longer = f'{number}/{candidates[i][-1]}'
            name = longer if taken.take(longer, kinds[i]) else None
        names[i] = name
    return names


def _candidates(
    relatives: Sequence[PurePosixPath], paths: Sequence[Path]
) -> Iterable[tuple[str, str, str]]:
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
    """A name without what is not text, and whose parts fit file systems with something added."""
    parts = re.sub('[\ud800-\udfff]', '_', name).split('/')
    return '/'.join(part.encode()[:_LONGEST_PART].decode(errors='ignore') for part in parts)


def _key(name: str) -> str:
    """What is equal for names that are one on some file system."""
    return unicodedata.normalize('NFC', name).casefold()


class _Taken:
    """Files and folders that outputs will occupy."""

    def __init__(self):
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def take(self, name: str, kind: str) -> bool:
        """Reserve the outputs of a name; False if any is in the way of another."""
        files = {PurePosixPath(path) for path in output_files(_key(name), kind)}
        folders = {parent for path in files for parent in path.parents}
        if files & self._files or files & self._folders or folders & self._files:
            return False
        self._files |= files
        self._folders |= folders
        return True


def output_files(name: str, kind: str) -> tuple[str, str]:
    """Where the label image and the overlay of a source go, relative to the output folder.

    For a video or webcam the first is a folder, with one label image a frame, and the second a
    video.
    """
    if kind == 'photo':
        return f'labels/{name}.png', f'overlays/{name}.jpg'
    return f'labels/{name}', f'overlays/{name}.mp4'
