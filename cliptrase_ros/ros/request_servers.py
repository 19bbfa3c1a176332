"""The service `~/segment` and the action `~/find`: messages to requests, answers to messages."""

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
from cliptrase_ros.messages.maker import LabelledPicture
from cliptrase_ros.msg import ClassMask
from cliptrase_ros.ros.camera import Camera
from cliptrase_ros.ros.conversions import MAKER, rclpy_header, to_rgb
from cliptrase_ros.ros.diagnostics import RequestCounts
from cliptrase_ros.ros.lifecycle import ManagedNode, explain
from cliptrase_ros.ros.requests import ImageRequest, RequestError, Search, settle
from cliptrase_ros.ros.settings import NodeSettings
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation.segmenter import Segmentation, Segmenter
from cliptrase_ros.segmentation.vocabulary import (
    UNLABELLED,
    Vocabulary,
    VocabularyClass,
    quote,
)
from cliptrase_ros.srv import Segment

#: For how long the result of a search can be asked for after its end, seconds.
_RESULT_KEPT_S = 10


@dataclass(frozen=True)
class Target:
    """What a configured node answers with."""

    worker: Worker
    segmenter: Segmenter
    cameras: Sequence[Camera]
    settings: NodeSettings
    min_instance_area: float


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

    def destroy(self) -> None:
        """End the action; the node ends the service. May be called again."""
        server, self._find_server = self._find_server, None
        if server is not None:
            server.destroy()

    async def _segment(
        self, request: Segment.Request, response: Segment.Response
    ) -> Segment.Response:
        self.counts.taken += 1
        try:
            target = self._find_target()
            decode = _checked_image(request, target.settings.max_pixels)
            asked = ImageRequest(decode, _own_words(request, target))
            target.worker.requests.submit(asked)
            result = await self._node.result_of(asked.answer)
            self._fill(response, request, result, target.min_instance_area)
        except Exception as error:
            # Raised into rclpy it would end spin().
            response.message = self._refuse(error, 'segment')
        return response

    def _fill(
        self,
        response: Segment.Response,
        request: Segment.Request,
        result: Segmentation,
        min_instance_area: float,
    ) -> None:
        header = (request.image if request.image.data else request.compressed_image).header
        now = Header(stamp=self._node.get_clock().now().to_msg())
        words = result.vocabulary
        response.label = MAKER.make_image(result.label, 'mono8', header)
        response.confidence = MAKER.make_image(result.confidence, 'mono8', header)
        response.vocabulary = MAKER.make_vocabulary(words, now)
        picture = LabelledPicture(header, None, result, min_instance_area)
        response.masks = MAKER.make_masks(picture)
        response.phrases = [*(entry.name for entry in words.classes), *words.background]
        response.scores = result.scores.max((1, 2)).tolist()
        response.success = True

    async def _find(self, goal: ServerGoalHandle) -> Find.Result:
        self.counts.taken += 1
        result = Find.Result()
        try:
            if self._running is not None:
                phrase = quote(self._running[1].phrase)
                raise RequestError(
                    f'the search for {phrase} is running, and there can be one at a time; cancel '
                    'it, or wait for its end'
                )
            target = self._find_target()
            search, timeout_s = _make_search(goal, target)
            target.worker.requests.submit(search)
        except Exception as error:
            result.message = self._refuse(error, 'find')
            goal.abort()
            return result
        self._running, self.counts.searched_phrase = (goal, search), search.phrase
        end = partial(settle, search.answer, False)
        timer = None
        if timeout_s:
            timer = self._node.create_timer(
                timeout_s, end, clock=self._node.steady_clock, callback_group=self._group
            )
        try:
            for camera in search.cameras:
                camera.search(True)
            if goal.is_cancel_requested:
                end()
            await self._node.result_of(search.answer)
            result.message = _describe(search)
        except Exception as error:
            result.message = self._refuse(error, 'find')
        end()
        self._running, self.counts.searched_phrase = None, ''
        if timer is not None:
            self._node.destroy_timer(timer)
        for camera in search.cameras:
            camera.search(False)
        _fill_result(result, search, target.min_instance_area)
        if goal.is_cancel_requested:
            goal.canceled()
        elif result.found:
            goal.succeed()
        else:
            goal.abort()
        return result

    def _cancel(self, goal: ServerGoalHandle) -> CancelResponse:
        if self._running is not None and self._running[0] == goal:
            settle(self._running[1].answer, False)
        return CancelResponse.ACCEPT

    def _refuse(self, error: Exception, what: str) -> str:
        """Count and log a request that gets no answer; returns why."""
        reason = explain(error)
        self.counts.refused += 1
        self.counts.last_refused = f'{what}: {reason}'
        self._node.get_logger().warning(
            f'request refused, {self.counts.last_refused}', throttle_duration_sec=5.0
        )
        return reason


