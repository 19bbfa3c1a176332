"""Labelling goes on when a GPU runs out of memory or is lost."""

import copy
import weakref
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from tiny_clip import TINY_CONFIG

from cliptrase_ros.segmentation import device_faults
from cliptrase_ros.segmentation.device_faults import is_device_lost, is_out_of_memory
from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.run.graphs import EagerQueue, FixedCalls
from cliptrase_ros.segmentation.segmenter import Segmentation, Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams import fault_tolerance
from cliptrase_ros.streams.fault_tolerance import FaultTolerantEngine

SETTINGS = SegmentationSettings(resolution=64)

OUT_OF_MEMORY = [
    torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore'),
    RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`'),
    RuntimeError('CUDA driver error: out of memory'),
    RuntimeError('Triton Error [CUDA]: out of memory'),
]
LOST = [
    RuntimeError('CUDA error: unspecified launch failure'),
    RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED'),
]
if hasattr(torch, 'AcceleratorError'):
    LOST.append(torch.AcceleratorError('CUDA error: device-side assert triggered'))

# The device goes on after these.
PASSING = [
    RuntimeError('CUDA error: operation not permitted when stream is capturing'),
    RuntimeError('CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx()`'),
    RuntimeError('Triton Error [CUDA]: invalid argument'),
]
if hasattr(torch, 'AcceleratorError'):
    PASSING.append(torch.AcceleratorError('CUDA error: invalid argument'))


class Failing(Segmenter):
    """Fails as a GPU does: for batches larger than `most`, with `error`."""

    error = None
    most = 0
    calls = ()
    encodes = True
    device_is_lost = False

    def encode_vocabulary(self, vocabulary):
        if not self.encodes:
            Failing.device_is_lost = True
            raise LOST[0]
        return super().encode_vocabulary(vocabulary)

    def segment(self, images, vocabulary, settings=None, histories=()):
        self.calls = (*self.calls, len(images))
        if self.error is not None and len(images) > self.most:
            Failing.device_is_lost = self.error in LOST
            raise self.error
        if any(image[0, 0, 0] == 13 for image in images):
            raise ValueError('an unlucky image')
        return super().segment(images, vocabulary, settings, histories)


@pytest.fixture(scope='module')
def segmenters(tiny_state):
    """One that fails when it is told to, and a healthy one."""

    def make(kind):
        model = open_clip.CLIP(**TINY_CONFIG)
        model.load_state_dict(tiny_state)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        tokenizer = open_clip.SimpleTokenizer(context_length=77)
        return kind(LoadedModel(model, tokenizer, mean, std, 'tiny'))

    return make(Failing), make(Segmenter)


@pytest.fixture
def failing(segmenters):
    segmenter = segmenters[0]
    segmenter.error, segmenter.most, segmenter.calls, segmenter.encodes = None, 0, (), True
    return segmenter


@pytest.fixture
def healthy(segmenters):
    return segmenters[1]


@pytest.fixture(autouse=True)
def stand_in_device(monkeypatch):
    """What is asked in place of a CUDA device: it raises again after an error of `LOST`."""
    monkeypatch.setattr(Failing, 'device_is_lost', False)
    monkeypatch.setattr(device_faults, '_still_raises', lambda _: Failing.device_is_lost)


@pytest.fixture
def engine(failing):
    engine = FaultTolerantEngine(failing)
    # As on a GPU.
    engine.largest_batch = engine._full_batch = 8
    return engine


@pytest.fixture
def images():
    return list(np.random.default_rng(0).integers(20, 256, (6, 64, 64, 3), np.uint8))


def encode(engine):
    return engine.encode_vocabulary(parse_vocabulary('road; tree', background=()))


@pytest.mark.parametrize('error', OUT_OF_MEMORY, ids=str)
def test_out_of_memory_makes_batches_smaller_and_labels_all_the_same(engine, images, error):
    expected = engine.segment_each(images, encode(engine), SETTINGS)
    segmenter = engine.segmenter
    segmenter.error, segmenter.most, segmenter.calls = error, 2, ()
    results = engine.segment_each(images, encode(engine), SETTINGS)
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result, Segmentation)
        np.testing.assert_array_equal(result.label, wanted.label)
    assert segmenter.calls == (6, 3, 1, 1, 1, 1, 1, 1)
    assert engine.gave_up is None
    fault, matters = engine.fault
    assert matters and type(error).__name__ in fault and '\n' not in fault


