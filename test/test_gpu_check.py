"""The check of a GPU: run dry on a CPU, and going on whatever becomes of a part."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from kernel_cases import CASES

FOLDER = Path(__file__).parent.parent / 'benchmark'
KERNELS = 'kernels_against_references'


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look for their module there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def parts():
    return load('parts')


@pytest.fixture
def check_here(monkeypatch, capfd):
    """A function that runs the check in this process; returns its status and what it printed."""
    monkeypatch.setattr(sys, 'path', [str(FOLDER), *sys.path])
    check = load('gpu_check')

    def run(*arguments):
        status = check.main(['--begun', 'now', *map(str, arguments)])
        return status, capfd.readouterr().out

    return run


def test_every_part_passes_on_a_cpu_and_the_page_shows_it(tmp_path):
    path = tmp_path / 'report.json'
    command = [sys.executable, FOLDER / 'gpu_check.py', '--dry', '--json', path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    report = json.loads(path.read_text())
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(report['parts']) == 16 and all(part['passed'] for part in report['parts'].values())
    assert report['dry'] and report['device_type'] == 'cpu'
    (result,) = report['results']
    assert result['graph_ratio'] > 0 and result['parts_ms']['upload'] >= 0
    assert report['parts']['recordings']['figures']['small_336_plain']['ties'] == 0

    report['parts']['races']['passed'] = False
    report['parts']['races']['failures'] = ['round 7: other labels']
    page = load('figures').make_section(report)
    assert report['device'] in page and 'graphs, ms' in page
    assert f'| {KERNELS} | passed |' in page and '| races | round 7: other labels |' in page
    figures = report['parts'][KERNELS]['figures']
    assert figures.keys() == CASES.keys() | {'first_s'}
    assert figures['median_7x7']['kernel_us'] > 0 and figures['median_7x7']['reference_us'] > 0


def test_parts_are_chosen_by_name(check_here, tmp_path):
    path = tmp_path / 'report.json'
    assert check_here('--dry', '--json', path, '--only', 'environment', KERNELS)[0] == 0
    assert list(json.loads(path.read_text())['parts']) == ['environment', KERNELS]
    status, printed = check_here('--dry', '--json', path, '--only', 'median')
    assert status == 2 and 'no part median' in printed and KERNELS in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(check_here, tmp_path):
    status, printed = check_here('--json', tmp_path / 'report.json')
    assert status == 2 and '--dry' in printed


# Parts that pass, fail, raise, lose the device, hang, and end their process.
PARTS = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from parts import Part, run_parts

def fine(checks):
    checks(True, 'nothing')
    checks.report['device'] = 'a GPU'
    return {{'figure': 1}}

def wrong(checks):
    checks(False, 'labels differ')
    return {{'share': 0.5}}

def raises(checks):
    raise ValueError('an unlucky part')

def loses(checks):
    checks(False, 'the device is gone')
    Path(sys.argv[1] + '.lost').touch()
    return {{}}

def hangs(checks):
    time.sleep(100)

def ends(checks):
    checks.report['result'] = 3
    checks.write()
    os._exit(9)

def last(checks):
    return {{}}

def is_usable():
    lost = Path(sys.argv[1] + '.lost')
    usable = not lost.exists()
    lost.unlink(missing_ok=True)
    return usable

parts = [Part(f, 60) for f in (fine, wrong, raises, loses, ends, last)]
parts.insert(-1, Part(hangs, 0.5))
sys.exit(run_parts(Path(sys.argv[1]), 'now', parts, is_usable))
"""


def run_script(parts, tmp_path, script, limit_s=100):
    (tmp_path / 'script.py').write_text(textwrap.dedent(script))
    path = tmp_path / 'report.json'
    command = [sys.executable, str(tmp_path / 'script.py'), str(path)]
    return parts.run_to_the_end(command, path, 'now', limit_s), parts.read_report(path, 'now')


def test_it_goes_on_whatever_becomes_of_a_part(parts, tmp_path, capfd):
    status, report = run_script(parts, tmp_path, PARTS.format(folder=str(FOLDER)))
    assert status == 1
    assert {name: (part['passed'], part['failures']) for name, part in report['parts'].items()} == {
        'fine': (True, []),
        'wrong': (False, ['labels differ']),
        'raises': (False, ['ValueError: an unlucky part']),
        'loses': (False, ['the device is gone']),
        'hangs': (False, ['it did not come to an end']),
        'ends': (False, ['it did not come to an end']),
        'last': (True, []),
    }
    assert report['device'] == 'a GPU' and report['result'] == 3
    assert report['parts']['fine']['figures'] == {'figure': 1}
    assert report['parts']['wrong']['figures'] == {'share': 0.5}
    assert '2 of 7 parts passed' in capfd.readouterr().out


def test_being_stopped_is_no_failure_and_no_success(parts, tmp_path, capfd):
    script = PARTS.format(folder=str(FOLDER)).replace('Part(hangs, 0.5)', 'Part(hangs, 100)')
    script = script.replace('(fine, wrong, raises, loses, ends, last)', '(fine, last)')
    status, report = run_script(parts, tmp_path, script, limit_s=2)
    assert status == parts.STOPPED and 'stopped after 2 s' in capfd.readouterr().out
    assert not {'hangs', 'last'} & set(report['parts'])


def test_what_fails_before_any_part_is_not_tried_for_ever(parts, tmp_path):
    status, report = run_script(parts, tmp_path, 'import sys; sys.exit(5)')
    assert status == 5 and report['parts'] == {}


def test_a_report_of_before_stays_until_there_is_something_to_tell(parts, tmp_path):
    path = tmp_path / 'report.json'
    path.write_text('{"begun": "yesterday", "parts": {"fine": {"passed": true}}}')
    run_script(parts, tmp_path, 'import sys; sys.exit(5)')
    assert 'yesterday' in path.read_text()
    _, report = run_script(parts, tmp_path, PARTS.format(folder=str(FOLDER)))
    assert len(report['parts']) == 7 and 'yesterday' not in path.read_text()
