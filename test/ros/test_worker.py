"""The inference thread by itself: encoding in small parts, announcements, and its end."""

import itertools
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.clock import Clock, ClockType
from rclpy.logging import get_logger
from std_msgs.msg import Header

from cliptrase_ros.messages.images import ImageError
from cliptrase_ros.ros.diagnostics import VocabularyState
from cliptrase_ros.ros.requests import ImageRequest
from cliptrase_ros.ros.worker import Worker
from cliptrase_ros.segmentation import device_faults
from cliptrase_ros.segmentation.run.graphs import EagerQueue, FixedCalls
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams import fault_tolerance
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

PATIENCE = 90.0
SETTINGS = SegmentationSettings(resolution=64)
PLUS = replace(SETTINGS, preset='plus')


def wait_for(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def start_worker():
    workers = []

    def start(segmenter, announce=lambda *_: None, **arguments):
        worker = Worker(
            FaultTolerantEngine(segmenter),
            settings=SETTINGS,
            clock=Clock(clock_type=ClockType.ROS_TIME),
            announce=announce,
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

    def publish_pending_points(self):
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
    worker.reconfiguration.request(parse_vocabulary(f'thing: {synonyms}', ['sky']))
    assert enough.wait(PATIENCE)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_for(lambda: worker._is_stopping)
    may_go_on.set()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert parts == [('thing',), ('word 0',), ('word 1',)]


def test_features_do_not_depend_on_the_parts(start_worker, make_segmenter):
    vocabulary = parse_vocabulary('road: street; tree', ['sky'])
    worker = start_worker(make_segmenter())
    worker.reconfiguration.request(vocabulary)
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force)
    assert worker.reconfiguration.latest_vocabulary is vocabulary
    expected = make_segmenter().encode_vocabulary(vocabulary).table.features
    features = worker.reconfiguration.in_force.vocabulary.table.features
    assert (features - expected).abs().max() < 1e-5


def test_announcement_that_fails_costs_neither_vocabulary_nor_thread(start_worker, segmenter):
    announced = []

    def fail_at_first(vocabulary, settings):
        announced.append(vocabulary)
        if len(announced) <= 2:
            raise RuntimeError('no memory left')

    worker = start_worker(segmenter, fail_at_first)
    first = parse_vocabulary('road', background=())
    worker.reconfiguration.request(first)
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force == 1)
    assert worker.reconfiguration.vocabulary_state.failure == ''
    wait_for(lambda: len(announced) == 2)
    worker.wake()
    wait_for(lambda: len(announced) == 3)
    second = parse_vocabulary('road; tree', background=(), previous=first)
    worker.reconfiguration.request(second)
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force == 2)
    assert announced == [first, first, first, second]


def test_settings_are_announced_with_the_words_they_come_into_force_with(start_worker, segmenter):
    announced = []
    worker = start_worker(segmenter, lambda *choice: announced.append(choice))
    first, second = (parse_vocabulary(text, background=()) for text in ('road', 'road; tree'))
    half = replace(SETTINGS, min_confidence=0.5)
    for count, announce in enumerate(
        (
            lambda: worker.reconfiguration.request(first),
            lambda: worker.reconfiguration.request(settings=half),
            worker.reconfiguration.repeat_announcement,
            lambda: worker.reconfiguration.request(second, SETTINGS),
        ),
        1,
    ):
        announce()
        wait_for(lambda count=count: len(announced) == count)
    assert announced == [(first, SETTINGS), (first, half), (first, half), (second, SETTINGS)]


def test_settings_requested_while_words_are_announced_hold_for_the_next_image(
    start_worker, segmenter
):
    in_force = []

    class Camera(IdleCamera):
        """Sees what the image that waits would be labelled with."""

        def take(self, now_ns):
            in_force.append(worker.reconfiguration.in_force.settings)

    def announce(vocabulary, settings):
        if settings == SETTINGS:
            worker.serve([Camera()])
            worker.reconfiguration.request(settings=PLUS)

    worker = start_worker(segmenter, announce)
    worker.reconfiguration.request(parse_vocabulary('road', background=()))
    wait_for(lambda: in_force)
    assert in_force[0] == PLUS


