"""`cliptrase bench` on a tiny model."""

import json

import pytest
import torch
import torch.nn.functional as F

from cliptrase_ros.benchmark import kernel_counts
from cliptrase_ros.benchmark.cases import EngineCase, make_segmenter, measure_engine
from cliptrase_ros.benchmark.kernel_counts import count_encoder_kernels, count_kernels
from cliptrase_ros.benchmark.suite import preset_name, table
from cliptrase_ros.cli import main
from cliptrase_ros.segmentation.run.graphs import EagerQueue, FixedCalls
from cliptrase_ros.segmentation.settings import SegmentationSettings


def test_the_report_has_what_the_figures_are_made_of(tiny_architecture, tmp_path, capfd):
    path = tmp_path / 'report.json'
    options = ['--quick', '--device', 'cpu', '--sizes', '64', '--batches', '1', '2']
    arguments = ['bench', *options, '--architecture', tiny_architecture, '--json', str(path)]
    assert main(arguments) == 0
    report = json.loads(path.read_text())
    assert report['device'] and report['versions']['torch']
    squares = [r for r in report['results'] if r['preset'] == 'paper']
    assert [(r['size'], r['batch'], r['precision'], r['graph']) for r in squares] == [
        (64, 1, 'float32', False),
        (64, 2, 'float32', False),
    ]
    whole = [r for r in report['results'] if r['preset'] != 'paper']
    assert [(r['preset'], r['refinement']) for r in whole] == [
        ('robot', 'none'),
        ('robot', 'edges'),
        ('plus', 'none'),
        ('sc_clip', 'none'),
    ]
    # mmcv rounds to pixels, and of these whole patches are seen.
    assert [r['network'] for r in whole] == [[224, 304]] * 3 + [[224, 288]]
    assert [r['refinement'] for r in whole if 'edges' in r['stages_ms']] == ['edges']
    for result in report['results']:
        low, high = result['engine_ms_spread']
        assert 0 < low <= result['engine_ms'] <= high
        assert result['encoder_ms'] > 0 and result['ratio'] > 0
        assert sum(result['stages_ms'].values()) > 0
        assert {'input', 'tower', 'logits', 'output'} <= set(result['stages_ms'])
        assert result['peak_memory_mb'] > 0
    assert report['text']['cut_ms'] > 0 and report['text']['cached_ms'] > 0
    printed, progress = capfd.readouterr()
    assert 'profiler' not in progress
    assert report['device'] in printed and '304 x 224' in printed
    assert 'robot, edges' in printed and 'sc_clip, window 0' in printed


def test_refinement_window_and_classes_are_measured_and_told(tiny_architecture):
    segmenter = make_segmenter(tiny_architecture, torch.device('cpu'), 'float32')
    case = EngineCase(96, 1, (96, 160), 'sc_clip', 'pamr', 64)
    result = measure_engine(segmenter, case, 'float32', graph=False, runs=1)
    assert preset_name(result) == 'sc_clip, pamr, window 64' and result['stages_ms']['pamr'] > 0
    case = EngineCase(96, 1, (96, 160), 'robot', classes=100)
    result = measure_engine(segmenter, case, 'float32', graph=False, runs=1)
    assert preset_name(result) == 'robot, 100 classes' and result['classes'] == 100
    # Reports from before there were windows and numbers of classes.
    assert preset_name({'preset': 'plus'}) == 'plus'


@pytest.fixture
def measure(tiny_architecture):
    """A function that measures calls of fixed shape; on a CPU they run without a graph."""
    cpu = torch.device('cpu')
    segmenter = make_segmenter(tiny_architecture, cpu, 'float32')

    def measure(batch, queue=EagerQueue):
        segmenter.fixed_calls = calls = FixedCalls(segmenter.pipeline, queue(cpu))
        result = measure_engine(segmenter, EngineCase(64, batch), 'float32', graph=True, runs=2)
        assert segmenter.fixed_calls is calls and len(calls) == 0
        return result

    return measure


def test_graphs_are_measured_by_the_calls_that_they_replay(measure):
    result = measure(batch=2)
    assert result['graph'] and result['batch'] == 2
    assert result['engine_ms'] > 0 and result['stages_ms']['tower'] > 0
    # The graphs alone, and from host to host with its parts.
    assert result['graph_ratio'] > 0 and result['encoder_graph_ms'] > 0
    parts = result['parts_ms']
    assert list(parts) == ['upload', 'graph', 'download', 'host']
    assert parts['graph'] == result['engine_graph_ms'] > 0
    assert sum(parts.values()) == pytest.approx(result['engine_ms'])
    report = {
        'device': 'GPU',
        'architecture': 'tiny',
        'versions': {'torch': '2'},
        'runs': 2,
        'results': [result],
        'text': dict.fromkeys(
            ('phrases', 'templates', 'whole_context_ms', 'cut_ms', 'cached_phrases', 'cached_ms'), 1
        ),
        'dbscan': [],
    }
    text = table(report)
    assert f'{result["engine_graph_ms"]:.3f} | {result["graph_ratio"]:>5.2f}' in text


