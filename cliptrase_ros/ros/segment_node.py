"""The node `cliptrase`: camera images in, a label for every pixel out, by words of the user."""

import sys
import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from cliptrase_ros import msg
from cliptrase_ros.ros import diagnostics
from cliptrase_ros.ros.camera import LATCHED_QOS, Camera, LabelInfo
from cliptrase_ros.ros.conversions import vocabulary_message
from cliptrase_ros.ros.executable import run_node
from cliptrase_ros.ros.parameters import Parameters, declare_parameters
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.vocabulary import Vocabulary

NODE_NAME = 'cliptrase'

#: Seconds between repetitions of label_info: recorders start late and skip latched topics.
LABEL_INFO_PERIOD = 5.0


class SegmentNode(Node):
    """Labels the images of every camera by the vocabulary in force.

    The executor's thread receives images and answers services; one thread of `Worker` does all
    inference and publishes its results. Topics and parameters: docs/node.md.

    segmenter: an engine to use instead of the one the parameters describe.
    Raises ParameterError, VocabularyError, ModelError, ValueError: the node cannot start.
    """

    def __init__(self, segmenter: Segmenter | None = None, **node_arguments):
        self._worker: Worker | None = None
        self._announced_version = 0
        self._requested_version = 0
        super().__init__(NODE_NAME, **node_arguments)
        self._values = declare_parameters(self)
        # Before the model is loaded: a typing mistake should not take seconds to be told.
        vocabulary = self._values.make_vocabulary()
        self._segmenter = segmenter or self._load()
        self._segmenter.check_vocabulary(vocabulary)

        self._vocabulary_publisher = self.create_publisher(
            msg.Vocabulary, '~/vocabulary', LATCHED_QOS
        )
        self._worker = Worker(
            self._segmenter,
            settings=self._values.settings,
            clock=self._now,
            on_vocabulary=self._announce,
            is_shutting_down=lambda: not self.context.ok(),
            logger=self.get_logger(),
        )
        self._cameras = [
            Camera(
                self,
                name,
                always_on=self._values.always_on,
                on_image=self._worker.wake,
                transport=self._values.transport_of(name),
                depth=self._values.depth,
                mask_topics=self._values.mask_topics,
            )
            for name in self._values.cameras
        ]
        for camera in self._cameras:
            camera.set_rate(self._values.rate)
            camera.activate()
        if LabelInfo is None:
            self.get_logger().info(
                'label_info is not published, because vision_msgs is not installed'
            )

        self._accepted: tuple[Parameters, Vocabulary | None] | None = None
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)

        # Steady: a paused or looping simulation is no reason to fall silent.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._last_report = time.monotonic()
        self.create_timer(1.0, self._publish_diagnostics, clock=steady)
        self.create_timer(LABEL_INFO_PERIOD, self._worker.announce_again, clock=steady)

        self._request(vocabulary)
        self._worker.start(self._cameras)

    def destroy_node(self) -> None:
        """End inference, then the node. A context that shuts down calls this again."""
        if self._worker is not None:
            self._worker.stop()
        super().destroy_node()

    def _load(self) -> Segmenter:
        values = self._values
        begin = time.monotonic()
        segmenter = load_segmenter(
            values.model,
            values.pretrained,
            device=values.device,
            precision=values.precision,
            cache_dir=values.cache_dir or None,
        )
        self.get_logger().info(
            f'{segmenter.name} on {segmenter.device}, loaded in {time.monotonic() - begin:.1f} s'
        )
        return segmenter

    def _now(self) -> tuple[int, bool]:
        clock = self.get_clock()
        now_ns = clock.now().nanoseconds
        # Simulated time is 0 until somebody publishes it; images may come all the same.
        return now_ns or time.monotonic_ns(), clock.ros_time_is_active

    def _header(self) -> Header:
        return Header(stamp=self.get_clock().now().to_msg())

    def _announce(self, vocabulary: Vocabulary) -> None:
        if vocabulary.version != self._announced_version:
            self._vocabulary_publisher.publish(vocabulary_message(vocabulary, self._header()))
            # Not before: what could not be published is tried again.
            self._announced_version = vocabulary.version
            self.get_logger().info(
                f'vocabulary {vocabulary.version}: {", ".join(c.name for c in vocabulary.classes)}'
            )
        for camera in self._cameras:
            camera.publish_label_info(vocabulary, self._header(), self._values.min_confidence)

    def _check_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
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
        latest = self._worker.latest_vocabulary
        vocabulary = values.make_vocabulary(latest)
        if latest is not None and (vocabulary.classes, vocabulary.background) == (
            latest.classes,
            latest.background,
        ):
            return values, latest
        self._segmenter.check_vocabulary(vocabulary)
        # Not counted from the latest: one that failed has had a version as well.
        return values, replace(vocabulary, version=self._requested_version + 1)

    def _apply_parameters(self, _changes: list[Parameter]) -> None:
        if self._accepted is None:
            return
        (self._values, vocabulary), self._accepted = self._accepted, None
        self._worker.settings = self._values.settings
        for camera in self._cameras:
            camera.set_rate(self._values.rate)
        if vocabulary is not None:
            self._request(vocabulary)
        self._worker.wake()

    def _request(self, vocabulary: Vocabulary) -> None:
        self._requested_version = max(self._requested_version, vocabulary.version)
        self._worker.request_vocabulary(vocabulary)

    def _publish_diagnostics(self) -> None:
        now = time.monotonic()
        elapsed_s, self._last_report = now - self._last_report, now
        name = self.get_fully_qualified_name().lstrip('/')
        array = DiagnosticArray(header=self._header())
        array.status = [self._engine_status(name)] + [
            diagnostics.camera_status(name, camera, elapsed_s) for camera in self._cameras
        ]
        self._diagnostics_publisher.publish(array)

    def _engine_status(self, name: str) -> DiagnosticStatus:
        state = self._worker.vocabulary_state
        level, message = DiagnosticStatus.OK, f'labelling by vocabulary {state.in_force}'
        if state.failure:
            level = DiagnosticStatus.WARN if state.in_force else DiagnosticStatus.ERROR
            message = f'the last vocabulary could not be encoded: {state.failure}'
        elif state.pending is not None:
            message = f'encoding vocabulary {state.pending}'
        return diagnostics.status(
            f'{name}: engine',
            str(self._segmenter.device),
            level,
            message,
            {
                'model': self._segmenter.name,
                'device': self._segmenter.device,
                'vocabulary_version': state.in_force,
                'vocabulary_pending': state.pending or '',
                'vocabulary_failure': state.failure,
            },
        )


def main(args: list[str] | None = None) -> int:
    """Run the node until it is told to end; returns the exit status."""
    return run_node(SegmentNode, NODE_NAME, args)


if __name__ == '__main__':
    sys.exit(main())
