"""The service `~/segment` and the action `~/find`: messages to requests, and answers to messages."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from std_msgs.msg import Header

from cliptrase_ros.action import Find
from cliptrase_ros.messages.images import (
    check_compressed_stream,
    check_image,
    decompress_to_rgb,
)
from cliptrase_ros.ros.camera import Camera
from cliptrase_ros.ros.conversions import MAKER, rclpy_header, to_rgb
from cliptrase_ros.ros.diagnostics import RequestCounts
from cliptrase_ros.ros.lifecycle import ManagedNode, explain
from cliptrase_ros.ros.requests import ImageRequest, RequestError, Search, settle
from cliptrase_ros.ros.settings import NodeSettings
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation.vocabulary import Vocabulary, quote
from cliptrase_ros.srv import Segment

#: For how long the result of a search can be asked for after its end, seconds.
_RESULT_KEPT_S = 10


@dataclass(frozen=True)
class Target:
    """What a configured node answers with."""

    worker: Worker
    cameras: Sequence[Camera]
    settings: NodeSettings


class RequestServers:
    """Both servers of a node, whose executor goes on while an answer is made.

    Args:
        find_target: Raises RequestError where the node is not configured.

    Attributes:
        counts: For the diagnostics.
    """

    def __init__(self, node: ManagedNode, find_target: Callable[[], Target]):
        self.counts = RequestCounts()
        self._node = node
        self._find_target = find_target
        # The search that runs, and the goal it is for.
        self._running: tuple[ServerGoalHandle, Search] | None = None
        # Reentrant: others ask while one waits.
        self._group = ReentrantCallbackGroup()
        node.create_service(Segment, '~/segment', self._segment, callback_group=self._group)
        self._find_server: ActionServer | None = ActionServer(
            node,
            Find,
            '~/find',
            self._find,
            callback_group=self._group,
            cancel_callback=self._cancel,
            result_timeout=_RESULT_KEPT_S,
        )
