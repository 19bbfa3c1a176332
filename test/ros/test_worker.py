"""The inference thread by itself: encoding in small parts, announcements, and its end."""

import threading
import time

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.logging import get_logger

from cliptrase_ros.fault_tolerance import FaultTolerantEngine
from cliptrase_ros.ros.node_time import NodeTime
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation.segmenter import SegmentationSettings, Segmenter
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

PATIENCE = 90.0


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def now():
    return NodeTime(time.monotonic_ns(), is_known=True, is_simulated=False)


@pytest.fixture
def start_worker():
    workers = []

    def start(
        segmenter,
        on_vocabulary=lambda _: None,
        clock=now,
        **arguments,
    ):
        worker = Worker(
            FaultTolerantEngine(segmenter),
            settings=SegmentationSettings(),
            clock=clock,
            on_vocabulary=on_vocabulary,
            is_shutting_down=lambda: False,
            logger=get_logger('test_worker'),
            **arguments,
        )
        workers.append(worker)
        worker.start()
        return worker

    yield start
    for worker in workers:
        worker.stop()


class IdleCamera:
    name, last_taken_ns = 'camera', 0

    def take(self, now_ns):
        return None

    def publish_waiting(self):
        return False

    def wait_ns(self, now_ns):
        return None


def test_phrases_are_encoded_one_at_a_time_and_the_end_does_not_wait_for_all(
    start_worker, make_segmenter
):
    parts, enough, may_go_on = [], threading.Event(), threading.Event()

    class Watched(Segmenter):
        def encode_vocabulary(self, vocabulary):
            parts.append(vocabulary.phrases)
            if len(parts) == 3:
                enough.set()
                assert may_go_on.wait(PATIENCE)
            return super().encode_vocabulary(vocabulary)

    worker = start_worker(make_segmenter(Watched))
    synonyms = ', '.join(f'word {i}' for i in range(600))
    worker.request_vocabulary(parse_vocabulary(f'thing: {synonyms}', ['sky']))
    assert enough.wait(PATIENCE)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_for(lambda: worker._stopping)
    may_go_on.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert parts == [('thing',), ('word 0',), ('word 1',)]


def test_features_do_not_depend_on_the_parts(start_worker, make_segmenter):
    vocabulary = parse_vocabulary('road: street; tree', ['sky'])
    worker = start_worker(make_segmenter())
    worker.request_vocabulary(vocabulary)
    wait_for(lambda: worker.vocabulary_state.in_force)
    assert worker.latest_vocabulary is vocabulary
    expected = make_segmenter().encode_vocabulary(vocabulary).table.features
    assert (worker._in_force.table.features - expected).abs().max() < 1e-5


def test_announcement_that_fails_costs_neither_vocabulary_nor_thread(start_worker, segmenter):
    announced = []

    def fail_at_first(vocabulary):
        announced.append(vocabulary)
        if len(announced) <= 2:
            raise RuntimeError('no memory left')

    worker = start_worker(segmenter, fail_at_first)
    first = parse_vocabulary('road')
    worker.request_vocabulary(first)
    wait_for(lambda: worker.vocabulary_state.in_force == 1)
    assert worker.vocabulary_state.failure == ''
    wait_for(lambda: len(announced) == 2)
    worker.wake()
    wait_for(lambda: len(announced) == 3)
    second = parse_vocabulary('road; tree', previous=first)
    worker.request_vocabulary(second)
    wait_for(lambda: worker.vocabulary_state.in_force == 2)
    assert announced == [first, first, first, second]


@pytest.mark.parametrize('where', ['before an image is looked for', 'while there is none'])
def test_thread_survives_what_fails(start_worker, segmenter, where):
    failures, is_broken = [], threading.Event()

    def fail_if_broken():
        if is_broken.is_set():
            failures.append(None)
            raise RuntimeError('no clock')

    class Failing(IdleCamera):
        def take(self, now_ns):
            if where == 'before an image is looked for':
                fail_if_broken()

        def wait_ns(self, now_ns):
            fail_if_broken()

    worker = start_worker(segmenter)
    worker.serve([Failing()])
    worker.request_vocabulary(parse_vocabulary('road'))
    wait_for(lambda: worker.vocabulary_state.in_force == 1)
    is_broken.set()
    worker.wake()
    wait_for(lambda: failures)
    is_broken.clear()
    worker.request_vocabulary(parse_vocabulary('road; tree', previous=worker.latest_vocabulary))
    wait_for(lambda: worker.vocabulary_state.in_force == 2)


def test_ready_for_announced_sizes_before_the_first_image(start_worker, make_segmenter):
    calls = []

    class Watched(Segmenter):
        def warm_up(self, sizes, batch, settings, vocabulary):
            calls.extend((size, batch) for size in sizes)
            if sizes == [(1, 1)]:
                raise RuntimeError('no memory left')
            super().warm_up(sizes, batch, settings, vocabulary)

    class Watching(IdleCamera):
        def take(self, now_ns):
            calls.append('an image')

    sizes = [(48, 64), (1, 1), (64, 48)]
    worker = start_worker(make_segmenter(Watched), warm_up_sizes=sizes, warm_up_batch=1)
    worker.serve([Watching()])
    worker.request_vocabulary(parse_vocabulary('road; tree'))
    wait_for(lambda: 'an image' in calls)
    assert calls[: calls.index('an image')] == [(size, 1) for size in sizes]


def test_nothing_is_published_after_a_pause(start_worker, segmenter):
    begun, may_go_on, published = threading.Event(), threading.Event(), []

    class Publishing(IdleCamera):
        def publish_waiting(self):
            begun.set()
            assert may_go_on.wait(PATIENCE)
            published.append(None)
            return True

    worker = start_worker(segmenter)
    worker.serve([Publishing()])
    assert begun.wait(PATIENCE)
    pausing = threading.Thread(target=worker.pause)
    pausing.start()
    wait_for(lambda: not worker._cameras)
    assert pausing.is_alive()
    may_go_on.set()
    pausing.join(PATIENCE)
    count = len(published)
    assert not pausing.is_alive() and count
    worker.wake()
    worker.request_vocabulary(parse_vocabulary('road'))
    wait_for(lambda: worker.vocabulary_state.in_force)
    assert len(published) == count