def test_words_that_nobody_wants_any_more_do_not_fail(start_worker, make_segmenter):
    begun, may_go_on, announced = threading.Event(), threading.Event(), []

    class Failing(Segmenter):
        def encode_vocabulary(self, vocabulary):
            if 'unreadable' in vocabulary.phrases:
                begun.set()
                assert may_go_on.wait(PATIENCE)
                raise RuntimeError('no memory left')
            return super().encode_vocabulary(vocabulary)

    worker = start_worker(make_segmenter(Failing), lambda *_: announced.append(None))
    first = parse_vocabulary('road', background=())
    worker.reconfiguration.request(first)
    wait_for(lambda: announced)
    worker.reconfiguration.request(parse_vocabulary('unreadable', background=(), previous=first))
    assert begun.wait(PATIENCE)
    worker.reconfiguration.request(first)
    # In the turn after the failure.
    worker.reconfiguration.repeat_announcement()
    may_go_on.set()
    wait_for(lambda: len(announced) == 2)
    assert worker.reconfiguration.vocabulary_state == VocabularyState(1, None, '')


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
    worker.reconfiguration.request(parse_vocabulary('road', background=()))
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force == 1)
    is_broken.set()
    worker.wake()
    wait_for(lambda: failures)
    is_broken.clear()
    latest = worker.reconfiguration.latest_vocabulary
    worker.reconfiguration.request(parse_vocabulary('road; tree', background=(), previous=latest))
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force == 2)


def test_ready_for_announced_sizes_before_the_first_image(start_worker, make_segmenter):
    calls = []

    class Watched(Segmenter):
        def warm_up(self, sizes, batch, vocabulary, settings):
            calls.extend((size, batch) for size in sizes)
            if sizes == [(1, 1)]:
                raise RuntimeError('no memory left')
            super().warm_up(sizes, batch, vocabulary, settings)

    class Watching(IdleCamera):
        def take(self, now_ns):
            calls.append('an image')

    sizes = [(48, 64), (1, 1), (64, 48)]
    worker = start_worker(make_segmenter(Watched), warm_up_sizes=sizes, warm_up_batch=1)
    worker.serve([Watching()])
    worker.reconfiguration.request(parse_vocabulary('road; tree', background=()))
    wait_for(lambda: 'an image' in calls)
    assert calls[: calls.index('an image')] == [(size, 1) for size in sizes]


def test_nothing_is_published_after_a_pause(start_worker, segmenter):
    begun, may_go_on, published = threading.Event(), threading.Event(), []

    class Publishing(IdleCamera):
        def publish_pending_points(self):
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
    worker.reconfiguration.request(parse_vocabulary('road', background=()))
    wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force)
    assert len(published) == count


class BusyCamera(IdleCamera):
    """Has an image of 64 x 48 whenever it is asked; keeps the labels' words in `events`."""

    def __init__(self, events):
        self.events = events
        self.statistics = SimpleNamespace(count_label=lambda *_: None)

    def take(self, now_ns):
        return SimpleNamespace(
            camera=self,
            time_ns=now_ns,
            header=Header(),
            decode=lambda: np.zeros((48, 64, 3), np.uint8),
        )

    def trace(self, header, text):
        pass

    def fail(self, error):
        self.events.append(f'failed: {error}')

    def publish(self, image, pixels, result):
        preset = self.engine.segmenter.settings.preset
        self.events.append(('label', result.vocabulary.version, preset))


class WithGraphs(Segmenter):
    """Notes what is made ready, and calls `gate` then."""

    settings = None
    gate = None

    def make_ready(self, size, count, vocabulary, settings):
        version = vocabulary.vocabulary.version
        self.events.append(('ready', size, count, version, settings.preset))
        if self.gate is not None:
            self.gate()
        super().make_ready(size, count, vocabulary, settings)

    def segment(self, images, vocabulary, settings=None, histories=()):
        self.settings = settings
        return super().segment(images, vocabulary, settings, histories)


@pytest.fixture
def start_busy(start_worker, make_segmenter, monkeypatch):
    """A function that starts a worker which labels; returns it, its segmenter and what it does.

    Calls of fixed shape stand for CUDA graphs, unless with_graphs is False.
    """

    # As on a GPU.
    monkeypatch.setattr(fault_tolerance, 'default_batch', lambda _: 8)

    def start(with_graphs=True):
        events = []
        segmenter = make_segmenter(WithGraphs)
        segmenter.events = events
        if with_graphs:
            queue = EagerQueue(torch.device('cpu'))
            segmenter.fixed_calls = FixedCalls(segmenter.pipeline, queue, patience=1000)
        worker = start_worker(
            segmenter,
            lambda vocabulary, settings: events.append(
                ('announced', vocabulary.version, settings.preset)
            ),
            warm_up_sizes=[(48, 64), (64, 64)],
            warm_up_batch=2,
        )
        camera = BusyCamera(events)
        camera.engine = worker._engine
        worker.serve([camera])
        worker.reconfiguration.request(parse_vocabulary('road; tree', background=()))
        wait_for(lambda: ('label', 1, 'robot') in events)
        return worker, segmenter, events

    return start


