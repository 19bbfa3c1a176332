"""The launch file and the parameter file, as a user starts them."""

import ast
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from cliptrase_ros.ros.settings import PARAMETERS, default_value

ROOT = Path(__file__).resolve().parents[2]


def test_parameter_file_holds_the_defaults_of_every_parameter():
    content = yaml.safe_load((ROOT / 'config' / 'segment.yaml').read_text())
    assert content['/**']['ros__parameters'] == {
        declared.name: default_value(declared) for declared in PARAMETERS
    }


@pytest.fixture(scope='module')
def launch_syntax():
    return ast.parse((ROOT / 'launch' / 'segment.launch.py').read_text())


def texts(*nodes):
    return {
        n.value
        for node in nodes
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }


def declared_arguments(syntax):
    calls = (n for n in ast.walk(syntax) if isinstance(n, ast.Call))
    return {
        call.args[0].value: ''.join(texts(*(k for k in call.keywords if k.arg == 'description')))
        for call in calls
        if getattr(call.func, 'id', '') == 'DeclareLaunchArgument'
        and isinstance(call.args[0], ast.Constant)
    }


def keys_of(syntax, variable):
    """Texts by which a dictionary is made, or written and read, also by a loop over texts."""
    keys = set()

    def visit(node, loops):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            loops = {**loops, node.target.id: texts(node.iter)}
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == variable:
            keys.update(*(texts(key) for key in getattr(node.value, 'keys', [])))
        if isinstance(node, ast.Subscript) and getattr(node.value, 'id', '') == variable:
            keys.update(loops.get(getattr(node.slice, 'id', ''), texts(node.slice)))
        for child in ast.iter_child_nodes(node):
            visit(child, loops)

    visit(syntax, {})
    return keys


def parameter_arguments(syntax):
    """Names of the parameters that are arguments, too, described by their declarations."""
    assignments = {
        getattr(n.targets[0], 'id', ''): n.value for n in syntax.body if isinstance(n, ast.Assign)
    }
    return set(ast.literal_eval(assignments['PARAMETER_ARGUMENTS']))


def test_launch_file_overrides_parameters_that_exist(launch_syntax):
    overridden = keys_of(launch_syntax, 'overrides')
    assert {'vocabulary', 'model', 'device', 'rate', 'cameras', 'use_sim_time'} <= overridden
    assert overridden - {'use_sim_time'} == parameter_arguments(launch_syntax)
    assert overridden <= {'use_sim_time', *(declared.name for declared in PARAMETERS)}


def test_launch_file_reads_arguments_that_are_declared_and_described(launch_syntax):
    arguments, read = declared_arguments(launch_syntax), keys_of(launch_syntax, 'given')
    assert {'vocabulary', 'image_topic', 'rviz', 'rviz_frame', 'namespace'} <= read
    assert read <= {*arguments, *parameter_arguments(launch_syntax)}
    assert all(len(description) > 20 for description in arguments.values())


def test_launch_file_needs_no_torch():
    """The Python of ROS runs it, which need not have what the node needs."""
    code = 'import sys, cliptrase_ros.ros.settings; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_launch_file_names_files_and_executables_that_exist(launch_syntax):
    divisions = (n for n in ast.walk(launch_syntax) if isinstance(n, ast.BinOp))
    files = {n.right.value for n in divisions if getattr(n.left, 'id', '') == 'CONFIG'}
    assert {'segment.yaml', 'segment.rviz', 'fastdds_large_data.xml'} <= files
    assert all((ROOT / 'config' / name).is_file() for name in files)
    keywords = [n for n in ast.walk(launch_syntax) if isinstance(n, ast.keyword)]
    ours = texts(*(k.value for k in keywords if k.arg == 'executable')) - {'rviz2'}
    built = re.search(r'foreach\(executable (.*?)\)', (ROOT / 'CMakeLists.txt').read_text())
    assert ours and ours <= set(built[1].split())


def rviz_config():
    return yaml.safe_load((ROOT / 'config' / 'segment.rviz').read_text())


def rviz_topics():
    """Topic by display."""
    displays = rviz_config()['Visualization Manager']['Displays']
    return {display['Name']: display['Topic']['Value'] for display in displays}


def test_rviz_shows_topics_that_the_node_has(start_node):
    node = start_node(depth=True)
    own = dict(node.get_publisher_names_and_types_by_node(node.get_name(), node.get_namespace()))
    for display in rviz_config()['Visualization Manager']['Displays']:
        assert display['Enabled']
        kind = display['Class'].removeprefix('rviz_default_plugins/')
        assert own[display['Topic']['Value']] == [f'sensor_msgs/msg/{kind}']


def test_rviz_has_a_place_for_every_panel():
    config = rviz_config()
    window = config['Window Geometry']
    # RViz takes whatever is in memory for these two where they are missing.
    assert (window['Hide Left Dock'], window['Hide Right Dock']) == (False, False)
    docks = bytes.fromhex(window['QMainWindow State'])
    images = [name for name, topic in rviz_topics().items() if not topic.endswith('/points')]
    for panel in ('Displays', *images):
        assert window[panel] == {'collapsed': False}
        assert panel.encode('utf-16-be') in docks


