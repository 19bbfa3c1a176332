"""The terminal panel, from diagnostics as the node gives them."""

from types import SimpleNamespace

import pytest

pytest.importorskip('rich')
from rich.console import Console

from cliptrase_ros.ros.panel import Panel


def status(name, level=b'\0', message='', **values):
    pairs = [SimpleNamespace(key=key, value=str(value)) for key, value in values.items()]
    return SimpleNamespace(name=name, level=level, message=message, values=pairs)


def report(*statuses):
    return SimpleNamespace(status=list(statuses))


ENGINE = {'model': 'toybox', 'device': 'cpu', 'vocabulary_version': 3}
CAMERA = {
    'received_hz': '29.97',
    'labelled_hz': '9.80',
    'latency_ms_mean': '41.20',
    'latency_ms_max': '93.70',
    'processing_ms_mean': '38.00',
    'processing_ms_max': '40.00',
    'dropped_busy': 7,
    'dropped_rate': 5,
    'refused': 2,
    'failed': 0,
}


def shown(panel, now_s, width=200):
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(panel.render(now_s))
    return capture.get()


def test_before_the_first_report():
    assert 'waiting for /diagnostics' in shown(Panel(), 0)


def test_two_nodes():
    panel = Panel()
    assert panel.update(
        report(
            status('robot/cliptrase: engine', message='labelling by vocabulary 3', **ENGINE),
            status('robot/cliptrase: camera front', b'\1', 'refused [bold]', **CAMERA),
            status('robot/cliptrase: camera rear', b'\1', 'no image for 5 s on /rear'),
            status('lidar: engine', message='spinning'),
        ),
        10.0,
    )
    panel.update(
        report(
            status(
                'other: engine',
                b'\2',
                'broken',
                **ENGINE,
                vocabulary_pending='4',
                vocabulary_failure='too long',
            )
        ),
        10.0,
    )
    assert panel.nodes == ['other', 'robot/cliptrase']
    text = shown(panel, 11.0)
    for part in (
        '/robot/cliptrase  ok: labelling by vocabulary 3',
        'toybox on cpu, vocabulary 3',
        '29.97',
        '41 (94)',
        '38 (40)',
        'front: refused [bold]',
        'rear: no image for 5 s on /rear',
        '/other  error: broken',
        'preparing 4, failed: too long',
    ):
        assert part in text
    row = next(line for line in text.splitlines() if line.startswith('front '))
    assert row.split()[1:11] == [
        '29.97',
        '9.80',
        '41',
        '(94)',
        '38',
        '(40)',
        '12',
        '2',
        '0',
        'warning',
    ]
    assert 'no report' not in text
    assert '/other  error: broken  no report for 6 s' in shown(panel, 16.0)


def test_cameras_that_are_gone_are_not_shown():
    panel = Panel()
    engine = status('cliptrase: engine', **ENGINE)
    panel.update(report(engine, status('cliptrase: camera left')), 0.0)
    panel.update(report(engine, status('cliptrase: camera right')), 1.0)
    text = shown(panel, 1.0)
    assert 'right' in text
    assert 'left' not in text


def test_nodes_of_one_name_are_both_shown_until_one_ends():
    panel = Panel()
    for process, camera in (('robot:7', 'left'), ('robot:8', 'right')):
        engine = status('cliptrase: engine', process=process, **ENGINE)
        panel.update(report(engine, status(f'cliptrase: camera {camera}')), 0.0)
    text = shown(panel, 1.0)
    for part in ('/cliptrase in robot:7', '/cliptrase in robot:8', 'left', 'right'):
        assert part in text
    # Started again, it is one node and not two.
    panel.update(report(status('cliptrase: engine', process='robot:9', **ENGINE)), 5.0)
    assert panel.nodes == ['cliptrase']
    assert '/cliptrase  ok' in shown(panel, 5.0)


def test_reports_of_others_are_left_alone():
    panel = Panel()
    assert not panel.update(report(status('motor: engine', speed=3), status('x: camera y')), 0.0)
    assert panel.nodes == []


def test_numbers_fit_an_ordinary_terminal():
    panel = Panel()
    message = 'no image for 17 s on /front/image_raw'
    panel.update(
        report(status('a: engine', **ENGINE), status('a: camera front', b'\1', message, **CAMERA)),
        0,
    )
    text = shown(panel, 0, width=80)
    for part in ('29.97', '9.80', '41 (94)', '38 (40)', '12', 'no image'):
        assert part in text
    assert '…' not in text
    assert all(len(line) <= 80 for line in text.splitlines())
