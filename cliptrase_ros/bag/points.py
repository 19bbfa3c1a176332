"""Points of a recording: labels on the depth that belongs to a picture."""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from cliptrase_ros.bag.cameras import BagCamera
from cliptrase_ros.bag.reader import BagMessage, BagReader
from cliptrase_ros.messages.compressed_depth import (
    DEPTH_READERS,
    check_compressed_depth,
    is_compressed_depth,
)
from cliptrase_ros.messages.depth import (
    DEPTH_ENCODINGS,
    STAMP_TOLERANCE_NS,
    back_project,
    check_depth,
)
from cliptrase_ros.messages.images import ENCODING_TABLE, ImageError, header_stamp_ns
from cliptrase_ros.messages.rays import is_rectified_topic
from cliptrase_ros.messages.registration import Calibration, depth_and_rays
from cliptrase_ros.messages.transports import camera_info_topic
from cliptrase_ros.messages.type_names import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE, Message


@dataclass
class _DepthCamera:
    """A camera with depth; its latest depth image and labels, each with its stamp (ns).

    Attributes:
        depth_topic: Name and type.
        label: With the header of the image.
    """

    depth_topic: tuple[str, str]
    calibration: Calibration
    depth: tuple[int, Message] | None = None
    label: tuple[int, Message, np.ndarray] | None = None


class BagPoints:
    """Finds the depth of cameras in a recording, and makes points when depth and labels are there.

    Args:
        show: Called with the camera's name, the picture's stamp in nanoseconds, float32 (N, 3)
            metres in the optical frame, and uint8 (N,) class ids.

    Attributes:
        refused: Why there are no points at all, by name of the camera.
    """

    def __init__(
        self,
        reader: BagReader,
        cameras: Sequence[BagCamera],
        show: Callable[[str, int, np.ndarray, np.ndarray], None],
    ):
        self.refused: dict[str, str] = {}
        self._shown: set[str] = set()
        self._typestore = reader.typestore
        self._show = show
        raw = _first_messages(reader, IMAGE, check_depth, _is_picture)
        compressed = _first_messages(
            reader,
            COMPRESSED_IMAGE,
            check_compressed_depth,
            lambda image: not is_compressed_depth(image),
        )
        # Of two that are as near, the first is taken.
        depths = dict.fromkeys(raw, IMAGE) | dict.fromkeys(compressed, COMPRESSED_IMAGE)
        infos = _first_messages(reader, CAMERA_INFO, lambda message: None)
        self._cameras: dict[str, _DepthCamera] = {}
        topics = [camera.topic.name for camera in cameras]
        for camera in cameras:
            depth = _find_partner(camera.topic.name, topics, depths)
            info = _find_partner(camera.topic.name, topics, infos)
            if depth and info:
                own_info = camera_info_topic(depth)
                calibration = Calibration(
                    infos[info],
                    infos.get(own_info) if own_info != info else None,
                    is_rectified_topic(camera.topic.name),
                    is_rectified_topic(depth),
                )
                self._cameras[camera.name] = _DepthCamera((depth, depths[depth]), calibration)

    def add_depth(self, message: BagMessage) -> None:
        """Take in a message of the recording, of any topic."""
        topic = message.topic
        for name, camera in self._cameras.items():
            if (topic.name, topic.type) == camera.depth_topic:
                check, _ = DEPTH_READERS[topic.type]
                try:
                    depth = self._typestore.deserialize_cdr(message.data, topic.type)
                    check(depth)
                except Exception as error:
                    # The library raises what it likes over data that are no message.
                    self._refuse(name, f'depth cannot be read ({error})')
                    continue
                camera.depth = (header_stamp_ns(depth.header) or message.stamp_ns, depth)
                self._show_points(name, camera)

    def add_labels(self, name: str, header: Message, stamp_ns: int, label: np.ndarray) -> None:
        """Take in the labels of a camera's picture: its header and stamp, and uint8 (H, W)."""
        if name in self._cameras:
            camera = self._cameras[name]
            camera.label = (stamp_ns, header, label)
            self._show_points(name, camera)

    def _show_points(self, name: str, camera: _DepthCamera) -> None:
        """Show the points of the latest labels, once, if the latest depth belongs to them."""
        if camera.depth is None or camera.label is None:
            return
        (depth_ns, depth), (stamp_ns, header, label) = camera.depth, camera.label
        if abs(depth_ns - stamp_ns) > STAMP_TOLERANCE_NS:
            return
        camera.label = None
        _, read = DEPTH_READERS[camera.depth_topic[1]]
        try:
            metres, rays = depth_and_rays(
                read(depth), depth.header, header, label.shape, camera.calibration
            )
        except ImageError as error:
            self._refuse(name, str(error))
            return
        positions = back_project(metres, rays)
        measured = ~np.isnan(positions[2])
        self._show(name, stamp_ns, positions[:, measured].T, label[measured])
        self._shown.add(name)
        self.refused.pop(name, None)

    def _refuse(self, name: str, reason: str) -> None:
        if name not in self._shown:
            self.refused[name] = reason


def _first_messages(reader: BagReader, message_type: str, *checks) -> dict[str, Message]:
    """The first usable message of every topic of a type, by name; see `BagReader.find`."""
    topics = (topic for topic in reader.topics.values() if topic.type == message_type)
    found = {topic.name: reader.find(topic, *checks).message for topic in topics}
    return {name: message for name, message in found.items() if message is not None}


def _is_picture(image: Message) -> bool:
    return image.encoding in ENCODING_TABLE and image.encoding not in DEPTH_ENCODINGS


def _find_partner(topic: str, topics: Sequence[str], candidates: Collection[str]) -> str | None:
    """Find the candidate that belongs to an image topic rather than to another of `topics`.

    Topics of one camera begin alike: /front/color/image_raw, /front/depth/image_raw.
    """

    def common_parts(first: str, second: str) -> int:
        pairs = zip(first.split('/'), second.split('/'), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    best = max(candidates, key=lambda name: common_parts(topic, name), default=None)
    if best is None:
        return None
    common = common_parts(topic, best)
    if any(common_parts(other, best) > common for other in topics):
        return None
    # The empty part before the first slash is common to all.
    return best if common > 1 or len(topics) == len(candidates) == 1 else None