def test_points_of_the_simulated_camera_show_without_transforms(client, context):
    from sensor_msgs.msg import Image

    from cliptrase_ros.ros.toybox_camera import ToyboxCamera

    camera = ToyboxCamera(context=context)
    client.executor.add_node(camera)
    client.listen('/camera/image_raw', Image)
    messages = client.received['/camera/image_raw']
    client.wait_for(lambda: messages, 'an image')
    camera.destroy_node()
    options = rviz_config()['Visualization Manager']['Global Options']
    assert options['Fixed Frame'] == messages[0].header.frame_id


@pytest.fixture
def launch_file():
    pytest.importorskip('launch', reason='launch is not installed (it is not on PyPI)')
    pytest.importorskip('launch_ros', reason='launch_ros is not installed (it is not on PyPI)')
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory('cliptrase_ros'), 'launch', 'segment.launch.py')


def test_every_launch_argument_is_described(launch_file):
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    from launch import LaunchContext

    description = PythonLaunchDescriptionSource(str(launch_file)).get_launch_description(
        LaunchContext()
    )
    arguments = {a.name: a for a in description.get_launch_arguments()}
    assert set(arguments) >= {
        'params_file',
        'cameras',
        'image_topic',
        'transport',
        'depth',
        'depth_topic',
        'depth_transport',
        'camera_info_topic',
        'mask_topics',
        'autostart',
        'vocabulary',
        'model',
        'device',
        'rate',
        'use_sim_time',
        'namespace',
        'log_level',
        'rviz',
        'rviz_frame',
    }
    assert all(len(a.description) > 20 for a in arguments.values())


@pytest.mark.parametrize(
    ('key', 'namespace'),
    [
        ('/**', ''),
        ('cliptrase', ''),
        ('/robot/cliptrase', 'robot'),
        ('/**/cliptrase', '/robot/arm'),
        ('/*/cliptrase', 'robot/'),
    ],
)
def test_cameras_of_the_parameter_file_are_remapped_and_shown(
    launch_file, with_rviz, tmp_path, key, namespace
):
    content = {
        '/**': {'ros__parameters': {'cameras': ['other']}},
        'robot': {'somebody': {'ros__parameters': {'cameras': ['theirs']}}},
        'no(name': {'ros__parameters': None},
        '/elsewhere/cliptrase': {'ros__parameters': {'cameras': ['theirs']}},
    }
    content[key] = {'ros__parameters': {'cameras': ['front', 'rear']}}
    path = tmp_path / 'params.yaml'
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    arguments = {'params_file': str(path), 'namespace': namespace, 'rviz': 'true'}
    node, rviz = launched(launch_file, **arguments, image_topic='/driver/a,/driver/b')
    assert ('rear/image_raw', '/driver/b') in node.remappings
    full_name = f'/{namespace.strip("/")}/cliptrase'.replace('//', '/')
    assert set(rviz.remappings) == {
        (topic, topic.replace('/cliptrase/camera', f'{full_name}/front'))
        for topic in rviz_topics().values()
    }
    _, rviz = launched(launch_file, **arguments, cameras='left')
    assert ('/cliptrase/camera/overlay', f'{full_name}/left/overlay') in rviz.remappings
    with pytest.raises(RuntimeError, match=r'1 topics .* for 2 cameras \(front, rear\)'):
        launched(launch_file, **arguments, image_topic='/driver/a')


def test_a_parameter_file_that_cannot_be_read_is_named(launch_file, tmp_path):
    with pytest.raises(RuntimeError, match='missing.yaml cannot be read'):
        launched(launch_file, params_file=str(tmp_path / 'missing.yaml'))


def test_a_misspelt_argument_is_named(launch_file, caplog, monkeypatch):
    from launch.logging import get_logger

    # launch keeps its loggers from those that pytest listens to.
    monkeypatch.setattr(get_logger('segment.launch'), 'handlers', [caplog.handler])
    launched(launch_file, ['vocabulry:=road', 'depth:=true', 'map:=of another launch file'])
    (message,) = caplog.messages
    assert "'vocabulry' is not read" in message and "do you mean 'vocabulary'?" in message


def test_a_level_is_that_of_the_nodes_own_logger(launch_file):
    (node,) = launched(launch_file, namespace='robot/arm', log_level='debug')
    assert '--log-level robot.arm.cliptrase:=debug' in node.command
    # As a launch file that includes this one in a namespace leaves it.
    (node,) = launched(launch_file, ros_namespace='/fleet', namespace='robot', log_level='warn')
    assert '--log-level fleet.robot.cliptrase:=warn' in node.command