def _checked_image(request: Segment.Request, max_pixels: int) -> Callable[[], np.ndarray]:
    """Refuse a request without one sound image; returns what decodes it."""
    raw, compressed = request.image, request.compressed_image
    if bool(raw.data) == bool(compressed.data):
        raise RequestError('give one image with data, either in image or in compressed_image')
    if raw.data:
        check_image(raw, max_pixels)
        return partial(to_rgb, raw, max_pixels, may_share=True)
    check_compressed_stream(compressed, max_pixels)
    return partial(decompress_to_rgb, compressed, max_pixels)


def _own_words(request: Segment.Request, target: Target) -> Vocabulary | None:
    """The vocabulary of a request, None where it is to be the one in force."""
    if not request.vocabulary:
        if request.background:
            raise RequestError('background goes with vocabulary, which is empty; give both or none')
        return None
    settings = replace(
        target.settings,
        vocabulary=tuple(request.vocabulary),
        background=tuple(request.background),
    )
    words = replace(settings.make_vocabulary(), version=0)
    target.segmenter.check_vocabulary(words)
    return words


def _make_search(goal: ServerGoalHandle, target: Target) -> tuple[Search, float]:
    """The search of a goal, and after how many seconds it ends, 0 for never."""
    asked = goal.request
    phrase = target.settings.make_phrase(asked.phrase)
    target.segmenter.check_vocabulary(Vocabulary((VocabularyClass(0, phrase),)))
    cameras = {camera.name: camera for camera in target.cameras}
    for name in asked.cameras:
        if name not in cameras:
            raise RequestError(
                f'there is no camera {quote(name)}; this node has {", ".join(cameras)}'
            )
    timeout_s = asked.timeout.sec + asked.timeout.nanosec * 1e-9
    if timeout_s < 0:
        raise RequestError(f'timeout is {timeout_s:g} s; it must be 0, for none, or more')
    if not 0 <= asked.min_score <= 1:
        raise RequestError(f'min_score is {asked.min_score:g}; it must be 0 to 1')
    names = dict.fromkeys(asked.cameras or cameras)
    search = Search(
        phrase, [cameras[name] for name in names], asked.min_score, partial(_give_feedback, goal)
    )
    return search, timeout_s


def _give_feedback(goal: ServerGoalHandle, search: Search) -> None:
    best = search.best
    feedback = Find.Feedback(best_score=best.score, camera=best.camera, images=search.images)
    feedback.stamp = rclpy_header(best.header).stamp
    goal.publish_feedback(feedback)


def _describe(search: Search) -> str:
    """Say what became of a search."""
    phrase, best, images = quote(search.phrase), search.best, f'{search.images} images'
    if best is None:
        names = ', '.join(camera.name for camera in search.cameras)
        return f'no image of {names} could be searched: {search.failure or "none came"}'
    where = f'score {best.score:.2f}, on {best.camera}'
    if search.has_found:
        return f'{phrase} was found in {images}: {where}'
    return f'{phrase} was not found in {images}; the best: {where}'


def _fill_result(result: Find.Result, search: Search, min_instance_area: float) -> None:
    best = search.best
    if best is None:
        return
    result.found = search.has_found
    result.camera, result.score = best.camera, best.score
    result.header = rclpy_header(best.header)
    result.height, result.width = best.result.label.shape
    picture = LabelledPicture(result.header, None, best.result, min_instance_area)
    masks = MAKER.make_masks(picture).masks
    of_phrase = [mask for mask in masks if mask.class_id == best.entry.id]
    result.mask = of_phrase[0] if of_phrase else ClassMask(class_name=best.entry.name)
    # Of the running labels others are to know ids that mean something there.
    result.mask.class_id = best.entry.id if best.is_in_force else UNLABELLED