def test_batches_grow_again_after_a_quiet_time(engine, images, monkeypatch):
    engine.segmenter.error, engine.segmenter.most = OUT_OF_MEMORY[0], 4
    engine.segment_each(images, encode(engine), SETTINGS)
    assert engine.largest_batch == 3
    monkeypatch.setattr(fault_tolerance, 'REGROWTH_S', 0.0)
    monkeypatch.setattr(fault_tolerance, 'RECENT_S', 0.0)
    engine.segmenter.error = None
    for batch in (6, 8, 8):
        engine.segment_each(images, encode(engine), SETTINGS)
        assert engine.largest_batch == batch
    assert not engine.fault[1]


@pytest.mark.parametrize('error', OUT_OF_MEMORY + LOST, ids=str)
def test_without_permission_the_cpu_stays_free(engine, images, error):
    vocabulary = encode(engine)
    engine.segmenter.error = error
    assert engine.segment_each(images[:2], vocabulary, SETTINGS) == [error] * 2
    assert engine.fault[1]
    assert engine.gave_up is error
    # It may have been another process.
    engine.segmenter.error = None
    assert isinstance(engine.segment_each(images[:1], vocabulary, SETTINGS)[0], Segmentation)
    # What was lost then stays so.
    assert engine.gave_up is error


@pytest.mark.parametrize('error', OUT_OF_MEMORY + LOST, ids=str)
def test_cpu_takes_over_where_it_may(failing, healthy, images, error):
    engine = FaultTolerantEngine(failing, lambda: healthy)
    vocabulary = encode(engine)
    engine.segmenter.error = error
    results = engine.segment_each(images, vocabulary, SETTINGS)
    assert engine.segmenter is healthy
    wanted = healthy.segment(images, encode(engine), SETTINGS)
    for result, one in zip(results, wanted, strict=True):
        np.testing.assert_array_equal(result.label, one.label)
        assert result.vocabulary is vocabulary.vocabulary
    fault, matters = engine.fault
    assert matters and type(error).__name__ in fault
    assert engine.gave_up is None


@pytest.mark.parametrize('error', OUT_OF_MEMORY + LOST, ids=str)
def test_the_old_segmenter_is_freed_unless_its_device_is_lost(failing, healthy, images, error):
    # Freeing the pinned memory of a lost device ends the process.
    old = copy.copy(failing)
    engine = FaultTolerantEngine(old, lambda: healthy)
    vocabulary = encode(engine)
    old.error, old = error, weakref.ref(old)
    engine.segment_each(images, vocabulary, SETTINGS)
    assert engine.segmenter is healthy
    assert (old() is None) == (error in OUT_OF_MEMORY)


def test_memory_that_an_error_holds_is_given_back(engine, images, monkeypatch):
    class Held:
        pass

    held = []

    def segment(*arguments):
        tensor = Held()
        held.append(weakref.ref(tensor))
        raise OUT_OF_MEMORY[0]

    given_back = []
    monkeypatch.setattr(
        fault_tolerance, 'give_memory_back', lambda: given_back.append(held[-1]() is None)
    )
    vocabulary = encode(engine)
    monkeypatch.setattr(engine.segmenter, 'segment', segment)
    engine.segment_each(images[:1], vocabulary, SETTINGS)
    assert given_back == [True, True]


def test_warm_up_goes_on_where_images_can_be_labelled(failing, healthy):
    engine = FaultTolerantEngine(failing, lambda: healthy)
    engine.largest_batch = 8
    vocabulary = encode(engine)
    failing.error = OUT_OF_MEMORY[0]
    engine.warm_up((48, 64), 6, vocabulary, SETTINGS)
    # Smaller and smaller batches, then the CPU.
    assert len(failing.calls) == 3 and engine.segmenter is healthy
    failing.error = LOST[0]
    with pytest.raises(RuntimeError, match='launch failure'):
        FaultTolerantEngine(failing).warm_up((48, 64), 1, vocabulary, SETTINGS)


