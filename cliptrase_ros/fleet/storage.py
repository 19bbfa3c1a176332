"""Files in a folder or in object storage, through fsspec; a request that fails is sent again."""

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
import tenacity
from fsspec.implementations.local import LocalFileSystem

# So many files of a task are fetched or stored at a time: each waits for the network.
_TRANSFERS = 8

# What an object store is sent appears whole or not at all. Elsewhere a file is renamed into place.
_OBJECT_STORES = {'s3', 's3a', 'gs', 'gcs', 'az', 'abfs', 'abfss', 'memory'}

# Where to write what is then renamed into place.
_PARTIAL = '.partial'
# Nobody writes any more to a file there that has not changed for so long.
_ABANDONED_S = 3600.0

# Asking again does not help against these; all else may be the network's or the server's weather.
_FINAL = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
    *(ImportError, ValueError, TypeError, AttributeError, NotImplementedError),
)
# Nor where this machine's disk is full, or a request makes no sense.
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EINVAL, errno.ENAMETOOLONG}
# The storages' own libraries wait and try again as well, each time, for up to a minute.
_ATTEMPTS = 3

_Result = TypeVar('_Result')


class StorageError(Exception):
    """Storage that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Entry:
    """A file or folder in a listing.

    Attributes:
        path: As the file system has it, without protocol.
        size: Bytes.
        identity: Changes where the content does: the entity tag, or else size and time.
        changed_s: When it was last changed, seconds since 1970; 0 where that is not known.
    """

    path: str
    is_folder: bool
    size: int = 0
    identity: str = ''
    changed_s: float = 0.0

    @property
    def name(self) -> str:
        """The last part of the path; of a web address, without the query."""
        return without_query(self.path).rpartition('/')[2]


def without_query(path: str) -> str:
    """A web address without what follows its path; other paths as they are."""
    is_address = path.startswith(('http://', 'https://'))
    return path.partition('?')[0] if is_address else path


class Storage:
    """A folder or file that fsspec knows, and all else in its file system, bucket or server.

    Everything raises StorageError where nothing can be reached, FileNotFoundError for a file
    that is not there, and what fsspec raises for one that may not be read or written.

    Attributes:
        path: Of the folder or file, without protocol.
    """

    def __init__(self, url: str):
        try:
            self._fs = _file_system(url)
            self.path = self._fs._strip_protocol(url)
        except (ImportError, ValueError) as error:
            # fsspec says which package the protocol needs.
            raise StorageError(f'{url}: {error}') from error
        self.is_local = isinstance(self._fs, LocalFileSystem)
        # One place has one name, from wherever it is named.
        self.path = os.path.normpath(self.path) if self.is_local else self.path.rstrip('/') or '/'
        protocol = self._fs.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self.is_http = 'http' in self._protocols

    def url(self, path: str) -> str:
        """A path with its protocol; of a local one, the path itself."""
        return path if self.is_local else str(self._fs.unstrip_protocol(path))

    def child(self, name: str) -> str:
        """The path of something below the place."""
        return f'{self.path.rstrip("/")}/{name}'

    def entry(self, path: str) -> Entry:
        """The entry of a file or folder. Raises FileNotFoundError."""
        if self.is_local:
            return _local_entry(path, os.stat(path))  # noqa: PTH116  (paths of fsspec are texts)
        return _entry(self._call(self._fs.info, path), path)

    def entries(self, path: str) -> Iterator[Entry]:
        """Files and folders in a folder, by name; a page at a time where the storage has pages.

        A folder that is not there has none.
        """
        with contextlib.suppress(FileNotFoundError):
            if self.is_local:
                yield from _local_entries(path)
            elif 's3' in self._protocols:
                yield from self._s3_entries(path)
            else:
                found = self._call(self._fs.ls, path, detail=True)
                entries = [_entry(info, info['name'].rstrip('/')) for info in found]
                # Object stores list a folder as an object of its own.
                yield from sorted(
                    (entry for entry in entries if entry.path != path.rstrip('/')),
                    key=lambda entry: entry.name,
                )

    def remove_abandoned(self) -> None:
        """Delete what processes that were killed have left half-written; of local places."""
        if self.is_local:
            for entry in self.entries(self.child(_PARTIAL)):
                if time.time() - entry.changed_s > _ABANDONED_S:
                    self.remove(entry.path)

    def read(self, path: str) -> bytes:
        """All of a file."""
        return self._call(self._fs.cat_file, path)

    def write(self, path: str, content: bytes) -> None:
        """Make or replace a file, which appears whole."""
        with self._written(path) as written:
            if self.is_local:
                _write_through(written, io.BytesIO(content))
            else:
                self._call(self._fs.pipe_file, written, content)

    def remove(self, path: str) -> None:
        """Delete a file that may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            self._call(self._fs.rm_file, path)

    def fetch(self, path: str, target: Path) -> None:
        """Copy a file to this machine."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # s3fs goes on after a cut where it fetches a file in one piece, and fails where in several.
        one_piece = {'max_concurrency': 1} if 's3' in self._protocols else {}
        self._call(self._fs.get_file, path, str(target), **one_piece)

    def store(self, folder: Path, path: str) -> None:
        """Copy all files below a folder of this machine to below a path."""
        files = [file for file in folder.rglob('*') if file.is_file()]
        in_parallel(
            lambda file: self._store_file(file, f'{path}/{file.relative_to(folder).as_posix()}'),
            files,
        )

    def _store_file(self, file: Path, path: str) -> None:
        with self._written(path) as written:
            if self.is_local:
                with file.open('rb') as source:
                    _write_through(written, source)
            else:
                self._call(self._fs.put_file, str(file), written)

    @contextlib.contextmanager
    def _written(self, path: str) -> Iterator[str]:
        """Where to write what is to appear at a path."""
        if self._protocols & _OBJECT_STORES:
            yield path
            return
        self._call(self._fs.makedirs, path.rpartition('/')[0], exist_ok=True)
        partial = self.child(_PARTIAL)
        self._call(self._fs.makedirs, partial, exist_ok=True)
        temporary = f'{partial}/{secrets.token_hex(8)}'
        try:
            yield temporary
            if self.is_local:
                Path(temporary).replace(path)
            else:
                self._call(self._fs.mv, temporary, path)
        finally:
            self.remove(temporary)

    def _s3_entries(self, path: str) -> Iterator[Entry]:
        # s3fs itself returns a listing when it has all of it: gigabytes for a million objects.
        # A folder's name may be empty, or end with a slash of its own.
        bucket, slash, prefix = path.partition('/')
        prefix += slash
        more: dict[str, str] = {}
        while True:
            page = self._call(
                self._fs.call_s3,
                'list_objects_v2',
                Bucket=bucket,
                Prefix=prefix,
                Delimiter='/',
                **more,
            )
            for folder in page.get('CommonPrefixes', ()):
                yield Entry(f'{bucket}/{folder["Prefix"].removesuffix("/")}', True)
            for info in page.get('Contents', ()):
                if info['Key'] != prefix:
                    yield _entry(info | {'size': info['Size']}, f'{bucket}/{info["Key"]}')
            if not page.get('IsTruncated'):
                return
            more = {'ContinuationToken': page['NextContinuationToken']}

    def _call(self, function: Callable[..., _Result], *arguments: Any, **named: Any) -> _Result:
        """Call the file system, again where its failure may pass."""
        if self.is_local:
            return function(*arguments, **named)
        try:
            return _retrying(function, *arguments, **named)
        except Exception as error:
            if isinstance(error, _FINAL):
                raise
            # Each storage has its own kinds, and not all are OSError.
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise StorageError(f'{self.url(self.path)}: {reason}') from error


def _file_system(url: str) -> fsspec.AbstractFileSystem:
    # `fsspec.url_to_fs` takes `::`, which may be in any name, for the way into an archive.
    protocol = None if url.startswith('/') else fsspec.core.split_protocol(url)[0]
    kind = fsspec.get_filesystem_class(protocol)
    # Listings that fsspec remembers would hide what other workers do.
    options = {'use_listings_cache': False}
    if kind._get_kwargs_from_urls(url):
        raise ValueError(
            f'{protocol}:// names a host or a user, which files below it would not say; mount it, '
            'or use one of file, s3, gs, az, http'
        )
    if protocol in ('http', 'https'):
        import aiohttp

        # aiohttp gives a file five minutes in all, in which a recording need not come.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
        options['client_kwargs'] = {'timeout': timeout}
    return kind(**options)


def in_parallel(function: Callable[[Any], _Result], items: list) -> list[_Result]:
    """Results of a function that waits for the network, several at a time."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_TRANSFERS) as threads:
        return list(threads.map(function, items))


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if not isinstance(error, Exception) or isinstance(error, _FINAL):
        return False
    if isinstance(error, OSError) and error.errno in _FINAL_NUMBERS:
        return False
    # Of botocore, which need not be installed.
    return type(error).__name__ != 'NoCredentialsError'