def words(count, previous):
    names = '; '.join(f'thing {i}' for i in range(count))
    return parse_vocabulary(names, background=(), previous=previous)


def calls(version, preset):
    """What is announced, the call that is in use last."""
    return [
        ('ready', size, count, version, preset)
        for size, count in (((48, 64), 2), ((64, 64), 1), ((64, 64), 2), ((48, 64), 1))
    ]


def made_ready(events):
    return [event for event in events if event[0] == 'ready']


def test_ready_for_a_change_before_it_comes_into_force(start_busy):
    worker, segmenter, events = start_busy()
    # Who listens need not wait for what the first label waits for.
    assert events[0] == ('announced', 1, 'robot')
    assert events.index(('label', 1, 'robot')) == 1 + len(calls(1, 'robot'))
    assert set(made_ready(events)) == set(calls(1, 'robot'))
    events.clear()
    second = words(17, worker.reconfiguration.latest_vocabulary)
    worker.reconfiguration.request(second)
    assert worker.reconfiguration.latest_vocabulary is second
    wait_for(lambda: ('label', 2, 'robot') in events)
    assert made_ready(events) == calls(2, 'robot')
    # In turn with labels by the old words.
    wanted = [event for call in calls(2, 'robot') for event in (call, ('label', 1, 'robot'))]
    first = events.index(wanted[0])
    assert events[first : first + 10] == [
        *(*wanted, ('announced', 2, 'robot'), ('label', 2, 'robot'))
    ]
    ready = len(segmenter.fixed_calls)
    events.clear()
    worker.reconfiguration.request(settings=PLUS)
    wait_for(lambda: ('label', 2, 'plus') in events)
    assert made_ready(events) == calls(2, 'plus')
    change = events.index(('announced', 2, 'plus'))
    assert {e for e in events[:change] if e[0] == 'label'} == {('label', 2, 'robot')}
    assert set(events[change + 1 :]) == {('label', 2, 'plus')}
    # No frame had to wait for a call of its own.
    assert len(segmenter.fixed_calls) == ready + 4


@pytest.mark.parametrize('changes', [False, True])
def test_an_image_waits_for_one_step_of_a_request_or_a_change_at_most(start_busy, changes):
    worker, segmenter, events = start_busy(with_graphs=False)
    encode, first = segmenter.encode_vocabulary, worker.reconfiguration.latest_vocabulary

    def encode_slowly(vocabulary):
        events.append(('encoded', len(vocabulary.phrases)))
        time.sleep(0.11)  # a step
        return encode(vocabulary)

    segmenter.encode_vocabulary = encode_slowly
    events.clear()
    request = ImageRequest(
        lambda: np.zeros((32, 32, 3), np.uint8),
        parse_vocabulary([f'word {i}' for i in range(3)], background=()),
    )
    worker.requests.submit(request)
    if changes:
        worker.reconfiguration.request(words(3, first))
    assert request.answer.result(PATIENCE).label.shape == (32, 32)
    if changes:
        wait_for(lambda: ('label', 2, 'robot') in events)
    kinds = [event[0] for event in events]
    begin, end = kinds.index('encoded'), len(kinds) - kinds[::-1].index('encoded')
    assert kinds.count('encoded') == (8 if changes else 4)
    steps = [kind for kind in kinds[begin:end] if kind != 'announced']
    assert all('label' in pair for pair in itertools.pairwise(steps))


def test_a_change_that_needs_no_other_call_comes_into_force_at_once(start_busy):
    worker, segmenter, events = start_busy()
    events.clear()
    worker.reconfiguration.request(
        words(16, worker.reconfiguration.latest_vocabulary), replace(SETTINGS, min_confidence=0.5)
    )
    wait_for(lambda: ('label', 2, 'robot') in events)
    assert segmenter.settings.min_confidence == 0.5
    assert made_ready(events) == []