def test_vocabulary_is_encoded_on_the_cpu_when_the_device_is_lost_meanwhile(failing, healthy):
    failing.encodes = False
    engine = FaultTolerantEngine(failing, lambda: healthy)
    assert encode(engine).vocabulary.classes[0].name == 'road'
    with pytest.raises(RuntimeError, match='launch failure'):
        encode(FaultTolerantEngine(failing))


def test_vocabulary_is_tried_again_with_the_memory_given_back(failing, healthy, monkeypatch):
    engine = FaultTolerantEngine(failing, lambda: healthy)
    whole, calls = failing.encode_vocabulary, []

    def encode_vocabulary(vocabulary):
        calls.append(vocabulary)
        if len(calls) == 1:
            raise OUT_OF_MEMORY[0]
        return whole(vocabulary)

    monkeypatch.setattr(failing, 'encode_vocabulary', encode_vocabulary)
    assert encode(engine).vocabulary.classes[0].name == 'road'
    assert engine.segmenter is failing and len(calls) == 2


def test_cpu_that_cannot_take_over_is_told(failing, images):
    tries = []

    def fail():
        tries.append(None)
        raise OSError('no such file')

    engine = FaultTolerantEngine(failing, fail)
    vocabulary = encode(engine)
    engine.segmenter.error = LOST[0]
    assert engine.segment_each(images[:1], vocabulary, SETTINGS) == [LOST[0]]
    assert 'no such file' in engine.fault[0]
    # Loading a model takes long: not again for every image.
    engine.segment_each(images[:2], vocabulary, SETTINGS)
    assert len(tries) == 1 and 'no such file' in engine.fault[0]


def test_one_bad_image_costs_itself_alone(engine, images):
    images[2][0, 0, 0] = 13
    results = engine.segment_each(images, encode(engine), SETTINGS)
    assert [isinstance(r, Segmentation) for r in results] == [True, True, False, True, True, True]
    assert 'unlucky' in str(results[2]) and engine.fault == ('', False)
    assert engine.gave_up is None


@pytest.mark.parametrize('error', PASSING, ids=str)
def test_an_error_after_which_the_device_goes_on_costs_its_images_alone(
    failing, healthy, images, error
):
    engine = FaultTolerantEngine(failing, lambda: healthy)
    vocabulary = encode(engine)
    engine.largest_batch = 8
    failing.error, failing.most = error, 1
    results = engine.segment_each(images, vocabulary, SETTINGS)
    # Together they fail, one by one they do not.
    assert all(isinstance(result, Segmentation) for result in results)
    failing.most = 0
    assert engine.segment_each(images[:1], vocabulary, SETTINGS) == [error]
    assert engine.segmenter is failing and engine.fault == ('', False)
    assert engine.largest_batch == 8 and engine.gave_up is None


def test_a_device_that_this_program_cannot_use_is_left_to_the_cpu(failing, healthy, images):
    engine = FaultTolerantEngine(failing, lambda: healthy)
    vocabulary = encode(engine)
    failing.error = RuntimeError(
        'CUDA error: no kernel image is available for execution on the device'
    )
    assert isinstance(engine.segment_each(images[:1], vocabulary, SETTINGS)[0], Segmentation)
    assert engine.segmenter is healthy and not Failing.device_is_lost


@pytest.mark.parametrize(
    'message',
    [
        'CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation` in the documentation',
        "CUDA ran out of memory outside PyTorch's allocator.",
        'CUDA NVRTC error: NVRTC_ERROR_OUT_OF_MEMORY',
        'cuDNN error: CUDNN_STATUS_ALLOC_FAILED',
        'cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED',
        'CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`',
        *map(str, OUT_OF_MEMORY),
    ],
)
def test_lack_of_memory_is_told_in_many_words(message):
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize('error', [*LOST, *PASSING, ValueError('CUDA out of memory')], ids=str)
def test_nothing_else_is_taken_for_lack_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(('waits_that_raise', 'is_lost'), [(0, False), (1, False), (2, True)])
def test_a_device_is_lost_that_raises_at_a_second_wait(monkeypatch, waits_that_raise, is_lost):
    waits = []

    def synchronize(device):
        waits.append(device)
        if len(waits) <= waits_that_raise:
            raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'synchronize', synchronize)
    device = torch.device('cuda', 1)
    assert is_device_lost(RuntimeError('anything'), device) == is_lost
    assert waits == [device] * 2
    # What no device can have raised is no reason to ask one.
    assert not is_device_lost(ValueError('an unlucky image'), device)
    assert not is_device_lost(RuntimeError('anything'), torch.device('cpu'))
    assert len(waits) == 2