def test_a_batch_of_several_calls_is_measured_from_host_to_host_alone(measure):
    result = measure(batch=3)
    assert result['graph'] and result['engine_ms'] > 0 and 'graph_ratio' not in result


@pytest.mark.parametrize('captured', [0, 1], ids=['engine', 'encoder'])
def test_what_was_not_captured_is_not_called_a_graph(measure, captured):
    class Refuses(EagerQueue):
        records = 0

        def capture(self, function):
            if self.records == captured:
                raise RuntimeError('operation not permitted when stream is capturing')
            self.records += 1
            return super().capture(function)

    result = measure(1, Refuses)
    assert not result['graph'] and result['engine_ms'] > 0 and 'graph_ratio' not in result


@pytest.mark.parametrize(
    'arguments',
    [
        ['--device', 'gpu'],
        ['--architecture', 'nothing'],
        ['--json', '/no/folder/x'],
        ['--sizes', '32'],
        ['--sizes', '2048'],
        ['--kernels', '--quick'],
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(arguments, capsys):
    assert main(['bench', *arguments]) == 2
    assert arguments[1].split('/x')[0] in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--sizes', '--batches', '--runs', '--threads'])
@pytest.mark.parametrize('value', ['0', 'many'])
def test_numbers_are_positive(option, value, capsys):
    with pytest.raises(SystemExit):
        main(['bench', option, value])
    assert f"{option}: '{value}' is not a whole number of at least 1" in capsys.readouterr().err


#: What a frame may launch at batch 1, 336 pixels, preset `paper`; the bare encoder launches 150.
MOST_KERNELS = 140


def test_a_frame_launches_fewer_kernels_than_the_bare_encoder():
    pytest.importorskip('triton', minversion='3.4')
    costs = count_kernels(SegmentationSettings(preset='paper', resolution=336))
    kernels = {stage: cost.kernels for stage, cost in costs.items()}
    assert count_encoder_kernels((336, 336)).kernels == 150
    assert sum(kernels.values()) <= MOST_KERNELS, kernels


def test_kernels_are_counted_by_stage_without_a_gpu(tiny_architecture, capfd):
    pytest.importorskip('triton', minversion='3.4')
    assert main(['bench', '--kernels', '--architecture', tiny_architecture]) == 0
    head, *tables = capfd.readouterr().out.split('\n\n')
    assert 'an estimate' in head and 'a third' in head
    kernels, microseconds = map(read_table, tables)
    alone, own = map(int, kernels['paper']['regions'].split(' / '))
    assert alone > own > 0
    assert kernels['robot, edges']['edges'] and not kernels['robot']['edges']
    assert list(microseconds) == list(kernels) and len(kernels) == 10
    alone, own = map(float, microseconds['paper']['ratio'].split(' / '))
    assert alone > own > 0
    assert microseconds['bare encoder, 448 x 336']['ratio'] == '1.00'


def read_table(text):
    """Cells of a Markdown table by the first cell of the row and the head of the column."""
    head, _, *rows = (
        [cell.strip() for cell in line.strip('|').split('|')] for line in text.strip().splitlines()
    )
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize(
    ('kernels', 'operation'),
    [
        (0, lambda x: x.split(3, 1)[0].mT[..., None]),
        (1, lambda x: x.mT.reshape(-1)),
        (1, lambda x: x.flatten(0, 1) @ x[0].mT),
        (1, lambda x: F.linear(x, x[0], x.new_empty(8))),
        (1, lambda x: F.scaled_dot_product_attention(x, x, x)),
        (1, lambda x: x.softmax(1)),
        # What copies, fills or converts before it begins, or consists of others.
        (2, lambda x: x.mT.softmax(1)),
        (2, lambda x: F.pad(x, (1, 1))),
        (3, lambda x: x.bool().sum(1)),
        (3, lambda x: x.masked_fill(x.bool(), 0)),
        (3, lambda x: F.normalize(x, dim=1)),
        (9, lambda x: x.logsumexp(1)),
    ],
)
def test_operations_are_counted_as_cuda_runs_them(kernels, operation):
    with kernel_counts._no_contents() as launches:
        x = torch.empty(2, 8, 4, device='cuda')
        costs = kernel_counts._count(lambda: operation(x), launches)
    assert sum(cost.kernels for cost in costs.values()) == kernels
