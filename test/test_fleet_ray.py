"""A batch on a cluster of Ray, one of whose workers is killed."""

import json
import os
import signal
import subprocess
import sys

import bags
import cv2
from fleet_runs import (
    arguments_of,
    assert_whole,
    contents,
    lasting,
    only_labelling,
    processes_of,
    run_batch,
    wait_until,
)


def test_worker_is_killed_in_the_middle_of_a_task(ray_cluster, tiny_model, tmp_path):
    inputs = tmp_path / 'inputs'
    for number in range(16):
        path = inputs / f'{number:02d}' / 'a.png'
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), bags.picture(number))
    for number in range(4):
        bags.write_bag(inputs / f'drive_{number}', bags.contents(30))
    assert run_batch(tiny_model, inputs, '-o', tmp_path / 'expected') == 0
    expected = only_labelling(contents(tmp_path / 'expected'))

    output, scratch = tmp_path / 'out', tmp_path / 'scratch'
    arguments = arguments_of(tiny_model, inputs, '-o', output, '--scratch', scratch)
    cluster = f'RAY_TMPDIR={os.environ["RAY_TMPDIR"]}'

    at_work = []

    def is_at_work():
        # As Ray calls the processes of actors.
        lines = processes_of(cluster).items()
        at_work[:] = [pid for pid, line in lines if line.startswith('ray::Worker.run')]
        return at_work

    with (
        (tmp_path / 'log').open('w+') as log,
        subprocess.Popen(
            [sys.executable, '-m', 'cliptrase_ros.cli', *arguments, '--ray', 'auto'],
            stdout=log,
            stderr=log,
        ) as process,
    ):
        wait_until(lambda: list(output.glob('*/done/*')) and is_at_work())
        (killed, *_) = at_work
        os.kill(killed, signal.SIGKILL)
        status = process.wait(200)
        log.seek(0)
        assert status == 0, log.read()

    files = only_labelling(contents(output))
    assert_whole(files)
    assert lasting(files) == lasting(expected)
    # Of the worker that was killed nobody heard again.
    workers = [json.loads(content) for path, content in files.items() if 'workers/' in path]
    assert not any(about['ended'] for about in workers if about['pid'] == killed)
    assert any(about['ended'] for about in workers)
    wait_until(lambda: not any('ray::Worker' in line for line in processes_of(cluster).values()))
    assert not list(scratch.iterdir())
