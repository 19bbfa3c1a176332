"""A recording with labels added, under the names the node publishes them by."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from rosbags.interfaces import Connection
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.cameras import DEFAULT_NODE, BagCamera
from cliptrase_ros.bag.folder import BagError
from cliptrase_ros.bag.reader import BagMessage, BagReader
from cliptrase_ros.bag.types import (
    CAMERA_TOPICS,
    LABEL_INFO_TOPIC,
    VOCABULARY_TOPIC,
    output_qos,
)
from cliptrase_ros.bag.writer import BagWriter, new_recording
from cliptrase_ros.messages.images import ImageError, decompress_to_rgb, header_stamp_ns, to_rgb
from cliptrase_ros.messages.maker import CAMERA_OUTPUTS, LabelledPicture
from cliptrase_ros.messages.transports import VIDEO_TYPES
from cliptrase_ros.messages.type_names import IMAGE, LABEL_INFO, VOCABULARY, Message
from cliptrase_ros.messages.typestore import typestore_message_maker
from cliptrase_ros.messages.video import Settled, VideoDecoder, video_packet
from cliptrase_ros.segmentation.segmenter import EncodedVocabulary, Segmentation
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.frame_history import CameraHistories
from cliptrase_ros.streams.rate_limit import RateLimiter
from cliptrase_ros.streams.tracking import InstanceTracker

#: Nanoseconds between repetitions of label_info, as the node does.
LABEL_INFO_PERIOD_NS = 5_000_000_000

# Messages wait for a batch of images, but no more of them than this.
_MAX_PENDING_BYTES = 256_000_000

# Images are decoded beside the engine; so many at a time, and so many before their turn.
_THREADS = 4
_AHEAD = 8


@dataclass(frozen=True)
class Labeller:
    """What images are labelled with.

    Attributes:
        engine: Its `gave_up` says whether an image without labels is the device's fault rather
            than the image's.
    """

    engine: FaultTolerantEngine
    vocabulary: EncodedVocabulary
    settings: SegmentationSettings


@dataclass(frozen=True)
class BagSettings:
    """How a recording is written.

    Attributes:
        node: Full name of the node the topics go under.
        storage: 'mcap' or 'sqlite3', None for that of the input; of a sidecar, MCAP.
        compress: None as the input is; a sidecar is.
        rate: Most images labelled a second and camera, 0 = all.
        overlay: Whether to add pictures for people.
        overlay_boxes: Whether instances are drawn on them.
        sidecar: Whether it has the labels alone, and nothing of the input.
    """

    node: str = DEFAULT_NODE
    storage: str | None = None
    compress: bool | None = None
    rate: float = 0.0
    overlay: bool = True
    overlay_boxes: bool = False
    sidecar: bool = False


@dataclass
class BagSummary:
    """What came of a recording.

    Attributes:
        messages: Number of those of the input.
        labelled: Number of images by camera name.
        refused: Number of images that could not be labelled and the first reason, by topic.
        damage: What of the input is missing, a sentence each.
        not_kept: What of the input the storage has no place for, '' if nothing.
    """

    messages: int = 0
    labelled: Counter = field(default_factory=Counter)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    damage: tuple[str, ...] = ()
    not_kept: str = ''

    def refuse(self, topic: str, error: Exception) -> None:
        """Count an image that could not be labelled."""
        count, reason = self.refused.get(topic, (0, f'{error}'))
        self.refused[topic] = (count + 1, reason)


@dataclass(frozen=True)
class CameraImage:
    """A decoded image of the recording that is to be labelled.

    Attributes:
        log_ns: When it was recorded, nanoseconds.
        header: Its std_msgs/Header.
        picture: uint8 (H, W, 3) RGB.
    """

    camera: BagCamera
    log_ns: int
    header: Message
    picture: np.ndarray

    @property
    def stamp_ns(self) -> int:
        """When it was taken or, where that is not said, recorded; nanoseconds."""
        return header_stamp_ns(self.header) or self.log_ns


OnResult = Callable[[CameraImage, Segmentation], object]

# Of a message; None for an image that the rate leaves out.
_Decoded: TypeAlias = CameraImage | Exception | None


def label_bag(
    reader: BagReader,
    destination: Path,
    cameras: Sequence[BagCamera],
    labeller: Labeller,
    settings: BagSettings,
    on_image: Callable[[], object] = lambda: None,
    on_result: OnResult = lambda image, result: None,
    on_message: Callable[[BagMessage], object] = lambda message: None,
) -> BagSummary:
    """Write a recording with everything of the input and the labels of its images.

    Every message keeps its bytes, times and place in the order; an image's labels follow it, with
    its time and header. Attachments and metadata of MCAP are kept where the output is MCAP. A
    sidecar has the labels alone, as they would stand there.

    Args:
        reader: The input.
        destination: Folder of the new recording. It appears, complete, at the very end.
        cameras: Whose images are labelled.
        labeller: What with.
        settings: How the recording is written.
        on_image: Called when an image of the cameras has been dealt with, labelled or not.
        on_result: Called with an image that was labelled, and its labels.
        on_message: Called with every message of the input, before the labels of any image in it.

    Raises:
        BagError: The recording holds no messages, or the destination could not be written.
    """
    storage, compress = settings.storage, settings.compress
    if settings.sidecar:
        storage, compress = storage or 'mcap', compress is not False
    with new_recording(destination, reader, storage, compress) as writer:
        labelling = _Labelling(reader, writer, cameras, labeller, settings, on_image, on_result)
        # All topics also for a sidecar: only so is all damage found, and the vocabulary has the
        # time of the first message.
        with ThreadPoolExecutor(_THREADS) as threads:
            for message, decoding in labelling.decode_ahead(reader.messages(), threads):
                on_message(message)
                labelling.add(message, decoding)
        labelling.finish_videos()
        labelling.write_pending()
        summary = labelling.summary
        if summary.messages == 0:
            raise BagError('the recording holds no messages')
        if not settings.sidecar:
            writer.copy_extras(reader)
    summary.damage = (*reader.damage, *labelling.lost_frames())
    summary.not_kept = writer.not_kept()
    return summary


class _Labelling:
    """Copies messages in their order, and writes the labels of images after them.

    Messages are pending while a batch of images comes together. A sidecar keeps none of them.
    """

    def __init__(
        self,
        reader: BagReader,
        writer: BagWriter,
        cameras: Sequence[BagCamera],
        labeller: Labeller,
        settings: BagSettings,
        on_image: Callable[[], object],
        on_result: OnResult,
    ):
        self.summary = BagSummary()
        self._writer = writer
        self._typestore = reader.typestore
        self._labeller = labeller
        self._engine = labeller.engine
        self._on_image = on_image
        self._on_result = on_result
        self._copies = not settings.sidecar
        if self._copies:
            for topic in reader.topics.values():
                writer.add_topic(topic)
        self._outputs = _LabelTopics(writer, reader.typestore, cameras, labeller, settings)
        self._cameras = {(c.topic.name, c.topic.type): c for c in cameras}
        self._rate = settings.rate
        self._limiters = {c.name: RateLimiter() for c in cameras}
        self._videos = {c.name: (c, VideoDecoder()) for c in cameras if c.topic.type in VIDEO_TYPES}
        # The latest packet of each video that is to be decoded: the next one has to wait for it.
        self._latest: dict[str, Future] = {}
        self._histories = CameraHistories()
        self._pending: list[BagMessage | CameraImage] = []
        self._pending_images: list[CameraImage] = []
        self._pending_bytes = 0

    def decode_ahead(
        self, messages: Iterable[BagMessage], threads: Executor
    ) -> Iterator[tuple[BagMessage, Future | None]]:
        """Messages in their order, each with the decoding of the images that come of it, if any.

        Threads are at work on the images that come next.
        """
        waiting: deque[tuple[BagMessage, Future | None]] = deque()
        images = 0
        for message in messages:
            camera = self._cameras.get((message.topic.name, message.topic.type))
            decoding = None
            if camera and camera.name in self._videos:
                # All of them, for each needs those before it.
                before = self._latest.get(camera.name)
                decoding = threads.submit(self._decode_packet, message, camera, before)
                self._latest[camera.name] = decoding
                images += 1
            elif camera and self._limiters[camera.name].take(message.stamp_ns, self._rate):
                decoding = threads.submit(self._decode, message, camera)
                images += 1
            elif camera:
                self._on_image()
            waiting.append((message, decoding))
            while waiting and (images > _AHEAD or waiting[0][1] is None):
                images -= waiting[0][1] is not None
                yield waiting.popleft()
        yield from waiting

    def add(self, message: BagMessage, decoding: Future | None) -> None:
        """Take in the next message of the input; `write_pending` has to follow the last one."""
        if self.summary.messages == 0:
            self._outputs.write_vocabulary(message.stamp_ns)
        self.summary.messages += 1
        if self._copies:
            self._pending.append(message)
            self._pending_bytes += len(message.data)
        if decoding is not None:
            try:
                decoded = decoding.result()
            except Exception as error:
                # One message that is no image must not end the rest; it is copied and counted.
                decoded = [error]
            self._add_images(message.topic.name, decoded)
        count = len(self._pending_images)
        if (
            count == 0
            or count >= self._engine.largest_batch
            or self._pending_bytes > _MAX_PENDING_BYTES
        ):
            self.write_pending()

    def finish_videos(self) -> None:
        """Take in the images that videos still held back at their end."""
        for camera, decoder in self._videos.values():
            self._add_images(camera.topic.name, self._images_of(camera, decoder.finish()))

    def lost_frames(self) -> list[str]:
        """Say of which videos frames are missing, a sentence each."""
        return [
            f'{camera.topic.name}: {decoder.lost} frames of the video are missing'
            for camera, decoder in self._videos.values()
            if decoder.lost
        ]

    def write_pending(self) -> None:
        """Label the pending images, and write all that is pending."""
        images = self._pending_images
        results = iter(
            self._engine.segment_each(
                [image.picture for image in images],
                self._labeller.vocabulary,
                self._labeller.settings,
                [self._histories.before(image.camera.name, image.stamp_ns) for image in images],
            )
        )
        for entry in self._pending:
            if isinstance(entry, CameraImage):
                self._write_labels(entry, next(results))
            else:
                self._writer.copy(entry)
        self._pending.clear()
        self._pending_images.clear()
        self._pending_bytes = 0

    def _add_images(self, topic: str, decoded: Sequence[_Decoded]) -> None:
        for image in decoded:
            if not isinstance(image, CameraImage):
                if image is not None:
                    self.summary.refuse(topic, image)
                self._on_image()
                continue
            if self._labeller.settings.smoothing and any(
                earlier.camera is image.camera for earlier in self._pending_images
            ):
                # Its labels depend on those of the camera's image before.
                self.write_pending()
            self._pending_images.append(image)
            self._pending.append(image)
            self._pending_bytes += image.picture.nbytes

    def _decode(self, message: BagMessage, camera: BagCamera) -> list[_Decoded]:
        """The image in a message of a camera; raises whatever decoders do."""
        kind = message.topic.type
        image = self._typestore.deserialize_cdr(message.data, kind)
        picture = to_rgb(image) if kind == IMAGE else decompress_to_rgb(image)
        return [CameraImage(camera, message.stamp_ns, image.header, picture)]

    def _decode_packet(
        self, message: BagMessage, camera: BagCamera, before: Future | None
    ) -> list[_Decoded]:
        """The images that come with a packet of a video; raises if it is no such message."""
        if before is not None:
            wait([before])
        content = self._typestore.deserialize_cdr(message.data, message.topic.type)
        packet = video_packet(content, message.stamp_ns, message.sequence)
        _, decoder = self._videos[camera.name]
        return self._images_of(camera, decoder.decode(packet))

    def _images_of(self, camera: BagCamera, settled: Iterable[Settled]) -> list[_Decoded]:
        images: list[_Decoded] = []
        for packet, outcome in settled:
            if isinstance(outcome, ImageError):
                images.append(outcome)
            elif self._limiters[camera.name].take(packet.received_ns, self._rate):
                picture = outcome.to_rgb()
                images.append(CameraImage(camera, packet.received_ns, packet.header, picture))
            else:
                images.append(None)
        return images

    def _write_labels(self, image: CameraImage, result: Segmentation | Exception) -> None:
        camera = image.camera
        try:
            if isinstance(result, Exception):
                raise result
            messages = self._outputs.make(image, result)
        except Exception as error:
            self.summary.refuse(camera.topic.name, error)
        else:
            self._outputs.write(image, messages)
            self._histories.keep(camera.name, image.stamp_ns, result.history)
            self.summary.labelled[camera.name] += 1
            self._on_result(image, result)
        self._on_image()


class _LabelTopics:
    """The topics of the node in the output."""

    def __init__(
        self,
        writer: BagWriter,
        typestore: Typestore,
        cameras: Sequence[BagCamera],
        labeller: Labeller,
        settings: BagSettings,
    ):
        self._writer = writer
        self._typestore = typestore
        self._node = settings.node
        self._vocabulary = labeller.vocabulary.vocabulary
        self._settings = labeller.settings
        self._overlay_boxes = settings.overlay_boxes
        self._trackers = {camera.name: InstanceTracker() for camera in cameras}
        self._maker = typestore_message_maker(typestore)
        self._vocabulary_connection = self._add(VOCABULARY_TOPIC, VOCABULARY)
        self._topics = [t for t in CAMERA_TOPICS if t != 'overlay' or settings.overlay]
        self._connections = {
            (camera.name, topic): self._add(f'{camera.name}/{topic}', _output_type(topic))
            for camera in cameras
            for topic in self._topics
        }
        self._label_info_ns: dict[str, int] = {}

    def write_vocabulary(self, log_ns: int) -> None:
        """Write the vocabulary, which comes before all labels."""
        header = self._maker.make_header(log_ns)
        message = self._maker.make_vocabulary(self._vocabulary, header)
        self._writer.write(self._vocabulary_connection, log_ns, self._serialise(message))

    def make(self, image: CameraImage, result: Segmentation) -> dict[str, memoryview]:
        """Make the messages of an image by topic, in the order they are to be written."""
        picture = LabelledPicture(
            image.header,
            image.picture,
            result,
            self._settings.min_instance_area,
            partial(self._trackers[image.camera.name].track, time_ns=image.stamp_ns),
            self._overlay_boxes,
        )
        messages = {}
        last_ns = self._label_info_ns.get(image.camera.name)
        if last_ns is None or not 0 <= image.log_ns - last_ns < LABEL_INFO_PERIOD_NS:
            messages[LABEL_INFO_TOPIC] = self._maker.make_label_info(
                result.vocabulary, self._settings.min_confidence, image.header
            )
        for topic in self._topics:
            if topic != LABEL_INFO_TOPIC:
                _, make = CAMERA_OUTPUTS[topic]
                messages[topic] = make(self._maker, picture)
        return {topic: self._serialise(message) for topic, message in messages.items()}

    def write(self, image: CameraImage, messages: dict[str, memoryview]) -> None:
        """Write messages with the log time of their image."""
        for topic, data in messages.items():
            connection = self._connections[image.camera.name, topic]
            self._writer.write(connection, image.log_ns, data)
        if LABEL_INFO_TOPIC in messages:
            self._label_info_ns[image.camera.name] = image.log_ns

    def _add(self, topic: str, message_type: str) -> Connection:
        return self._writer.add_connection(
            f'{self._node}/{topic}',
            message_type,
            typestore=self._typestore,
            offered_qos_profiles=[output_qos(latched=message_type in (LABEL_INFO, VOCABULARY))],
        )

    def _serialise(self, message: Message) -> memoryview:
        return self._typestore.serialize_cdr(message, message.__msgtype__)


def _output_type(topic: str) -> str:
    return LABEL_INFO if topic == LABEL_INFO_TOPIC else CAMERA_OUTPUTS[topic][0]
