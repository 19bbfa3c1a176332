"""What a program has asked PyTorch for, while the engine works and afterwards."""

import os
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager, nullcontext

import cv2
import numpy as np
import open_clip
import pytest
import torch
from reference_weights import reference_clip

from cliptrase_ros.segmentation.model.weights import LoadedModel
from cliptrase_ros.segmentation.process_settings import (
    exact_float32,
    no_cudnn_attention,
    threads_beside_others,
)
from cliptrase_ros.segmentation.segmenter import Segmenter, load_segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary

HALF = (0.5, 0.5, 0.5)
# Since PyTorch 2.9.
HAS_PRECISIONS = hasattr(torch.backends, 'fp32_precision')


def precisions():
    """Every setting that the engine's products depend on."""
    if not HAS_PRECISIONS:
        return [torch.get_float32_matmul_precision()]
    backends = torch.backends
    products = (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv)
    return [product.fp32_precision for product in products]


def set_all(value):
    """The newer interface's settings, as a program that uses it alone does."""
    backends = torch.backends
    backends.fp32_precision = value
    for product in (backends.cuda.matmul, backends.mkldnn.matmul, backends.mkldnn.conv):
        product.fp32_precision = 'none'


def set_mkldnn(value):
    torch.backends.mkldnn.matmul.fp32_precision = value


def set_cuda(value):
    torch.backends.cuda.matmul.fp32_precision = value


def allow_tf32(_):
    torch.backends.cuda.matmul.allow_tf32 = True


REQUESTS = [
    pytest.param(torch.set_float32_matmul_precision, 'medium', id='medium'),
    pytest.param(torch.set_float32_matmul_precision, 'high', id='high'),
    pytest.param(allow_tf32, None, id='allow_tf32'),
]
if HAS_PRECISIONS:
    REQUESTS += [
        pytest.param(set_all, 'tf32', id='all-tf32'),
        pytest.param(set_all, 'bf16', id='all-bf16'),
        pytest.param(set_mkldnn, 'bf16', id='mkldnn-bf16'),
        pytest.param(set_cuda, 'tf32', id='cuda-tf32'),
    ]


@pytest.fixture(autouse=True)
def settings_are_put_back():
    yield
    if HAS_PRECISIONS:
        set_all('none')
    torch.set_float32_matmul_precision('highest')


def assert_exact():
    assert not {'tf32', 'bf16', 'high', 'medium'} & set(precisions())
    # Neither does the older interface disagree, which would raise.
    assert torch.get_float32_matmul_precision() == 'highest'
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(('request_precision', 'value'), REQUESTS)
def test_products_are_exact_within_and_as_the_program_asked_after(request_precision, value):
    request_precision(value)
    before = precisions()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with exact_float32():
            assert_exact()
            with exact_float32():
                assert_exact()
            assert_exact()
        assert precisions() == before
        with pytest.raises(KeyError), exact_float32():
            raise KeyError
        assert precisions() == before


@pytest.mark.skipif(not HAS_PRECISIONS, reason='PyTorch before 2.9 has one setting for all')
def test_what_followed_the_setting_for_all_still_follows_it():
    set_all('bf16')
    with exact_float32():
        assert_exact()
    torch.backends.fp32_precision = 'ieee'
    assert_exact()


def test_the_last_thread_that_leaves_puts_the_settings_back():
    torch.set_float32_matmul_precision('medium')
    before = precisions()
    entered, left = threading.Event(), threading.Event()

    def first():
        with exact_float32():
            entered.set()
            assert second_is_in.wait(60)
        left.set()

    second_is_in = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(60)
    with exact_float32():
        second_is_in.set()
        assert left.wait(60)
        assert_exact()
    thread.join()
    assert precisions() == before


CONTAINER = """
import torch
from cliptrase_ros.segmentation.process_settings import exact_float32
assert torch.get_float32_matmul_precision() == 'high'
with exact_float32():
    assert torch.get_float32_matmul_precision() == 'highest'
    assert not torch.backends.cuda.matmul.allow_tf32
assert torch.get_float32_matmul_precision() == 'high'
assert torch.backends.cuda.matmul.allow_tf32
"""


