"""Points of a recording: labels on the depth that belongs to a picture."""

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from rosbags.typesys.store import Typestore

from cliptrase_ros.bag.cameras import BagCamera
from cliptrase_ros.bag.reader import BagMessage, BagReader
from cliptrase_ros.bag.types import IMAGE
from cliptrase_ros.messages.depth import (
    DEPTH_ENCODINGS,
    back_project,
    check_depth,
    depth_in_metres,
    intrinsics_of,
)
from cliptrase_ros.messages.images import ENCODING_TABLE, ImageError, header_stamp_ns

CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
#: Stamps of picture and depth may differ by so much, as in the node, nanoseconds.
STAMP_TOLERANCE_NS = 20_000_000


@dataclass
class _Camera:
    depth_topic: str
    info: object
    depth: tuple[int, object] | None = None
    label: tuple[int, np.ndarray] | None = None


class BagPoints:
    """Finds the depth of cameras in a recording, and makes points when depth and labels are there.

    show: called with the camera's name, the picture's stamp in nanoseconds, float32 (N, 3) metres
    in the optical frame, and uint8 (N,) class ids. refused: why some camera has no points at all.
    """

    def __init__(
        self,
        reader: BagReader,
        cameras: Sequence[BagCamera],
        typestore: Typestore,
        show: Callable[[str, int, np.ndarray, np.ndarray], None],
    ):
        self.refused: dict[str, str] = {}
        self._shown: set[str] = set()
        self._typestore = typestore
        self._show = show
        depths = _first_messages(reader, IMAGE, check_depth, _is_picture)
        infos = _first_messages(reader, CAMERA_INFO, lambda message: None)
        self._cameras: dict[str, _Camera] = {}
        topics = [camera.topic.name for camera in cameras]
        for camera in cameras:
            depth = _belonging(camera.topic.name, topics, depths)
            info = _belonging(camera.topic.name, topics, infos)
            if depth and info:
                self._cameras[camera.name] = _Camera(depth, infos[info])

    def take(self, message: BagMessage) -> None:
        """Take in a message of the recording, of any topic."""
        topic = message.topic
        for name, camera in self._cameras.items():
            if topic.name == camera.depth_topic and topic.type == IMAGE:
                try:
                    depth = self._typestore.deserialize_cdr(message.data, IMAGE)
                    check_depth(depth)
                except Exception as error:
                    # The library raises what it likes over data that are no message.
                    self._refuse(name, f'depth cannot be read ({error})')
                    continue
                camera.depth = (header_stamp_ns(depth.header) or message.stamp_ns, depth)
                self._join(name, camera)

    def label(self, name: str, stamp_ns: int, label: np.ndarray) -> None:
        """Take in the labels of a camera's picture: uint8 (H, W)."""
        if name in self._cameras:
            camera = self._cameras[name]
            camera.label = (stamp_ns, label)
            self._join(name, camera)

    def _join(self, name: str, camera: _Camera) -> None:
        if camera.depth is None or camera.label is None:
            return
        (depth_ns, message), (stamp_ns, label) = camera.depth, camera.label
        if abs(depth_ns - stamp_ns) > STAMP_TOLERANCE_NS:
            return
        camera.label = None
        try:
            depth = depth_in_metres(message)
            if depth.shape != label.shape:
                raise ImageError(
                    f'depth is of {depth.shape[1]} x {depth.shape[0]} pixels, the image of '
                    f'{label.shape[1]} x {label.shape[0]}'
                )
            right, down = back_project(
                depth, intrinsics_of(camera.info, depth.shape[1], depth.shape[0])
            )
        except ImageError as error:
            self._refuse(name, str(error))
            return
        measured = np.isfinite(depth)
        positions = np.stack([right, down, depth], axis=2)[measured]
        self._show(name, stamp_ns, positions, label[measured])
        self._shown.add(name)
        self.refused.pop(name, None)

    def _refuse(self, name: str, reason: str) -> None:
        if name not in self._shown:
            self.refused[name] = reason


def _first_messages(reader: BagReader, kind: str, *checks) -> dict[str, object]:
    topics = (topic for topic in reader.topics.values() if topic.type == kind)
    found = {topic.name: reader.find(topic, *checks).message for topic in topics}
    return {name: message for name, message in found.items() if message is not None}


def _is_picture(image) -> bool:
    return image.encoding in ENCODING_TABLE and image.encoding not in DEPTH_ENCODINGS


def _belonging(topic: str, topics: Sequence[str], candidates: Collection[str]) -> str | None:
    """Find the candidate that belongs to an image topic rather than to another of `topics`.

    Topics of one camera begin alike: /front/color/image_raw, /front/depth/image_raw.
    """

    def alike(one: str, other: str) -> int:
        pairs = zip(one.split('/'), other.split('/'), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    best = max(candidates, key=lambda name: alike(topic, name), default=None)
    if best is None or any(alike(other, best) > alike(topic, best) for other in topics):
        return None
    # All names begin with nothing before the first slash.
    return best if alike(topic, best) > 1 or len(topics) == len(candidates) == 1 else None
