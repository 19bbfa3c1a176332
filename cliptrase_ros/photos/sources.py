"""What the user's words for inputs mean, and what the outputs for each are called."""

import glob
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PHOTO_SUFFIXES = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff'),
    *('.ppm', '.pgm', '.pnm', '.gif', '.jp2', '.avif'),
)
VIDEO_SUFFIXES = (
    *('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv', '.ogv', '.ts'),
)

#: The file that describes all results; it shows an output folder to be one.
REPORT = 'segmentation.json'


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
        return f'webcam {self.location}' if self.kind == 'webcam' else str(self.location)


@dataclass(frozen=True)
class _Found:
    path: Path
    relative: PurePosixPath


def find_sources(inputs: Sequence[str], output: Path) -> list[Source]:
    """Find the photos, videos and webcams that inputs stand for, each file once.

    inputs: files, folders (searched for photos and videos, hidden ones left out), patterns
    (`*`, `?`, `**`) or the number of a webcam. What lies in the output folder is not found in
    folders. Raises InputError: an input that is not there, that has nothing in it, or that lies
    in the output folder.
    """
    output = output.resolve()
    webcams = dict.fromkeys(int(text) for text in inputs if _is_webcam(text))
    found: dict[Path, _Found] = {}
    for text in inputs:
        if _is_webcam(text):
            continue
        here = list(_find(text, output))
        if not here:
            raise InputError(f'{text}: no photos or videos found there')
        for file in here:
            resolved = file.path.resolve()
            if output in resolved.parents:
                raise InputError(
                    f'the input {file.path} lies in the output folder {output}; choose another '
                    '--output'
                )
            found.setdefault(resolved, file)
    files = list(found.values())
    kinds = ['video' if f.path.suffix.lower() in VIDEO_SUFFIXES else 'photo' for f in files]
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


def remove_earlier_results(output: Path) -> None:
    """Delete what the report of an earlier run in an output folder lists, in that folder alone.

    Otherwise label images of another vocabulary could stay among the new ones. Raises OSError.
    """
    try:
        images = json.loads((output / REPORT).read_text(encoding='utf-8'))['images']
        files = {entry[kind] for entry in images for kind in ('label', 'overlay')}
        paths = [(output / file).resolve() for file in files]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return
    for path in paths:
        if output.resolve() in path.parents:
            path.unlink(missing_ok=True)


def _is_webcam(text: str) -> bool:
    return text.isdecimal() and not Path(text).exists()


def _find(text: str, output: Path) -> Iterator[_Found]:
    path = Path(text)
    if path.is_dir():
        yield from _search(path, output)
    elif path.exists():
        yield _Found(path, PurePosixPath(path.name))
    elif glob.has_magic(text):
        for match in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207  (as a shell does)
            if Path(match).is_dir():
                continue
            # Patterns like photos/** pick up notes and tables as well.
            if Path(match).suffix.lower() in PHOTO_SUFFIXES + VIDEO_SUFFIXES:
                yield _Found(Path(match), PurePosixPath(Path(match).name))
    else:
        raise InputError(f'{text} does not exist')


def _search(folder: Path, output: Path) -> Iterator[_Found]:
    for path in sorted(folder.rglob('*')):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in PHOTO_SUFFIXES + VIDEO_SUFFIXES or not path.is_file():
            continue
        if any(part.startswith('.') for part in relative.parts):
            continue
        if output in path.resolve().parents and folder.resolve() != output:
            continue
        yield _Found(path, PurePosixPath(*relative.parts))


def unique_names(
    relatives: Sequence[PurePosixPath], paths: Sequence[Path], kinds: Sequence[str]
) -> list[str]:
    """Names for outputs such that no file of one is a file or folder of another.

    relatives: paths within the inputs given; their stems are used where that is clear. Otherwise
    the suffix is kept, then the path from the common folder of all, then a number put in front.
    Upper and lower case count as equal, as they do on some file systems.
    """
    candidates = list(_candidates(relatives, paths))
    names: list[str | None] = [None] * len(relatives)
    taken = _Taken()
    for level in zip(*candidates, strict=True):
        waiting = [i for i, name in enumerate(names) if name is None]
        shared = Counter(level[i].casefold() for i in waiting)
        # Photos first: where there are a.mp4 and a/1.jpg, the video gets the longer name.
        for i in sorted(waiting, key=lambda i: kinds[i] != 'photo'):
            # All of those that share a name move on to a longer one, not all but the first.
            if shared[level[i].casefold()] == 1 and taken.take(level[i], kinds[i]):
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
        yield (relative.with_suffix('').as_posix(), relative.as_posix(), full)


class _Taken:
    """Files and folders that outputs will occupy."""

    def __init__(self):
        self._files: set[PurePosixPath] = set()
        self._folders: set[PurePosixPath] = set()

    def take(self, name: str, kind: str) -> bool:
        """Reserve the outputs of a name; False if any is in the way of another."""
        files = {PurePosixPath(path) for path in output_files(name.casefold(), kind)}
        folders = {parent for path in files for parent in path.parents}
        if files & (self._files | self._folders) or folders & self._files:
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