def test_the_variable_that_containers_set_does_not_reach_products():
    environment = {**os.environ, 'TORCH_ALLOW_TF32_CUBLAS_OVERRIDE': '1'}
    subprocess.run([sys.executable, '-W', 'error', '-c', CONTAINER], env=environment, check=True)


@pytest.fixture(scope='module')
def segmenter(device):
    tokenizer = open_clip.get_tokenizer('ViT-B-16')
    return Segmenter(LoadedModel(reference_clip(), tokenizer, HALF, HALF), device)


@contextmanager
def matmul_precision(value):
    torch.set_float32_matmul_precision(value)
    yield
    torch.set_float32_matmul_precision('highest')


def test_labels_and_words_are_the_same_whatever_the_program_asked_for(segmenter, device):
    """Where a processor has no bfloat16, only autocast makes a difference without the guard."""
    image = np.random.RandomState(0).randint(0, 256, (96, 128, 3)).astype(np.uint8)
    settings = SegmentationSettings(resolution=96)
    results = []
    for around in (
        nullcontext(),
        matmul_precision('high'),
        matmul_precision('medium'),
        torch.autocast(device.type, torch.bfloat16),
    ):
        # Nothing is remembered of the words encoded before.
        segmenter._text._features.clear()
        with around:
            words = segmenter.encode_vocabulary(parse_vocabulary('road', ['sky']))
            (found,) = segmenter.segment([image], words, settings)
        results.append((words.table.features, found.label, found.confidence))
    for features, label, confidence in results[1:]:
        assert torch.equal(features, results[0][0])
        np.testing.assert_array_equal(label, results[0][1])
        np.testing.assert_array_equal(confidence, results[0][2])


def test_attention_of_cudnn_is_off_within_and_back_after():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with no_cudnn_attention:
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_program_that_wants_no_attention_but_cudnns_keeps_it():
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        with no_cudnn_attention:
            assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_flash_sdp(True)


def test_images_of_any_size_are_labelled_without_attention_of_cudnn(segmenter, device, monkeypatch):
    seen = []
    pipeline = segmenter.pipeline

    def labelling(*arguments, **named):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return pipeline(*arguments, **named)

    labelling.backbone = pipeline.backbone
    monkeypatch.setattr(segmenter, 'pipeline', labelling)
    words = segmenter.encode_vocabulary(parse_vocabulary('road; person', background=()))
    segmenter.segment([np.zeros((64, 96, 3), np.uint8)], words, SegmentationSettings(resolution=64))
    # On a processor it makes no difference, and the setting is left alone.
    assert seen == [device.type == 'cpu']
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.fixture
def threads():
    """Reads how many threads PyTorch and OpenCV compute with; both have 2 and 3 at first."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(2)
    cv2.setNumThreads(3)
    yield lambda: (torch.get_num_threads(), cv2.getNumThreads())
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def test_loading_leaves_the_threads_of_the_process_alone_unless_told(tiny_model, threads):
    load_segmenter(tiny_model, device='cpu')
    assert threads() == (2, 3)
    with pytest.raises(ValueError, match='threads'):
        load_segmenter(tiny_model, device='cpu', threads=0)
    load_segmenter(tiny_model, device='cpu', threads=1)
    assert threads() == (1, 1)


def test_threads_beside_others_leave_them_a_core(monkeypatch, threads):
    # PyTorch has followed the variable, or was told otherwise since.
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    assert threads_beside_others() == 2
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('os.sched_getaffinity', lambda _: {0, 1, 2, 5, 6}, raising=False)
    assert threads_beside_others() == 4
    # As on macOS and Windows.
    monkeypatch.delattr('os.sched_getaffinity')
    for cores, count in ((4, 3), (1, 1), (None, 1)):
        monkeypatch.setattr('os.cpu_count', lambda cores=cores: cores)
        assert threads_beside_others() == count
    assert threads() == (2, 3)
