"""A segmentation node under test and a client beside it, in one process, over real DDS."""

import gc
import json
import os
import subprocess
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_clip import TINY_CONFIG

ROOT = Path(__file__).resolve().parents[2]

# Before rclpy reads them; the domain comes from the conftest above.
os.environ.setdefault('ROS_LOG_DIR', str(ROOT / 'build' / 'ros_log'))
os.environ.setdefault(
    'FASTDDS_DEFAULT_PROFILES_FILE', str(ROOT / 'config' / 'fastdds_large_data.xml')
)
if os.environ.get('ROS_DISTRO') == 'jazzy':  # whose Fast DDS calls it so
    os.environ.setdefault(
        'FASTRTPS_DEFAULT_PROFILES_FILE', os.environ['FASTDDS_DEFAULT_PROFILES_FILE']
    )

#: Seconds anything may take on a busy machine before a test gives up.
PATIENCE = 90.0


@pytest.fixture(scope='session')
def make_segmenter(tiny_state):
    """A function that makes the real engine, or a kind of it, around a tiny CLIP.

    Its weights are random: it labels fast, and what is all one here.
    """
    import open_clip

    from cliptrase_ros.segmentation.model.weights import LoadedModel
    from cliptrase_ros.segmentation.segmenter import Segmenter

    def make(kind=Segmenter):
        model = open_clip.CLIP(**TINY_CONFIG)
        model.load_state_dict(tiny_state)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        tokenizer = open_clip.SimpleTokenizer(context_length=77)
        return kind(LoadedModel(model, tokenizer, mean, std, 'tiny'))

    return make


@pytest.fixture(scope='session')
def segmenter(make_segmenter):
    return make_segmenter()


@pytest.fixture
def context():
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.try_shutdown(context=context)


