"""SIGINT and SIGTERM at any moment: the process ends soon, with status 0 and no traceback."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

SIGNALS = [signal.SIGINT, signal.SIGTERM]
#: Three seconds are promised; the rest is for a machine that is busy with other tests.
LIMIT_S = 10.0


def end(process, number):
    assert process.poll() is None, process.communicate()[0]
    begin = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    elapsed = time.monotonic() - begin
    assert process.returncode == 0, output
    assert 'Traceback' not in output, output
    assert elapsed < LIMIT_S
    return output


def imported(process):
    """Names of libraries the process has loaded so far."""
    return Path(f'/proc/{process.pid}/maps').read_text()


def catches(process, number):
    """Whether a process has a handler for a signal."""
    status = Path(f'/proc/{process.pid}/status').read_text()
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith('SigCgt'))
    return int(mask, 16) >> (number - 1) & 1


@pytest.mark.parametrize(
    ('library', 'number'),
    [('', SIGNALS[1]), ('libtorch_cpu', SIGNALS[0]), ('libtorch_cpu', SIGNALS[1])],
)
def test_while_modules_are_imported(processes, client, number, library):
    process = processes.start('segment_node', model='toybox')
    client.wait_for(lambda: catches(process, number), 'the first lines of the executable')
    client.wait_for(lambda: library in imported(process), library)
    end(process, number)


def test_while_a_node_started_as_a_module_is_imported(processes, client):
    process = processes.start_command([sys.executable, '-m', 'cliptrase_ros.ros.segment_node'])
    client.wait_for(lambda: 'libtorch_cpu' in imported(process), 'torch')
    end(process, signal.SIGINT)


@pytest.mark.parametrize('number', SIGNALS)
def test_while_the_model_is_loaded(processes, client, tmp_path, number):
    weights = tmp_path / 'weights.pt'
    # Whoever opens it waits for a writer that never comes.
    os.mkfifo(weights)
    process = processes.start('segment_node', model='ViT-B-16', pretrained=str(weights))
    client.diagnostics(lambda _, v: v['state'] == 'configuring', camera=None)
    end(process, number)


@pytest.mark.parametrize('number', SIGNALS)
def test_while_it_labels(processes, client, tiny_model, number):
    process = processes.start('segment_node', model=tiny_model, always_on=True, rate=0.0)
    client.diagnostics(lambda _, v: v['state'] == 'active', camera=None)
    client.listen_to_label()
    publisher = client.connect()
    image = client.image(240, 320)
    labels = client.received['/cliptrase/camera/label']

    def labels_come():
        publisher.publish(image)
        return len(labels) > 3

    client.wait_for(labels_come, 'labels')
    end(process, number)
