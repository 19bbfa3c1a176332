"""Command lines of `ros2` in the documentation, through the parsers of the real tools to nodes."""

import re
import shlex

import pytest
import yaml
from pages import ROOT, every, ids

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from ament_index_python.packages import get_package_prefix, get_package_share_directory
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterDescriptor
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter, get_parameter_value, parameter_value_to_python

from cliptrase_ros.ros import rerun_viewer, toybox_camera, transforms
from cliptrase_ros.ros.arguments import explain_unread_arguments
from cliptrase_ros.ros.parameters import declare_settings
from cliptrase_ros.ros.segment_node import SegmentNode
from cliptrase_ros.ros.settings import NODE_NAME
from cliptrase_ros.segmentation.settings import settings_of
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary


def documented(*verb):
    """(page, arguments after the verb) of the command lines that begin with it."""
    return [
        (page, arguments[len(verb) :])
        for page, arguments in every('ros2')
        if arguments[: len(verb)] == list(verb)
    ]


PARAM_SET = documented('param', 'set')
RUN = documented('run', 'cliptrase_ros')
LAUNCH = documented('launch', 'cliptrase_ros', 'segment.launch.py')


def words(text):
    return [(c.name, list(c.synonyms)) for c in parse_vocabulary(text).classes]


def announced(client):
    messages = client.received[f'{client.node_name}/vocabulary']
    return bool(messages) and [(c.name, list(c.synonyms)) for c in messages[-1].classes]


def test_lines_are_found():
    assert len(PARAM_SET) >= 4 and len(RUN) >= 8 and len(LAUNCH) >= 7 and len(ADVISED) >= 6


GUIDE = (ROOT / 'docs' / 'vocabulary.md').read_text()
ADVISED = re.findall(r'`(".*?")`', GUIDE[GUIDE.index('### What YAML does') :])


@pytest.mark.parametrize('typed', ADVISED)
def test_what_the_guide_advises_is_text_to_both_parsers(started, typed):
    (value,) = shlex.split(typed)
    by_param_set = parameter_value_to_python(get_parameter_value(value))
    node = started(['--ros-args', '-p', f'words:={value}'], lambda **o: Node('any', **o))
    by_run = node.declare_parameter('words', '', ParameterDescriptor(dynamic_typing=True)).value
    texts = by_run if isinstance(by_run, list) else [by_run]
    assert texts == by_param_set or texts == [by_param_set]
    assert all(isinstance(text, str) for text in texts)


@pytest.mark.parametrize(('page', 'arguments'), PARAM_SET, ids=ids(PARAM_SET))
def test_param_set(start_node, client, page, arguments):
    name, parameter, value = arguments
    assert name.endswith(f'/{NODE_NAME}')
    start_node(vocabulary=['nothing of these'])
    client.listen_to_vocabulary()
    change = ParameterMessage(name=parameter, value=get_parameter_value(value))
    (result,) = client.call(
        SetParameters, 'set_parameters', SetParameters.Request(parameters=[change])
    ).results
    assert result.successful, result.reason
    if parameter == 'vocabulary':
        client.wait_for(lambda: announced(client) == words(value), f'{words(value)}')


@pytest.fixture
def started():
    """A function that makes a node in a process with the given arguments, as `ros2 run` does."""
    running = []

    def make(arguments, kind, *positional, **overrides):
        context = rclpy.Context()
        rclpy.init(args=arguments, context=context)
        running.append([None, context])
        node = kind(
            *positional,
            context=context,
            parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()],
        )
        running[-1][0] = node
        return node

    yield make
    for node, context in running:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown(context=context)


@pytest.fixture
def started_with_words(started, segmenter, client):
    """The same for the segmentation node, and a look at the classes it announces."""

    def make(arguments, text):
        node = started(arguments, SegmentNode, segmenter, autostart=False, resolution=64)
        assert list(explain_unread_arguments(node, arguments)) == []
        client.node_name = node.get_fully_qualified_name()
        client.listen_to_vocabulary()
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        if text:
            client.wait_for(lambda: announced(client) == words(text), f'{words(text)}')

    return make


def given(arguments):
    """Values by name of the arguments `NAME:=VALUE`."""
    return {name: value for name, sign, value in (a.partition(':=') for a in arguments) if sign}


@pytest.mark.parametrize(('page', 'arguments'), RUN, ids=ids(RUN))
def test_run(started, started_with_words, page, arguments):
    executable, *arguments = arguments
    if executable == 'segment_node':
        if transforms.tf2_py is None and {'ground_frame'} == {'ground_frame', 'camera_poses'} & set(
            given(arguments)
        ):
            pytest.skip('needs tf2_py, which is no wheel')
        started_with_words(arguments, given(arguments).get('vocabulary'))
    elif executable == 'toybox_camera':
        node = started(arguments, toybox_camera.ToyboxCamera)
        assert list(explain_unread_arguments(node, arguments)) == []
    else:
        # The node itself would open a window.
        node = started(arguments, lambda **options: Node(executable, **options))
        values = declare_settings(node, settings_of(rerun_viewer.ViewerSettings))
        assert list(explain_unread_arguments(node, arguments)) == []
        assert given(arguments).items() <= values.items()


@pytest.mark.parametrize(('page', 'arguments'), LAUNCH, ids=ids(LAUNCH))
def test_launch(started_with_words, tmp_path, page, arguments):
    prefix = get_package_prefix('cliptrase_ros')
    values = {
        name: value.replace('SUBSTITUTED', prefix)  # $(ros2 pkg prefix cliptrase_ros)
        for name, value in given(arguments).items()
        if name != 'rviz'
    }
    started_with_words(launched(values, tmp_path), values.get('vocabulary'))


def launched(values, folder):
    """Arguments that the launch file starts the node with."""
    try:
        from launch.launch_description_sources import PythonLaunchDescriptionSource
        from launch_ros.actions import Node as NodeAction

        from launch import LaunchContext
    except ImportError:
        # launch is not on PyPI. Texts are written to a file of this form by launch_ros.
        texts = {name: values[name] for name in ('vocabulary', 'model') if name in values}
        path = folder / 'parameters.yaml'
        path.write_text(yaml.safe_dump({'/**': {'ros__parameters': texts or {'rate': 5.0}}}))
        return ['--ros-args', '--params-file', str(path)]

    def nodes(entity):
        if isinstance(entity, NodeAction):
            yield entity
        else:
            for inner in entity.visit(context) or ():
                yield from nodes(inner)

    context = LaunchContext()
    context.launch_configurations.update(values)
    share = get_package_share_directory('cliptrase_ros')
    source = PythonLaunchDescriptionSource(f'{share}/launch/segment.launch.py')
    (node,) = nodes(source.get_launch_description(context))
    node._perform_substitutions(context)
    # As when it is executed.
    names = {'name': f'__node:={NODE_NAME}', 'ns': f'__ns:={node.expanded_node_namespace}'}
    context.extend_locals({'ros_specific_arguments': names})
    command = [''.join(part.perform(context) for part in word) for word in node.cmd]
    return command[command.index('--ros-args') :]
