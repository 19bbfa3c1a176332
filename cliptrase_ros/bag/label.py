"""A recording with labels added, under the names the node publishes them by."""

import contextlib
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rosbags.interfaces import Connection
from rosbags.rosbag2 import WriterError
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag import types
from cliptrase_ros.bag.cameras import DEFAULT_NODE, BagCamera, check_node
from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.messages import MessageMaker
from cliptrase_ros.bag.reader import BagMessage, BagReader
from cliptrase_ros.bag.writer import BagWriter
from cliptrase_ros.messages.images import decompress_to_rgb, header_stamp_ns, to_rgb
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.rate_limit import RateLimit

#: Nanoseconds between repetitions of label_info, as the node does.
LABEL_INFO_PERIOD_NS = 5_000_000_000

OnResult = Callable[[BagCamera, int, np.ndarray, Segmentation], None]

# Messages wait for a batch of images; not without bound.
_MOST_WAITING_BYTES = 256_000_000


@dataclass(frozen=True)
class BagSettings:
    """How a recording is written.

    node: full name of the node the topics go under. storage: 'mcap' or 'sqlite3', None for that
    of the input. compress: None as the input is. rate: most images labelled a second and camera,
    0 = all. batch: images a batch. overlay: whether to add pictures for people.
    Raises BagError for a value out of range.
    """

    node: str = DEFAULT_NODE
    storage: str | None = None
    compress: bool | None = None
    rate: float = 0.0
    batch: int = 1
    overlay: bool = True

    def __post_init__(self):
        check_node(self.node)
        if not 0 <= self.rate <= 1000:
            raise BagError(f'the rate is {self.rate}; it must be 0 to 1000 images a second')
        if self.batch < 1:
            raise BagError(f'the batch is {self.batch}; it must be at least 1')


@dataclass
class BagSummary:
    """What came of a recording.

    copied: messages. labelled: images by camera name. refused: (count, first reason) by topic
    of images that could not be labelled. damage: what of the input is missing. not_kept: what of
    it the storage has no place for, '' if nothing.
    """

    copied: int = 0
    labelled: Counter = field(default_factory=Counter)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    not_kept: str = ''

    def refuse(self, topic: str, error: Exception) -> None:
        """Count an image that could not be labelled."""
        count, reason = self.refused.get(topic, (0, f'{error}'))
        self.refused[topic] = (count + 1, reason)


def label_bag(
    reader: BagReader,
    destination: Path,
    cameras: Sequence[BagCamera],
    segmenter: Segmenter,
    vocabulary: EncodedVocabulary,
    segmentation: SegmentationSettings,
    settings: BagSettings,
    typestore: Typestore,
    on_image: Callable[[], None] = lambda: None,
    on_result: OnResult | None = None,
    on_message: Callable[[BagMessage], None] | None = None,
) -> BagSummary:
    """Write a recording with everything of the input and the labels of its images.

    Every message keeps its bytes, times and place in the order; an image's labels follow it, with
    its time and header. Attachments and metadata of MCAP are kept where the output is MCAP.
    on_image: called when an image has been dealt with; on_result: with the camera, the stamp in
    nanoseconds, the picture and its labels, when it has been labelled; on_message: with every
    message of the input.
    The destination appears, complete, at the very end. Raises BagError.
    """
    storage = settings.storage or reader.storage
    compress = reader.compressed if settings.compress is None else settings.compress
    try:
        with _appearing(destination) as folder:
            writer = BagWriter(folder, storage, compress)
            for key, value in reader.custom_data.items():
                writer.set_custom_data(key, value)
            with writer:
                labelling = _Labelling(
                    writer,
                    reader,
                    cameras,
                    segmenter,
                    vocabulary,
                    segmentation,
                    settings,
                    typestore,
                    on_image,
                    on_result,
                    on_message,
                )
                summary = labelling.run()
            if summary.copied == 0:
                raise BagError('the recording holds no messages')
    except (OSError, sqlite3.Error, WriterError) as error:
        raise BagError(f'{destination} could not be written: {error}') from error
    return summary


