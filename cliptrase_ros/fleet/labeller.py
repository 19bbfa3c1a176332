"""One input, on this machine, to its labels, also on this machine."""

import socket
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cliptrase_ros.bag.cameras import choose_cameras
from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.label import BagSettings, label_bag
from cliptrase_ros.bag.label import Labeller as BagLabeller
from cliptrase_ros.bag.reader import BagReader
from cliptrase_ros.fleet.faults import InputFault, WorkerUnfit, sentence
from cliptrase_ros.fleet.labelling import Job
from cliptrase_ros.fleet.model_check import load_with_digests
from cliptrase_ros.fleet.tasks import Task
from cliptrase_ros.messages.typestore import make_typestore
from cliptrase_ros.photos.output_names import unique_names
from cliptrase_ros.photos.segment import OutputSettings, segment_sources
from cliptrase_ros.photos.sources import Source
from cliptrase_ros.segmentation.device_faults import is_device_lost
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine, default_batch


@dataclass
class Labels:
    """What labelling gave.

    Attributes:
        images: How many were labelled.
        damage: What is missing, a sentence each.
        cameras: Image topic by camera name, of a recording.
        fault: Of the device, for want of whose memory images have no labels.
    """

    images: int = 0
    damage: list[str] = field(default_factory=list)
    cameras: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None


class Labeller:
    """Labels inputs that are on this machine."""

    def __init__(self, job: Job):
        labelling = job.labelling
        model = labelling.model
        segmenter, weights = load_with_digests(model, job.threads)
        if weights != labelling.weights:
            names = ' or '.join(filter(None, (model.model, model.sam_model)))
            raise WorkerUnfit(
                f'the weights of {names} on {socket.gethostname()} are not those that the command '
                'was given'
            )
        self._segmenter = segmenter.to(job.device, model.precision)
        self._vocabulary = self._segmenter.encode_vocabulary(labelling.vocabulary)
        self._labelling = labelling
        self._batch = job.batch or default_batch(self._segmenter)
        self.device = str(self._segmenter.device)
        self.images = 0

    def label(self, task: Task, source: Path, folder: Path) -> Labels:
        """Label an input into a new folder. Raises InputFault or WorkerUnfit."""
        label = self._label_recording if task.kind == 'recording' else self._label_pictures
        labels = label(task, source, folder)
        labels.damage = [_without_source(text, task.shown_source) for text in labels.damage]
        if not labels.images and labels.damage and not labels.fault:
            first, *others = labels.damage
            raise InputFault(f'{first}; and {len(others)} more' if others else first)
        return labels

    def _label_recording(self, task: Task, source: Path, folder: Path) -> Labels:
        labelling, engine = self._labelling, self._engine()
        settings = BagSettings(
            node=labelling.node, rate=labelling.rate, overlay=labelling.overlay, sidecar=True
        )
        try:
            with BagReader(source, make_typestore()) as reader:
                choice = choose_cameras(reader, labelling.topics, labelling.node)
                summary = label_bag(
                    reader,
                    folder,
                    choice.cameras,
                    BagLabeller(engine, self._vocabulary, labelling.settings),
                    settings,
                    on_image=self._count,
                )
        except BagError as error:
            if isinstance(error.__cause__, OSError):
                raise  # a full disk, say
            raise InputFault(str(error).replace(str(source), task.shown_source)) from error
        refused = choice.refused | summary.refused
        damage = [
            *summary.damage,
            *(f'{topic}: {n} not labelled: {reason}' for topic, (n, reason) in refused.items()),
        ]
        cameras = {camera.name: camera.topic.name for camera in choice.cameras}
        return Labels(summary.labelled.total(), damage, cameras, _fault_of(engine))

    def _label_pictures(self, task: Task, source: Path, folder: Path) -> Labels:
        kind = 'video' if task.kind == 'video' else 'photo'
        paths = [source / name for name in task.files] or [source]
        shown = [f'{task.source}/{name}' for name in task.files] or [task.shown_source]
        relatives = [PurePosixPath(path.name) for path in paths]
        names = unique_names(relatives, paths, [kind] * len(paths))
        sources = [Source(kind, *about) for about in zip(paths, names, shown, strict=True)]
        labelling, engine = self._labelling, self._engine()
        outcome = segment_sources(
            *(sources, engine, self._vocabulary, labelling.settings),
            OutputSettings(folder, labelling.rate, overlay=labelling.overlay),
            on_image=self._count,
        )
        if outcome.write_fault:
            raise outcome.write_fault
        damage = [f'{file}: {reason}' for file, reason in outcome.unreadable]
        return Labels(outcome.labelled, damage, fault=_fault_of(engine))

    def _engine(self) -> FaultTolerantEngine:
        return FaultTolerantEngine(self._segmenter, batch=self._batch)

    def _count(self) -> None:
        self.images += 1


def _without_source(text: str, source: str) -> str:
    """What is said of an input or something in it, for those who know which input it is."""
    for mark in (': ', ', ', '/'):
        text = text.removeprefix(f'{source}{mark}')
    return text


def _fault_of(engine: FaultTolerantEngine) -> Exception | None:
    """What of the device cost images their labels; raises WorkerUnfit where the device is lost."""
    error, device = engine.gave_up, engine.segmenter.device
    if error is not None and is_device_lost(error, device):
        raise WorkerUnfit(f'{device}: {sentence(error)}')
    return error