def test_the_fixed_frame_of_rviz_is_the_configurations_or_the_one_given(launch_file, with_rviz):
    _, rviz = launched(launch_file, rviz='true')
    assert f'-d {launch_file.resolve().parents[1] / "config" / "segment.rviz"} ' in rviz.command
    assert ' -f ' not in rviz.command
    _, rviz = launched(launch_file, rviz='true', rviz_frame='base_link')
    assert ' -f base_link ' in rviz.command


def test_without_rviz2_nothing_is_started(launch_file, monkeypatch):
    # Also where it is installed: a machine with this package alone.
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(launch_file.parents[3]))
    with pytest.raises(RuntimeError, match='rviz:=true needs the package rviz2'):
        launched(launch_file, rviz='true')


@pytest.fixture
def with_rviz(tmp_path, monkeypatch):
    """RViz counts as installed, which is all that the launch file asks about it."""
    marker = tmp_path / 'rviz' / 'share' / 'ament_index' / 'resource_index' / 'packages' / 'rviz2'
    marker.parent.mkdir(parents=True)
    marker.touch()
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'rviz'), prepend=os.pathsep)


def launched(launch_file, argv=(), **arguments):
    """The nodes that the launch file starts, each with its remappings and its command line."""
    from launch import LaunchContext

    context = LaunchContext(argv=argv)
    content = runpy.run_path(str(launch_file))
    context.launch_configurations.update(arguments)
    for argument in content['ARGUMENTS']:
        argument.visit(context)
    nodes = []
    for node in content['_nodes'](context):
        node._perform_substitutions(context)
        command = ' '.join(getattr(part, 'text', '') for word in node.cmd for part in word)
        nodes.append(SimpleNamespace(remappings=node.expanded_remapping_rules, command=command))
    return nodes


def test_launch_file_starts_the_node_as_told(launch_file, client, tiny_model_folder, tmp_path):
    """In a process of its own: a launch service wants the main thread."""
    from cliptrase_ros.msg import Vocabulary
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from sensor_msgs.msg import Image, PointCloud2

    params_file = tmp_path / 'robot.yaml'
    params_file.write_text(
        '/**:\n  ros__parameters: {use_sim_time: true, preset: plus, rate: 2.0}\n'
    )
    arguments = {
        'params_file': str(params_file),
        'namespace': 'robot',
        'cameras': 'left,right',
        'image_topic': '/driver/left,/driver/right',
        'transport': 'raw,compressed',
        'depth_topic': '/driver/left/depth,/driver/right/depth',
        'depth_transport': 'raw,compressedDepth',
        'camera_info_topic': '/driver/left/info,/driver/right/info',
        'mask_topics': 'no',
        'autostart': 'true',
        'vocabulary': 'no; yes',
        'model': f'local-dir:{tiny_model_folder}',
        'device': 'cpu',
        'rate': '5',
        'log_level': 'debug',
    }
    script = (
        'import sys\n'
        'from launch import LaunchDescription, LaunchService\n'
        'from launch.actions import IncludeLaunchDescription\n'
        'arguments = [a.split("=", 1) for a in sys.argv[2:]]\n'
        'include = IncludeLaunchDescription(sys.argv[1], launch_arguments=arguments)\n'
        'service = LaunchService()\n'
        'service.include_launch_description(LaunchDescription([include]))\n'
        'sys.exit(service.run())\n'
    )
    process = subprocess.Popen(
        [
            sys.executable,
            '-c',
            script,
            str(launch_file),
            *(f'{k}={v}' for k, v in arguments.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    client.node_name = '/robot/cliptrase'
    try:
        client.listen(
            '/robot/cliptrase/vocabulary',
            Vocabulary,
            QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
        )
        messages = client.received['/robot/cliptrase/vocabulary']
        client.wait_for(lambda: messages or process.poll() is not None, 'the node')
        assert messages, ''.join(lines)
        assert [c.name for c in messages[0].classes] == ['no', 'yes']
        assert client.parameter('rate') == 5.0
        assert client.parameter('cameras') == ['left', 'right']
        # What no argument says is as the file has it.
        assert client.parameter('preset') == 'plus'
        assert client.parameter('use_sim_time') is True
        assert client.parameter('transport') == 'raw; compressed'
        client.listen('/robot/cliptrase/left/label', Image)
        client.listen('/robot/cliptrase/right/mask/no', Image)
        for name in ('left', 'right'):
            client.listen(f'/robot/cliptrase/{name}/points', PointCloud2)
        topics = ('left', 'right/compressed', 'left/depth', 'right/depth/compressedDepth')
        for topic in (*topics, 'left/info', 'left/camera_info'):
            client.wait_for(
                lambda: client.node.count_subscribers(f'/driver/{topic}'),  # noqa: B023
                topic,
            )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
        reader.join()
    assert 'Traceback' not in ''.join(lines)
    # Of the middleware, which says hundreds of lines a second, nothing.
    assert all('[robot.cliptrase]' in line for line in lines if '[DEBUG]' in line)
