"""What the user's words for inputs mean: photos, videos and webcams."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cliptrase_ros.photos.output_names import unique_names
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


class InputError(Exception):
    """An input or output folder that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Source:
    """One photo, video or webcam.

    Attributes:
        kind: 'photo', 'video' or 'webcam'.
        location: The file, or the webcam's number.
        name: What its results are called, a relative path without suffix; unique.
        shown: What messages and the report call it, '' for its location.
    """

    kind: str
    location: Path | int
    name: str
    shown: str = ''

    def __str__(self) -> str:
        if self.kind == 'webcam':
            return f'webcam {self.location}'
        # Bytes of a file's name that are not text are shown as \udc80 to \udcff.
        shown = self.shown or str(self.location)
        return shown.encode('utf-8', 'backslashreplace').decode('utf-8')


@dataclass(frozen=True)
class _Found:
    """A photo, video or webcam before it has a name; `relative` is its path within an input."""

    path: Path
    relative: PurePosixPath
    kind: str


def find_sources(inputs: Sequence[str], output: Path) -> list[Source]:
    """Find the photos, videos and webcams that inputs stand for, each file once.

    What a file is, its content says. What cannot be identified, but by its suffix ought to be a
    photo or video, is a source as well, as are folders that cannot be listed and broken links, so
    that they are named when they are read.

    Args:
        inputs: Files; folders, which are searched for photos and videos (hidden ones are left out,
            links are followed); patterns (`*`, `?`, `**`); or numbers of webcams.
        output: Folder for results; what lies in it is not found in other folders.

    Raises:
        InputError: An input is not there, has nothing in it, or lies in the output folder.
    """
    output = resolve(output)
    webcams = dict.fromkeys(int(text) for text in inputs if _is_webcam(text))
    files: dict[Path, _Found] = {}
    for text in inputs:
        if _is_webcam(text):
            continue
        of_input = list(_find(text, output))
        if not of_input:
            raise InputError(f'{text}: no photos or videos found there')
        for file in of_input:
            resolved = resolve(file.path)
            if output in resolved.parents:
                raise InputError(
                    f'the input {file.path} lies in the output folder {output}; choose another '
                    '--output'
                )
            files.setdefault(resolved, file)
    found = list(files.values())
    locations = [file.path for file in found] + [*webcams]
    for name in (f'webcam{number}' for number in webcams):
        found.append(_Found(Path(name), PurePosixPath(name), 'webcam'))
    names = unique_names(
        [entry.relative for entry in found],
        [entry.path for entry in found],
        [entry.kind for entry in found],
    )
    return [
        Source(entry.kind, location, name)
        for entry, location, name in zip(found, locations, names, strict=True)
    ]


def _is_webcam(text: str) -> bool:
    return text.isdecimal() and not Path(text).exists()


def resolve(path: Path) -> Path:
    """The path without links; unlike `Path.resolve`, also where links lead in a circle."""
    return Path(os.path.realpath(path))


def _find(text: str, output: Path) -> Iterator[_Found]:
    path = Path(text)
    if path.is_dir():
        yield from _search(path, output)
    elif path.exists():
        yield _Found(path, PurePosixPath(path.name), _identify(path, named=True))
    elif glob.has_magic(text):
        for match in sorted(glob.glob(text, recursive=True)):  # noqa: PTH207  (as a shell does)
            path = Path(match)
            # Patterns like photos/** pick up notes and tables as well.
            if not path.is_dir() and (kind := _identify(path)):
                yield _Found(path, PurePosixPath(path.name), kind)
    else:
        raise InputError(f'{text} does not exist')


def _search(folder: Path, output: Path) -> Iterator[_Found]:
    found: dict[Path, str] = {}
    # Of folders, without links. What lies in the output folder is no input, unless it is the input.
    seen = {output} - {resolve(folder)}

    def note_unlisted(error: OSError) -> None:
        found[Path(error.filename)] = 'photo'

    for parent, folders, files in os.walk(folder, onerror=note_unlisted, followlinks=True):
        # A link may lead back to where the search has been.
        if resolve(Path(parent)) in seen:
            folders.clear()
            continue
        seen.add(resolve(Path(parent)))
        folders[:] = [name for name in folders if not name.startswith('.')]
        for name in files:
            path = Path(parent, name)
            if not name.startswith('.') and output not in resolve(path).parents:
                found[path] = _identify(path)
    for path in sorted(found):
        if found[path]:
            yield _Found(path, PurePosixPath(*path.relative_to(folder).parts), found[path])


def _identify(path: Path, named: bool = False) -> str | None:
    """'photo' or 'video', by the content, or else by the suffix; None if neither says so.

    named: whether the user named this file, so that it must be one of them.
    """
    suffix = path.suffix.lower()
    known = suffix in PHOTO_SUFFIXES + VIDEO_SUFFIXES
    if suffix and not known and not named:
        return None
    by_suffix = 'video' if suffix in VIDEO_SUFFIXES else 'photo'
    try:
        is_regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return by_suffix  # a broken link, or no permission: reading it says so
    if is_regular and suffix not in RAW_SUFFIXES:
        if is_photo(path):
            return 'photo'
        if suffix not in VIDEO_SUFFIXES and is_video(path):
            return 'video'
    return by_suffix if known or named else None
