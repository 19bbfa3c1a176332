"""Calls of fixed shape over buffers that stay: what CUDA graphs replay, run without a graph."""

import gc
import logging
import threading
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from reference_weights import reference_clip
from torch._subclasses.fake_tensor import FakeTensorMode

from cliptrase_ros.segmentation import segmenter as segmenter_module
from cliptrase_ros.segmentation.device_faults import (
    give_memory_back,
    is_device_lost,
    whole_device,
)
from cliptrase_ros.segmentation.kernels import no_kernels, recorded_launches
from cliptrase_ros.segmentation.model.backbone import DenseBackbone
from cliptrase_ros.segmentation.model.label_table import LabelTable
from cliptrase_ros.segmentation.model.preprocessing import framing_of
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run import graphs
from cliptrase_ros.segmentation.run.graphs import EagerQueue, FixedCalls, GraphQueue, batches
from cliptrase_ros.segmentation.run.pipeline import Bounds, Pipeline
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import PRESETS, SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

CPU = torch.device('cpu')
HALF = (0.5, 0.5, 0.5)
SETTINGS = SegmentationSettings(resolution=96)


@pytest.fixture(scope='module')
def segmenter(device):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    segmenter = Segmenter(LoadedModel(reference_clip(), tokenizer, HALF, HALF), device)
    segmenter.fixed_calls = None
    return segmenter


@pytest.fixture(scope='module')
def vocabularies(segmenter):
    return [
        segmenter.encode_vocabulary(parse_vocabulary(words, background))
        for words, background in (
            ('road; person: pedestrian; tree', ['sky', 'wall']),
            ('car; dog; house; lamp', []),
        )
    ]


@pytest.fixture
def fixed(segmenter, make_queue):
    """A function that gives the segmenter calls of fixed shape, until the test ends."""

    def give(queue=None, **arguments):
        arguments = {'patience': 1, **arguments}
        queue = queue or make_queue(segmenter.device)
        segmenter.fixed_calls = FixedCalls(segmenter.pipeline, queue, **arguments)
        return segmenter

    yield give
    segmenter.fixed_calls = None


