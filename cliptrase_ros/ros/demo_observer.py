"""What a user of the node sees of it: a ROS node that collects everything a run publishes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from cliptrase_ros.messages.images import mono8
from cliptrase_ros.msg import ClassMasks, Vocabulary
from cliptrase_ros.ros.conversions import to_rgb
from cliptrase_ros.ros.outputs import LATCHED_QOS
from cliptrase_ros.ros.settings import NODE_NAME


@dataclass
class ObservedFrame:
    """All messages with one stamp, as far as they have come.

    Attributes:
        stamp_s: When the camera took the image, system time in seconds.
        published_s: When its labels were published, the same.
        image: uint8 (H, W, 3) RGB.
        truth: uint8 (H, W), index into toybox.scenes.CLASSES.
        label: uint8 (H, W), class id.
        overlay: uint8 (H, W, 3) RGB.
        vocabulary_version: Of label.
    """

    stamp_s: float
    published_s: float = float('nan')
    image: np.ndarray | None = None
    truth: np.ndarray | None = None
    label: np.ndarray | None = None
    overlay: np.ndarray | None = None
    vocabulary_version: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every message has come."""
        return all(part is not None for part in vars(self).values())


@dataclass
class CameraRecord:
    """Frames of one camera, by stamp."""

    frames: dict[tuple[int, int], ObservedFrame] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many images came."""
        return sum(frame.image is not None for frame in self.frames.values())

    @property
    def labels(self) -> int:
        """How many label images came."""
        return sum(frame.label is not None for frame in self.frames.values())

    def complete_frames(self) -> list[ObservedFrame]:
        """Return the complete frames in the order of their stamps."""
        return [self.frames[key] for key in sorted(self.frames) if self.frames[key].is_complete]


class DemoObserver(Node):
    """Subscribes to cameras and to the segmentation node, and sets the node's parameters.

    Attributes:
        records: By camera.
        vocabularies: By version.
        engine: What the node reports of its model and device in /diagnostics.
    """

    def __init__(self, cameras: Sequence[str], namespace: str):
        super().__init__('demo_observer', namespace=namespace)
        self.records: dict[str, CameraRecord] = defaultdict(CameraRecord)
        self.vocabularies: dict[int, Vocabulary] = {}
        self.engine: dict[str, str] = {}
        self._engine_status = f'{namespace}/{NODE_NAME}: engine'.lstrip('/')
        self._parameters = AsyncParameterClient(self, f'{namespace}/{NODE_NAME}')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self.create_subscription(
            Vocabulary, f'{NODE_NAME}/vocabulary', self._keep_vocabulary, LATCHED_QOS
        )
        self.create_subscription(DiagnosticArray, '/diagnostics', self._keep_engine, 10)
        for camera in cameras:
            self._observe(camera)

    def _observe(self, camera: str) -> None:
        outputs = f'{NODE_NAME}/{camera}'
        for message_type, topic, part, read, qos in (
            (Image, f'{camera}/image_raw', 'image', to_rgb, qos_profile_sensor_data),
            (Image, f'{camera}/label_truth', 'truth', mono8, qos_profile_sensor_data),
            (Image, f'{outputs}/label', 'label', mono8, 10),
            (Image, f'{outputs}/overlay', 'overlay', to_rgb, 10),
            (
                ClassMasks,
                f'{outputs}/masks',
                'vocabulary_version',
                attrgetter('vocabulary_version'),
                10,
            ),
        ):
            keep = partial(self._keep_part, self.records[camera], part, read)
            self.create_subscription(message_type, topic, keep, qos)

    def _keep_part(
        self, record: CameraRecord, part: str, read: Callable, message: Any, info: dict
    ) -> None:
        stamp = message.header.stamp
        frame = record.frames.setdefault(
            (stamp.sec, stamp.nanosec), ObservedFrame(stamp.sec + stamp.nanosec * 1e-9)
        )
        setattr(frame, part, read(message))
        if part == 'label':
            frame.published_s = info['source_timestamp'] * 1e-9

    def _keep_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.vocabularies[vocabulary.version] = vocabulary

    def _keep_engine(self, diagnostics: DiagnosticArray) -> None:
        for status in diagnostics.status:
            if status.name == self._engine_status:
                self.engine = {item.key: item.value for item in status.values}

    def receive(self, timeout_s: float) -> None:
        """Wait for a message, and take it in."""
        self._executor.spin_once(timeout_sec=timeout_s)

    def set_vocabulary(self, phrases: Sequence[str], timeout_s: float) -> None:
        """Change the node's vocabulary through its parameter service, as `ros2 param set` does.

        Raises:
            RuntimeError: The node refuses, with its reason, or does not answer.
        """
        future = self._parameters.set_parameters([Parameter('vocabulary', value=list(phrases))])
        self._executor.spin_until_future_complete(future, timeout_s)
        if not future.done():
            raise RuntimeError(f'the parameter service did not answer within {timeout_s:.0f} s')
        (result,) = future.result().results
        if not result.successful:
            raise RuntimeError(f'the node refused the vocabulary: {result.reason}')
