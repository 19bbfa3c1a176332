"""Room on this machine for inputs that were fetched, and no more than that."""

import contextlib
import fcntl
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_GIB = 1 << 30
_PREFIX = 'cliptrase-batch-'
_LOCK = 'lock'


class ScratchError(Exception):
    """An input that is larger than the room there is; the message says by how much."""


class Scratch:
    """A folder for what a worker fetches and makes, gone when it is closed.

    Those of processes that were killed are deleted by the next one.
    """

    def __init__(self, parent: Path | None, most_gib: float):
        """Make the folder.

        Args:
            parent: Where; None for the system's folder for temporary files.
            most_gib: Most that inputs take together; who would take more waits.
        """
        parent = parent or Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f'.{_PREFIX}', dir=parent))
        self._lock = (self.path / _LOCK).open('w')
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Only now may others find it: one that nobody holds is abandoned.
        self.path = self.path.rename(parent / self.path.name.removeprefix('.'))
        self._most = int(most_gib * _GIB)
        self._taken = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Wait until so many bytes may be fetched. Raises ScratchError if that can never be."""
        if size > self._most:
            raise ScratchError(
                f'it has {size / _GIB:.1f} GiB, and --scratch-gib leaves {self._most / _GIB:.1f}'
            )
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self._most)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder, deleted afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.path))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _delete_abandoned(parent: Path) -> None:
    """Delete folders of processes that are gone: nobody holds their locks."""
    for folder in parent.glob(f'{_PREFIX}*'):
        # Another user's, or one that is being made or deleted.
        with contextlib.suppress(OSError), (folder / _LOCK).open('r+') as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