def image(seed, height=96, width=128):
    blocks = np.random.RandomState(seed).randint(0, 256, (height // 24, width // 32, 3))
    return blocks.astype(np.uint8).repeat(24, 0).repeat(32, 1)


def assert_equal(results, expected):
    for result, other in zip(results, expected, strict=True):
        # Sums over more columns or images may round a probability the other way.
        assert (result.label == other.label).mean() > 0.995
        assert np.abs(result.confidence.astype(int) - other.confidence).max() <= 1
        assert result.vocabulary is other.vocabulary


@pytest.mark.parametrize(
    'choices',
    [
        {},
        {'preset': 'plus', 'refinement': 'pamr'},
        {'preset': 'sc_clip', 'window': 64},
        {'preset': 'sc_clip', 'refinement': 'pamr'},
    ],
    ids=str,
)
def test_frames_of_any_number_and_size_are_labelled_as_without(
    segmenter, vocabularies, fixed, choices
):
    settings = replace(SETTINGS, **choices)
    images = [image(i) for i in range(5)] + [image(5, 144, 96), image(6, 144, 96)]
    expected = [segmenter.segment([i], vocabularies[0], settings)[0] for i in images]
    assert_equal(fixed().segment(images, vocabularies[0], settings), expected)


def test_more_frames_than_the_largest_batch_reuse_its_buffers(segmenter, vocabularies, fixed):
    images = [image(i % 3) for i in range(17)]
    expected = segmenter.segment(images[:3], vocabularies[0], SETTINGS)
    results = fixed().segment(images, vocabularies[0], SETTINGS)
    assert_equal(results, [expected[i % 3] for i in range(17)])
    assert len(segmenter.fixed_calls) == 2


def test_vocabularies_and_thresholds_change_without_another_call(segmenter, vocabularies, fixed):
    confidence = segmenter.segment([image(0)], vocabularies[0], SETTINGS)[0].confidence
    strict = replace(SETTINGS, min_confidence=float(np.median(confidence)) / 255)
    cases = [(v, s) for v in vocabularies for s in (SETTINGS, strict)]
    expected = [segmenter.segment([image(0)], v, s) for v, s in cases]
    assert (expected[0][0].label != expected[1][0].label).any()
    fixed()
    for _ in range(2):
        for (vocabulary, settings), wanted in zip(cases, expected, strict=True):
            assert_equal(segmenter.segment([image(0)], vocabulary, settings), wanted)
    assert len(segmenter.fixed_calls) == 1


@pytest.mark.parametrize('bounds', [Bounds(clusters=1), Bounds(rounds=0)], ids=['slots', 'rounds'])
def test_frames_beyond_the_bounds_are_labelled_exactly(segmenter, vocabularies, fixed, bounds):
    images = [image(0), np.full((96, 128, 3), 127, np.uint8)]
    settings = replace(SETTINGS, preset='paper')
    expected = segmenter.segment(images, vocabularies[0], settings)
    assert_equal(fixed(bounds=bounds).segment(images, vocabularies[0], settings), expected)


def test_warmed_up_calls_are_those_that_frames_need(segmenter, vocabularies, fixed):
    fixed(patience=9).warm_up([(96, 128), (144, 96)], 5, vocabularies[0], SETTINGS)
    ready = len(segmenter.fixed_calls)
    images = [image(i) for i in range(7)] + [image(7, 144, 96)]
    segmenter.segment(images, vocabularies[1], SETTINGS)
    assert ready == len(segmenter.fixed_calls) == 6


def test_calls_are_bounded_in_number(segmenter, vocabularies, fixed):
    fixed(capacity=2)
    for width in (96, 97, 98, 96):
        segmenter.segment([image(0)[:, :width]], vocabularies[0], SETTINGS)
    assert len(segmenter.fixed_calls) == 2


def test_a_call_is_made_for_shapes_that_come_again(segmenter, vocabularies, fixed):
    fixed(patience=2)
    ready = []
    for height in (96, 95, 96):
        segmenter.segment([image(0)[96 - height :]], vocabularies[0], SETTINGS)
        ready.append(len(segmenter.fixed_calls))
    assert ready == [0, 0, 1]


class Traced(EagerQueue):
    """Keeps what was recorded, waited for and forgotten, in order."""

    def __init__(self, device):
        super().__init__(device)
        self.events = []

    def capture(self, function):
        self.events.append('capture')
        return super().capture(function)

    def synchronise(self):
        self.events.append('wait')

    def clear(self):
        self.events.append('forget')


def test_graphs_are_forgotten_all_together_when_nothing_runs(segmenter, vocabularies, fixed):
    queue = Traced(segmenter.device)
    fixed(queue, capacity=2, patience=2)

    def label(width, times):
        queue.events.clear()
        for _ in range(times):
            segmenter.segment([image(0)[:, :width]], vocabularies[0], SETTINGS)
        return queue.events

    for width in (96, 97):
        assert label(width, 2) == ['capture']
    for width in (98, 99):
        assert label(width, 2) == ['wait', 'capture']
    assert label(100, 2) == ['wait', 'wait', 'forget', 'capture']
    # The other one in use comes back at once, one that had given way does not.
    assert label(96, 1) == [] and label(99, 1) == ['capture']
    assert len(segmenter.fixed_calls) == 2


def test_announced_calls_are_all_kept(segmenter, vocabularies, fixed):
    queue = Traced(segmenter.device)
    fixed(queue, capacity=2, patience=9)
    sizes = [(96, 96), (96, 97)]
    segmenter.warm_up(sizes, 2, vocabularies[0], SETTINGS)
    assert queue.events == ['capture'] * 4
    # Beside those before, which are in use meanwhile; the next ones take their places.
    for preset in ('plus', 'paper'):
        segmenter.warm_up(sizes, 2, vocabularies[0], replace(SETTINGS, preset=preset))
        assert len(segmenter.fixed_calls) == 8


def test_a_lost_device_is_left_alone(segmenter, vocabularies, fixed):
    queue = Traced(segmenter.device)
    fixed(queue)
    segmenter.segment([image(0)], vocabularies[0], SETTINGS)

    def fail():
        raise RuntimeError('CUDA error: unspecified launch failure')

    queue.synchronise = fail
    segmenter.fixed_calls.clear()
    assert len(segmenter.fixed_calls) == 1 and queue.events == ['capture']


class Refuses(Traced):
    def __init__(self, device, error):
        super().__init__(device)
        self.error = error
        self.half_made = None

    def capture(self, function):
        super().capture(function)
        if self.error is None:
            return function
        self.half_made = weakref.ref(function)
        raise self.error

    def clear(self):
        super().clear()
        assert self.half_made() is None


def test_after_a_failed_capture_frames_are_labelled_without_and_it_is_said_once(
    segmenter, vocabularies, fixed, caplog
):
    images = [image(0), image(1, 144, 96)]
    expected = segmenter.segment(images, vocabularies[0], SETTINGS)
    error = RuntimeError('capture was invalidated')
    error.__context__ = RuntimeError('operation not permitted when stream is capturing\nmore')
    queue = Refuses(segmenter.device, error)
    fixed(queue)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert_equal(segmenter.segment(images, vocabularies[0], SETTINGS), expected)
    assert queue.events == ['capture']
    (record,) = caplog.records
    assert '128 x 96' in record.message and 'invalidated' in record.message
    assert 'not permitted' in record.message


def behind(error, context):
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
        behind(RuntimeError('capture was invalidated'), torch.OutOfMemoryError('out of memory')),
    ],
    ids=['allocator', 'library', 'context'],
)
def test_too_little_memory_is_told_to_the_caller_once(segmenter, vocabularies, fixed, error):
    expected = segmenter.segment([image(0)], vocabularies[0], SETTINGS)
    queue = Refuses(segmenter.device, error)
    fixed(queue, patience=2)
    assert_equal(segmenter.segment([image(0)], vocabularies[0], SETTINGS), expected)
    with pytest.raises(torch.OutOfMemoryError, match='memory|ALLOC'):
        segmenter.segment([image(0)], vocabularies[0], SETTINGS)
    assert queue.events == ['capture', 'wait', 'forget']
    # As patient as before, lest it fail at every frame.
    assert_equal(segmenter.segment([image(0)], vocabularies[0], SETTINGS), expected)
    assert queue.events == ['capture', 'wait', 'forget']


