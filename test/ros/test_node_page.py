"""docs/node.md and the node say the same, in both directions."""

import re

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from diagnostic_msgs.msg import DiagnosticArray
from pages import table
from rclpy.action import get_action_server_names_and_types_by_node
from rclpy.node import Node

from cliptrase_ros.messages.transports import TRANSPORTS
from cliptrase_ros.ros import transforms
from cliptrase_ros.ros.conversions import message_class
from cliptrase_ros.ros.parameters import declare_parameters

#: Topics that every node has.
COMMON_TOPICS = {'/rosout', '/parameter_events'}


def code(cell):
    """What stands in backquotes."""
    return re.findall(r'`([^`]*)`', cell)


def numbers(text):
    return {float(number) for number in re.findall(r'-?\d+(?:\.\d+)?', text)}


def test_parameters(context):
    """What `ros2 param describe` tells of each."""
    node = Node('cliptrase', context=context)
    try:
        declared = declare_parameters(node).by_name
        rows = {code(row[0])[0]: row[1:] for row in table('node.md', 'name')}
        assert list(rows) == list(declared)
        values = [parameter.value for parameter in node.get_parameters(list(rows))]
        descriptors = node.describe_parameters(list(rows))
    finally:
        node.destroy_node()
    for descriptor, value in zip(descriptors, values, strict=True):
        name, constraints = descriptor.name, descriptor.additional_constraints
        default, live, allowed, what = rows[name]
        shown = '; '.join(value) if isinstance(value, list) else str(value)
        shown = shown.lower() if isinstance(value, bool) else shown
        assert code(default) == ([shown] if shown else []), name
        assert live == ('no' if descriptor.read_only else 'yes'), name
        assert what.replace('`', '') == descriptor.description.replace("'", ''), name
        for limits in (*descriptor.integer_range, *descriptor.floating_point_range):
            # Of a range with a gap the constraints tell the rest.
            ends = {limits.from_value, limits.to_value, *numbers(constraints)}
            assert numbers(allowed) == ends, name
        choices = re.match(r'one of (.*)', constraints)
        for choice in choices[1].split(', ') if choices else ():
            assert choice in code(allowed), name


def is_installed(message_type):
    try:
        return bool(message_class(message_type))
    except ImportError:
        return False


def by_name_and_type(found):
    return {
        (re.sub(r'/OTHER\d?/', '/NAME/', name), type_)
        for name, types in found
        for type_ in types
        if name not in COMMON_TOPICS and '/_action/' not in name
    }


def test_topics(start_node, client):
    transports = [name for name in TRANSPORTS if is_installed(TRANSPORTS[name])]
    cameras = ['NAME', 'OTHER', 'OTHER2', 'OTHER3'][: len(transports)]
    has_tf = transforms.tf2_py is not None
    start_node(
        cameras=cameras,
        transport=transports,
        depth=True,
        depth_transport=(['raw', 'compressedDepth'] * 2)[: len(transports)],
        mask_topics=['CLASS'],
        score_topics=['PHRASE'],
        ground_frame='base',
        camera_poses='' if has_tf else ['0 0 1 0 0.5 0'] * len(cameras),
        always_on=True,
    )
    node = client.node
    name = ('cliptrase', '/')
    client.wait_for(lambda: name in node.get_node_names_and_namespaces(), 'the node')
    inputs, outputs = set(), set()
    for topic, type_, *_ in table('node.md', 'topic'):
        is_input = topic.endswith('(in)')
        full = code(topic)[0].replace('~', '/cliptrase')
        full = full if full.startswith('/') else f'/{full}'
        type_ = type_.split(',')[0].replace('/', '/msg/')
        if is_installed(type_) and (has_tf or not type_.startswith('tf2_msgs/')):
            (inputs if is_input else outputs).add((full, type_))
    client.wait_for(
        lambda: by_name_and_type(node.get_publisher_names_and_types_by_node(*name)) >= outputs,
        f'{outputs}',
    )
    assert by_name_and_type(node.get_publisher_names_and_types_by_node(*name)) == outputs
    client.wait_for(
        lambda: by_name_and_type(node.get_subscriber_names_and_types_by_node(*name)) == inputs,
        f'{inputs}',
    )


def test_services_and_actions(start_node, client):
    start_node()
    name = ('cliptrase', '/')
    client.wait_for(lambda: name in client.node.get_node_names_and_namespaces(), 'the node')
    shown = {
        (code(row[0])[0].replace('~', '/cliptrase'), row[1].replace('/', f'/{row[2]}/'))
        for row in table('node.md', 'call', '## Services and actions')
    }

    def offered():
        services = client.node.get_service_names_and_types_by_node(*name)
        actions = get_action_server_names_and_types_by_node(client.node, *name)
        return {
            (name, type_)
            for name, types in (*services, *actions)
            for type_ in types
            if type_.startswith('cliptrase_ros/') and '/_action/' not in name
        }

    client.wait_for(lambda: offered() == shown, f'{shown}')


def test_diagnostics(start_node, client):
    start_node()
    client.listen_to_label()
    client.listen('/diagnostics', DiagnosticArray)
    client.wait_for(lambda: client.received['/diagnostics'], 'a report')
    for status, wanted in (('engine', ''), ('camera NAME', 'latency_ms_max')):
        keys = [
            key
            for row in table('node.md', 'key', f'Values of `cliptrase: {status}`')
            for key in code(row[0])
        ]
        ending = status.replace('NAME', 'camera')
        assert len(keys) == len(set(keys))

        def reported(ending=ending, wanted=wanted):
            for array in client.received['/diagnostics']:
                for one in array.status:
                    found = {value.key for value in one.values}
                    if one.name == f'cliptrase: {ending}' and (not wanted or wanted in found):
                        return found
            return None

        client.label_of(client.send(client.image()))
        assert client.wait_for(reported, status) == set(keys)