def test_without_graphs_nothing_is_made_ready_again(start_busy):
    worker, _, events = start_busy(with_graphs=False)
    events.clear()
    worker.reconfiguration.request(words(17, worker.reconfiguration.latest_vocabulary), PLUS)
    wait_for(lambda: ('label', 2, 'plus') in events)
    assert made_ready(events) == []


def test_free_memory_goes_back_after_another_method_other_words_and_a_larger_batch(start_busy):
    worker, _, events = start_busy(with_graphs=False)
    kinds = []
    worker._unused_memory = SimpleNamespace(give_back_after=kinds.append)
    first = worker.reconfiguration.latest_vocabulary
    wait_for(lambda: len(set(kinds)) == 1)
    worker.reconfiguration.request(settings=PLUS)
    wait_for(lambda: len(set(kinds)) == 2)
    worker.reconfiguration.request(words(17, first))
    wait_for(lambda: len(set(kinds)) == 3)
    cameras = list(worker._cameras)
    second = BusyCamera(events)
    second.name, second.engine = 'second', cameras[0].engine
    worker.serve([*cameras, second])
    wait_for(lambda: len(set(kinds)) == 4)
    # What was there before is known.
    worker.serve(cameras)
    worker.reconfiguration.request(first, SETTINGS)
    wait_for(lambda: kinds[-1] == kinds[0])
    assert len(set(kinds)) == 4


def test_words_and_settings_that_change_together_come_into_force_together(start_busy, monkeypatch):
    worker, segmenter, events = start_busy()
    whole, may_go_on = segmenter.encode_vocabulary, threading.Event()

    def encode_vocabulary(vocabulary):
        # Until then frames are labelled as before: turn by turn.
        segmenter.encode_vocabulary = whole
        events.clear()
        assert may_go_on.wait(PATIENCE)
        return whole(vocabulary)

    monkeypatch.setattr(segmenter, 'encode_vocabulary', encode_vocabulary)
    worker.reconfiguration.request(words(17, worker.reconfiguration.latest_vocabulary))
    wait_for(lambda: segmenter.encode_vocabulary is whole)
    worker.reconfiguration.request(settings=PLUS)
    may_go_on.set()
    wait_for(lambda: ('label', 2, 'plus') in events)
    assert made_ready(events) == calls(2, 'plus')
    assert {e for e in events if e[0] == 'label'} == {('label', 1, 'robot'), ('label', 2, 'plus')}


def test_of_several_changes_the_last_one_counts(start_busy):
    worker, segmenter, events = start_busy()
    first = worker.reconfiguration.latest_vocabulary
    begun, may_go_on = threading.Event(), threading.Event()

    def gate():
        segmenter.gate = None
        begun.set()
        assert may_go_on.wait(PATIENCE)

    segmenter.gate = gate
    second = words(17, first)
    worker.reconfiguration.request(second, PLUS)
    assert begun.wait(PATIENCE)
    assert worker.reconfiguration.vocabulary_state.pending == second.version == 2
    worker.reconfiguration.request(words(18, second), replace(SETTINGS, preset='paper'))
    may_go_on.set()
    wait_for(lambda: ('label', 3, 'paper') in events)
    assert {e for e in events if e[0] in ('label', 'announced')} == {
        *(('announced', 1, 'robot'), ('label', 1, 'robot')),
        *(('announced', 3, 'paper'), ('label', 3, 'paper')),
    }
    # Back to what is in force before anything has come of a change.
    begun.clear()
    may_go_on.clear()
    events.clear()
    segmenter.gate = gate
    worker.reconfiguration.request(settings=SETTINGS)
    assert begun.wait(PATIENCE)
    worker.reconfiguration.request(settings=replace(SETTINGS, preset='paper'))
    may_go_on.set()
    wait_for(lambda: events.count(('label', 3, 'paper')) > 5)
    assert len(made_ready(events)) == 1 and len(set(events)) == 2


def test_what_cannot_be_made_ready_does_not_keep_a_change_waiting(start_busy):
    worker, segmenter, events = start_busy()
    events.clear()

    def gate():
        raise RuntimeError('no memory left')

    segmenter.gate = gate
    worker.reconfiguration.request(words(17, worker.reconfiguration.latest_vocabulary), PLUS)
    wait_for(lambda: ('label', 2, 'plus') in events)
    assert made_ready(events) == calls(2, 'plus')[:1]
    assert worker.reconfiguration.vocabulary_state.failure == ''


