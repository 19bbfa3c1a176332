"""Where the results of a labelling lie, and what says which tasks are done."""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from cliptrase_ros.fleet.storage import Entry, Storage
from cliptrase_ros.fleet.tasks import Task


def parts_of(dataset: str) -> str:
    """Where the fragments of a dataset's parts lie: beside it, as its readers take in all of it."""
    return f'{dataset}.parts'


class ResultStore:
    """The folder of a labelling's results.

    `done/KEY.json` of a task is written after all of its results: what has none does not exist.
    """

    def __init__(self, storage: Storage, digest: str):
        self.storage = storage
        self.name = digest
        self.path = storage.child(digest)
        self.url = storage.url(self.path)

    def keys(self, of: str) -> set[bytes]:
        """Keys of tasks that are `done`, `failed` or `damaged`."""
        return self.keys_in(f'{self.path}/{of}', '.json')

    def keys_in(self, folder: str, suffix: str) -> set[bytes]:
        """Keys of tasks that files of a folder are called after; other files count for nothing."""
        keys = set()
        for entry in self.storage.entries(folder):
            if entry.name.endswith(suffix):
                with contextlib.suppress(ValueError):
                    keys.add(bytes.fromhex(entry.name.removesuffix(suffix)))
        return keys

    def markers(self, of: str) -> Iterator[Entry]:
        """Files of tasks that are `done`, `failed` or `damaged`, or of `workers`."""
        for entry in self.storage.entries(f'{self.path}/{of}'):
            if entry.name.endswith('.json'):
                yield entry

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; None where there is none, or no whole one."""
        try:
            return json.loads(self.storage.read(f'{self.path}/{name}'))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file of the folder."""
        text = json.dumps(content, indent=1)
        self.storage.write(f'{self.path}/{name}', text.encode() + b'\n')

    def mark_done(self, task: Task, about: dict[str, Any], damage: list[str]) -> None:
        """Say that the results of a task are there, and what is missing of its input."""
        if damage:
            self.write(
                f'damaged/{task.key}.json',
                {'source': task.shown_source, 'kind': task.kind, 'damage': damage},
            )
        self.write(f'done/{task.key}.json', about)
        self.storage.remove(f'{self.path}/failed/{task.key}.json')

    def mark_failed(self, task: Task, reason: str) -> None:
        """Say that a task could not be done, and why."""
        name = f'failed/{task.key}.json'
        earlier = self.read(name) or {}
        self.write(
            name,
            {
                'source': task.shown_source,
                'kind': task.kind,
                'reason': reason,
                'tries': earlier.get('tries', 0) + 1,
                'time': utc_now(),
                'host': socket.gethostname(),
            },
        )


def utc_now() -> str:
    """The time, as ISO 8601 has it."""
    return time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
