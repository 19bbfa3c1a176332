"""Finished results of a plan into datasets: their parts by workers, then what joins them."""

import io
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cliptrase_ros.exports.export import join_parts
from cliptrase_ros.fleet.engines import Slot
from cliptrase_ros.fleet.plan import Plan
from cliptrase_ros.fleet.result_store import ResultStore, parts_of
from cliptrase_ros.fleet.tasks import Outcome, Task
from cliptrase_ros.fleet.work import Work
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.ahead import submit_ahead

_AHEAD = 8


@dataclass(frozen=True)
class Datasets:
    """Datasets of the results of a plan.

    Attributes:
        paths: Where they lie, in the folder of the labelling, by format.
    """

    plan: Plan
    store: ResultStore
    paths: dict[str, str]

    def keys_left(self) -> set[bytes]:
        """Keys of finished tasks of which a dataset lacks its part."""
        done = self.store.keys('done')
        there = [self._parts(path) for path in self.paths.values()]
        complete = set.intersection(*there)
        return {bytes.fromhex(task.key) for task in self.plan.shard_tasks()} & done - complete

    def make_parts(
        self,
        keys: Collection[bytes],
        slots: Sequence[Slot],
        on_done: Callable[[], object] = lambda: None,
    ) -> list[tuple[str, str]]:
        """Have slots make the parts that lack.

        Args:
            keys: What `keys_left` gives.

        Returns:
            (input, why) of those that could not be made.

        Raises:
            EngineError: No worker can be started.
        """
        failed: list[tuple[str, str]] = []

        def note(task: Task, outcome: Outcome) -> None:
            if outcome.state != 'done':
                failed.append((task.shown_source, outcome.reason))
            on_done()

        tasks = (task for task in self.plan.shard_tasks() if bytes.fromhex(task.key) in keys)
        Work(slots, 'export', tasks, len(keys), note).run()
        return failed

    def join(self, vocabulary: Vocabulary, scratch: Path | None = None) -> None:
        """Write what each dataset has of all its parts, those of other commands as well.

        Args:
            scratch: Folder for files that are not there yet; None for the system's.

        Raises:
            ExportError: A format cannot be written.
        """
        done = self.store.keys('done')
        for name, path in self.paths.items():
            there = self._parts(path)
            superseded = self.plan.superseded(there)
            self._remove(path, superseded)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                keys = sorted((there & done) - superseded)
                join_parts(name, self._fragments(path, keys), vocabulary, Path(folder))
                self.store.storage.store(Path(folder), f'{self.store.path}/{path}')

    def _remove(self, path: str, keys: set[bytes]) -> None:
        """Remove parts of inputs that have changed since.

        Where a part is a file of its own, as in Parquet, all files of the folder are the dataset.
        """
        for key in keys:
            # The fragment last: while it is there, the other is looked for again.
            self.store.storage.remove(f'{self.store.path}/{path}/{key.hex()}.parquet')
            self.store.storage.remove(f'{self.store.path}/{parts_of(path)}/{key.hex()}.jsonl')

    def _fragments(self, path: str, keys: Sequence[bytes]) -> Iterator[IO[bytes]]:
        def read(key: bytes) -> IO[bytes]:
            file = f'{self.store.path}/{parts_of(path)}/{key.hex()}.jsonl'
            return io.BytesIO(self.store.storage.read(file))

        with ThreadPoolExecutor(_AHEAD) as threads:
            for fragment in submit_ahead(threads, read, keys, _AHEAD):
                yield fragment.result()

    def _parts(self, path: str) -> set[bytes]:
        return self.store.keys_in(f'{self.store.path}/{parts_of(path)}', '.jsonl')
