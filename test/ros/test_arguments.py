"""What a node is started with: what cannot be read is explained, what is not read is said."""

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from rclpy.node import Node

from cliptrase_ros.ros.arguments import explain_unread_arguments
from cliptrase_ros.ros.executable import StartFailure, initialized
from cliptrase_ros.ros.parameters import declare_parameters
from cliptrase_ros.ros.toybox_camera import ToyboxCamera

#: Seconds a process may take on a busy machine.
PATIENCE = 90.0

FILES = {
    'mixed.yaml': '/**: {ros__parameters: {vocabulary: [road, no]}}',
    'broken.yaml': '/**:\n  ros__parameters:\n    vocabulary: road; person: man\n',
    'flat.yaml': 'vocabulary: [road]',
    'other.yaml': 'segmentation: {ros__parameters: {rate: 5.0}}',
    'empty.yaml': '',
    'unquoted.yaml': '/**:\n  ros__parameters:\n    vocabulary:\n    - road\n    - person: man\n',
    'right.yaml': '/**:\n  ros__parameters:\n    rate: 5.0\nother:\n  ros__parameters:\n    a: 1\n',
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['-p', 'vocabulary:=road; person: man'], "synonyms with '='"),
        (['-p', 'vocabulary:=[road, no]'], 'quote every entry'),
        (['-p', "vocabulary:=it's: mine"], "it's: mine"),
        (['-p', 'vocabulary'], 'NAME:=VALUE'),
        (['-p', 'rate=5.0'], 'NAME:=VALUE'),
        (['-p', 'cache_dir:='], """cache_dir:="''\""""),
        (['-p'], '-p'),
        (['-r', 'camera/image_raw'], 'FROM:=TO'),
        (['-r', '__node:=not a name'], 'FROM:=TO'),
        (['--params-file', 'missing.yaml'], 'there is no parameter file missing.yaml'),
        (['--params-file', '.'], 'there is no parameter file .'),
        (['--params-file', 'mixed.yaml'], 'quote every entry'),
        (['--params-file', 'broken.yaml'], "synonyms with '='"),
        (['--params-file', 'flat.yaml'], 'flat.yaml'),
        (['--params_file', 'right.yaml'], '--params_file'),
        (['--log-level', 'loud'], '--log-level loud'),
    ],
)
def test_what_cannot_be_read_is_explained_in_a_line(files, arguments, said):
    with pytest.raises(StartFailure) as failure, initialized(['--ros-args', *arguments]):
        pass
    message = str(failure.value)
    assert said in message and '\n' not in message
    assert '.c:' not in message, 'lines of the source of rcl'


def test_environment_that_cannot_be_read_is_explained(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', 'robot')
    with pytest.raises(StartFailure, match='ROS_DOMAIN_ID'), initialized([]):
        pass


@pytest.fixture
def said_of():
    """A function: what is said of arguments that a node, by default like ours, does not read."""
    running = []

    def say(*arguments, make=None):
        context = rclpy.Context()
        rclpy.init(args=list(arguments), context=context)
        running.append(context)
        if make is None:
            node = Node('cliptrase', namespace='robot', context=context)
            declare_parameters(node)
        else:
            node = make(context=context)
        try:
            return list(explain_unread_arguments(node, arguments))
        finally:
            node.destroy_node()

    yield say
    for context in running:
        rclpy.try_shutdown(context=context)


def test_what_is_read_is_not_spoken_of(files, said_of):
    given = ['-p', 'rate:=5.0', '-p', 'use_sim_time:=true', '-r', 'a:=b', '--log-level', 'warn']
    assert said_of('--ros-args', *given, '--params-file', 'right.yaml') == []
    for_this_node = ['-p', 'toybox_camera:seed:=3', '--']
    assert said_of('--ros-args', *for_this_node, make=ToyboxCamera) == []


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--ros-args', '-p', 'vocabluary:=road'], ["'vocabluary'", "'vocabulary'?"]),
        (
            ['--ros-args', '--param', 'min_confidance:=0.5'],
            ["'min_confidance'", "'min_confidence'"],
        ),
        (['--ros-args', '-p', 'zzz:=1'], ["'zzz'", 'ros2 param list /robot/cliptrase']),
        (['--ros-args', '--params-file', 'unquoted.yaml'], ["'vocabulary.person'", 'quote it']),
        (['--ros-args', '--params-file', 'other.yaml'], ['other.yaml', '/segmentation']),
        (['--ros-args', '--params-file', 'empty.yaml'], ['empty.yaml', '/robot/cliptrase']),
        (['--ros-args', '-p', 'cliptrase:rate:=5.0'], ['/cliptrase', '/robot/cliptrase']),
        (['-p', 'rate'], ['-p rate', '--ros-args']),
        (['--ros-args', '-p', 'rate:=5.0', '--', '--seed', '3'], ['--seed 3', '--ros-args']),
    ],
)
def test_what_is_not_read_is_said_in_a_line(files, said_of, arguments, words):
    (line,) = said_of(*arguments)
    assert all(word in line for word in words) and '\n' not in line, line


@pytest.mark.parametrize(
    'key',
    [
        *('/**', '**', '/*', '*', 'cliptrase', '/cliptrase', '/robot/cliptrase', 'robot/cliptrase'),
        *('/robot/*', '/*/cliptrase', '/**/cliptrase', '/*/*/cliptrase', '/robot/**', '/robot'),
        *('/robot/cliptrase/more', '/robot/clip'),
    ],
)
@pytest.mark.parametrize('nested', [False, True])
def test_files_are_for_the_nodes_that_rcl_thinks(tmp_path, said_of, key, nested):
    path = tmp_path / 'parameters.yaml'
    keys = key.strip('/').split('/') if nested else [key]
    lines = [f'{"  " * depth}"{name}":\n' for depth, name in enumerate([*keys, 'ros__parameters'])]
    path.write_text(''.join(lines) + '  ' * len(lines) + 'rate: 5.0\n')
    rates = []

    def make(context):
        node = Node('cliptrase', namespace='robot', context=context)
        rates.append(node.declare_parameter('rate', 1.0).value)
        return node

    said = said_of('--ros-args', '--params-file', str(path), make=make)
    assert len(said) == (rates == [1.0]), said


def test_qos_of_a_topic_the_node_does_not_have_is_said(said_of):
    right = 'qos_overrides./camera/image_raw.publisher.depth'
    wrong = 'qos_overrides./camera/image_row.publisher.depth'
    arguments = ['--ros-args', '-p', f'{right}:=3', '-p', f'{wrong}:=3']
    (line,) = said_of(*arguments, make=ToyboxCamera)
    assert repr(wrong) in line and repr(right) in line


def test_node_says_what_it_does_not_read_and_goes_on(files, processes):
    node = processes.start(
        'segment_node', '--params-file', 'other.yaml', vocabluary=['road'], autostart=False
    )
    said = ''
    while not all(word in said for word in ("'vocabulary'?", '/segmentation')):
        line = node.stdout.readline()
        assert line, said
        said += line
    assert node.poll() is None and 'Traceback' not in said


def test_what_cannot_be_read_ends_without_a_traceback(processes):
    running = [
        processes.start('segment_node', '-p', 'vocabulary:=road; person: man'),
        # A parameter that every node has; rclpy declares it.
        processes.start('toybox_camera', '-p', 'use_sim_time:=maybe'),
    ]
    for process in running:
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert 'cannot start' in output and 'Traceback' not in output, output
