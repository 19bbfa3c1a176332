"""The node `cliptrase`: camera images in, a label for every pixel out, by words of the user."""

import sys

from cliptrase_ros.ros.executable import run_module

if __name__ == '__main__':
    # Before the imports that take seconds, so that a signal ends them in order.
    sys.exit(run_module('cliptrase_ros.ros.segment_node'))

import threading
import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from cliptrase_ros import msg
from cliptrase_ros.ros import diagnostics
from cliptrase_ros.ros.camera import Camera, CameraTopics
from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.executable import run_node
from cliptrase_ros.ros.ground import GroundPlane
from cliptrase_ros.ros.lifecycle import SUCCESS, ManagedNode, explain
from cliptrase_ros.ros.outputs import LATCHED_QOS, LabelInfo
from cliptrase_ros.ros.own_thread import OwnThread
from cliptrase_ros.ros.parameters import Parameters, declare_parameters
from cliptrase_ros.ros.request_servers import RequestServers, Target
from cliptrase_ros.ros.requests import RequestError
from cliptrase_ros.ros.settings import NODE_NAME
from cliptrase_ros.ros.transforms import Transforms
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation.device_faults import give_memory_back
from cliptrase_ros.segmentation.process_settings import threads_beside_others
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import Vocabulary
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.streams.tracking import InstanceTracker
from cliptrase_ros.streams.unused_memory import share_memory_between_threads

#: Seconds between repetitions of label_info: recorders start late and skip latched topics.
LABEL_INFO_PERIOD_S = 5.0

#: How long the end of the node waits for the image being labelled, seconds.
_LAST_IMAGE_S = 1.0


