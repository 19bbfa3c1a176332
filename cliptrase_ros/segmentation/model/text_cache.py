"""Features of phrases on disk: what was encoded once takes effect at once, also after a restart.

One small file a phrase, so that processes need no locks: a file appears whole by being renamed,
and one that another process removes is a phrase to encode again. Nothing here raises for what a
disk does; a cache that cannot be used costs time, never a vocabulary.
"""

import hashlib
import logging
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

#: Most phrases kept; a file of 512 numbers takes 4 KiB of disk.
CAPACITY = 8192

_SUFFIX = '.safetensors'
_PART = '.part'
# Longer than any write takes.
_WRITING_S = 3600.0
_log = logging.getLogger(__name__)


def default_folder(cache_dir: str | None = None) -> Path | None:
    """Where features are kept: below `cache_dir`, else below the user's cache (XDG), if any."""
    if cache_dir:
        return Path(cache_dir).expanduser() / 'cliptrase' / 'text'
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        # Relative paths are to be ignored (XDG base directory specification).
        root = Path(base) if Path(base).is_absolute() else Path.home() / '.cache'
    except RuntimeError as error:
        _log.warning('text features are not kept on disk: %s', error)
        return None
    return root / 'cliptrase' / 'text'


class TextCache:
    """Features of phrases in a folder, by what they were made with."""

    def __init__(self, folder: Path, fingerprint: str, capacity: int = CAPACITY) -> None:
        """Use a folder, which need not be there yet.

        Args:
            fingerprint: Differs wherever the same phrase would get other features.
        """
        self._folder = folder
        self._fingerprint = fingerprint
        self._capacity = capacity
        self._warned: set[str] = set()

    def load(self, phrase: str, width: int) -> np.ndarray | None:
        """Features of a phrase, float32 (width,), unit length; None if there are no sound ones."""
        path = self._path(phrase)
        try:
            features = _read(path, width)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            self._warn('read', f'{path} is not used, its phrase is encoded again: {error}')
            return None
        with suppress(OSError):
            os.utime(path)
        return features

    def store(self, features: dict[str, np.ndarray]) -> None:
        """Keep features, float32 (D,), of phrases; those not used for longest are removed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for phrase, values in features.items():
                self._write(self._path(phrase), values)
            self._remove_oldest()
        except OSError as error:
            self._warn('write', f'text features are not kept in {self._folder}: {error}')

    def _path(self, phrase: str) -> Path:
        key = hashlib.sha256(f'{self._fingerprint}\0{phrase}'.encode('utf-8', 'surrogatepass'))
        return self._folder / f'{key.hexdigest()}{_SUFFIX}'

    def _write(self, path: Path, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, np.float32)
        content = save({'features': values}, metadata={'crc32': _checksum(values)})
        handle, temporary = tempfile.mkstemp(dir=self._folder, suffix=_PART)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(content)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _remove_oldest(self) -> None:
        for left_over in self._folder.glob(f'*{_PART}'):
            # Of a process that ended while it wrote.
            if time.time() - _time_of_use(left_over) > _WRITING_S:
                left_over.unlink(missing_ok=True)
        kept = sorted(self._folder.glob(f'*{_SUFFIX}'), key=_time_of_use, reverse=True)
        for path in kept[self._capacity :]:
            path.unlink(missing_ok=True)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(message)


def fingerprint(*parts: bytes | str | Sequence[str]) -> str:
    """A name for the contents of these parts, in this order (SHA-256)."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            part = '\0'.join([part] if isinstance(part, str) else part).encode()
        digest.update(len(part).to_bytes(8, 'little'))
        digest.update(part)
    return digest.hexdigest()


def _checksum(values: np.ndarray) -> str:
    return f'{zlib.crc32(values.tobytes()):08x}'


def _read(path: Path, width: int) -> np.ndarray:
    with safe_open(path, framework='numpy') as file:
        features = file.get_tensor('features')
        checksum = (file.metadata() or {}).get('crc32')
    if features.dtype != np.float32 or features.shape != (width,):
        raise ValueError(f'it holds {features.dtype} of shape {features.shape}')
    if checksum != _checksum(features):
        raise ValueError('it is damaged')
    return features


def _time_of_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()