@pytest.fixture
def with_graphs(engine):
    """The engine with calls of fixed shape, as those of a GPU, that have been made."""
    segmenter = engine.segmenter
    segmenter.fixed_calls = FixedCalls(
        segmenter.pipeline, EagerQueue(torch.device('cpu')), patience=9
    )
    yield engine
    segmenter.fixed_calls = None


def test_out_of_memory_costs_the_graphs_before_it_costs_batches(with_graphs, images):
    engine, failing = with_graphs, with_graphs.segmenter
    vocabulary = encode(engine)
    engine.warm_up((64, 64), 8, vocabulary, SETTINGS)
    assert len(failing.fixed_calls) == 4
    failing.calls = ()

    class WithoutGraphs:
        """What fits without graphs; of the largest batch, never."""

        def __lt__(self, count):
            return count > 4 or len(failing.fixed_calls) > 0

    failing.error, failing.most = OUT_OF_MEMORY[0], WithoutGraphs()
    results = engine.segment_each(images[:4], vocabulary, SETTINGS)
    assert all(isinstance(result, Segmentation) for result in results)
    assert failing.calls == (4, 4) and engine.largest_batch == 8
    # As patient as with new shapes: not made again at the next image.
    engine.segment_each(images[:4], vocabulary, SETTINGS)
    assert failing.calls == (4, 4, 4) and len(failing.fixed_calls) == 0
    failing.calls = ()
    engine.segment_each(images, vocabulary, SETTINGS)
    assert failing.calls == (6, 6, 3, 3) and engine.largest_batch == 3


def test_graphs_give_way_to_new_words_and_to_graphs_of_other_sizes(with_graphs, monkeypatch):
    engine, failing = with_graphs, with_graphs.segmenter
    vocabulary = encode(engine)
    engine.warm_up((64, 64), 2, vocabulary, SETTINGS)
    encode_vocabulary, make_ready = failing.encode_vocabulary, failing.make_ready

    def only_without_graphs(function):
        def called(*arguments):
            if len(failing.fixed_calls) > 1:
                raise OUT_OF_MEMORY[0]
            return function(*arguments)

        return called

    monkeypatch.setattr(failing, 'encode_vocabulary', only_without_graphs(encode_vocabulary))
    monkeypatch.setattr(failing, 'make_ready', only_without_graphs(make_ready))
    assert encode(engine).vocabulary.classes[0].name == 'road'
    assert len(failing.fixed_calls) == 0
    monkeypatch.setattr(failing, 'make_ready', make_ready)
    engine.warm_up((64, 64), 2, vocabulary, SETTINGS)
    monkeypatch.setattr(failing, 'make_ready', only_without_graphs(make_ready))
    engine.warm_up((48, 64), 2, vocabulary, SETTINGS)
    assert [size for size, _ in failing.fixed_calls.sizes] == [(48, 64)] * 2
    assert engine.largest_batch == 8


def test_getting_ready_for_a_change_is_left_when_it_fails(with_graphs, healthy, monkeypatch):
    engine, failing = with_graphs, with_graphs.segmenter
    vocabulary = encode(engine)
    plus = replace(SETTINGS, preset='plus')
    engine.warm_up((64, 64), 2, vocabulary, SETTINGS)
    calls = engine.missing_calls([], 8, vocabulary, plus)
    assert calls == [((64, 64), 1), ((64, 64), 2)]
    failing.error = OUT_OF_MEMORY[0]
    with pytest.raises(torch.OutOfMemoryError):
        engine.make_ready(*calls[0], vocabulary, plus)
    assert engine.segmenter is failing
    # A device that is lost meanwhile is left to the CPU, where nothing has to be ready.
    engine._make_cpu_segmenter = lambda: healthy
    failing.error = LOST[0]
    engine.make_ready(*calls[1], vocabulary, plus)
    assert (
        engine.segmenter is healthy and engine.missing_calls([(64, 64)], 8, vocabulary, plus) == []
    )