class SegmentNode(ManagedNode):
    """Labels the images of every camera by the vocabulary in force.

    The executor's thread answers services. Two of `OwnThread` receive images and see who listens.
    `Worker` has one that does all inference, and two beside it. Transitions between states run in
    one more. Topics, parameters and states: docs/node.md. With `autostart`, spinning raises
    StartFailure if the node cannot be configured or activated.

    Args:
        segmenter: An engine to use instead of the one that the parameters describe.
        report_period_s: How often diagnostics are published, seconds.

    Raises:
        ParameterError: A parameter has a value that cannot be used.
        VocabularyError: So has `vocabulary` or `background`.
    """

    def __init__(
        self,
        segmenter: Segmenter | None = None,
        *,
        report_period_s: float = 1.0,
        **node_arguments,
    ):
        # Before the node: a context that shuts down may end one that was never finished.
        self._own_threads: tuple[OwnThread, ...] = ()
        self._request_servers: RequestServers | None = None
        # What is there while the node is configured.
        self._engine: FaultTolerantEngine | None = None
        self._worker: Worker | None = None
        self._cameras: tuple[Camera, ...] = ()
        self._injected_segmenter = segmenter
        self._announced_version = 0
        self._requested_version = 0
        self._namesakes = 0
        # Parameters change in the executor's thread, what they are for in that of a transition.
        self._lock = threading.RLock()
        super().__init__(NODE_NAME, **node_arguments)

        self._values = declare_parameters(self)
        # Here, with their QoS overrides, and not in a transition: its thread would declare
        # parameters while the executor's may be reading them.
        values = self._values.node
        reception, self._listeners = OwnThread(self, 'reception'), OwnThread(self, 'listeners')
        self._own_threads = reception, self._listeners
        self._topics = [
            CameraTopics(
                self,
                name,
                values.transport_of(name),
                values.depth_transport_of(name),
                bool(values.ground_frame),
                reception,
            )
            for name in values.cameras
        ]
        self._transforms: Transforms | None = None
        if values.ground_frame and not values.camera_poses:
            self._transforms = Transforms(self, reception)
        # Here, because ids are not given twice in a run, however often the node is configured.
        self._trackers = {name: InstanceTracker() for name in values.cameras}
        # Before the model is loaded: a typing mistake should not take seconds to be told.
        self._latest_vocabulary = self._values.node.make_vocabulary()
        self._accepted_change: tuple[Parameters, Vocabulary | None] | None = None
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        self._vocabulary_publisher = self.create_publisher(
            msg.Vocabulary, '~/vocabulary', LATCHED_QOS
        )
        self._request_servers = RequestServers(self, self._request_target)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._last_report = time.monotonic()
        self.create_timer(report_period_s, self._publish_diagnostics, clock=self.steady_clock)
        self.create_timer(LABEL_INFO_PERIOD_S, self._repeat_label_info, clock=self.steady_clock)
        for thread in self._own_threads:
            thread.start()
        if self._values.node.autostart:
            self.start_when_spun()

    def destroy_node(self) -> None:
        """End inference, then the node. A context that shuts down calls this again."""
        self.is_ending = True
        for thread in self._own_threads:
            thread.stop()
        for camera in self._cameras:
            # Which ends the thread of its video.
            camera.deactivate()
        if self._worker is not None:
            self._worker.stop(_LAST_IMAGE_S)
        if self._request_servers is not None:
            self._request_servers.destroy()
        super().destroy_node()

    def on_configure(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, begin to encode the vocabulary, and make the cameras' outputs."""
        return self.attempt('configured', self._configure)

    def on_activate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras and label their images."""
        return self.attempt('activated', self._activate)

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Publish what is being computed, then unsubscribe from the cameras."""
        self._worker.pause()
        for camera in self._cameras:
            camera.deactivate()
        return SUCCESS

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and its memory, from any state; class ids and versions stay."""
        self._release()
        return SUCCESS

    # After an error the node can be configured again.
    on_shutdown = on_error = on_cleanup

    def _configure(self) -> None:
        segmenter = self._injected_segmenter or self._load()
        with self._lock:
            vocabulary = self._next_vocabulary(self._values, segmenter)
            self._engine = FaultTolerantEngine(
                segmenter, self._load_on_cpu if self._values.node.allow_cpu_fallback else None
            )
            self._worker = Worker(
                self._engine,
                settings=self._values.segmentation,
                clock=self.get_clock(),
                announce=self._announce,
                is_shutting_down=self._is_shutting_down,
                logger=self.get_logger(),
                warm_up_sizes=self._values.node.warm_up_sizes,
                warm_up_batch=len(self._values.node.cameras),
            )
            try:
                for topics in self._topics:
                    camera = Camera(
                        self,
                        topics,
                        tracker=self._trackers[topics.name],
                        always_on=self._values.node.always_on,
                        on_image=self._worker.offer,
                        wake=self._worker.wake,
                        listeners=self._listeners,
                        mask_topics=self._values.node.mask_topics,
                        score_topics=self._values.node.score_topics,
                        points=self._values.node.points,
                        ground=self._ground_of(topics.name),
                        max_pixels=self._values.node.max_pixels,
                    )
                    self._cameras += (camera,)
                    self._set_live_values(camera)
            except Exception:
                self._release()
                raise
            self._request(vocabulary)
            self._worker.start()
        if LabelInfo is None:
            self.get_logger().info(
                'label_info and detections are not published, because vision_msgs is not installed'
            )

    def _activate(self) -> None:
        try:
            for camera in self._cameras:
                camera.activate()
        except Exception:
            for camera in self._cameras:
                camera.deactivate()
            raise
        self._worker.serve(self._cameras)

    def _release(self) -> None:
        worker = self._worker
        if worker is None:
            return
        worker.pause()
        worker.stop()
        with self._lock:
            # Ids and versions go on where they were.
            self._latest_vocabulary = (
                worker.reconfiguration.latest_vocabulary or self._latest_vocabulary
            )
            cameras, self._cameras = self._cameras, ()
            self._worker = self._engine = None
        for camera in cameras:
            camera.destroy()
        del worker, cameras
        give_memory_back()

    def _ground_of(self, camera: str) -> GroundPlane | None:
        values = self._values.node
        if not values.ground_frame:
            return None
        return GroundPlane(
            values.ground_frame,
            values.ground_range,
            values.ground_resolution,
            values.pose_of(camera),
            self._transforms,
        )

    def _set_live_values(self, camera: Camera) -> None:
        camera.set_rate(self._values.node.rate)
        camera.set_ground_costs(dict(self._values.node.ground_costs))
        camera.min_instance_area = self._values.segmentation.min_instance_area
        camera.overlay_boxes = self._values.node.overlay_boxes

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
        injected = self._injected_segmenter
        segmenter = injected.to('cpu') if injected else self._load('cpu')
        self.get_logger().error('the device fails; labelling goes on with the CPU')
        return segmenter

    def _is_shutting_down(self) -> bool:
        return self.is_ending or not self.context.ok()

    def _request_target(self) -> Target:
        with self._lock:
            if self._worker is None:
                raise RequestError(f'the node is {self.state}; configure and activate it first')
            return Target(
                self._worker,
                self._engine.segmenter,
                self._cameras,
                self._values.node,
                self._values.segmentation.min_instance_area,
            )

    def _header(self) -> Header:
        return Header(stamp=self.get_clock().now().to_msg())

    def _announce(self, vocabulary: Vocabulary, settings: SegmentationSettings) -> None:
        if vocabulary.version != self._announced_version:
            self._vocabulary_publisher.publish(MAKER.make_vocabulary(vocabulary, self._header()))
            # Not before it is published: what could not be is tried again.
            self._announced_version = vocabulary.version
            self.get_logger().info(
                f'vocabulary {vocabulary.version}: {", ".join(c.name for c in vocabulary.classes)}'
            )
        for camera in self._cameras:
            camera.announce(vocabulary, self._header(), settings.min_confidence)

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            with self._lock:
                values, vocabulary = self._values.changed(changes), None
                if {'vocabulary', 'background'} & {p.name for p in changes}:
                    engine = self._engine
                    segmenter = None if engine is None else engine.segmenter
                    vocabulary = self._next_vocabulary(values, segmenter)
                self._accepted_change = values, vocabulary
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        except Exception as error:
            # Raised into rclpy it would end spin() and leave the caller waiting for ever.
            reason = f'could not be checked: {type(error).__name__}: {error}'
            self.get_logger().error(f'parameters {[p.name for p in changes]} {reason}')
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _apply_parameters(self, changes: list[Parameter]) -> None:
        with self._lock:
            if self._accepted_change is None:
                return
            (self._values, vocabulary), self._accepted_change = self._accepted_change, None
            for camera in self._cameras:
                self._set_live_values(camera)
            self._request(vocabulary)

    def _next_vocabulary(self, values: Parameters, segmenter: Segmenter | None) -> Vocabulary:
        """Return the vocabulary of these values: the latest one if it says the same, or a new one.

        Raises VocabularyError, also for phrases that a segmenter's text tower cannot read.
        """
        latest = self._latest_vocabulary
        if self._worker is not None:
            latest = self._worker.reconfiguration.latest_vocabulary or latest
        vocabulary = values.node.make_vocabulary(latest)
        if (vocabulary.classes, vocabulary.background) == (latest.classes, latest.background):
            vocabulary = latest
        else:
            # Not counted from the latest: one that failed has had a version as well.
            vocabulary = replace(vocabulary, version=self._requested_version + 1)
        if segmenter is not None:
            segmenter.check_vocabulary(vocabulary)
        return vocabulary

    def _request(self, vocabulary: Vocabulary | None) -> None:
        """Let labels be made with the settings of the parameters, and with a new vocabulary."""
        if vocabulary is not None:
            self._requested_version = max(self._requested_version, vocabulary.version)
        if self._worker is not None:
            self._worker.reconfiguration.request(vocabulary, self._values.segmentation)
        elif vocabulary is not None:
            self._latest_vocabulary = vocabulary

    def _repeat_label_info(self) -> None:
        worker = self._worker
        if worker is not None:
            worker.reconfiguration.repeat_announcement()

    def _publish_diagnostics(self) -> None:
        now = time.monotonic()
        elapsed_s, self._last_report = now - self._last_report, now
        try:
            for camera in self._cameras:
                camera.follow_publishers()
            self._warn_of_namesakes()
            self._diagnostics_publisher.publish(self._diagnostics(elapsed_s))
        except Exception as error:
            # A camera may be destroyed meanwhile, and a report is not worth the node.
            if not self._is_shutting_down():
                self.get_logger().warning(f'no diagnostics this time: {explain(error)}')

    def _diagnostics(self, elapsed_s: float) -> DiagnosticArray:
        name = self.get_fully_qualified_name().lstrip('/')
        worker = self._worker
        vocabulary = None if worker is None else worker.reconfiguration.vocabulary_state
        array = DiagnosticArray(header=self._header())
        status = diagnostics.engine_status(
            name,
            self.state,
            self._engine,
            vocabulary or diagnostics.VocabularyState(),
            self._request_servers.counts,
            failure=self.failure_message,
            namesakes=self._namesakes,
        )
        array.status.append(status)
        for camera in self._cameras:
            status = diagnostics.camera_status(name, camera, elapsed_s)
            array.status.append(status)
            # Not everybody looks at diagnostics. Once, and only while no image has come at all:
            # later a camera may be slow, or a bag paused.
            waited_s = camera.statistics.silent_s - diagnostics.SILENCE_S
            if not camera.statistics.counts['received'] and 0 <= waited_s < elapsed_s:
                self.get_logger().warning(f'{camera.name}: {status.message}')
        return array

    def _warn_of_namesakes(self) -> None:
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


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end; returns the exit status."""
    share_memory_between_threads()
    return run_node(SegmentNode, NODE_NAME, args)
