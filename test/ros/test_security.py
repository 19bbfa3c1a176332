"""The policy for SROS 2 names what a running node has, and nothing else."""

import importlib.util
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from cliptrase_ros.messages.transports import TRANSPORTS
from cliptrase_ros.ros import transforms
from cliptrase_ros.ros.outputs import LabelInfo

POLICY = Path(__file__).resolve().parents[2] / 'config' / 'sros2_policy.xml'

#: Seconds the graph may take to fill on a busy machine.
PATIENCE = 90.0

#: Elements and attributes of version 0.2.0, as sros2's policy.xsd has them, from the root down.
STRUCTURE = {
    'policy': ({'version'}, {'enclaves'}),
    'enclaves': (set(), {'enclave'}),
    'enclave': ({'path'}, {'profiles'}),
    'profiles': (set(), {'profile'}),
    'profile': ({'ns', 'node'}, {'topics', 'services', 'actions'}),
    'topics': ({'publish', 'subscribe'}, {'topic'}),
    'services': ({'reply', 'request'}, {'service'}),
    'actions': ({'call', 'execute'}, {'action'}),
    'topic': (set(), set()),
    'service': (set(), set()),
    'action': (set(), set()),
}
#: What an action is made of.
ACTION_TOPICS, ACTION_SERVICES = ('feedback', 'status'), ('send_goal', 'cancel_goal', 'get_result')


@pytest.fixture(scope='module')
def policy():
    return ElementTree.parse(POLICY).getroot()


def test_structure(policy):
    assert policy.tag == 'policy' and policy.get('version') == '0.2.0'
    for element in policy.iter():
        attributes, children = STRUCTURE[element.tag]
        assert set(element.attrib) <= attributes
        assert {child.tag for child in element} <= children
        if element.tag in ('topics', 'services', 'actions'):
            assert set(element.attrib.values()) == {'ALLOW'} and len(element)


def test_sros2_accepts_it():
    policies = pytest.importorskip('sros2.policy', reason='sros2 is not installed')
    assert policies.load_policy(POLICY).getroot().tag == 'policy'


def test_policy_is_what_the_node_has(policy, start_node, client):
    (profile,) = policy.iter('profile')
    name, namespace = profile.get('node'), profile.get('ns')

    def allowed(kind, access):
        texts = [
            expression.text.replace('~', f'/{name}')
            for element in profile.findall(kind)
            if element.get(access) == 'ALLOW'
            for expression in element
        ]
        assert len(texts) == len(set(texts))
        return {text if text.startswith('/') else f'{namespace}{text}' for text in texts}

    wanted = {
        'publish': allowed('topics', 'publish'),
        'subscribe': allowed('topics', 'subscribe'),
        'reply': allowed('services', 'reply'),
    }
    for action in allowed('actions', 'execute'):
        wanted['publish'] |= {f'{action}/_action/{part}' for part in ACTION_TOPICS}
        wanted['reply'] |= {f'{action}/_action/{part}' for part in ACTION_SERVICES}
    if LabelInfo is None:
        wanted['publish'] -= {
            f'/{name}/camera/{topic}' for topic in ('label_info', 'detections', 'detections_3d')
        }
    transports = ['raw', 'compressed']
    for transport in ('ffmpeg', 'foxglove'):
        if importlib.util.find_spec(TRANSPORTS[transport].partition('/')[0]):
            transports.append(transport)
        else:
            wanted['subscribe'].remove(f'{namespace}camera/image_raw/{transport}')
    has_tf = transforms.tf2_py is not None
    if not has_tf:
        wanted['subscribe'] -= {'/tf', '/tf_static'}
    start_node(
        cameras=['camera', 'other', 'other2', 'other3'][: len(transports)],
        transport=transports,
        depth=True,
        depth_transport=(['raw', 'compressedDepth'] * 2)[: len(transports)],
        mask_topics=['person'],
        score_topics=['person'],
        ground_frame='base',
        camera_poses='' if has_tf else ['0 0 1 0 0.5 0'] * len(transports),
        always_on=True,
        use_sim_time=True,
    )
    node = client.node

    def present():
        if (name, namespace) not in node.get_node_names_and_namespaces():
            return None
        return {
            way: {re.sub(r'/other\d?/', '/camera/', found) for found, _ in find(name, namespace)}
            for way, find in (
                ('publish', node.get_publisher_names_and_types_by_node),
                ('subscribe', node.get_subscriber_names_and_types_by_node),
                ('reply', node.get_service_names_and_types_by_node),
            )
        }

    deadline = time.monotonic() + PATIENCE
    while present() != wanted and time.monotonic() < deadline:
        client.spin(0.1)
    assert present() == wanted