_retrying = tenacity.Retrying(
    retry=tenacity.retry_if_exception(_may_pass),
    wait=tenacity.wait_exponential_jitter(initial=1, max=20),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    reraise=True,
)


def _local_entries(folder: str) -> Iterator[Entry]:
    # The names alone are held and sorted: a folder may have a million files.
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  (names alone)
        path = f'{folder.rstrip("/")}/{name}'
        try:
            status = os.stat(path)  # noqa: PTH116  (a million times)
        except OSError:
            # A broken link or a file that has just gone: reading it says so.
            yield Entry(path, False)
        else:
            yield _local_entry(path, status)


def _local_entry(path: str, status: os.stat_result) -> Entry:
    identity = f'{status.st_size}-{status.st_mtime_ns}'
    is_folder = stat.S_ISDIR(status.st_mode)
    return Entry(path, is_folder, status.st_size, identity, status.st_mtime)


def _entry(info: dict, path: str) -> Entry:
    """Make an entry of what a file system says, which differs from one to the other."""
    times = ('LastModified', 'mtime', 'last_modified', 'Last-Modified')
    changed = next((info[key] for key in times if info.get(key)), 0)
    changed_s = changed.timestamp() if isinstance(changed, datetime) else changed
    size = info.get('size') or 0
    tag = next((info[key] for key in ('ETag', 'etag', 'md5Hash') if info.get(key)), None)
    return Entry(
        path,
        info.get('type') == 'directory',
        size,
        str(tag or f'{size}-{changed}'),
        changed_s if isinstance(changed_s, float | int) else 0.0,
    )


def _write_through(path: str, source: BinaryIO) -> None:
    """Write a file that is still there when the power fails after it was renamed."""
    with open(path, 'wb') as file:  # noqa: PTH123  (paths of fsspec are texts)
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
