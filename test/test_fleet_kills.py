"""A batch whose processes are killed, and started again, leaves what one leaves that never was."""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time

import bags
import cv2
import pytest

pytest.importorskip('pycocotools', reason='the extra `fleet` is not installed')
from fleet_runs import (
    arguments_of,
    assert_whole,
    contents,
    lasting,
    markers,
    only_labelling,
    processes_of,
    run_batch,
    wait_until,
)

from cliptrase_ros.fleet.scratch import Scratch
from cliptrase_ros.segmentation.model.weights import load_model, weights_digest

KILLS = int(os.environ.get('TEST_KILLS', '2'))
# What the command finds out in a process of its own is the same each time.
COMMAND = """
import sys
from cliptrase_ros.cli import main
from cliptrase_ros.fleet import model_check
if __name__ == '__main__':
    model_check.examine = lambda *_, **__: model_check.ModelFacts((sys.argv[1],), 0)
    sys.exit(main(sys.argv[2:]))
"""
EXPORTS = ('coco', 'parquet')


def make_inputs(folder):
    for number in range(16 + 4 * KILLS):
        path = folder / f'{number:02d}' / 'a.png'
        path.parent.mkdir(parents=True)
        for name in 'abc':
            # Large enough for a task to take some time, in which it may be killed.
            cv2.imwrite(str(path.with_stem(name)), bags.picture(number, 480, 640))
    for number in range(2):
        bags.write_bag(folder / f'drive_{number}')
    return folder


def start(token, log, digest, arguments):
    """A batch in a session of its own, with a variable in its environment."""
    with log.open('ab') as file:
        return subprocess.Popen(
            [sys.executable, '-c', COMMAND, digest, *arguments],
            env=os.environ | dict([token.split('=')]),
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


@pytest.mark.timeout(60 + 60 * KILLS)
def test_killed_at_random_moments(tiny_model, tmp_path):
    inputs = make_inputs(tmp_path / 'inputs')
    options = [inputs, '--workers', '2', '--export', ','.join(EXPORTS)]
    assert run_batch(tiny_model, *options, '-o', tmp_path / 'expected') == 0
    expected = only_labelling(contents(tmp_path / 'expected'))
    tasks = len(markers(expected))

    output, scratch = tmp_path / 'out', tmp_path / 'scratch'
    token = f'TEST_RUN={tmp_path}'
    digest = weights_digest(load_model(tiny_model, '').model)
    arguments = arguments_of(tiny_model, *options, '-o', output, '--scratch', scratch)
    chance = random.Random(KILLS)

    def begin():
        return start(token, tmp_path / 'log', digest, arguments)

    def advanced():
        """How many tasks are done, and parts of datasets made."""
        folders = ('done', *(f'export/{name}.parts' for name in EXPORTS))
        return sum(len(list(output.glob(f'*/{folder}/*'))) for folder in folders)

    def workers():
        return [pid for pid, line in processes_of(token).items() if 'spawn_main' in line]

    kinds = itertools.islice(itertools.cycle(('everything', 'command', 'worker')), KILLS - 1)
    # The last one is of a worker alone, in a run that then goes on to the end.
    for number, kind in enumerate([*kinds, 'worker'], 1):
        before = advanced()
        moment = before + chance.randint(0, (3 * tasks - before) // (KILLS - number + 2))
        process = begin()

        def is_time(moment=moment, process=process):
            assert process.poll() is None, (tmp_path / 'log').read_text()
            return advanced() >= moment and workers()

        wait_until(is_time)
        time.sleep(chance.uniform(0, 0.2))
        assert process.poll() is None, (tmp_path / 'log').read_text()
        if kind == 'everything':
            os.killpg(process.pid, signal.SIGKILL)
        elif kind == 'command':
            process.kill()
        else:
            wait_until(workers)
            os.kill(chance.choice(workers()), signal.SIGKILL)
        if number < KILLS:
            if kind == 'worker':
                time.sleep(chance.uniform(0, 1))
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            # Workers that nobody is left to give work to end by themselves.
            wait_until(lambda: not processes_of(token))
    assert process.wait(120) == 0, (tmp_path / 'log').read_text()

    files = only_labelling(contents(output))
    assert_whole(files)
    assert lasting(files) == lasting(expected)
    assert not processes_of(token)
    # What the worker that was killed last has left, the next one deletes.
    Scratch(scratch, 1.0).close()
    assert not list(scratch.iterdir())


def test_interrupted_twice(tiny_model, tmp_path):
    """By an impatient user, or by `timeout`, which tells a command and then all of its group."""
    inputs = make_inputs(tmp_path / 'inputs')
    output, token = tmp_path / 'out', f'TEST_RUN={tmp_path}'
    arguments = arguments_of(tiny_model, inputs, '--workers', '2', '-o', output)
    digest = weights_digest(load_model(tiny_model, '').model)
    process = start(token, tmp_path / 'log', digest, arguments)
    wait_until(lambda: list(output.glob('*/workers/*')))
    os.kill(process.pid, signal.SIGINT)
    for _ in range(50):
        time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    log = (tmp_path / 'log').read_text
    assert process.wait(60) == 130, log()
    assert 'stopped; the same command goes on from here' in log()
    wait_until(lambda: not processes_of(token), 20)
