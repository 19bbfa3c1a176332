"""Transforms between frames as tf has them, while somebody needs them."""

import threading
from collections.abc import Callable
from functools import partial

from geometry_msgs.msg import Transform, TransformStamped
from rclpy.clock import JumpHandle, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from rclpy.time import Time

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.settings import ParameterError

try:
    import tf2_py
    from tf2_msgs.msg import TFMessage
except ImportError:
    tf2_py = None

#: A transform this much older than an image is taken where tf has none as new, nanoseconds.
TOLERANCE_NS = 100_000_000

#: For how long transforms are kept, seconds: longer than labels take.
_KEPT_S = 10.0


class Transforms:
    """What is published on /tf and /tf_static.

    tf2_ros would read the messages in rclpy's executor, which takes a millisecond for each; some
    robots send a thousand a second. So they come in the thread of `reception`, and tf2 keeps them.

    Raises:
        ParameterError: tf2 is not installed.
    """

    def __init__(self, node: Node, reception: OwnThread):
        if tf2_py is None:
            raise ParameterError(
                "'ground_frame' is given without 'camera_poses', so that tf has to say where "
                'cameras are, but tf2_py or tf2_msgs is not installed; install them, or give '
                "'camera_poses'"
            )
        self._node = node
        self._reception = reception
        self._buffer = tf2_py.BufferCore(Duration(seconds=_KEPT_S))
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._subscriptions: list[Subscription] = []
        self._jumps: JumpHandle | None = None

    def subscribe(self, user: object) -> None:
        """Receive transforms until nobody needs them any more."""
        with self._lock:
            self._users.add(user)
            if self._subscriptions:
                return
            latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
            self._subscriptions = [
                self._node.create_subscription(
                    TFMessage,
                    topic,
                    partial(self._receive, take),
                    qos,
                    callback_group=self._reception,
                    raw=True,
                )
                for topic, qos, take in (
                    ('/tf', QoSProfile(depth=100), self._buffer.set_transform),
                    ('/tf_static', latched, self._buffer.set_transform_static),
                )
            ]
            # What came before simulated time jumped back would be newer than all that comes.
            back = JumpThreshold(
                min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True
            )
            self._jumps = self._node.get_clock().create_jump_callback(
                back, post_callback=lambda _: self._buffer.clear()
            )

    def unsubscribe(self, user: object) -> None:
        """Receive no more, and forget what came, if nobody else needs it."""
        with self._lock:
            self._users.discard(user)
            if self._users or not self._subscriptions:
                return
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []
            self._reception.wake()
            self._jumps.unregister()
            self._buffer.clear()

    def find(self, target: str, source: str, stamp_ns: int) -> Transform:
        """Find the transform from one frame to another, without waiting.

        Args:
            stamp_ns: When, nanoseconds; 0 for the latest there is.

        Raises:
            ImageError: tf has none, or one that is older by more than `TOLERANCE_NS`.
        """
        # tf's names begin without a slash; drivers that came from ROS 1 write one.
        frames = target.lstrip('/'), source.lstrip('/')
        try:
            try:
                found = self._buffer.lookup_transform_core(*frames, Time(nanoseconds=stamp_ns))
            except tf2_py.ExtrapolationException:
                latest = self._buffer.get_latest_common_time(*frames)
                if not 0 < stamp_ns - latest.nanoseconds <= TOLERANCE_NS:
                    raise
                found = self._buffer.lookup_transform_core(*frames, latest)
        except (tf2_py.TransformException, ValueError) as error:
            # The latter for a stamp before 1970, of which there is no `Time`.
            raise ImageError(
                f'tf does not lead from the frame of the image, {source[:60]!r}, to {target!r}: '
                f'{str(error)[:300]}'
            ) from error
        return found.transform

    def _receive(
        self, take: Callable[[TransformStamped, str], None], data: bytes, _info: object
    ) -> None:
        try:
            message = deserialize_message(data, TFMessage)
        except Exception as error:
            self._node.get_logger().warning(
                f'{len(data)} bytes that are no tf2_msgs/msg/TFMessage: {error}',
                throttle_duration_sec=5.0,
            )
            return
        for transform in message.transforms:
            take(transform, 'tf')