@pytest.mark.parametrize(
    ('count', 'sizes'), [(1, [1]), (3, [2, 1]), (7, [4, 2, 1]), (8, [8]), (21, [8, 8, 4, 1])]
)
def test_batches_are_of_few_sizes(count, sizes):
    assert list(batches(count)) == sizes


def half_precision(make):
    torch.set_default_dtype(torch.float16)
    try:
        return make()
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('kernels', [recorded_launches, no_kernels])
@pytest.mark.parametrize(
    ('preset', 'choices'),
    [
        ('paper', {'image_prior': True}),
        ('robot', {'window': 64, 'refinement': 'edges'}),
        ('robot', {'refinement': 'pamr', 'min_presence': 0.5}),
        ('plus', {'window': 64, 'smoothing': 0.5, 'min_presence': 0.5, 'scores': True}),
        ('sc_clip', {'window': 64, 'min_presence': 0.5, 'scores': True}),
        ('sc_clip', {'window': 64, 'min_area': 0.1, 'refinement': 'edges'}),
        ('sc_clip', {'window': 0, 'min_area': 0.1, 'refinement': 'pamr'}),
    ],
    ids=str,
)
def test_on_cuda_nothing_waits_for_the_device(preset, choices, kernels):
    # Tensors without contents have shapes, dtypes and devices alone: whatever would read a value,
    # or mix devices, raises.
    method = replace(PRESETS[preset], **choices)
    framing = framing_of(method.frame, (120, 160), 96, 16)
    config = open_clip.get_model_config('ViT-B-16-quickgelu')
    with (
        kernels(),
        FakeTensorMode(),
        torch.inference_mode(),
        torch.device('cuda'),
    ):
        visual = half_precision(lambda: open_clip.CLIP(**config).visual)
        pixels = torch.empty(3, 1, 1)
        table = LabelTable(
            torch.empty(32, 512),
            torch.empty(32, dtype=torch.int64),
            torch.empty((), dtype=torch.int64),
            torch.empty((), dtype=torch.int64),
            torch.empty(65, dtype=torch.uint8),
            255,
            100.0,
        )
        pipeline = Pipeline(DenseBackbone(visual), pixels, pixels)
        frames = torch.empty(2, 120, 160, 3, dtype=torch.uint8)
        result = pipeline(frames, framing, table, torch.empty(()), method, Bounds())
    shapes = [(2, 120, 160), (2, 120, 160), (2,)] + [(2, 64, 6, 8)] * method.scores
    for tensor, shape in zip(result.tensors, shapes, strict=True):
        assert tensor.shape == shape and tensor.device.type == 'cuda'


def make_segmenter(precision='float32'):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    return Segmenter(LoadedModel(reference_clip(), tokenizer, HALF, HALF), 'cpu', precision)


