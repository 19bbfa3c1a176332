"""The managed node: what each state does and frees, and what may happen in between."""

import gc
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import ListParameters

from cliptrase_ros.ros import segment_node
from cliptrase_ros.ros.camera import Camera
from cliptrase_ros.ros.executable import StartFailure


def change(client, label):
    request = ChangeState.Request()
    request.transition.label = label
    return client.call(ChangeState, 'change_state', request).success


def state(client):
    return client.call(GetState, 'get_state', GetState.Request()).current_state.label


def test_states_serve_and_free_what_they_say(start_node, client):
    node = start_node(autostart=False)
    client.listen_to_label()
    client.listen_to_vocabulary()
    assert state(client) == 'unconfigured' and not change(client, 'activate')
    assert client.set_parameters(vocabulary='road; tree', rate=50.0)[0].successful

    assert change(client, 'configure') and state(client) == 'inactive'
    assert client.vocabulary_version() == 1
    camera = node._cameras[0]
    publisher = client.node.create_publisher(type(client.image()), '/camera/image_raw', 10)
    client.wait_for(lambda: camera.outputs.is_wanted('label'), 'the listener')
    assert not camera.is_subscribed

    assert change(client, 'activate') and state(client) == 'active'
    client.label_of(client.send(client.image()))

    assert change(client, 'deactivate') and state(client) == 'inactive'
    client.diagnostics(lambda s, _: s.message == 'idle, because the node is not active')
    client.wait_for(lambda: not publisher.get_subscription_count(), 'the end of the subscription')
    assert client.set_parameters(vocabulary='dog; tree')[0].successful
    history = client.received['/cliptrase/vocabulary']
    client.wait_for(lambda: len(history) == 2, 'the vocabulary set meanwhile')
    count = len(client.received['/cliptrase/camera/label'])
    publisher.publish(client.image())
    client.spin(0.3)
    assert len(client.received['/cliptrase/camera/label']) == count

    assert change(client, 'cleanup') and state(client) == 'unconfigured'
    assert node._worker is None and node._engine is None
    assert not any('label' in topic for topic in (p.topic for p in node.publishers))
    assert client.set_parameters(vocabulary='cat; dog')[0].successful

    assert change(client, 'configure') and change(client, 'activate')
    client.wait_for(lambda: len(history) == 3, 'the vocabulary set meanwhile')
    client.label_of(client.send(client.image()))
    assert [m.version for m in history] == [1, 2, 3]
    owner = {}
    for message in history:
        for entry in message.classes:
            assert owner.setdefault(entry.id, entry.name) == entry.name

    assert change(client, 'shutdown') and state(client) == 'finalized'
    assert node._worker is None and not change(client, 'configure')


@pytest.mark.parametrize('steps', [[], ['configure'], ['configure', 'activate', 'deactivate']])
def test_shutdown_from_any_state(start_node, client, steps):
    node = start_node(autostart=False)
    for step in steps:
        assert change(client, step)
    assert change(client, 'shutdown') and state(client) == 'finalized'
    assert node._worker is None
    client.diagnostics(lambda _, v: v['state'] == 'finalized', camera=None)


def test_failed_configuration_says_why_and_can_be_tried_again(
    start_node, client, tmp_path, tiny_model_folder
):
    folder = tmp_path / 'model'
    start_node(segmenter=None, autostart=False, model=f'local-dir:{folder}')
    assert not change(client, 'configure')
    assert state(client) == 'unconfigured'
    status, _ = client.diagnostics(lambda _, v: v['state'] == 'unconfigured', camera=None)
    assert status.level == DiagnosticStatus.ERROR and str(folder) in status.message
    shutil.copytree(tiny_model_folder, folder)
    assert change(client, 'configure') and change(client, 'activate')
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    client.diagnostics(lambda s, _: s.level == DiagnosticStatus.OK, camera=None)


def test_phrase_the_text_tower_cannot_read_is_found_when_there_is_one(start_node, client):
    start_node(autostart=False)
    long = ' '.join(['a'] * 90)
    assert client.set_parameters(vocabulary=['road', long])[0].successful
    assert not change(client, 'configure')
    status, _ = client.diagnostics(lambda s, _: s.level == DiagnosticStatus.ERROR, camera=None)
    assert 'too long' in status.message
    assert client.set_parameters(vocabulary=['road'])[0].successful
    assert change(client, 'configure')


def fail_to_activate(_camera):
    raise RuntimeError('no more file descriptors')


def test_node_that_cannot_be_activated_does_not_start(start_node, monkeypatch):
    monkeypatch.setattr(Camera, 'activate', fail_to_activate)
    with pytest.raises(StartFailure, match='descriptors'):
        start_node()


def test_failed_activation_says_why_and_can_be_tried_again(start_node, client, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Camera, 'activate', fail_to_activate)
        node = start_node(autostart=False)
        assert change(client, 'configure') and not change(client, 'activate')
    status, _ = client.diagnostics(lambda s, _: s.level == DiagnosticStatus.ERROR, camera=None)
    assert 'cannot be activated' in status.message and 'descriptors' in status.message
    assert node.state == 'inactive' and change(client, 'activate')
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    client.diagnostics(lambda s, _: s.level == DiagnosticStatus.OK, camera=None)


