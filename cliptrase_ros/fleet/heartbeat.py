"""What workers tell the storage about themselves while they work."""

import contextlib
import os
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

from cliptrase_ros.fleet.result_store import ResultStore, utc_now

#: A worker says so often that it is alive, seconds.
HEARTBEAT_S = 20.0


class Heartbeat:
    """Tells the storage, from a thread of its own, that a worker is alive and what it does.

    Attributes:
        name: Of the worker; unique.
        count: How many tasks came to each state.
    """

    def __init__(self, store: ResultStore, device: str):
        host = socket.gethostname()
        self.name = f'{host}-{os.getpid()}-{secrets.token_hex(3)}'
        self.count: Counter[str] = Counter()
        self._store = store
        self._about = {'host': host, 'pid': os.getpid(), 'device': device, 'started': utc_now()}
        self._tasks: list[str] = []
        self._images = 0
        self._busy_s = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def task(self, source: str) -> Iterator[None]:
        """While a task is at work."""
        with self._lock:
            self._tasks.append(source)
        try:
            yield
        finally:
            with self._lock:
                self._tasks.remove(source)

    def add(self, images: int, seconds: float) -> None:
        """Count images that were labelled in so many seconds."""
        with self._lock:
            self._images += images
            self._busy_s += seconds

    def close(self) -> None:
        """Say that the worker has ended."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        self._tell(ended=False)
        while not self._ended.wait(HEARTBEAT_S):
            self._tell(ended=False)
        self._tell(ended=True)

    def _tell(self, ended: bool) -> None:
        with self._lock:
            about = {
                **self._about,
                'updated_s': round(time.time()),
                'ended': ended,
                'tasks': list(self._tasks),
                'images': self._images,
                'label_s': round(self._busy_s, 1),
                **self.count,
            }
        # Nobody's labels depend on it.
        with contextlib.suppress(Exception):
            self._store.write(f'workers/{self.name}.json', about)
