"""The soak in short: everything at once, as `make soak` does for longer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

SOAK = Path(__file__).resolve().parents[2] / 'benchmark' / 'reliability' / 'soak.py'


def test_short_soak(tmp_path):
    path = tmp_path / 'soak.json'
    command = [sys.executable, str(SOAK), '--minutes', '0.15', '--fuzz', '400', '--json', str(path)]
    # A model that labels fast leaves more to the node.
    done = subprocess.run(
        [*command, '--fuzz-parameters', '40'],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(path.read_text())
    assert report['faults'] == [] and report['fuzzed_messages'] == 400
    assert report['checked_against_their_vocabulary'] > 0 and report['vocabularies'] > 2
    assert all(report['label_images'][name] for name in ('front', 'rear', 'side'))
    assert sum(report['fuzzed_parameters'].values()) == 40