def test_failed_configuration_keeps_no_model(start_node, client, make_segmenter, monkeypatch):
    loaded = []

    def load(*_arguments, **_keywords):
        segmenter = make_segmenter()
        loaded.append(weakref.ref(segmenter))
        return segmenter

    monkeypatch.setattr(segment_node, 'load_segmenter', load)
    start_node(segmenter=None, autostart=False)
    assert client.set_parameters(vocabulary=['road', ' '.join(['a'] * 90)])[0].successful
    assert not change(client, 'configure')
    client.wait_for(lambda: loaded[0]() is None, 'the end of the model')


@pytest.mark.parametrize(('given', 'threads'), [(0, 5), (3, 3)])
def test_inference_leaves_a_core_to_others_unless_told(
    start_node, client, segmenter, monkeypatch, given, threads
):
    asked = []

    def load(*_arguments, **keywords):
        asked.append(keywords['threads'])
        return segmenter

    monkeypatch.setattr(segment_node, 'load_segmenter', load)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr('os.sched_getaffinity', lambda _: set(range(6)))
    start_node(segmenter=None, autostart=False, threads=given)
    assert change(client, 'configure') and asked == [threads]


def test_destroyed_node_leaves_no_lifecycle_behind(start_node, client):
    def services():
        names = {name for name, _ in client.node.get_service_names_and_types()}
        return names & {'/cliptrase/change_state', '/cliptrase/get_state'}

    node = start_node()
    client.wait_for(lambda: len(services()) == 2, 'the services')
    # Without the help of the garbage collector, which comes when it likes.
    gc.disable()
    try:
        node.executor.remove_node(node)
        node.destroy_node()
        client.wait_for(lambda: not services(), 'their end')
    finally:
        gc.enable()


def test_services_are_answered_while_the_model_is_loaded(
    start_node, client, segmenter, monkeypatch
):
    may_go_on = threading.Event()

    def load(*_arguments, **_keywords):
        assert may_go_on.wait(90)
        return segmenter

    monkeypatch.setattr(segment_node, 'load_segmenter', load)
    node = start_node(segmenter=None, autostart=False)
    request = ChangeState.Request()
    request.transition.label = 'configure'
    service = client.node.create_client(ChangeState, '/cliptrase/change_state')
    client.wait_for(service.service_is_ready, 'the service')
    configured = service.call_async(request)
    client.wait_for(lambda: state(client) == 'configuring', 'the transition')
    assert client.set_parameters(vocabulary='road; lake')[0].successful
    assert not change(client, 'shutdown'), 'two transitions at once'
    client.diagnostics(lambda _, v: v['state'] == 'configuring', camera=None)
    assert not configured.done()
    may_go_on.set()
    client.wait_for(configured.done, 'the end of the transition')
    assert configured.result().success and state(client) == 'inactive'
    client.listen_to_vocabulary()
    client.vocabulary_version()
    names = [c.name for c in client.received['/cliptrase/vocabulary'][0].classes]
    assert names == ['road', 'lake'] and node.failure is None


def test_transitions_declare_no_parameters(start_node, client):
    """They run beside the executor, which may be listing the parameters."""

    def listed():
        return client.call(ListParameters, 'list_parameters', ListParameters.Request()).result.names

    start_node(autostart=False, depth=True)
    before = listed()
    assert 'qos_overrides./camera/camera_info.subscription.durability' in before
    assert change(client, 'configure') and change(client, 'activate')
    assert listed() == before


def resources(node):
    gc.collect()
    return {
        'threads': len(list(Path('/proc/self/task').iterdir())),
        'files': len(list(Path('/proc/self/fd').iterdir())),
        'publishers': len(list(node.publishers)),
        'subscriptions': len(list(node.subscriptions)),
        'timers': len(list(node.timers)),
        'services': len(list(node.services)),
    }


def test_cycles_leak_nothing(start_node, client):
    node = start_node(autostart=False, cameras=['front', 'rear'])
    for camera in ('front', 'rear'):
        client.listen_to_label(camera)
    seen = []
    for _ in range(5):
        for step in ('configure', 'activate'):
            assert change(client, step)
        for camera in ('front', 'rear'):
            client.label_of(client.send(client.image(), camera), camera)
        for step in ('deactivate', 'cleanup'):
            assert change(client, step)
        # Threads that have been joined are listed for a moment more.
        client.spin(0.05)
        seen.append(resources(node))
    # The first ones make what is made once.
    assert seen[-1] == seen[1], seen


def test_a_node_that_is_destroyed_leaves_no_thread(start_node, client):
    node = start_node()
    client.listen_to_label()
    client.label_of(client.send(client.image()))
    own = {'reception', 'listeners', 'inference'}
    assert own <= {thread.name for thread in threading.enumerate()}
    node.executor.remove_node(node)
    node.destroy_node()
    names = {thread.name.partition('_')[0] for thread in threading.enumerate()}
    assert not names & {*own, 'publishing', 'decoding', 'transition'}


def test_when_the_next_image_is_to_be_expected(start_node, client):
    """As long after this one as this one came after the one before."""
    camera = start_node()._cameras[0]
    images, offer = [], camera._on_image
    camera._on_image = lambda image: (images.append((image, time.monotonic_ns())), offer(image))
    client.listen_to_label()
    for _ in range(3):
        client.label_of(client.send(client.image()))
    (first, _), (_, second_ns), (third, third_ns) = images
    assert first.next_ns == 0
    expected_ns = third_ns + (third_ns - second_ns)
    assert abs(third.next_ns - expected_ns) < 0.5 * (third_ns - second_ns) + 10**7
