"""What the node tells /diagnostics, and the counting behind it."""

import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

if TYPE_CHECKING:
    from cliptrase_ros.ros.camera import Camera

#: A camera that is listened to and sends nothing for so long is worth a warning, seconds.
SILENCE_S = 3.0

#: What is counted of each camera, in the order of the report.
_COUNTS = (
    *('received', 'labelled', 'searched', 'dropped_busy', 'dropped_rate', 'dropped_unwanted'),
    *('incompatible_qos', 'refused', 'failed', 'no_picture', 'frames_lost'),
    *('points', 'points_missed', 'ground', 'ground_missed'),
)
#: Counts whose latest reason is reported as well, and as what.
_REASONS = {
    'refused': 'last_refusal',
    'failed': 'last_failure',
    'no_picture': 'last_no_picture',
    'points_missed': 'last_points_missed',
    'ground_missed': 'last_ground_missed',
}


class CameraStatistics:
    """Counts of one camera since the start, and timings since the last report.

    Written by the threads that receive images (received, dropped, refused), that decode video, and
    that label and publish (the rest), hence the lock. The counts are explained in docs/node.md.

    Attributes:
        counts: By name.
        reasons: The latest reason of each count that has some, '' before the first.
        silent_s: For how long nothing has come while the camera was subscribed, seconds.
    """

    def __init__(self):
        self.counts = dict.fromkeys(_COUNTS, 0)
        self.reasons = dict.fromkeys(_REASONS, '')
        self.silent_s = 0.0
        self._seconds: dict[str, list[float]] = {'latency': [], 'processing': [], 'engine': []}
        self._reported = self.counts.copy()
        self._lock = threading.Lock()

    def count(self, name: str, reason: str = '', number: int = 1) -> None:
        """Add to a count, and keep the reason of one that is refused, failed or missed."""
        with self._lock:
            self.counts[name] += number
            if name in self.reasons:
                self.reasons[name] = reason

    def count_label(self, latency_s: float | None, processing_s: float, engine_s: float) -> None:
        """Add a label image.

        Args:
            latency_s: From its stamp to its publication; None for images without a stamp.
            processing_s: From when it was taken to its publication.
            engine_s: Of this, in the engine, for the whole batch.
        """
        with self._lock:
            self.counts['labelled'] += 1
            self._seconds['processing'].append(processing_s)
            self._seconds['engine'].append(engine_s)
            if latency_s is not None:
                self._seconds['latency'].append(latency_s)

    def report(
        self, elapsed_s: float, is_subscribed: bool
    ) -> tuple[dict[str, object], dict[str, int]]:
        """Return values for people, and how much each count has grown since the last report."""
        with self._lock:
            counts = self.counts.copy()
            new = {name: count - self._reported[name] for name, count in counts.items()}
            # Nothing can come from a camera that is not subscribed.
            is_silent = is_subscribed and not new['received']
            self.silent_s = self.silent_s + elapsed_s if is_silent else 0.0
            values: dict[str, object] = {}
            for name in ('received', 'labelled'):
                values |= {name: counts[name], f'{name}_hz': new[name] / elapsed_s}
            for name, seconds in self._seconds.items():
                if seconds:
                    values[f'{name}_ms_mean'] = 1e3 * sum(seconds) / len(seconds)
                    values[f'{name}_ms_max'] = 1e3 * max(seconds)
                    seconds.clear()
            for name in _COUNTS[2:]:
                values[name] = counts[name]
                if name in _REASONS:
                    values[_REASONS[name]] = self.reasons[name]
            self._reported = counts
        return values, new


