"""What there is to label: recordings, videos and parts of folders of photos, as tasks."""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath, PurePosixPath

from fsspec.utils import glob_translate

from cliptrase_ros.bag.folder import storage_of
from cliptrase_ros.fleet.storage import Entry, Storage, without_query
from cliptrase_ros.photos.sources import PHOTO_SUFFIXES, VIDEO_SUFFIXES

#: Photos of one task: a thousand on average, and no more than twice as many.
PHOTOS_A_TASK = 1000

#: So many bytes of a key say which the source is, and not what it contains.
SOURCE_BYTES = 6

#: What describes a labelling in the folder of its results.
DESCRIPTION = 'labelling.json'

#: Behind the name of an SQLite file: what its recorder wrote last, where it was stopped.
SQLITE_LOG = '-wal'

_METADATA = 'metadata.yaml'


class TaskError(Exception):
    """Inputs that mean nothing; the message says which and why."""


@dataclass(frozen=True)
class Task:
    """One recording, one video, or some photos of one folder: what a worker does at a time.

    Attributes:
        key: Hexadecimal; the first `SOURCE_BYTES` bytes are of the source, the others of its
            identity and everything that its labels depend on.
        kind: 'recording', 'video' or 'photos'.
        name: Where its results go, a relative path: of the recording or video, or of the photos'
            folder.
        source: URL or absolute path of the same, or of a single photo.
        files: Names in it of the photos, or of the files of a recording that is a folder; empty for
            a single file.
        size: Bytes.
    """

    key: str
    kind: str
    name: str
    source: str
    files: tuple[str, ...]
    size: int

    @property
    def shown_source(self) -> str:
        """The source for people: what follows a web address may be secret."""
        return without_query(self.source)

    def to_json(self) -> str:
        """All of it in a line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Task':
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {'files': tuple(fields['files'])})


@dataclass(frozen=True)
class Outcome:
    """What came of a task.

    Attributes:
        state: 'done'; 'failed' where the input is at fault; 'again' where something else may be;
            'unfinished' where that stayed so.
        reason: Why it was not done.
        damage: What of the input is missing, a sentence each.
    """

    state: str
    reason: str = ''
    damage: tuple[str, ...] = ()
    images: int = 0


def find_tasks(inputs: Sequence[str], output: str, labelling: str) -> Iterator[Task]:
    """Find what inputs stand for, folder by folder; no more of it is held than a folder's names.

    Args:
        inputs: Paths or URLs of files and folders, and patterns with `*`, `?`, `[...]` and `**`.
            Folders are searched; hidden files and folders are left out, links are followed.
        output: Where results go; what lies there is no input.
        labelling: Digest of what labels depend on beside the input.

    Raises:
        TaskError: An input is not there or has nothing to label.
        StorageError: It cannot be reached.
    """
    selections = _select(inputs)
    results = Storage(output)
    seen: set[bytes] = set()
    searched: list[str] = []
    # Folders first: what is named of their files is then known, in whatever order they are given.
    for selection in sorted(selections, key=lambda selection: not selection.is_whole):
        if any(f'{selection.url}/'.startswith(f'{folder}/') for folder in searched):
            continue  # it was found in a folder that another input names
        if selection.is_whole:
            searched.append(selection.url)
        number = 0
        for folder, entries, is_whole in selection.search(results):
            for found in _tasks_of_folder(folder, entries, is_whole):
                number += 1
                task = _make_task(found, selection.storage, labelling)
                # Two patterns may find the same recording.
                if bytes.fromhex(task.key) not in seen:
                    seen.add(bytes.fromhex(task.key))
                    yield task
        if not number:
            raise TaskError(f'{selection.text}: no recordings, videos or photos found there')


@dataclass(frozen=True)
class _Selection:
    """A folder, and what is wanted of it.

    Attributes:
        text: As the user gave it.
        folder: Its path, without protocol; what names of results begin with is its last part.
        files: Paths of files in it that were named; empty where it is searched.
        pattern: What the paths of files or folders below it have to match, '' for anything.
    """

    text: str
    storage: Storage
    folder: str
    files: tuple[str, ...] = ()
    pattern: str = ''

    @property
    def url(self) -> str:
        """Of the folder."""
        return self.storage.url(self.folder)

    @property
    def is_whole(self) -> bool:
        """Whether all that is in the folder is wanted."""
        return not self.files and not self.pattern

    def search(self, results: Storage) -> Iterator[tuple[str, Iterable[Entry], bool]]:
        """Folders, the files in them that are wanted, and whether these are all.

        What lies in `results` is not wanted.
        """
        if self.files:
            yield self.folder, self._named(), False
        elif self.url == results.url(results.path):
            raise TaskError(f'{self.text} is where results go, too; choose another --output')
        else:
            yield from self._search(self.folder, results, ())

    def _named(self) -> Iterator[Entry]:
        for path in sorted(set(self.files)):
            yield self.storage.entry(path)
            if path.endswith('.db3'):
                with contextlib.suppress(FileNotFoundError):
                    yield self.storage.entry(path + SQLITE_LOG)

    def _search(
        self, folder: str, results: Storage, above: tuple[str, ...]
    ) -> Iterator[tuple[str, Iterable[Entry], bool]]:
        if self.storage.url(folder) == results.url(results.path):
            return
        if self.storage.is_local:
            # A link may lead back to where the search has been.
            real = os.path.realpath(folder)
            if real in above:
                return
            above = (*above, real)
        folders: list[Entry] = []
        is_labelling = False

        def files() -> Iterator[Entry]:
            nonlocal is_labelling
            for entry in self.storage.entries(folder):
                # The results of another batch are no input.
                is_labelling |= entry.name == DESCRIPTION
                if entry.name.startswith('.'):
                    continue
                if entry.is_folder:
                    folders.append(entry)
                elif not self.pattern or _matches(
                    entry.path.removesuffix(SQLITE_LOG), self.pattern
                ):
                    yield entry

        yield folder, files(), self.is_whole
        for entry in [] if is_labelling else folders:
            if self.pattern and _matches(entry.path, self.pattern):
                inside = replace(self, folder=entry.path, pattern='')
                yield from inside._search(entry.path, results, above)
            elif not self.pattern or self._may_hold(entry.path):
                yield from self._search(entry.path, results, above)

    def _may_hold(self, folder: str) -> bool:
        """Whether something in a folder may match the pattern."""
        parts = self.pattern.split('/')
        depth = len(folder.split('/'))
        return '**' in parts[:depth] or (
            depth < len(parts) and _matches(folder, '/'.join(parts[:depth]))
        )


def _select(inputs: Sequence[str]) -> list[_Selection]:
    """What texts of the user stand for; files of one folder are one selection."""
    selections: list[_Selection] = []
    files: dict[str, list[str]] = {}
    for text in inputs:
        storage = Storage(text)
        if glob.has_magic(text) and not storage.is_http and not os.path.lexists(text):
            fixed = glob.magic_check.split(storage.path, maxsplit=1)[0].rpartition('/')[0] or '/'
            selections.append(_Selection(text, storage, fixed, pattern=storage.path))
            continue
        try:
            entry = storage.entry(storage.path)
        except FileNotFoundError as error:
            # What the web says about it is the cause.
            why = f': {error.__cause__}' if error.__cause__ else ''
            raise TaskError(f'{text} does not exist{why}') from None
        except OSError as error:
            raise TaskError(f'{text} cannot be read: {error}') from error
        # An object may be called as a folder is; what it is called with a slash is the folder.
        if entry.is_folder or (text.endswith('/') and not storage.is_local):
            selections.append(_Selection(text, storage, storage.path))
        elif not _kind_of(entry):
            raise TaskError(f'{text} is no recording, video or photo by its suffix')
        else:
            folder = without_query(storage.path).rpartition('/')[0]
            url = storage.url(folder)
            if url not in files:
                selections.append(_Selection(text, storage, folder, (storage.path,)))
            files.setdefault(url, []).append(storage.path)
    return [
        replace(selection, files=tuple(files[selection.url])) if selection.files else selection
        for selection in selections
    ]


@functools.cache
def _pattern(pattern: str) -> re.Pattern:
    try:
        return re.compile(glob_translate(pattern))
    except ValueError as error:
        raise TaskError(f'{pattern}: {error}') from error


def _matches(path: str, pattern: str) -> bool:
    return _pattern(pattern).fullmatch(path) is not None


@dataclass(frozen=True)
class _Found:
    """What becomes a task.

    Attributes:
        path: Of the task's source.
        entries: Files that belong to it.
        is_folder: Whether the source is the folder of the files, and not the first of them.
    """

    kind: str
    path: str
    entries: tuple[Entry, ...]
    is_folder: bool


def _tasks_of_folder(folder: str, entries: Iterable[Entry], is_whole: bool) -> Iterator[_Found]:
    """Photos in parts as they come, then videos and recordings."""
    photos: list[Entry] = []
    recordings: list[Entry] = []
    metadata: list[Entry] = []
    logs: dict[str, Entry] = {}
    for entry in entries:
        kind = _kind_of(entry)
        if kind == 'photos' and entry.path != without_query(entry.path):
            yield _Found('photos', entry.path, (entry,), False)
        elif entry.name == _METADATA:
            metadata.append(entry)
        elif entry.name.endswith(SQLITE_LOG):
            logs[entry.path.removesuffix(SQLITE_LOG)] = entry
        elif kind == 'photos':
            # Where a part ends, a photo's own name says: parts stay as they are, and what they were
            # labelled as remains valid, when photos are added before them. Photos whose names
            # differ in their suffix alone stay together.
            stem = _stem(entry)
            if photos and stem != _stem(photos[-1]):
                ends = zlib.crc32(os.fsencode(_stem(photos[-1]))) % PHOTOS_A_TASK == 0
                if ends or len(photos) >= 2 * PHOTOS_A_TASK:
                    yield _Found('photos', folder, tuple(photos), True)
                    photos = []
            photos.append(entry)
        elif kind == 'recording':
            recordings.append(entry)
        elif kind == 'video':
            yield _Found('video', entry.path, (entry,), False)
    if photos:
        yield _Found('photos', folder, tuple(photos), True)
    if recordings and metadata and is_whole:
        yield _Found('recording', folder, (*metadata, *recordings, *logs.values()), True)
    else:
        for entry in recordings:
            log = [logs[entry.path]] if entry.path in logs else []
            yield _Found('recording', entry.path, (entry, *log), False)


def _stem(entry: Entry) -> str:
    return entry.name.partition('.')[0]


def _kind_of(entry: Entry) -> str:
    """'recording', 'video' or 'photos', by the suffix of a file; '' for others."""
    suffix = PurePosixPath(entry.name).suffix.lower()
    # Of ROS 1, too: reading it says how to convert it.
    if storage_of(PurePath(entry.name)) or suffix == '.bag':
        return 'recording'
    if suffix in PHOTO_SUFFIXES:
        return 'photos'
    return 'video' if suffix in VIDEO_SUFFIXES else ''


def _make_task(found: _Found, storage: Storage, labelling: str) -> Task:
    url = storage.url(found.path)
    address = without_query(url)
    identity = [[entry.name, entry.size, entry.identity] for entry in found.entries]
    content = json.dumps([labelling, found.kind, address, identity])
    return Task(
        _sha256(address)[: 2 * SOURCE_BYTES] + _sha256(content)[: 32 - 2 * SOURCE_BYTES],
        found.kind,
        _name_of(address),
        url,
        tuple(entry.name for entry in found.entries) if found.is_folder else (),
        sum(entry.size for entry in found.entries),
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _name_of(url: str) -> str:
    """The whole path: no two inputs of any command share it, and none has another in the next."""
    # Results have names that any storage takes. What is no text there are bytes, see os.fsdecode.
    name = re.sub('[\udc80-\udcff]', lambda byte: f'%{ord(byte[0]) - 0xDC00:X}', url)
    parts = name.replace('://', '/').strip('/').split('/')
    return '/'.join('_' if part in ('', '.', '..') else part for part in parts)
