"""What the node tells /diagnostics, and the counting behind it."""

import threading
from dataclasses import dataclass, field
from typing import Protocol

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

#: A camera that is listened to and sends nothing for so long is worth a warning, seconds.
SILENCE_S = 3.0


@dataclass
class CameraStatistics:
    """Counts of one camera since the start, and timings since the last report.

    Written by the executor's thread (received, dropped, refused) and the inference thread
    (the rest), hence the lock.
    """

    received: int = 0
    labelled: int = 0
    refused: int = 0
    failed: int = 0
    dropped_busy: int = 0
    dropped_rate: int = 0
    dropped_unwanted: int = 0
    incompatible_qos: int = 0
    points: int = 0
    points_missed: int = 0
    last_refusal: str = ''
    last_failure: str = ''
    last_points_missed: str = ''
    silent_s: float = 0.0
    _latencies_s: list[float] = field(default_factory=list)
    _processing_s: list[float] = field(default_factory=list)
    _engine_s: list[float] = field(default_factory=list)
    _reported: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, reason: str = '') -> None:
        """Add one to a count, and keep the reason of one that is refused, failed or missed."""
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)
            if what == 'refused':
                self.last_refusal = reason
            elif what == 'failed':
                self.last_failure = reason
            elif what == 'points_missed':
                self.last_points_missed = reason

    def count_label(self, latency_s: float | None, processing_s: float, engine_s: float) -> None:
        """Add a label image.

        latency_s: stamp to publish, None for images without a stamp. processing_s: from taken to
        published. engine_s: of this, in the engine, for the whole batch.
        """
        with self._lock:
            self.labelled += 1
            self._processing_s.append(processing_s)
            self._engine_s.append(engine_s)
            if latency_s is not None:
                self._latencies_s.append(latency_s)

    def report(
        self, elapsed_s: float, subscribed: bool
    ) -> tuple[dict[str, object], dict[str, int]]:
        """Return values for people, and what was counted since the last report."""
        with self._lock:
            counts = {
                name: getattr(self, name)
                for name in (
                    'received',
                    'labelled',
                    'dropped_busy',
                    'dropped_rate',
                    'dropped_unwanted',
                    'incompatible_qos',
                    'refused',
                    'failed',
                    'points',
                    'points_missed',
                )
            }
            new = {name: n - self._reported.get(name, 0) for name, n in counts.items()}
            # Nothing can come from a camera that is not subscribed.
            heard = new['received'] > 0 or not subscribed
            self.silent_s = 0.0 if heard else self.silent_s + elapsed_s
            values = {
                'received': counts['received'],
                'received_hz': new['received'] / elapsed_s,
                'labelled': counts['labelled'],
                'labelled_hz': new['labelled'] / elapsed_s,
                **_milliseconds('latency', self._latencies_s),
                **_milliseconds('processing', self._processing_s),
                **_milliseconds('engine', self._engine_s),
                'dropped_busy': counts['dropped_busy'],
                'dropped_rate': counts['dropped_rate'],
                'dropped_unwanted': counts['dropped_unwanted'],
                'incompatible_qos': counts['incompatible_qos'],
                'refused': counts['refused'],
                'last_refusal': self.last_refusal,
                'failed': counts['failed'],
                'last_failure': self.last_failure,
                'points': counts['points'],
                'points_missed': counts['points_missed'],
                'last_points_missed': self.last_points_missed,
            }
            self._reported = counts
            self._latencies_s.clear()
            self._processing_s.clear()
            self._engine_s.clear()
        return values, new


def _milliseconds(name: str, seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        f'{name}_ms_mean': 1e3 * sum(seconds) / len(seconds),
        f'{name}_ms_max': 1e3 * max(seconds),
    }


class ReportedCamera(Protocol):
    """What is reported of a camera."""

    name: str
    topic: str
    transport: str
    is_active: bool
    subscribed: bool
    statistics: CameraStatistics
    masks_unknown: tuple[str, ...]

    def explain_silence(self) -> str:
        """Say why no image may arrive."""

    def explain_missing_points(self) -> str:
        """Say who publishes what points are made of."""


def camera_status(node_name: str, camera: ReportedCamera, elapsed_s: float) -> DiagnosticStatus:
    """Report one camera. elapsed_s: since the report before."""
    statistics, subscribed = camera.statistics, camera.subscribed
    values, new = statistics.report(elapsed_s, subscribed)
    level, message = DiagnosticStatus.WARN, ''
    if new['refused']:
        message = f'{new["refused"]} images refused: {values["last_refusal"]}'
    elif new['failed']:
        message = f'{new["failed"]} images failed: {values["last_failure"]}'
    elif subscribed and (
        statistics.silent_s >= SILENCE_S or (new['incompatible_qos'] and not new['received'])
    ):
        message = (
            f'no image for {statistics.silent_s:.0f} s on {camera.topic}; '
            f'{camera.explain_silence()}'
        )
    elif new['points_missed']:
        message = (
            f'{new["points_missed"]} images without points: {values["last_points_missed"]}; '
            f'{camera.explain_missing_points()}'
        )
    elif camera.masks_unknown:
        message = f'mask_topics has {", ".join(camera.masks_unknown)}, the vocabulary does not'
    else:
        level = DiagnosticStatus.OK
        if subscribed:
            message = f'{values["labelled_hz"]:.1f} label images a second'
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
            'subscribed': subscribed,
            **values,
            'masks_unknown': ', '.join(camera.masks_unknown),
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