def camera_status(node_name: str, camera: 'Camera', elapsed_s: float) -> DiagnosticStatus:
    """Report one camera, `elapsed_s` seconds after the report before."""
    statistics, is_subscribed = camera.statistics, camera.is_subscribed
    values, new = statistics.report(elapsed_s, is_subscribed)
    unknown_masks = ', '.join(camera.outputs.unknown_masks)
    unknown_scores = ', '.join(camera.outputs.unknown_scores)
    unknown_costs = ', '.join(camera.unknown_costs)
    level, message = DiagnosticStatus.WARN, ''
    if new['refused']:
        message = f'{new["refused"]} images refused: {values["last_refusal"]}'
    elif new['failed']:
        message = f'{new["failed"]} images failed: {values["last_failure"]}'
    elif is_subscribed and (
        statistics.silent_s >= SILENCE_S or (new['incompatible_qos'] and not new['received'])
    ):
        message = (
            f'no image for {statistics.silent_s:.0f} s on {camera.topic}; '
            f'{camera.explain_silence()}'
        )
    elif new['frames_lost']:
        message = f'{new["frames_lost"]} frames of the video lost'
    elif new['no_picture'] and not new['labelled']:
        message = f'{new["no_picture"]} packets without a picture: {values["last_no_picture"]}'
    elif new['points_missed']:
        message = (
            f'{new["points_missed"]} images without points: {values["last_points_missed"]}; '
            f'{camera.explain_missing()}'
        )
    elif new['ground_missed']:
        message = (
            f'{new["ground_missed"]} images without ground: {values["last_ground_missed"]}; '
            f'{camera.explain_missing()}'
        )
    elif unknown_masks:
        message = f'mask_topics has {unknown_masks}, the vocabulary does not'
    elif unknown_scores:
        message = f'score_topics has {unknown_scores}, the vocabulary does not'
    elif unknown_costs:
        message = f'ground_costs has {unknown_costs}, the vocabulary does not'
    else:
        level = DiagnosticStatus.OK
        if camera.is_labelled:
            message = f'{values["labelled_hz"]:.1f} label images a second'
        elif is_subscribed:
            message = 'searched; nobody listens to its outputs'
        elif camera.is_active:
            message = 'idle, because nobody listens to its outputs'
        else:
            message = 'idle, because the node is not active'
    return status(
        f'{node_name}: camera {camera.name}',
        camera.name,
        level,
        message,
        {
            'topic': camera.topic,
            'transport': camera.transport,
            'subscribed': is_subscribed,
            **values,
            'masks_unknown': unknown_masks,
            'scores_unknown': unknown_scores,
            'costs_unknown': unknown_costs,
        },
    )


@dataclass(frozen=True)
class VocabularyState:
    """Where vocabularies stand.

    Attributes:
        in_force: Version that labels are made with, 0 before the first.
        pending: Version that is being encoded or made ready for, or None.
        failure: Why the one requested last could not be encoded, or ''.
    """

    in_force: int = 0
    pending: int | None = None
    failure: str = ''


@dataclass
class RequestCounts:
    """Calls of ~/segment and goals of ~/find since the start.

    Attributes:
        taken: All that came.
        refused: Of these, those that got no answer.
        last_refused: Why the latest of them did not, '' before the first.
        searched_phrase: What is looked for at the moment, '' for nothing.
    """

    taken: int = 0
    refused: int = 0
    last_refused: str = ''
    searched_phrase: str = ''


def engine_status(
    node_name: str,
    state: str,
    engine: FaultTolerantEngine | None,
    vocabulary: VocabularyState,
    requests: RequestCounts,
    *,
    failure: str,
    namesakes: int,
) -> DiagnosticStatus:
    """Report the engine, and what concerns the node as a whole.

    Args:
        node_name: Full name of the node, without the leading slash.
        state: Label of its lifecycle state.
        engine: None where no model is loaded.
        failure: Why the node could not be configured or activated, or ''.
        namesakes: How many other nodes have the same name.
    """
    segmenter = None if engine is None else engine.segmenter
    device = '' if segmenter is None else str(segmenter.device)
    fault, is_fault_recent = ('', False) if engine is None else engine.fault
    level, message = DiagnosticStatus.OK, state
    if failure:
        level, message = DiagnosticStatus.ERROR, failure
    elif is_fault_recent:
        level = DiagnosticStatus.ERROR
        message = f'device fault, batches of {engine.largest_batch} on {device}: {fault}'
    elif vocabulary.failure:
        level = DiagnosticStatus.WARN if vocabulary.in_force else DiagnosticStatus.ERROR
        message = f'the last vocabulary could not be encoded: {vocabulary.failure}'
    elif namesakes > 0:
        level = DiagnosticStatus.WARN
        message = f'{1 + namesakes} nodes have this name; rename or end the others'
    elif vocabulary.pending is not None:
        message = f'preparing vocabulary {vocabulary.pending}'
    elif state == 'active':
        message = f'labelling by vocabulary {vocabulary.in_force}'
    return status(
        f'{node_name}: engine',
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
            'requests': requests.taken,
            'requests_refused': requests.refused,
            'last_request_refused': requests.last_refused,
            'searching': requests.searched_phrase,
        },
    )


def status(
    name: str, hardware_id: str, level: bytes, message: str, values: dict[str, object]
) -> DiagnosticStatus:
    """Make a DiagnosticStatus; numbers that are not whole get two decimals."""
    return DiagnosticStatus(
        name=name,
        hardware_id=hardware_id,
        level=level,
        message=message,
        values=[
            KeyValue(key=key, value=f'{value:.2f}' if isinstance(value, float) else str(value))
            for key, value in values.items()
        ],
    )
