"""Start the segmentation node: `ros2 launch cliptrase_ros segment.launch.py --show-args`."""

import os
from pathlib import Path
from typing import List  # noqa: UP035 (launch_ros compares with typing's own)

import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.utilities import prefix_namespace

from cliptrase_ros.messages.transports import (
    DEPTH_TRANSPORTS,
    TRANSPORTS,
    raw_topic,
    topic_of,
)
from cliptrase_ros.ros.arguments import is_for, nearest_name, parameters_in_file
from cliptrase_ros.ros.settings import PARAMETERS
from cliptrase_ros.segmentation.settings import Setting
from launch import LaunchContext, LaunchDescription

# Installed as share/cliptrase_ros/launch/, beside config/.
CONFIG = Path(__file__).resolve().parent.parent / 'config'

BOOLEANS = ['true', 'false']

#: Parameters of the node that can be given as arguments, and what separates entries of a list.
PARAMETER_ARGUMENTS = {
    'cameras': ',',
    'transport': ',',
    'depth': '',
    'depth_transport': ',',
    'mask_topics': ';',
    'score_topics': ';',
    'vocabulary': ';',
    'model': '',
    'device': '',
    'rate': '',
    'autostart': '',
}


def _parameter_argument(declared: Setting) -> DeclareLaunchArgument:
    separator = PARAMETER_ARGUMENTS[declared.name]
    separated = f" Separated by '{separator}'." if separator else ''
    return DeclareLaunchArgument(
        declared.name,
        default_value='',
        choices=['', *BOOLEANS] if declared.type is bool else None,
        description=f'{declared.doc}{separated} Empty: as params_file says.',
    )


ARGUMENTS = (
    DeclareLaunchArgument(
        'params_file',
        default_value=str(CONFIG / 'segment.yaml'),
        description='Parameter file of the node. The arguments below, where given, override it.',
    ),
    *(_parameter_argument(s) for s in PARAMETERS if s.name in PARAMETER_ARGUMENTS),
    DeclareLaunchArgument(
        'image_topic',
        default_value='',
        description="Image topics to read instead of NAME/image_raw, separated by ',', one for "
        'each camera in order, as `cameras` or params_file names them. With another transport than '
        'raw TOPIC/TRANSPORT is read.',
    ),
    DeclareLaunchArgument(
        'depth_topic',
        default_value='',
        description='Depth topics to read instead of NAME/depth/image_raw, one for each camera; '
        'with them `depth` is true, unless it is given. With depth_transport:=compressedDepth '
        'TOPIC/compressedDepth is read.',
    ),
    DeclareLaunchArgument(
        'camera_info_topic',
        default_value='',
        description='Topics to read instead of NAME/camera_info, one for each camera.',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='',
        choices=['', *BOOLEANS],
        description='Take the time from /clock: with simulators and bags. Empty: as params_file '
        'says, or false.',
    ),
    DeclareLaunchArgument(
        'namespace', default_value='', description='Namespace of the node and its topics.'
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description="Least severe messages of the node that are shown; 'debug' tells what becomes "
        'of each image.',
    ),
    DeclareLaunchArgument(
        'rviz',
        default_value='false',
        choices=BOOLEANS,
        description='Show overlay, confidence and, with depth, points of the first camera in RViz.',
    ),
    DeclareLaunchArgument(
        'rviz_frame',
        default_value='',
        description="Fixed frame of RViz, for points: the frame of the camera's images or one that "
        'transforms lead to. Empty: camera_optical_frame, the frame of toybox_camera.',
    ),
)


def generate_launch_description() -> LaunchDescription:
    """Describe the arguments and what is started with them."""
    return LaunchDescription([*ARGUMENTS, *_fast_dds_profile(), OpaqueFunction(function=_nodes)])


def _fast_dds_profile() -> list[SetEnvironmentVariable]:
    # Fast DDS 2 (Jazzy) reads the second, Fast DDS 3 the first, and warns of the second. Whoever
    # has set one has a profile of their own.
    names = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
    if any(os.environ.get(name) for name in names):
        return []
    name = names[os.environ.get('ROS_DISTRO') == 'jazzy']
    return [SetEnvironmentVariable(name, str(CONFIG / 'fastdds_large_data.xml'))]


