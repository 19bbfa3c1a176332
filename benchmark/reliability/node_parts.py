"""Where a node spends processor time: by thread, and by what its threads do for an image."""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rclpy.publisher import Publisher

from cliptrase_ros.messages.maker import CAMERA_OUTPUTS
from cliptrase_ros.ros import serialized
from cliptrase_ros.ros.camera import CameraImage
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

_seconds: Counter[str] = Counter()
_counts: Counter[str] = Counter()
_lock = threading.Lock()


def watch_parts() -> None:
    """Measure from now on, and answer each line of standard input with the sums so far, as JSON."""
    CameraImage.decode = _timed('decode', CameraImage.decode)
    FaultTolerantEngine.segment_each = _timed('engine', FaultTolerantEngine.segment_each)
    Publisher.publish = _timed('publish', Publisher.publish)
    serialized.serialize = _timed('publish', serialized.serialize)
    for topic, (message_type, make) in CAMERA_OUTPUTS.items():
        CAMERA_OUTPUTS[topic] = message_type, _timed(topic, make)
    threading.Thread(target=_answer, name='parts', daemon=True).start()


def _timed(part: str, function: Callable) -> Callable:
    def timed(*arguments, **keywords):
        begin = time.thread_time()
        try:
            return function(*arguments, **keywords)
        finally:
            taken = time.thread_time() - begin
            with _lock:
                _seconds[part] += taken
                _counts[part] += 1

    return timed


def _answer() -> None:
    for _ in sys.stdin:
        threads: Counter[str] = Counter()
        for thread in threading.enumerate():
            # Those of a pool are numbered.
            threads[thread.name.partition('_')[0]] += _thread_seconds(thread.native_id)
        with _lock:
            report = {'parts': dict(_seconds), 'counts': dict(_counts)}
        report |= {'threads': threads, 'process': time.process_time()}
        print(json.dumps(report), flush=True)


def _thread_seconds(native_id: int) -> float:
    nanoseconds = Path(f'/proc/self/task/{native_id}/schedstat').read_text().split()[0]
    return int(nanoseconds) * 1e-9
