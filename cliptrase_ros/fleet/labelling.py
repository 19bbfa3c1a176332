"""What inputs are labelled as: model, words and settings; and where its results lie."""

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cliptrase_ros
from cliptrase_ros.fleet.storage import Entry, Storage
from cliptrase_ros.fleet.tasks import Task
from cliptrase_ros.segmentation.settings import ModelSettings, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary

# Version of how results are laid out; results of another one lie in another folder.
_LAYOUT = 1


@dataclass(frozen=True)
class Labelling:
    """All that labels depend on beside the inputs.

    Attributes:
        weights: Digests of the weights of CLIP and, where there is one, of SAM.
        rate: Most images labelled a second of a camera or video, 0 = all.
        overlay: Whether results have pictures for people.
        topics: Of recordings, `TOPIC` or `TOPIC=CAMERA`; empty for every one with pictures.
        node: Full name of the node that the topics of recordings go under.
    """

    model: ModelSettings
    weights: tuple[str, ...]
    vocabulary: Vocabulary
    settings: SegmentationSettings
    rate: float
    overlay: bool
    topics: tuple[str, ...]
    node: str

    def describe(self) -> dict[str, Any]:
        """All of it, for people and for JSON; equal for labellings that give equal labels."""
        # Who only looks at results needs no PyTorch.
        from cliptrase_ros.photos.results import describe_vocabulary

        return {
            'layout': _LAYOUT,
            'version': cliptrase_ros.__version__,
            'model': self.model.model,
            'pretrained': self.model.pretrained,
            'weights': list(self.weights),
            'precision': self.model.precision,
            **asdict(self.settings),
            'rate': self.rate,
            'overlay': self.overlay,
            'topics': list(self.topics),
            'node': self.node,
            'vocabulary': describe_vocabulary(self.vocabulary),
        }

    @property
    def digest(self) -> str:
        """Name of its folder; equal for labellings that give equal labels."""
        content = {**self.describe(), 'pretrained': ''}  # the weights say what it is
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """What workers are to do, and with what.

    Attributes:
        digest: Of the labelling, as it is where the command runs.
        output: URL or path below which results go.
        device: See `ModelSettings.device`.
        threads: Processor cores that inference uses.
        batch: Images of equal size at a time; None for what suits the device.
        scratch: Folder for what is fetched; None for the system's.
        scratch_gib: Most that fetched inputs take there.
        formats: Of datasets that results become, see `exports.export.FORMATS`.
        with_images: Whether datasets have the images too.
        needs_model: Whether there is anything to label; datasets are made without a model.
    """

    labelling: Labelling
    digest: str
    output: str
    device: str
    threads: int
    batch: int | None
    scratch: Path | None
    scratch_gib: float
    formats: tuple[str, ...] = ()
    with_images: bool = False
    needs_model: bool = True

    @property
    def datasets(self) -> dict[str, str]:
        """Where the datasets lie, paths in the folder of the labelling by format."""
        suffix = '-with-images' if self.with_images else ''
        return {name: f'export/{name}{suffix}' for name in self.formats}


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
