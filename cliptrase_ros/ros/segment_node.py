"""The node `cliptrase`: camera images in, a label for every pixel out, by words of the user."""

import sys

from cliptrase_ros.ros.executable import run_module

if __name__ == '__main__':
    # Before the imports that take seconds, so that a signal ends them in order.
    sys.exit(run_module('cliptrase_ros.ros.segment_node'))

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future
from std_msgs.msg import Header

from cliptrase_ros import msg
from cliptrase_ros.ros import diagnostics
from cliptrase_ros.ros.camera import LATCHED_QOS, Camera, CameraTopics, LabelInfo
from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.executable import StartFailure, run_node
from cliptrase_ros.ros.node_time import node_time
from cliptrase_ros.ros.parameters import Parameters, declare_parameters
from cliptrase_ros.ros.worker import VocabularyState, Worker
from cliptrase_ros.segmentation.device_faults import give_memory_back, release_frames
from cliptrase_ros.segmentation.model.weights import ModelError
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter, threads_beside_others
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.unused_memory import share_memory_between_threads

NODE_NAME = 'cliptrase'

#: Seconds between repetitions of label_info: recorders start late and skip latched topics.
LABEL_INFO_PERIOD = 5.0

#: The end of a node waits so long for the frame being computed, seconds.
_LAST_FRAME_S = 1.0

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class SegmentNode(LifecycleNodeMixin, Node):
    """Labels the images of every camera by the vocabulary in force; a managed node.

    The executor's thread receives images and answers services; one thread of `Worker` does all
    inference and publishes its results; transitions between states run in a thread of their own,
    because loading a model takes seconds. Topics, parameters and states: docs/node.md.

    segmenter: an engine to use instead of the one the parameters describe. report_period_s: how
    often diagnostics are published.
    Raises ParameterError, VocabularyError. With `autostart`, spinning raises StartFailure if the
    node cannot be configured or activated.
    """

    def __init__(
        self,
        segmenter: Segmenter | None = None,
        *,
        report_period_s: float = 1.0,
        **node_arguments,
    ):
        self._worker: Worker | None = None
        self._engine: FaultTolerantEngine | None = None
        self._cameras: tuple[Camera, ...] = ()
        self._is_ending = False
        self._given = segmenter
        self._announced_version = 0
        self._requested_version = 0
        self._namesakes = 0
        #: Why the node could not be configured or activated the last time, or None.
        self.failure: Exception | None = None
        self._failed_to_be = ''
        # Parameters change in the executor's thread, what they are for in that of a transition.
        self._lock = threading.RLock()
        Node.__init__(self, NODE_NAME, **node_arguments)
        # Reentrant: the state can be asked for while it changes.
        self._transitions = ReentrantCallbackGroup()
        LifecycleNodeMixin.__init__(self, callback_group=self._transitions)
        self._change_states_beside_the_executor()

        self._values = declare_parameters(self)
        # Now, with their QoS overrides: parameters that appear later would do so in the thread of a
        # transition, while the executor's may be reading them.
        self._topics = [
            CameraTopics(self, name, self._values.node.transport_of(name), self._values.node.depth)
            for name in self._values.node.cameras
        ]
        # Before the model is loaded: a typing mistake should not take seconds to be told.
        self._latest_vocabulary = self._values.node.make_vocabulary()
        self._accepted: tuple[Parameters, Vocabulary | None] | None = None
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self._vocabulary_publisher = self.create_publisher(
            msg.Vocabulary, '~/vocabulary', LATCHED_QOS
        )
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._last_report = time.monotonic()
        # Steady: a paused or looping simulation is no reason to fall silent.
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(report_period_s, self._look_around, clock=self._steady_clock)
        self.create_timer(LABEL_INFO_PERIOD, self._announce_again, clock=self._steady_clock)
        self._start_timer = None
        if self._values.node.autostart:
            self._start_timer = self.create_timer(
                0.0, self._start, clock=self._steady_clock, callback_group=self._transitions
            )

    @property
    def state(self) -> str:
        """Label of the lifecycle state: unconfigured, inactive, active, finalized or between."""
        return self._state_machine.current_state[1]

    def destroy_node(self) -> None:
        """End inference, then the node. A context that shuts down calls this again."""
        self._is_ending = True
        if self._worker is not None:
            self._worker.stop(_LAST_FRAME_S)
        super().destroy_node()
        # rclpy leaves the lifecycle's services to the garbage collector: until it comes, others
        # see a node that answers nothing.
        self._state_machine.destroy_when_not_in_use()

    def on_configure(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, begin to encode the vocabulary, and make the cameras' outputs."""
        try:
            self._configure()
        except Exception as error:
            return self._fail('configured', error)
        self.failure = None
        return SUCCESS

    def on_activate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and label their images."""
        try:
            for camera in self._cameras:
                camera.activate()
        except Exception as error:
            for camera in self._cameras:
                camera.deactivate()
            return self._fail('activated', error)
        self.failure = None
        self._worker.serve(self._cameras)
        return SUCCESS

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Publish what is being computed, then unsubscribe from the cameras."""
        self._worker.pause()
        for camera in self._cameras:
            camera.deactivate()
        return SUCCESS

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its memory; parameters, class ids and versions stay."""
        self._free()
        return SUCCESS

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from whichever state."""
        self._free()
        return SUCCESS

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, so that the node can be configured again."""
        self._free()
        return SUCCESS

    def _fail(self, wanted: str, error: Exception) -> TransitionCallbackReturn:
        self._failed_to_be, self.failure = wanted, error
        # A node that fails to start by itself ends, and its last line says why.
        if not self._is_ending and self._start_timer is None:
            self.get_logger().error(f'cannot be {wanted}: {_explain(error)}')
        # The next try must not find the model of this one in memory.
        release_frames(error)
        give_memory_back()
        return FAILURE

    def _change_states_beside_the_executor(self) -> None:
        service = self._service_change_state
        change_state = service.callback

        async def change_in_thread(request, response):
            return await self._beside_executor(change_state, request, response)

        service.callback = change_in_thread

    async def _beside_executor(self, function: Callable, *arguments):
        """Await a function that runs in a thread of its own; callbacks go on meanwhile."""
        executor = self.executor
        future = Future(executor=executor)

        def run() -> None:
            try:
                future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            executor.wake()

        threading.Thread(target=run, name='transition', daemon=True).start()
        return await future

    async def _start(self) -> None:
        self.destroy_timer(self._start_timer)
        if await self._beside_executor(self.trigger_configure) != SUCCESS:
            raise StartFailure(_explain(self.failure)) from self.failure
        if await self._beside_executor(self.trigger_activate) != SUCCESS:
            raise StartFailure(_explain(self.failure)) from self.failure
        self._start_timer = None

    def _configure(self) -> None:
        segmenter = self._given or self._load()
        with self._lock:
            vocabulary = self._next_vocabulary(self._values, segmenter)
            self._engine = FaultTolerantEngine(
                segmenter, self._load_on_cpu if self._values.node.allow_cpu_fallback else None
            )
            self._worker = Worker(
                self._engine,
                settings=self._values.segmentation,
                clock=lambda: node_time(self),
                on_change=self._announce,
                is_shutting_down=lambda: self._is_ending or not self.context.ok(),
                logger=self.get_logger(),
                warm_up_sizes=self._values.node.warm_up_sizes,
                warm_up_batch=len(self._values.node.cameras),
            )
            try:
                for topics in self._topics:
                    self._add_camera(topics)
            except Exception:
                self._free()
                raise
            self._request(vocabulary)
            self._worker.start()
        if LabelInfo is None:
            self.get_logger().info(
                'label_info is not published, because vision_msgs is not installed'
            )

    def _add_camera(self, topics: CameraTopics) -> None:
        camera = Camera(
            self,
            topics,
            always_on=self._values.node.always_on,
            on_image=self._worker.wake,
            mask_topics=self._values.node.mask_topics,
            max_pixels=round(self._values.node.max_image_megapixels * 1e6),
        )
        camera.set_rate(self._values.node.rate)
        self._cameras += (camera,)

    def _free(self) -> None:
        worker = self._worker
        if worker is None:
            return
        worker.pause()
        worker.stop()
        with self._lock:
            # Ids and versions go on where they were.
            self._latest_vocabulary = worker.latest_vocabulary or self._latest_vocabulary
            cameras, self._cameras = self._cameras, ()
            self._worker = self._engine = None
        for camera in cameras:
            camera.destroy()
        del worker, cameras
        give_memory_back()

    def _load(self, device: str | None = None) -> Segmenter:
        model = self._values.model
        if device is not None:
            model = replace(model, device=device, precision='auto')
        begin = time.monotonic()
        threads = model.threads or threads_beside_others()
        segmenter = load_segmenter(**vars(replace(model, threads=threads)))
        self.get_logger().info(
            f'{segmenter.name} on {segmenter.device}, loaded in {time.monotonic() - begin:.1f} s'
        )
        return segmenter

    def _load_on_cpu(self) -> Segmenter:
        # Not what the device held: rounded to half precision, or lost with it.
        segmenter = self._given.to('cpu') if self._given else self._load('cpu')
        self.get_logger().error('the device fails; labelling goes on with the CPU')
        return segmenter

    def _header(self) -> Header:
        return Header(stamp=self.get_clock().now().to_msg())

    def _announce(self, vocabulary: Vocabulary, settings: SegmentationSettings) -> None:
        if vocabulary.version != self._announced_version:
            self._vocabulary_publisher.publish(MAKER.make_vocabulary(vocabulary, self._header()))
            # Not before: what could not be published is tried again.
            self._announced_version = vocabulary.version
            self.get_logger().info(
                f'vocabulary {vocabulary.version}: {", ".join(c.name for c in vocabulary.classes)}'
            )
        for camera in self._cameras:
            camera.publish_label_info(vocabulary, self._header(), settings.min_confidence)

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            with self._lock:
                self._accepted = self._examine(changes)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:
            # Raised into rclpy it would end spin() and leave the caller waiting for ever.
            reason = f'could not be checked: {type(error).__name__}: {error}'
            self.get_logger().error(f'parameters {[p.name for p in changes]} {reason}')
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _examine(self, changes: list[Parameter]) -> tuple[Parameters, Vocabulary | None]:
        values = self._values.changed(changes)
        if not {'vocabulary', 'background'} & {p.name for p in changes}:
            return values, None
        engine = self._engine
        return values, self._next_vocabulary(values, None if engine is None else engine.segmenter)

    def _next_vocabulary(self, values: Parameters, segmenter: Segmenter | None) -> Vocabulary:
        """Vocabulary of these values: the latest one if it says the same, or one of a new version.

        Raises VocabularyError, for phrases that the text tower cannot read where there is one.
        """
        latest = self._latest_vocabulary
        if self._worker is not None:
            latest = self._worker.latest_vocabulary or latest
        vocabulary = values.node.make_vocabulary(latest)
        if (vocabulary.classes, vocabulary.background) == (latest.classes, latest.background):
            vocabulary = latest
        else:
            # Not counted from the latest: one that failed has had a version as well.
            vocabulary = replace(vocabulary, version=self._requested_version + 1)
        if segmenter is not None:
            segmenter.check_vocabulary(vocabulary)
        return vocabulary

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        with self._lock:
            if self._accepted is None:
                return
            (self._values, vocabulary), self._accepted = self._accepted, None
            for camera in self._cameras:
                camera.set_rate(self._values.node.rate)
            self._request(vocabulary)

    def _request(self, vocabulary: Vocabulary | None) -> None:
        """Let labels be made with the parameters' settings, and another vocabulary if given."""
        if vocabulary is not None:
            self._requested_version = max(self._requested_version, vocabulary.version)
        if self._worker is not None:
            self._worker.request(vocabulary, self._values.segmentation)
        elif vocabulary is not None:
            self._latest_vocabulary = vocabulary

    def _announce_again(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.announce_again()

    def _look_around(self) -> None:
        now = time.monotonic()
        elapsed_s, self._last_report = now - self._last_report, now
        try:
            for camera in self._cameras:
                camera.follow_publishers()
            self._look_for_namesakes()
            name = self.get_fully_qualified_name().lstrip('/')
            array = DiagnosticArray(header=self._header())
            array.status = [self._engine_status(name)]
            for camera in self._cameras:
                report = diagnostics.camera_status(name, camera, elapsed_s)
                array.status.append(report)
                # Not everybody looks at diagnostics. Later a camera may be slow, or a bag paused.
                waited_s = camera.statistics.silent_s - diagnostics.SILENCE_S
                if not camera.statistics.received and 0 <= waited_s < elapsed_s:
                    self.get_logger().warning(f'{camera.name}: {report.message}')
            self._diagnostics_publisher.publish(array)
        except Exception as error:
            # A camera may be destroyed meanwhile, and a report is not worth the node.
            if not self._is_ending and self.context.ok():
                self.get_logger().warning(f'no diagnostics this time: {_explain(error)}')

    def _look_for_namesakes(self) -> None:
        own = self.get_name(), self.get_namespace()
        namesakes = self.get_node_names_and_namespaces().count(own) - 1
        if namesakes > 0 and self._namesakes <= 0:
            self.get_logger().warning(
                f'another node is called {self.get_fully_qualified_name()} too, and publishes and '
                'answers under the same names; end one, or start it with another name '
                '(-r __node:=NAME) or namespace (-r __ns:=/NAMESPACE). One that was killed is seen '
                'for some seconds more.'
            )
        self._namesakes = namesakes

    def _engine_status(self, name: str) -> DiagnosticStatus:
        state, worker, engine = self.state, self._worker, self._engine
        vocabulary = VocabularyState(0, None, '') if worker is None else worker.vocabulary_state
        segmenter = None if engine is None else engine.segmenter
        device = '' if segmenter is None else str(segmenter.device)
        fault, fault_matters = ('', False) if engine is None else engine.fault
        level, message = DiagnosticStatus.OK, state
        if self.failure is not None:
            level = DiagnosticStatus.ERROR
            message = f'cannot be {self._failed_to_be}: {_explain(self.failure)}'
        elif fault_matters:
            level = DiagnosticStatus.ERROR
            message = f'device fault, batches of {engine.largest_batch} on {device}: {fault}'
        elif vocabulary.failure:
            level = DiagnosticStatus.WARN if vocabulary.in_force else DiagnosticStatus.ERROR
            message = f'the last vocabulary could not be encoded: {vocabulary.failure}'
        elif self._namesakes > 0:
            level = DiagnosticStatus.WARN
            message = f'{1 + self._namesakes} nodes have this name; rename or end the others'
        elif vocabulary.pending is not None:
            message = f'preparing vocabulary {vocabulary.pending}'
        elif state == 'active':
            message = f'labelling by vocabulary {vocabulary.in_force}'
        return diagnostics.status(
            f'{name}: engine',
            device,
            level,
            message,
            {
                'process': f'{socket.gethostname()}:{os.getpid()}',
                'state': state,
                'model': '' if segmenter is None else segmenter.name,
                'device': device,
                'largest_batch': '' if engine is None else engine.largest_batch,
                'device_fault': fault,
                'vocabulary_version': vocabulary.in_force,
                'vocabulary_pending': vocabulary.pending or '',
                'vocabulary_failure': vocabulary.failure,
            },
        )


def _explain(error: Exception | None) -> str:
    """What an exception says to people; its type as well where it was not written for them."""
    if error is None:
        return 'its state was changed meanwhile'
    if isinstance(error, ValueError | ModelError):
        return str(error)
    return f'{type(error).__name__}: {error}'


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end; returns the exit status."""
    share_memory_between_threads()
    return run_node(SegmentNode, NODE_NAME, args)