def test_calls_that_give_way_to_others_are_made_ready_once(start_busy):
    worker, segmenter, events = start_busy()
    segmenter.fixed_calls._capacity = 2
    segmenter.fixed_calls._reserved.clear()
    events.clear()
    worker.reconfiguration.request(settings=PLUS)
    wait_for(lambda: ('label', 1, 'plus') in events)
    assert sorted(made_ready(events)) == sorted(calls(1, 'plus'))


def test_a_device_that_is_lost_meanwhile_does_not_keep_a_change_waiting(
    start_busy, make_segmenter, monkeypatch
):
    worker, segmenter, events = start_busy()
    on_cpu = make_segmenter(WithGraphs)
    on_cpu.events = events
    monkeypatch.setattr(worker._engine, '_make_cpu_segmenter', lambda: on_cpu)
    monkeypatch.setattr(device_faults, '_still_raises', lambda _: True)
    events.clear()

    def gate():
        raise RuntimeError('CUDA error: unspecified launch failure')

    segmenter.gate = gate
    worker.reconfiguration.request(words(17, worker.reconfiguration.latest_vocabulary), PLUS)
    wait_for(lambda: ('label', 2, 'plus') in events)
    assert made_ready(events) == calls(2, 'plus')[:1]
    assert worker._engine.segmenter is on_cpu


def test_the_end_does_not_wait_until_everything_is_ready(start_busy):
    worker, segmenter, events = start_busy()
    begun, may_go_on = threading.Event(), threading.Event()

    def gate():
        begun.set()
        assert may_go_on.wait(PATIENCE)

    segmenter.gate = gate
    events.clear()
    worker.reconfiguration.request(settings=PLUS)
    assert begun.wait(PATIENCE)
    assert not worker.stop(0.0)
    may_go_on.set()
    assert worker.stop(PATIENCE)
    assert made_ready(events) == calls(1, 'plus')[:1]


class CameraWithImages(IdleCamera):
    """Has as many images as `images`, which are published when `may_publish` is set."""

    def __init__(self, name='camera'):
        self.name = name
        self.images = []
        self.published, self.refused = [], []
        self.publishes, self.may_publish = threading.Event(), threading.Event()
        self.statistics = SimpleNamespace(count_label=lambda *_: None)

    def image(self, name, next_ns=0):
        """An image that notes in which thread it is decoded."""
        image = SimpleNamespace(
            camera=self,
            message=name,
            header=Header(frame_id=name),
            time_ns=1,
            received_ns=1,
            next_ns=next_ns,
            is_compressed=True,
            threads=[],
            error=None,
        )

        def decode():
            image.threads.append(threading.current_thread().name.partition('_')[0])
            if image.error is not None:
                raise image.error
            return np.zeros((48, 64, 3), np.uint8)

        image.decode = decode
        return image

    def take(self, now_ns):
        return self.images.pop(0) if self.images else None

    def wait_ns(self, now_ns):
        return 0 if self.images else None

    def trace(self, header, text):
        pass

    def refuse(self, error):
        self.refused.append(str(error))

    def publish(self, image, pixels, result):
        self.publishes.set()
        assert self.may_publish.wait(PATIENCE)
        self.published.append((image.message, result.vocabulary.version))


class Gated(Segmenter):
    """Counts its calls, each of which waits for `gate`."""

    calls = 0

    def segment(self, images, vocabulary, settings=None, histories=()):
        self.calls += 1
        assert self.gate.wait(PATIENCE)
        return super().segment(images, vocabulary, settings, histories)


@pytest.fixture
def start_gated(start_worker, make_segmenter):
    """A function that starts a worker around `Gated`; returns it, its segmenter and a camera."""
    cameras, gates = [], []

    def start(announce=lambda *_: None):
        segmenter, camera = make_segmenter(Gated), CameraWithImages()
        segmenter.gate = threading.Event()
        cameras.append(camera)
        gates.append(segmenter.gate)
        worker = start_worker(segmenter, announce)
        worker.reconfiguration.request(parse_vocabulary('road', background=()))
        wait_for(lambda: worker.reconfiguration.vocabulary_state.in_force == 1)
        return worker, segmenter, camera

    yield start
    for gate in (*gates, *(camera.may_publish for camera in cameras)):
        gate.set()


