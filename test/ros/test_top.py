"""`cliptrase top` over real DDS."""

import subprocess
import sys

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')
pytest.importorskip('rich')

import rclpy
from diagnostic_msgs.msg import DiagnosticArray

from cliptrase_ros.ros import diagnostics


def top(*arguments):
    return subprocess.Popen(
        [sys.executable, '-m', 'cliptrase_ros.cli', 'top', *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_prints_what_a_node_reports(context, reported_camera):
    node = rclpy.create_node('somebody', context=context)
    publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
    process = top('--once', '--timeout', '30')
    try:
        while process.poll() is None:
            reported_camera.statistics.count('received')
            reported_camera.statistics.count_label(0.05, processing_s=0.04, engine_s=0.03)
            array = DiagnosticArray()
            array.status = [
                diagnostics.status(
                    'cliptrase: engine', 'cpu', b'\0', 'labelling', {'vocabulary_version': 1}
                ),
                diagnostics.camera_status('cliptrase', reported_camera, 1.0),
            ]
            publisher.publish(array)
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
        out, err = process.communicate()
    finally:
        process.kill()
        node.destroy_node()
    assert (process.returncode, err) == (0, '')
    assert '/cliptrase  ok: labelling' in out
    assert 'front' in out
    assert '50 (50)' in out


def test_only_what_labels_waits_for_pytorch():
    names = 'top', 'rerun_viewer', 'demo_observer'
    code = ''.join(f'import cliptrase_ros.ros.{name}\n' for name in names)
    subprocess.run(
        [sys.executable, '-c', f'{code}import sys\nassert "torch" not in sys.modules'], check=True
    )


def test_no_node():
    process = top('--once', '--timeout', '0.5')
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert 'waiting for /diagnostics' in out


def test_a_domain_that_is_no_number_is_said_in_a_line(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', 'x')
    process = top('--once')
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith('cliptrase top: error: ROS_DOMAIN_ID')
    assert 'Traceback' not in said