@contextlib.contextmanager
def _appearing(destination: Path) -> Iterator[Path]:
    """A folder to write to that takes its place when all has gone well, and vanishes otherwise."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    # The writer names its files after the folder, so it has the final name from the beginning.
    hidden = tempfile.mkdtemp(
        prefix=f'.{destination.name}.', suffix='.partial', dir=destination.parent
    )
    try:
        folder = Path(hidden) / destination.name
        yield folder
        if destination.exists():
            raise BagError(f'{destination} has come into being meanwhile')
        folder.rename(destination)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@dataclass(frozen=True)
class _Waiting:
    message: BagMessage
    camera: BagCamera | None = None
    header: object = None
    picture: np.ndarray | None = None

    @property
    def image_ns(self) -> int:
        """When the image was taken, or where that is not said, recorded."""
        return header_stamp_ns(self.header) or self.message.stamp_ns


class _Labelling:
    def __init__(
        self,
        writer: BagWriter,
        reader: BagReader,
        cameras: Sequence[BagCamera],
        segmenter: Segmenter,
        vocabulary: EncodedVocabulary,
        segmentation: SegmentationSettings,
        settings: BagSettings,
        typestore: Typestore,
        on_image: Callable[[], None],
        on_result: OnResult | None,
        on_message: Callable[[BagMessage], None] | None,
    ):
        self._writer = writer
        self._reader = reader
        self._engine = FaultTolerantEngine(segmenter, batch=settings.batch)
        self._vocabulary = vocabulary
        self._segmentation = segmentation
        self._settings = settings
        self._typestore = typestore
        self._on_image = on_image
        self._on_result = on_result
        self._on_message = on_message
        self._maker = MessageMaker(typestore)
        self._summary = BagSummary()
        self._copies = {key: writer.add_topic(topic) for key, topic in reader.topics.items()}
        self._cameras = {(c.topic.name, c.topic.type): c for c in cameras}
        self._limits = {c.name: RateLimit(settings.rate) for c in cameras}
        self._vocabulary_output = self._add(types.VOCABULARY_TOPIC, types.VOCABULARY, True)
        self._outputs = {
            c.name: {
                name: self._add(f'{c.name}/{name}', message_type, latched)
                for name, (message_type, latched) in types.CAMERA_TOPICS.items()
                if name != 'overlay' or settings.overlay
            }
            for c in cameras
        }
        self._histories = CameraHistories()
        self._label_info_ns: dict[str, int] = {}
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._waiting_images = 0

    def run(self) -> BagSummary:
        for message in self._reader.messages():
            if self._summary.copied == 0:
                announcement = self._maker.vocabulary(
                    self._vocabulary.vocabulary, self._maker.header(message.stamp_ns)
                )
                self._writer.write(self._vocabulary_output, message.stamp_ns, announcement)
            self._summary.copied += 1
            if self._on_message is not None:
                self._on_message(message)
            self._take(message)
            if (
                self._waiting_images == 0
                or self._waiting_images >= self._settings.batch
                or self._waiting_bytes > _MOST_WAITING_BYTES
            ):
                self._flush()
        self._flush()
        for extra in self._reader.extras():
            self._writer.copy_extra(extra)
        self._summary.damage = tuple(self._reader.damage)
        self._summary.not_kept = self._writer.not_kept()
        return self._summary

    def _add(self, name: str, message_type: str, latched: bool) -> Connection:
        return self._writer.add_connection(
            f'{self._settings.node}/{name}',
            message_type,
            typestore=self._typestore,
            offered_qos_profiles=[types.output_qos(latched)],
        )

    def _take(self, message: BagMessage) -> None:
        topic, item = message.topic, _Waiting(message)
        camera = self._cameras.get((topic.name, topic.type))
        if camera is not None and self._limits[camera.name].takes(message.stamp_ns):
            if self._segmentation.smoothing and any(w.camera is camera for w in self._waiting):
                # It needs the labels of the one before.
                self._flush()
            try:
                image = self._typestore.deserialize_cdr(message.data, topic.type)
                picture = to_rgb(image) if topic.type == types.IMAGE else decompress_to_rgb(image)
                item = _Waiting(message, camera, image.header, picture)
                self._waiting_images += 1
                self._waiting_bytes += picture.nbytes
            except Exception as error:
                # One message that is no image must not end the rest; it is copied and counted.
                self._summary.refuse(topic.name, error)
                self._on_image()
        elif camera is not None:
            self._on_image()
        self._waiting.append(item)
        self._waiting_bytes += len(message.data)

    def _flush(self) -> None:
        images = [item for item in self._waiting if item.picture is not None]
        results = iter(
            self._engine.segment_each(
                [item.picture for item in images],
                self._vocabulary,
                self._segmentation,
                [self._histories.before(item.camera.name, item.image_ns) for item in images],
            )
        )
        for item in self._waiting:
            topic = item.message.topic
            self._writer.copy(self._copies[topic.name, topic.type], item.message)
            if item.picture is None:
                continue
            result = next(results)
            try:
                if isinstance(result, Exception):
                    raise result
                outputs = self._make_outputs(item, result)
            except Exception as error:
                self._summary.refuse(topic.name, error)
            else:
                self._histories.keep(item.camera.name, item.image_ns, result.history)
                for name, data in outputs.items():
                    connection = self._outputs[item.camera.name][name]
                    self._writer.write(connection, item.message.stamp_ns, data)
                if self._on_result is not None:
                    self._on_result(item.camera, item.image_ns, item.picture, result)
                self._summary.labelled[item.camera.name] += 1
            self._on_image()
        self._waiting.clear()
        self._waiting_bytes = self._waiting_images = 0

    def _make_outputs(self, item: _Waiting, result: Segmentation) -> dict[str, memoryview]:
        """Messages by the topic of the camera, in the order they are written."""
        outputs, maker, stamp_ns = {}, self._maker, item.message.stamp_ns
        last_ns = self._label_info_ns.get(item.camera.name)
        if last_ns is None or not 0 <= stamp_ns - last_ns < LABEL_INFO_PERIOD_NS:
            outputs['label_info'] = maker.label_info(
                result.vocabulary, self._segmentation.min_confidence, item.header
            )
        outputs['label'] = maker.image(result.label, 'mono8', item.header)
        outputs['masks'] = maker.masks(result, item.header)
        if self._settings.overlay:
            drawn = draw_overlay(item.picture, result.label, result.vocabulary)
            outputs['overlay'] = maker.image(drawn, 'rgb8', item.header)
        if 'label_info' in outputs:
            self._label_info_ns[item.camera.name] = stamp_ns
        return outputs