def test_one_batch_is_published_while_the_next_is_labelled_and_no_third(start_gated):
    worker, segmenter, camera = start_gated()
    segmenter.gate.set()
    camera.images = [camera.image(name) for name in ('first', 'second', 'third', 'fourth')]
    worker.serve([camera])
    assert camera.publishes.wait(PATIENCE)
    wait_for(lambda: segmenter.calls == 2)
    # The third is not begun before the first is published, however long that takes.
    time.sleep(0.1)
    assert segmenter.calls == 2 and camera.published == []
    camera.may_publish.set()
    wait_for(lambda: len(camera.published) == 4)
    assert [name for name, _ in camera.published] == ['first', 'second', 'third', 'fourth']


def publish_first_aside(camera, then=lambda: None):
    """Give a camera an image that is published beside the engine, with no other to be labelled."""
    camera.images = [camera.image('first')]

    # As if another one had waited, which the rate or a lost listener held back then.
    def wait_ns(now_ns):
        camera.wait_ns = lambda now_ns: None
        then()
        return 0

    camera.wait_ns = wait_ns


def test_new_words_are_announced_after_the_labels_by_the_old_ones(start_gated):
    announced, published = [], []

    def announce(words, settings):
        announced.append((words.version, [*published]))

    worker, segmenter, camera = start_gated(announce)
    camera.published = published
    segmenter.gate.set()
    first = worker.reconfiguration.latest_vocabulary
    second = parse_vocabulary('road; tree', background=(), previous=first)
    publish_first_aside(camera, lambda: worker.reconfiguration.request(second))
    worker.serve([camera])
    assert camera.publishes.wait(PATIENCE)
    time.sleep(0.1)
    assert announced == [(1, [])]
    camera.may_publish.set()
    wait_for(lambda: len(announced) == 2)
    assert announced[1] == (2, [('first', 1)])


def test_a_pause_waits_for_what_is_being_published(start_gated):
    worker, segmenter, camera = start_gated()
    segmenter.gate.set()
    publish_first_aside(camera)
    worker.serve([camera])
    assert camera.publishes.wait(PATIENCE)
    pausing = threading.Thread(target=worker.pause)
    pausing.start()
    pausing.join(0.1)
    assert pausing.is_alive()
    camera.may_publish.set()
    pausing.join(PATIENCE)
    assert not pausing.is_alive() and camera.published == [('first', 1)]


def begin_call(worker, segmenter, camera):
    """Label images before, so that their time is known, and hold the engine at the next one."""
    camera.may_publish.set()
    segmenter.gate.set()
    camera.images = [camera.image('before')]
    worker.serve([camera])
    wait_for(lambda: camera.published)
    segmenter.gate.clear()
    camera.images = [camera.image('held')]
    worker.wake()
    wait_for(lambda: segmenter.calls == 2)


def test_a_compressed_image_is_decoded_while_the_engine_works(start_gated):
    worker, segmenter, camera = start_gated()
    begin_call(worker, segmenter, camera)
    image = camera.image('next', next_ns=time.monotonic_ns() + 10**12)
    camera.images = [image]
    worker.offer(image)
    wait_for(lambda: image.threads)
    assert segmenter.calls == 2
    segmenter.gate.set()
    wait_for(lambda: len(camera.published) == 3)
    assert image.threads == ['decoding']


@pytest.mark.parametrize('why', ['a newer one is to be expected', 'a newer one has come'])
def test_the_newest_image_is_labelled_and_no_other_decoded_in_vain(start_gated, why):
    worker, segmenter, camera = start_gated()
    begin_call(worker, segmenter, camera)
    has_come = why == 'a newer one has come'
    older = camera.image('older', next_ns=time.monotonic_ns() + 10**12 if has_come else 1)
    camera.images = [older]
    worker.offer(older)
    if has_come:
        wait_for(lambda: older.threads)
    newer = camera.image('newer')
    camera.images = [newer]
    worker.offer(newer)
    segmenter.gate.set()
    wait_for(lambda: len(camera.published) == 3)
    assert camera.published[-1][0] == 'newer' and newer.threads == ['inference']
    assert older.threads == (['decoding'] if has_come else [])


def test_an_image_that_cannot_be_decoded_ahead_is_refused_once(start_gated):
    worker, segmenter, camera = start_gated()
    begin_call(worker, segmenter, camera)
    image = camera.image('damaged', next_ns=time.monotonic_ns() + 10**12)
    image.error = ImageError('no JPEG')
    camera.images = [image]
    worker.offer(image)
    wait_for(lambda: image.threads)
    segmenter.gate.set()
    wait_for(lambda: camera.refused)
    assert camera.refused == ['no JPEG']
