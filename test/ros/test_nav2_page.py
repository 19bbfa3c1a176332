"""The parameter file for Nav2 fits the node, and the node what the costmap layer relies on."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from cliptrase_ros.messages.depth import POINT
from cliptrase_ros.ros.conversions import MAKER
from cliptrase_ros.ros.outputs import LabelInfo
from cliptrase_ros.ros.settings import PARAMETERS, NodeSettings, ground_cost
from cliptrase_ros.segmentation.vocabulary import name_and_synonyms, parse_vocabulary

ROOT = Path(__file__).resolve().parents[2]

#: Parameters the layer declares for each source and class type, and the range of costs.
SOURCE = {
    *('segmentation_topic', 'confidence_topic', 'labels_topic', 'pointcloud_topic'),
    *('observation_persistence', 'expected_update_rate', 'class_types', 'max_obstacle_distance'),
    *('min_obstacle_distance', 'tile_map_decay_time', 'visualize_tile_map', 'use_cost_selection'),
}
CLASS_TYPE = {
    *('classes', 'base_cost', 'max_cost', 'mark_confidence', 'samples_to_max_cost'),
    'dominant_priority',
}


@pytest.fixture(scope='module')
def content():
    return yaml.safe_load((ROOT / 'config' / 'nav2_semantic.yaml').read_text())


@pytest.fixture(scope='module')
def ours(content):
    return content['cliptrase']['ros__parameters']


@pytest.fixture(scope='module')
def source(content):
    costmap = content['local_costmap']['local_costmap']['ros__parameters']
    layer = costmap['semantic_layer']
    assert 'semantic_layer' in costmap['plugins']
    return layer[layer['observation_sources']]


def test_page_shows_the_file(content):
    page = (ROOT / 'docs' / 'nav2.md').read_text()
    shown, *others = map(yaml.safe_load, re.findall(r'^```yaml\n(.*?)^```', page, re.M | re.S))
    assert shown == content
    for ours in (other['cliptrase']['ros__parameters'] for other in others if 'cliptrase' in other):
        assert set(ours) <= {declared.name for declared in PARAMETERS}
        NodeSettings(**ours | {'ground_costs': tuple(map(ground_cost, ours['ground_costs']))})


def test_parameters_are_known_and_classes_match(ours, source):
    assert set(ours) <= {declared.name for declared in PARAMETERS}
    types = source['class_types']
    assert set(source) <= SOURCE | set(types)
    assigned = [name for kind in types for name in source[kind]['classes']]
    assert sorted(assigned) == sorted(c.name for c in parse_vocabulary(ours['vocabulary']).classes)
    for kind in types:
        assert set(source[kind]) <= CLASS_TYPE
        assert 0 <= source[kind]['base_cost'] <= source[kind]['max_cost'] <= 254
        assert 0 <= source[kind].get('mark_confidence', 0) <= 255


def test_node_publishes_what_the_layer_subscribes(start_node, client, ours, source):
    start_node(**ours, resolution=64)
    node = client.node
    camera = ours['cameras'][0]
    received = client.received
    # As the layer subscribes.
    topics = {
        'segmentation_topic': Image,
        'confidence_topic': Image,
        'pointcloud_topic': PointCloud2,
    }
    for key, message_type in topics.items():
        client.listen(source[key], message_type, qos_profile_sensor_data)
    if LabelInfo is not None:
        latched = QoSProfile(depth=5, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        client.listen(source['labels_topic'], LabelInfo, latched)
    depth = node.create_publisher(Image, f'/{camera}/depth/image_raw', 5)
    info = node.create_publisher(CameraInfo, f'/{camera}/camera_info', 5)
    for publisher in (depth, info):
        client.wait_for(publisher.get_subscription_count, publisher.topic_name)

    image = client.image(48, 64)
    k = [60.0, 0.0, 32.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0]
    info.publish(CameraInfo(header=image.header, width=64, height=48, k=k))
    values = np.full((48, 64), 2000, np.uint16)
    values[:8] = 0
    depth.publish(MAKER.make_image(values, '16UC1', image.header))
    client.send(image, camera)
    label, confidence, cloud = (client._answer(image.header, source[key]) for key in topics)
    for mono in (label, confidence):
        assert (mono.encoding, mono.width, mono.height, mono.step) == ('mono8', 64, 48, 64)
        assert len(mono.data) == cloud.width * cloud.height
    assert (cloud.width, cloud.height) == (64, 48)
    points = np.frombuffer(cloud.data, POINT)
    assert np.isnan(points['z'][: 8 * 64]).all() and (points['z'][8 * 64 :] == 2.0).all()
    np.testing.assert_array_equal(points['label'], np.asarray(label.data))
    if LabelInfo is not None:
        named = {c.class_id: c.class_name for c in received[source['labels_topic']][0].class_map}
        assert sorted(named.values()) == sorted(name_and_synonyms(e)[0] for e in ours['vocabulary'])
        assert set(label.data) <= {*named, 255}