class Client:
    """Publishes images, collects what the node makes of them, and calls its services."""

    def __init__(self, context, node_name='/cliptrase'):
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.node import Node

        self.node = Node('client', context=context, start_parameter_services=False)
        self.executor = SingleThreadedExecutor(context=context)
        self.executor.add_node(self.node)
        self.node_name = node_name
        self.received = defaultdict(list)
        self._publishers = {}
        self._stamp = 0

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()

    def wait_for(self, condition, what='the condition', timeout=PATIENCE):
        """Spin until a condition holds; returns its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f'waited {timeout:.0f} s for {what}'
            self.executor.spin_once(timeout_sec=0.02)
        return value

    def spin(self, seconds):
        """Let things happen that must not: the only use of a fixed time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.executor.spin_once(timeout_sec=0.02)

    def listen(self, topic, message_type, qos=50):
        """Collect the messages of a topic in `received[topic]`, all of them."""
        return self.node.create_subscription(message_type, topic, self.received[topic].append, qos)

    def listen_to_label(self, camera='camera'):
        from sensor_msgs.msg import Image

        return self.listen(f'{self.node_name}/{camera}/label', Image)

    def listen_to_masks(self, camera='camera'):
        from cliptrase_ros.msg import ClassMasks

        return self.listen(f'{self.node_name}/{camera}/masks', ClassMasks)

    def listen_to_vocabulary(self):
        from cliptrase_ros.msg import Vocabulary
        from rclpy.qos import DurabilityPolicy, QoSProfile

        qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        return self.listen(f'{self.node_name}/vocabulary', Vocabulary, qos)

    def vocabulary_version(self):
        """Version announced last, waiting for the first."""
        messages = self.received[f'{self.node_name}/vocabulary']
        self.wait_for(lambda: messages, 'a vocabulary')
        return messages[-1].version

    def connect(self, camera='camera'):
        """Wait until the node has subscribed to a camera."""
        from sensor_msgs.msg import Image

        if camera not in self._publishers:
            self._publishers[camera] = self.node.create_publisher(Image, f'/{camera}/image_raw', 50)
        publisher = self._publishers[camera]
        self.wait_for(publisher.get_subscription_count, f'a subscriber of {camera}')
        return publisher

    def image(self, height=48, width=64, seed=0, encoding='rgb8', channels=3):
        """A picture of colours in blocks, with a stamp of its own."""
        from std_msgs.msg import Header

        from cliptrase_ros.ros.conversions import MAKER

        blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, channels), np.uint8)
        rows, columns = np.arange(height) * 6 // height, np.arange(width) * 8 // width
        header = Header(frame_id='optical')
        self._stamp += 1
        header.stamp.sec, header.stamp.nanosec = 1000 + self._stamp, 7
        return MAKER.make_image(blocks[rows][:, columns], encoding, header)

    def send(self, image, camera='camera'):
        self.connect(camera).publish(image)
        return image.header

    def label_of(self, header, camera='camera'):
        """Wait for the label image of an image."""
        return self._answer(header, f'{self.node_name}/{camera}/label')

    def masks_of(self, header, camera='camera'):
        return self._answer(header, f'{self.node_name}/{camera}/masks')

    def _answer(self, header, topic):
        def find():
            return next((m for m in self.received[topic] if m.header == header), None)

        return self.wait_for(find, f'{topic} for {header}')

    def call(self, service_type, name, request):
        client = self.node.create_client(service_type, f'{self.node_name}/{name}')
        try:
            self.wait_for(client.service_is_ready, name)
            future = client.call_async(request)
            self.wait_for(future.done, f'an answer of {name}')
            return future.result()
        finally:
            self.node.destroy_client(client)

    def set_parameters(self, **values):
        """Through the parameter service, as `ros2 param set` does; returns a list of results."""
        from rcl_interfaces.srv import SetParameters

        request = SetParameters.Request(parameters=_messages(values))
        return self.call(SetParameters, 'set_parameters', request).results

    def set_parameters_atomically(self, **values):
        from rcl_interfaces.srv import SetParametersAtomically

        request = SetParametersAtomically.Request(parameters=_messages(values))
        return self.call(SetParametersAtomically, 'set_parameters_atomically', request).result

    def parameter(self, name):
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        answer = self.call(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return parameter_value_to_python(answer.values[0])

    def diagnostics(self, condition, camera='camera'):
        """Wait for a report on a camera, or on the engine, that meets a condition."""
        from diagnostic_msgs.msg import DiagnosticArray

        subscription = self.listen('/diagnostics', DiagnosticArray)
        ending = f': camera {camera}' if camera else ': engine'

        def find():
            for array in self.received['/diagnostics']:
                for status in array.status:
                    if status.name.endswith(ending):
                        values = {v.key: v.value for v in status.values}
                        if condition(status, values):
                            return status, values
            return None

        try:
            return self.wait_for(find, 'diagnostics')
        finally:
            self.node.destroy_subscription(subscription)
            self.received['/diagnostics'].clear()


def _messages(values):
    from rclpy.parameter import Parameter

    return [
        (value if isinstance(value, Parameter) else Parameter(name, value=value)).to_parameter_msg()
        for name, value in values.items()
    ]


@pytest.fixture
def client(context):
    client = Client(context)
    yield client
    client.close()


@pytest.fixture
def reported_camera():
    """What diagnostics ask of a camera, without a node."""
    from cliptrase_ros.ros.diagnostics import CameraStatistics

    return SimpleNamespace(
        name='front',
        topic='/front/image_raw',
        transport='raw',
        is_active=True,
        is_labelled=True,
        is_subscribed=True,
        outputs=SimpleNamespace(unknown_masks=(), unknown_scores=()),
        unknown_costs=(),
        statistics=CameraStatistics(),
        explain_silence=lambda: 'no publisher',
    )


class Processes:
    """Executables of this package, run as ROS runs them."""

    def __init__(self):
        self._running = []

    def start(self, executable, *arguments, **parameters):
        from ament_index_python.packages import get_package_prefix

        path = Path(get_package_prefix('cliptrase_ros'), 'lib', 'cliptrase_ros', executable)
        return self.start_command([str(path)], *arguments, **parameters)

    def start_command(self, command, *arguments, **parameters):
        for name, value in parameters.items():
            arguments += ('-p', f'{name}:={json.dumps(value)}')
        command = [*command, '--ros-args', *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._running.append(process)
        return process

    def run(self, *arguments, **parameters):
        """Returns exit status and output of a process that ends by itself."""
        process = self.start(*arguments, **parameters)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def close(self):
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def processes():
    processes = Processes()
    yield processes
    processes.close()


def _forget_earlier(node, running):
    """Wait until nodes of earlier tests are seen no more: a namesake is a warning.

    What rclpy still holds of a node that is destroyed goes with the garbage collector.
    """
    own = node.get_name(), node.get_namespace()
    expected = 1 + [(n.get_name(), n.get_namespace()) for n in running].count(own)
    deadline = time.monotonic() + 10
    while node.get_node_names_and_namespaces().count(own) > expected:
        if time.monotonic() > deadline:
            break  # of another process: the test will say what it thinks of that
        gc.collect()
        time.sleep(0.02)


@pytest.fixture
def start_node(context, segmenter):
    """Start a node with the given parameters, spinning in its own thread, and see it active.

    With `autostart=False` it is left as it is. remappings: rules such as 'a:=b'. Raises what keeps
    it from starting.
    """
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.parameter import Parameter

    from cliptrase_ros.ros.executable import StartFailure
    from cliptrase_ros.ros.segment_node import SegmentNode

    running, failures = [], []

    def spin(executor):
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        except StartFailure as failure:
            failures.append(failure)

    def start(segmenter=segmenter, remappings=(), **values):
        # 64 pixels: milliseconds a frame. No rate limit: no frame of a test may be left out.
        values = {
            'resolution': 64,
            'rate': 0.0,
            'vocabulary': ['road', 'person', 'tree'],
            'background': ['sky'],
            **values,
        }
        node = SegmentNode(
            segmenter,
            # Ten times as often as usual: tests wait for what diagnostics say.
            report_period_s=0.1,
            context=context,
            cli_args=['--ros-args', *(part for rule in remappings for part in ('-r', rule))],
            parameter_overrides=[Parameter(name, value=v) for name, v in values.items()],
        )
        _forget_earlier(node, [other for other, _, _ in running])
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        thread = threading.Thread(target=spin, args=(executor,))
        thread.start()
        running.append((node, executor, thread))
        wanted = 'active' if values.get('autostart', True) else 'unconfigured'
        deadline = time.monotonic() + PATIENCE
        while node.state != wanted:
            assert time.monotonic() < deadline, f'the node is still {node.state}'
            if failures:
                raise failures.pop()
            time.sleep(0.005)
        return node

    yield start
    for node, executor, thread in running:
        executor.shutdown()
        thread.join()
        node.destroy_node()
