"""The kernels for GPUs: that each can be compiled, gives way to its reference, and is counted."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from kernel_cases import CASES, moved, on_host
from torch._subclasses import FakeTensorMode

from cliptrase_ros.segmentation import kernels
from cliptrase_ros.segmentation.method import median
from cliptrase_ros.segmentation.model import backbone

# The oldest whose compiler takes the kernels: that of torch 2.8.
pytest.importorskip('triton', minversion='3.4')

# Every kernel that some settings use is compiled, and its code looked at.
COMPILED = r"""
import re
import subprocess
import sys
from pathlib import Path
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cliptrase_ros.benchmark.kernel_counts import recorded_kernels
from cliptrase_ros.segmentation.settings import SegmentationSettings

TYPES = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16', torch.uint8: 'u8'}
TYPES |= {torch.bool: 'u1', torch.int32: 'i32', torch.int64: 'i64', int: 'i32', float: 'fp32'}

def source_of(launch):
    parameters = launch.kernel.params
    signature, constants, attributes = {}, {}, {}
    for i, (parameter, value) in enumerate(zip(parameters, launch.arguments, strict=True)):
        name = parameter.name
        if parameter.is_constexpr:
            signature[name], constants[name] = 'constexpr', value
        elif isinstance(value, torch.Tensor):
            signature[name] = '*' + TYPES[value.dtype]
            attributes[i,] = [['tt.divisibility', 16]]
        else:
            signature[name] = TYPES[type(value)]
    options = {'num_warps': launch.warps, 'enable_fp_fusion': launch.fused_rounding}
    return ASTSource(launch.kernel, signature, constants, attributes), options

sources = {}
for choices in (
    {'preset': 'paper', 'image_prior': True},
    {'preset': 'robot', 'refinement': 'edges', 'smoothing': 0.5},
    {'preset': 'plus', 'refinement': 'pamr'},
    {'preset': 'sc_clip', 'refinement': 'pamr'},
):
    for launch in recorded_kernels(SegmentationSettings(resolution=336, **choices)):
        source, options = source_of(launch)
        sources.setdefault(source.hash(), (source, options))

def check(source, options):
    for capability in map(int, sys.argv[3:]):
        kernel = triton.compile(source, GPUTarget('cuda', capability, 32), options)
        cubin = Path(sys.argv[1], kernel.hash)
        cubin.write_bytes(kernel.asm['cubin'])
        command = [triton.knobs.nvidia.cuobjdump.path, '-res-usage', cubin]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = {name: int(value) for name, value in re.findall(r'(\w+):(\d+)', output)}
        print(f'Triton {triton.__version__}, sm_{capability}, {source.name}: {usage}', flush=True)
        # Nothing is spilled.
        assert usage['STACK'] == usage['LOCAL'] == 0
        if source.name == '_median':
            # Six programs find room in the registers of a multiprocessor, and a pixel's window
            # stays with one thread.
            assert usage['REG'] <= 80 and usage['SHARED'] == 0
            assert not re.search('shfl|redux|bar[.]sync|[.]local', kernel.asm['ptx'])

assert len({source.name for source, _ in sources.values()}) == int(sys.argv[2])
for source, options in sources.values():
    check(source, options)
"""

#: How many kernels there are; each stands in some method above.
KERNELS = 31

#: Compute capabilities, times ten, of GPUs that kernels are compiled for; .ci/run names more.
CAPABILITIES = os.environ.get('TEST_CAPABILITIES', '90').split()


@pytest.mark.timeout(900)
def test_every_kernel_compiles_without_a_gpu(tmp_path, pytestconfig):
    # Kernels that are as they were in an earlier run are not compiled again.
    folder = pytestconfig.cache.mkdir('triton')
    environment = {**os.environ, 'TRITON_CACHE_DIR': str(folder)}
    environment.pop('TRITON_INTERPRET', None)
    command = [sys.executable, '-c', COMPILED, tmp_path, str(KERNELS), *CAPABILITIES]
    subprocess.run(command, env=environment, check=True)


@pytest.mark.parametrize('name', CASES)
def test_a_kernel_gives_what_its_reference_gives(name, device, monkeypatch):
    monkeypatch.setattr(kernels, '_failed', set())
    case, given, expected = CASES[name], [], []
    with kernels.no_kernels():
        for arguments in case.small(torch.Generator().manual_seed(0)):
            given.append(arguments)
            expected.append(case.function(*arguments))
    started, start = [], kernels._start
    monkeypatch.setattr(kernels, '_start', lambda launch: (started.append(launch), start(launch)))
    monkeypatch.setattr(kernels, '_device_types', {device.type})
    for arguments, wanted in zip(given, expected, strict=True):
        found = on_host(case.function(*moved(arguments, device)))
        assert started and not kernels._failed
        started.clear()
        case.check(found, wanted)


def test_every_function_with_a_kernel_has_cases():
    # These two are parts of `dbscan_bounded`.
    assert {*kernels.with_kernels} - {'_rounds', '_numbers_within'} == {*CASES} - {'dbscan_bounded'}


def test_attention_at_once_is_the_sum_of_three():
    qkv = backbone._split_heads(torch.randn(2, 5, 96), heads=4)
    at_once = backbone._self_attend_at_once(qkv)
    torch.testing.assert_close(at_once, backbone._self_attend(qkv))


def fails(*_):
    raise RuntimeError('no compiler')


@pytest.fixture
def broken_kernel(monkeypatch):
    monkeypatch.setattr(kernels, '_start', fails)
    monkeypatch.setattr(kernels, '_failed', set())


def medians_on_cuda():
    with FakeTensorMode(), torch.device('cuda'):
        return median.median_7x7(torch.empty(2, 8, 9), torch.empty(2, dtype=torch.bool))


def test_pytorch_stands_in_for_a_kernel_that_fails(broken_kernel, caplog):
    assert medians_on_cuda().shape == medians_on_cuda().shape == (2, 8, 9)
    assert [record.getMessage() for record in caplog.records] == [
        'the kernel of median_7x7 cannot be used, PyTorch stands in: no compiler'
    ]


@pytest.mark.parametrize(
    ('installed', 'said'), [(None, 'Triton is not installed'), ('3.3.1', 'Triton 3.3.1 is older')]
)
def test_without_triton_pytorch_stands_in_for_all_and_says_so_once(
    installed, said, broken_kernel, monkeypatch, caplog
):
    stub = None if installed is None else SimpleNamespace(__version__=installed)
    monkeypatch.setitem(sys.modules, 'triton', stub)
    kernels._has_triton.cache_clear()
    try:
        assert medians_on_cuda().shape == medians_on_cuda().shape == (2, 8, 9)
    finally:
        kernels._has_triton.cache_clear()
    (record,) = caplog.records
    assert record.getMessage().startswith(said)


def test_a_kernel_stays_where_the_device_is_to_blame(broken_kernel, monkeypatch):
    monkeypatch.setattr(median, 'selection_network', fails)
    with pytest.raises(RuntimeError, match='no compiler'):
        medians_on_cuda()
    assert not kernels._failed