def test_a_segmenter_moves_with_its_vocabulary(vocabularies, monkeypatch):
    # The device without contents: what is left behind on the processor does not fit it.
    monkeypatch.setattr(segmenter_module, 'select_device', torch.device)
    moved = make_segmenter().to('meta')
    meta = moved.device
    assert meta.type == 'meta'
    pixels = (moved.pipeline.mean, moved.pipeline.std)
    weights = moved.model.state_dict().values()
    assert {tensor.device for tensor in (*weights, *pixels)} == {meta}
    method = SETTINGS.method
    framing = framing_of(method.frame, (96, 128), 96, 16)
    frames = torch.zeros(2, 96, 128, 3, dtype=torch.uint8, device=meta)
    with torch.inference_mode():
        result = moved.pipeline(
            frames,
            framing,
            vocabularies[0].table.to(meta),
            torch.zeros((), device=meta),
            method,
            Bounds(),
        )
    assert result.label.shape == (2, 96, 128) and result.label.device == meta


def test_a_segmenter_moves_to_another_precision(vocabularies):
    first = make_segmenter()
    first.fixed_calls = FixedCalls(first.pipeline, EagerQueue(CPU), patience=1)
    first.segment([image(0)], vocabularies[0], SETTINGS)
    calls = first.fixed_calls
    moved = first.to('cpu', 'bfloat16')
    assert len(calls) == 0, 'the memory of its graphs is kept'
    expected = make_segmenter('bfloat16').segment([image(0)], vocabularies[0], SETTINGS)
    found = moved.segment([image(0)], vocabularies[0], SETTINGS)
    assert_equal(found, expected)
    exact = make_segmenter().segment([image(0)], vocabularies[0], SETTINGS)
    assert (found[0].confidence != exact[0].confidence).any()


class Cuda:
    """What `GraphQueue` asks of torch.cuda, in place of it: 32 streams in turn, and one capture.

    Everything is kept in `events`, in order; `stream` is the current one, and `order` says which
    stream each has begun to wait for: (earlier, later).
    """

    def __init__(self, monkeypatch):
        self.events = []
        self.stream = 'default'
        self.count = 0
        self.fails = None
        self.order = []
        self.polls = 1
        cuda = self

        class Stream(int):
            def wait_event(self, event):
                cuda.order.append((event.stream, self))

        class Event:
            """Over when it has been asked `polls` times."""

            def __init__(self, blocking=False):
                self.blocking = blocking

            def record(self, stream):
                self.stream, self.polls = stream, cuda.polls

            def query(self):
                self.polls -= 1
                return self.polls <= 0

            def synchronize(self):
                cuda.events.append('sleep' if self.blocking else 'spin')

        class Generator:
            def clone_state(self):
                return 'new random state'

            def graphsafe_set_state(self, state):
                cuda.events.append(state)

        class Graph:
            def reset(self):
                cuda.events.append('reset')

            def replay(self):
                cuda.events.append('replay')

        def make_stream():
            self.count += 1
            return Stream(self.count % 32)

        @contextmanager
        def stream(wanted):
            self.stream, before = wanted, self.stream
            yield
            self.stream = before

        @contextmanager
        def capture(graph, pool, stream, capture_error_mode):
            assert whole_device._is_owned() and not gc.isenabled()
            self.events.append('capture')
            with torch.cuda.stream(stream):
                yield
            self.events.append('captured')
            if self.fails is not None:
                raise self.fails

        for name, fake in (
            ('device', lambda _: nullcontext()),
            ('Stream', make_stream),
            ('Event', Event),
            ('stream', stream),
            ('set_stream', lambda wanted: setattr(self, 'stream', wanted)),
            ('current_stream', lambda *_: self.stream),
            ('graph', capture),
            ('CUDAGraph', Graph),
            ('default_generators', [Generator()]),
            ('graph_pool_handle', lambda: (0, 1)),
            ('synchronize', lambda _: self.concern_all('wait')),
            ('empty_cache', lambda: self.concern_all('empty_cache')),
            ('is_initialized', lambda: True),
        ):
            monkeypatch.setattr(torch.cuda, name, fake)
        for name in ('_cuda_endAllocateToPool', '_cuda_releasePool'):
            monkeypatch.setattr(
                torch._C, name, lambda *_, name=name: self.events.append(name), raising=False
            )
        monkeypatch.setattr(torch._C, '_host_emptyCache', lambda: None, raising=False)
        monkeypatch.setattr(graphs._DeviceStreams, '_by_device', {})
        monkeypatch.setattr(GraphQueue, '_has_failed', False)

    def is_capturing(self):
        return self.events.count('capture') > self.events.count('captured')

    def concern_all(self, event):
        assert whole_device._is_owned()
        self.events.append(event)


