"""The 7 x 7 median: as a network of PyTorch's operations, and as the kernel for GPUs."""

import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from torch._subclasses import FakeTensorMode

from cliptrase_ros.segmentation.method import median
from cliptrase_ros.segmentation.method.median import median_7x7

# The oldest of which the kernel is compiled: that of torch 2.8.
TRITON = '3.4'


@pytest.mark.parametrize('size', [(56, 84), (7, 5), (4, 4)])
def test_borders_are_mirrored_as_scipy_does(size):
    maps = np.random.RandomState(2).rand(1, 3, *size).astype(np.float32)
    expected = [median_filter(m, size=7) for m in maps[0]]
    medians = median_7x7(torch.from_numpy(maps), torch.zeros(1, 3, dtype=torch.bool))
    np.testing.assert_array_equal(medians[0], expected)


def test_absent_images_are_below_all_others():
    absent = torch.tensor([[False, True], [True, False]])
    medians = median_7x7(torch.rand(2, 2, 8, 9), absent)
    assert (medians[absent] == -1).all() and (medians[~absent] >= 0).all()


INTERPRETED = """
import numpy as np
import torch
from scipy.ndimage import median_filter
from cliptrase_ros.segmentation.method.median_kernel import median_7x7
absent = torch.tensor([[False, False, True], [False, True, True]])
for height, width in ((3, 3), (7, 5), (9, 12), (12, 13)):
    # Negative values and ties, in images that are not contiguous.
    images = torch.randn(2, 3, width, height, generator=torch.Generator().manual_seed(0)).mT
    images[0, 0, :2] = 0.25
    images[0, 1] = images[0, 1].round()
    medians = median_7x7(images, absent)
    assert (medians[absent] == -1).all()
    for image, found in zip(images[~absent], medians[~absent], strict=True):
        np.testing.assert_array_equal(found, median_filter(image.numpy(), size=7))
"""


def test_the_kernel_gives_the_same_values():
    pytest.importorskip('triton', minversion=TRITON)
    environment = {**os.environ, 'TRITON_INTERPRET': '1'}
    subprocess.run([sys.executable, '-c', INTERPRETED], env=environment, check=True)


COMPILED = """
import re
import subprocess
import sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cliptrase_ros.segmentation.method.median_kernel import _PIXELS, _median
signature = {'images': '*fp32', 'absent': '*u1', 'result': '*fp32'}
signature |= {'height': 'i32', 'width': 'i32', 'PIXELS': 'constexpr'}
source = ASTSource(_median, signature, {'PIXELS': _PIXELS})
for capability in (80, 87, 89, 90, 120):
    kernel = triton.compile(source, GPUTarget('cuda', capability, 32))
    cubin = Path(sys.argv[1], 'cubin')
    cubin.write_bytes(kernel.asm['cubin'])
    command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', cubin]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r'(\\w+):(\\d+)', output)}
    print(f'Triton {triton.__version__}, sm_{capability}: {usage}')
    # Six programs find room in the registers of a multiprocessor. Nothing is spilled.
    assert usage['REG'] <= 80
    assert usage['STACK'] == usage['LOCAL'] == usage['SHARED'] == 0
    # A pixel's window stays with one thread.
    assert not re.search('shfl|redux|bar[.]sync|[.]local', kernel.asm['ptx'])
"""


def test_the_kernel_compiles_without_a_gpu(tmp_path):
    pytest.importorskip('triton', minversion=TRITON)
    environment = {**os.environ, 'TRITON_CACHE_DIR': str(tmp_path)}
    environment.pop('TRITON_INTERPRET', None)
    subprocess.run([sys.executable, '-c', COMPILED, tmp_path], env=environment, check=True)


def fails(*_):
    raise RuntimeError('no compiler')


@pytest.fixture
def broken_kernel(monkeypatch):
    stub = SimpleNamespace(median_7x7=fails)
    monkeypatch.setitem(sys.modules, f'{median.__package__}.median_kernel', stub)
    monkeypatch.setattr(torch.cuda, 'device', nullcontext)
    monkeypatch.setattr(median, '_use_kernel', True)


def on_cuda():
    with FakeTensorMode(), torch.device('cuda'):
        return median_7x7(torch.empty(2, 8, 9), torch.empty(2, dtype=torch.bool))


def test_the_network_stands_in_for_a_kernel_that_fails(broken_kernel, caplog):
    assert on_cuda().shape == on_cuda().shape == (2, 8, 9)
    assert [record.getMessage() for record in caplog.records] == [
        'the median kernel cannot be used, medians are slower: no compiler'
    ]


def test_the_kernel_stays_where_the_device_is_to_blame(broken_kernel, monkeypatch):
    monkeypatch.setattr(median, '_median_by_network', fails)
    with pytest.raises(RuntimeError, match='no compiler'):
        on_cuda()
    assert median._use_kernel
