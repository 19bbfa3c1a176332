"""The programs and goals that docs/planners.md shows, beside a running node."""

import threading
from contextlib import contextmanager

import pytest
import yaml
from pages import ROOT, every, python_blocks

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from builtin_interfaces.msg import Duration
from cliptrase_ros.action import Find

PAGE = ROOT / 'docs' / 'planners.md'


@contextmanager
def filming(client):
    """Images come on /camera/image_raw, twenty a second, whoever subscribes."""
    client._publishers['camera'] = publisher = client.node.create_publisher(
        type(client.image()), '/camera/image_raw', 5
    )
    has_ended = threading.Event()

    def film():
        while not has_ended.wait(0.05):
            publisher.publish(client.image())

    thread = threading.Thread(target=film)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


@pytest.fixture
def run(start_node, client):
    """A function that runs a program of the page which imports something; returns its names."""
    start_node(vocabulary=['road', 'person'])

    def run_block(imported):
        (block,) = [block for block in python_blocks(PAGE) if f'import {imported}\n' in block]
        names = {}
        try:
            with filming(client):
                # With weights by chance, nothing reaches a score that is worth something.
                exec(block.replace('sec=20', 'sec=1'), names)
        finally:
            rclpy.try_shutdown()
        return names

    return run_block


def test_one_image(run, capsys):
    answer = run('Segment')['answer']
    assert answer.success
    assert [line.partition(':')[0] for line in capsys.readouterr().out.splitlines()] == [
        *('open door', 'closed door', 'wall')
    ]


def test_looking_for_something(run, capsys):
    names = run('Find')
    assert names['result'].camera == 'camera' and names['result'].score > 0
    *feedback, message = capsys.readouterr().out.splitlines()
    assert feedback and message.startswith("'red ball' was not found in ")


GOALS = [a for _, a in every('ros2') if a[:3] == ['action', 'send_goal', '/cliptrase/find']]


def test_goals_are_goals():
    assert GOALS
    for _, _, _, type_, goal, *_ in GOALS:
        assert type_ == 'cliptrase_ros/action/Find'
        fields = yaml.safe_load(goal)
        timeout = Duration(**fields.pop('timeout'))
        assert Find.Goal(timeout=timeout, **fields).phrase and timeout.sec