@pytest.fixture
def cuda(monkeypatch):
    return Cuda(monkeypatch)


DEVICE = torch.device('cuda', 0)


def free_for_another_thread(lock):
    def take():
        taken.append(lock.acquire(blocking=False))
        if taken[0]:
            lock.release()

    taken = []
    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def test_nobody_else_captures_or_waits_for_the_device_during_a_capture(cuda):
    queue = GraphQueue(DEVICE)
    is_free = []
    queue.capture(lambda: is_free.append(free_for_another_thread(whole_device)))
    # The first run is no part of it: kernels are compiled then, which may take long.
    assert is_free == [True, *[False] * 3] and free_for_another_thread(whole_device)
    # What a capture is protected from takes the lock itself, as `Cuda` asserts.
    queue.synchronise()
    queue.clear()
    give_memory_back()
    is_device_lost(RuntimeError('CUDA error: invalid argument'), DEVICE)
    assert cuda.events == [
        *('capture', 'captured', 'wait', 'reset', 'empty_cache', 'empty_cache', 'wait', 'wait')
    ]


def test_each_computes_on_a_stream_of_its_own(cuda):
    queues = [GraphQueue(DEVICE) for _ in range(31)]
    copying = {stream for queue in queues for stream in (queue._upload, queue._download)}
    computing = {queue._compute for queue in queues[:30]}
    assert len(copying) == 2 and len(computing) == 30 and not copying & computing
    with pytest.raises(RuntimeError, match='all streams'):
        queues[30].capture(lambda: None)
    del queues[7]
    gc.collect()
    GraphQueue(DEVICE).capture(lambda: None)


def test_a_stream_is_free_for_others_when_its_graphs_have_gone(cuda):
    class Unused(list):
        def append(self, stream):
            cuda.events.append('free')
            super().append(stream)

    streams = graphs._DeviceStreams.of(DEVICE)
    streams.unused = Unused(streams.unused)
    queue = GraphQueue(DEVICE)
    replay = queue.capture(lambda: None)
    replay()
    del queue, replay
    gc.collect()
    assert cuda.events == ['capture', 'captured', 'replay', 'reset', 'free']


def test_each_step_of_a_call_waits_for_the_one_before_and_the_caller_gets_its_stream_back(cuda):
    queue = GraphQueue(DEVICE)
    end = queue.new_event()
    for hands_over in (True, False):
        cuda.order.clear()
        streams = []
        with queue.begin_upload(hands_over):
            streams.append(cuda.stream)
            queue.begin_compute()
            streams.append(cuda.stream)
            queue.begin_download()
            streams.append(cuda.stream)
            queue.record(end)
        upload, compute, download = streams
        assert cuda.stream == 'default' and end.stream == download and len(set(streams)) == 3
        handed_over = [('default', compute)] if hands_over else []
        assert cuda.order == [*handed_over, (upload, compute), (compute, download)]


@pytest.mark.parametrize(
    ('spin_ms', 'polls', 'events'), [(0, 1, ['sleep']), (10, 3, []), (1, 10**9, ['sleep'])]
)
def test_waiting_sleeps_after_it_has_polled_as_long_as_it_may(cuda, spin_ms, polls, events):
    queue = GraphQueue(DEVICE, spin_ms)
    cuda.polls = polls
    event = queue.new_event()
    queue.record(event)
    queue.wait(event)
    assert cuda.events == events


def test_what_cublas_works_in_is_first_asked_for_within_the_capture(cuda):
    streams = []
    queue = GraphQueue(DEVICE)
    queue.capture(lambda: streams.append((cuda.stream, cuda.is_capturing())))
    assert streams == [('default', False)] * 3 + [(queue._compute, True)]