def _nodes(context: LaunchContext) -> list[Node]:
    given = {
        argument.name: LaunchConfiguration(argument.name).perform(context).strip()
        for argument in ARGUMENTS
    }
    for name in (word.partition(':=')[0] for word in context.argv):
        # launch passes over names that nobody reads; some may be for a launch file around this one.
        nearest = nearest_name(name, given)
        if nearest and name not in given:
            get_logger('segment.launch').warning(
                f'the argument {name!r} is not read, there is none of that name: do you mean '
                f'{nearest!r}? (--show-args lists them)'
            )
    # A launch file that includes this one may have pushed a namespace.
    pushed = context.launch_configurations.get('ros_namespace', '')
    namespace = prefix_namespace(pushed, given['namespace'])
    node = '/'.join(['', *filter(None, namespace.split('/')), 'cliptrase'])
    logger = node[1:].replace('/', '.')
    cameras = _list(given['cameras']) or _cameras_in(given['params_file'], node)
    topics = {
        'image': _list(given['image_topic']),
        'depth': _list(given['depth_topic']),
        'camera_info': _list(given['camera_info_topic']),
    }
    for name, listed in topics.items():
        if listed and len(listed) != len(cameras):
            raise RuntimeError(
                f'{name}_topic has {len(listed)} topics ({", ".join(listed)}) for {len(cameras)} '
                f'cameras ({", ".join(cameras)}); give one for each, in order'
            )

    if given['rviz'] == 'true':
        # Found missing later, the launch would end and leave the node running.
        try:
            get_package_prefix('rviz2')
        except PackageNotFoundError:
            raise RuntimeError(
                'rviz:=true needs the package rviz2, which is not installed; install it '
                '(apt install ros-$ROS_DISTRO-rviz2), or leave rviz:=true out'
            ) from None

    # Without a type, launch_ros reads the text as YAML: the class `no` would become False.
    overrides = {}
    for name in ('transport', 'depth_transport'):
        given[name] = '; '.join(_list(given[name]))
    for name in (
        'vocabulary',
        'transport',
        'depth_transport',
        'mask_topics',
        'score_topics',
        'model',
        'device',
    ):
        if given[name]:
            overrides[name] = ParameterValue(given[name], value_type=str)
    for name in ('autostart', 'use_sim_time'):
        if given[name]:
            overrides[name] = given[name] == 'true'
    if given['depth'] or topics['depth']:
        overrides['depth'] = given['depth'] != 'false'
    if given['rate']:
        try:
            overrides['rate'] = float(given['rate'])
        except ValueError:
            raise RuntimeError(f'rate is {given["rate"]!r}; give a number') from None
    if given['cameras']:
        overrides['cameras'] = ParameterValue(cameras, value_type=List[str])  # noqa: UP006

    remappings = []
    for index, name in enumerate(cameras):
        # As image_transport has it: others come below the topic of the raw ones.
        for kind, ours, transports in (
            ('image', f'{name}/image_raw', TRANSPORTS),
            ('depth', f'{name}/depth/image_raw', DEPTH_TRANSPORTS),
        ):
            if topics[kind]:
                theirs = raw_topic(topics[kind][index])
                remappings += [(topic_of(ours, t), topic_of(theirs, t)) for t in transports]
        if topics['camera_info']:
            remappings.append((f'{name}/camera_info', topics['camera_info'][index]))
    nodes = [
        Node(
            package='cliptrase_ros',
            executable='segment_node',
            name='cliptrase',
            namespace=given['namespace'],
            parameters=[given['params_file'], overrides],
            remappings=remappings,
            # Of the node alone: at debug, rcl and the middleware say more than anybody can read.
            ros_arguments=['--log-level', f'{logger}:={given["log_level"]}'],
            output='screen',
        )
    ]
    if given['rviz'] == 'true':
        fixed_frame = ['-f', given['rviz_frame']] if given['rviz_frame'] else []
        nodes.append(
            Node(
                package='rviz2',
                executable='rviz2',
                arguments=['-d', str(CONFIG / 'segment.rviz'), *fixed_frame],
                parameters=[{'use_sim_time': given['use_sim_time'] == 'true'}],
                remappings=[
                    (f'/cliptrase/camera/{output}', f'{node}/{cameras[0]}/{output}')
                    for output in ('overlay', 'confidence', 'points')
                ],
            )
        )
    return nodes


def _cameras_in(params_file: str, node: str) -> list[str]:
    """Names of the cameras that a parameter file gives to a node, or the node's default."""
    try:
        found = parameters_in_file(params_file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RuntimeError(f'params_file {params_file} cannot be read: {error}') from error
    cameras = ['camera']
    for pattern, parameters in found:
        named = parameters.get('cameras')
        # Of anything but a list the node says what is wrong with it.
        if is_for(pattern, node) and named and isinstance(named, list):
            cameras = named
    return cameras


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.strip('[]').split(',') if item.strip()]