@pytest.mark.parametrize(
    ('error', 'ends_captures'),
    [(RuntimeError('capture was invalidated'), True), (torch.OutOfMemoryError('memory'), False)],
    ids=['broken', 'memory'],
)
def test_after_a_failed_capture_pytorch_knows_that_it_has_ended(cuda, error, ends_captures):
    queue = GraphQueue(DEVICE)
    cuda.fails = error
    with pytest.raises(RuntimeError, match=str(error)):
        queue.capture(lambda: None)
    assert cuda.events[2:] == [
        'new random state',
        'reset',
        '_cuda_endAllocateToPool',
        '_cuda_releasePool',
    ]
    assert cuda.stream == 'default' and gc.isenabled()
    cuda.fails = None
    if ends_captures:
        with pytest.raises(RuntimeError, match='earlier capture'):
            GraphQueue(DEVICE).capture(lambda: None)
    else:
        queue.capture(lambda: None)


def test_a_pool_that_newer_pytorch_has_released_is_not_released_again(cuda, monkeypatch):
    def refuse(*_):
        raise RuntimeError('endAllocatePool: not currently recording to mempool_id')

    monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', refuse, raising=False)
    cuda.fails = torch.OutOfMemoryError('memory')
    with pytest.raises(torch.OutOfMemoryError):
        GraphQueue(DEVICE).capture(lambda: None)
    assert cuda.events[2:] == ['new random state', 'reset']


def test_calls_given_up_are_made_again_only_when_asked_for_often(segmenter, vocabularies, fixed):
    queue = Traced(segmenter.device)
    fixed(queue, patience=3)

    def label(times):
        queue.events.clear()
        for _ in range(times):
            segmenter.segment([image(0)], vocabularies[0], SETTINGS)
        return queue.events

    assert label(3) == ['capture']
    segmenter.fixed_calls.clear()
    assert label(2) == [] and label(1) == ['capture']


def test_too_little_memory_for_one_call_does_not_make_the_others_again_at_once(
    segmenter, vocabularies, fixed
):
    queue = Refuses(segmenter.device, None)
    fixed(queue, patience=2)

    def label(height):
        queue.events.clear()
        segmenter.segment([image(0, height)], vocabularies[0], SETTINGS)
        return queue.events

    assert label(96) == [] and label(96) == ['capture']
    queue.error = torch.OutOfMemoryError('CUDA out of memory')
    assert label(144) == []
    with pytest.raises(torch.OutOfMemoryError):
        label(144)
    queue.error = None
    assert label(96) == [] and label(96) == ['capture']


def test_words_half_loaded_are_loaded_again(segmenter, vocabularies, fixed, monkeypatch):
    expected = segmenter.segment([image(0)], vocabularies[0], SETTINGS)
    fixed().segment([image(0)], vocabularies[0], SETTINGS)
    (call,) = segmenter.fixed_calls._calls.values()

    class Broken:
        def fill_(self, value):
            raise RuntimeError('CUDA error: invalid argument')

    with monkeypatch.context() as patch:
        patch.setattr(call, '_min_confidence', Broken())
        with pytest.raises(RuntimeError, match='invalid argument'):
            segmenter.segment([image(0)], vocabularies[1], SETTINGS)
    assert_equal(segmenter.segment([image(0)], vocabularies[0], SETTINGS), expected)


def test_what_is_missing_for_a_change_are_the_calls_that_there_are_now(
    segmenter, vocabularies, fixed
):
    large = segmenter.encode_vocabulary(
        parse_vocabulary('; '.join(f'thing {i}' for i in range(17)), [])
    )
    plus = replace(SETTINGS, preset='plus')
    strict = replace(SETTINGS, min_confidence=0.5)
    fixed(patience=1).warm_up([(96, 128)], 2, vocabularies[0], SETTINGS)
    segmenter.segment([image(0, 144, 96)], vocabularies[0], SETTINGS)
    calls = [((96, 128), 1), ((96, 128), 2), ((144, 96), 1)]

    def missing(settings, vocabulary):
        return segmenter.missing_calls([(96, 128), (72, 96)], 1, vocabulary, settings)

    assert missing(strict, vocabularies[1]) == [((72, 96), 1)]
    for settings, vocabulary in ((SETTINGS, large), (plus, vocabularies[0])):
        assert missing(settings, vocabulary) == [*calls, ((72, 96), 1)]
        for size, count in calls:
            segmenter.make_ready(size, count, vocabulary, settings)
        assert missing(settings, vocabulary) == [((72, 96), 1)]
    # All of them are ready, and those for the settings before are still there.
    assert missing(SETTINGS, vocabularies[0]) == [((72, 96), 1)]
    segmenter.fixed_calls._cannot_capture = True
    assert missing(SETTINGS, vocabularies[0]) == []
    segmenter.fixed_calls = None
    assert missing(SETTINGS, vocabularies[0]) == []
