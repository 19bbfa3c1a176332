"""The service `~/segment` and the action `~/find`, beside labelling that goes on as it was."""

import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import cv2
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from cliptrase_ros.action import Find
from cliptrase_ros.srv import Segment
from lifecycle_msgs.srv import ChangeState
from rclpy.action import ActionClient
from sensor_msgs.msg import CompressedImage

from cliptrase_ros.ros.conversions import decode_mask, to_rgb
from cliptrase_ros.ros.requests import MAX_WAITING
from cliptrase_ros.segmentation.segmenter import Segmenter
from cliptrase_ros.segmentation.settings import SegmentationSettings
from cliptrase_ros.segmentation.vocabulary import VocabularyError, parse_vocabulary, with_phrase

SETTINGS = SegmentationSettings(resolution=64, scores=True)


def segment(client, image=None, **fields):
    request = Segment.Request(**fields) if image is None else Segment.Request(image=image, **fields)
    return client.call(Segment, 'segment', request)


def mono(image):
    return np.asarray(image.data, np.uint8).reshape(image.height, image.width)


def assert_is_what_the_engine_gives(answer, segmenter, image, vocabulary):
    (expected,) = segmenter.segment(
        [to_rgb(image)], segmenter.encode_vocabulary(vocabulary), SETTINGS
    )
    assert answer.success and not answer.message
    assert answer.label.header == answer.masks.header == image.header
    np.testing.assert_array_equal(mono(answer.label), expected.label)
    np.testing.assert_array_equal(mono(answer.confidence), expected.confidence)
    names = [entry.name for entry in vocabulary.classes]
    assert [entry.name for entry in answer.vocabulary.classes] == names
    assert answer.phrases == [*names, *vocabulary.background]
    np.testing.assert_allclose(answer.scores, expected.scores.max((1, 2)), rtol=1e-6)
    for mask in answer.masks.masks:
        pixels = decode_mask(mask, image.height, image.width)
        np.testing.assert_array_equal(pixels, expected.label == mask.class_id)


def test_an_image_is_segmented_and_running_labels_stay(start_node, client, segmenter):
    start_node()
    client.listen_to_label()
    client.listen_to_masks()
    image, asked = client.image(), client.image(64, 48, seed=1)
    before = client.label_of(client.send(image))
    in_force = parse_vocabulary(['road', 'person', 'tree'], ['sky'])

    answer = segment(client, asked)
    assert_is_what_the_engine_gives(answer, segmenter, asked, in_force)
    assert answer.vocabulary.version == answer.masks.vocabulary_version == 1

    answer = segment(client, asked, vocabulary=['cat = kitten', 'road'], background=['floor'])
    own = parse_vocabulary(['cat = kitten', 'road'], ['floor'])
    assert_is_what_the_engine_gives(answer, segmenter, asked, own)
    assert answer.vocabulary.version == answer.masks.vocabulary_version == 0
    assert [entry.id for entry in answer.vocabulary.classes] == [0, 1]

    coded = cv2.imencode('.png', to_rgb(asked)[..., ::-1])[1].tobytes()
    compressed = CompressedImage(header=asked.header, format='rgb8; png compressed', data=coded)
    answer = segment(client, compressed_image=compressed)
    assert_is_what_the_engine_gives(answer, segmenter, asked, in_force)

    image.header.stamp.nanosec += 1
    after = client.label_of(client.send(image))
    assert after.data == before.data
    assert client.masks_of(after.header).vocabulary_version == 1
    _, values = client.diagnostics(lambda _, v: v['requests'] == '3', camera=None)
    assert values['requests_refused'] == '0' and values['vocabulary_version'] == '1'


def test_what_cannot_be_segmented_is_refused_with_the_reason(start_node, client):
    start_node(max_phrase_length=30, max_phrases=3, vocabulary=['road'])
    image = client.image()
    cut, large = client.image(), client.image()
    cut.data = cut.data[:-1]
    large.height, large.step, large.width = 30_000, 90_000, 30_000
    elongated = client.image(4, 200)
    jpeg = CompressedImage(format='jpeg', data=b'\xff\xd8 no more')
    refused = [
        (segment(client), 'give one image'),
        (segment(client, image, compressed_image=jpeg), 'give one image'),
        (segment(client, cut), 'bytes'),
        (segment(client, large), '30000'),
        (segment(client, elongated), '32'),
        (segment(client, compressed_image=jpeg), 'JPEG'),
        (segment(client, image, vocabulary=['a' * 31]), 'max_phrase_length'),
        (segment(client, image, vocabulary=['a', 'b', 'c', 'd']), 'max_phrases'),
        (segment(client, image, vocabulary=['a', 'A']), 'twice'),
        (segment(client, image, vocabulary=[' ']), 'empty'),
        (segment(client, image, background=['sky']), 'vocabulary'),
    ]
    for answer, reason in refused:
        assert not answer.success and not answer.label.data and reason in answer.message
    count = str(len(refused))
    _, values = client.diagnostics(lambda _, v: v['requests_refused'] == count, camera=None)
    assert values['requests'] == count
    assert values['last_request_refused'] == f'segment: {refused[-1][0].message}'
    assert segment(client, image).success


class Held(Segmenter):
    """Waits before each image for `may_go_on`, and fails for images of `bad` height."""

    bad = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def segment(self, images, vocabulary, settings=None, histories=()):
        self.begun.set()
        assert self.may_go_on.wait(90)
        if any(len(image) == self.bad for image in images):
            raise RuntimeError('no memory left')
        return super().segment(images, vocabulary, settings, histories)


def test_a_request_that_fails_costs_itself_and_more_than_some_do_not_wait(
    start_node, client, make_segmenter
):
    segmenter = make_segmenter(Held)
    start_node(segmenter)
    segmenter.bad = 32
    answer = segment(client, client.image(32, 64))
    assert answer.message == 'RuntimeError: no memory left'
    segmenter.may_go_on.clear()
    service = client.node.create_client(Segment, '/cliptrase/segment')
    client.wait_for(service.service_is_ready, 'the service')
    calls = [
        service.call_async(Segment.Request(image=client.image())) for _ in range(MAX_WAITING + 2)
    ]
    refused = client.wait_for(lambda: [c for c in calls if c.done()][1:], 'those too many')
    assert len(refused) == 1 and 'later' in refused[0].result().message
    # Meanwhile the executor answers others.
    assert client.parameter('rate') == 0.0
    segmenter.may_go_on.set()
    client.wait_for(lambda: all(call.done() for call in calls), 'the others')
    assert sum(call.result().success for call in calls) == MAX_WAITING
    client.node.destroy_client(service)


def test_nothing_is_answered_where_nothing_is_active(start_node, client, finder):
    start_node(autostart=False)
    assert 'unconfigured' in segment(client, client.image()).message
    goal = finder(phrase='cat')
    assert goal.wait().message == 'the node is unconfigured; configure and activate it first'
    change(client, 'configure')
    client.listen_to_vocabulary()
    client.vocabulary_version()
    assert 'not active' in segment(client, client.image()).message
    assert 'not active' in finder(phrase='cat').wait().message


def change(client, label):
    request = ChangeState.Request()
    request.transition.label = label
    return client.call(ChangeState, 'change_state', request).success


class Goal:
    """A goal of the action, and what comes of it."""

    def __init__(self, client, action, fields):
        timeout = Duration(sec=fields.pop('timeout', 0))
        self._client, self.feedback = client, []
        goal = Find.Goal(timeout=timeout, **fields)
        sent = action.send_goal_async(goal, lambda m: self.feedback.append(m.feedback))
        client.wait_for(sent.done, 'the goal to be accepted')
        self.handle = sent.result()
        assert self.handle.accepted
        self._result = self.handle.get_result_async()

    @property
    def is_done(self):
        return self._result.done()

    @property
    def status(self):
        return self._result.result().status

    def wait(self):
        self._client.wait_for(self._result.done, 'the result')
        return self._result.result().result

    def cancel(self):
        cancelled = self.handle.cancel_goal_async()
        self._client.wait_for(cancelled.done, 'the answer to the cancelling')
        return cancelled.result()


@pytest.fixture
def finder(client):
    action = ActionClient(client.node, Find, '/cliptrase/find')

    def find(**fields):
        client.wait_for(action.server_is_ready, 'the action')
        return Goal(client, action, fields)

    yield find
    action.destroy()


def score_of(segmenter, image, phrase):
    words = with_phrase(parse_vocabulary(['road', 'person', 'tree'], ['sky']), phrase)
    (result,) = segmenter.segment([to_rgb(image)], segmenter.encode_vocabulary(words), SETTINGS)
    return float(result.scores[-2].max()), result.label == words.classes[-1].id


def shown_best(client, segmenter, phrase='cat'):
    """Pictures by the score of a phrase, with pixels of it in the best."""
    images = [client.image(seed=seed) for seed in range(8)]
    scored = [(*score_of(segmenter, image, phrase), image) for image in images]
    scored = sorted((entry for entry in scored if entry[1].any()), key=lambda entry: entry[0])
    assert len(scored) >= 3
    return scored


def test_a_phrase_is_found_on_a_camera_nobody_listens_to(start_node, client, segmenter, finder):
    node = start_node(cameras=['front', 'rear'])
    rear = node._cameras[1]
    *others, (score, pixels, image) = shown_best(client, segmenter)
    goal = finder(phrase=' Cat ', cameras=['rear'], min_score=score - 1e-4, timeout=60)
    client.diagnostics(lambda _, v: v['searching'] == 'Cat', camera=None)
    for count, (_, _, other) in enumerate(others[:2], 1):
        client.send(other, 'rear')
        client.wait_for(lambda count=count: len(goal.feedback) == count, 'the feedback')
    assert not goal.is_done and goal.feedback[-1].images == 2
    assert goal.feedback[-1].camera == 'rear'
    assert goal.feedback[-1].best_score == pytest.approx(others[1][0], abs=1e-5)
    assert goal.feedback[-1].stamp == others[1][2].header.stamp
    client.send(image, 'rear')
    result = goal.wait()
    assert goal.status == GoalStatus.STATUS_SUCCEEDED and result.found
    assert result.camera == 'rear' and result.header == image.header
    assert result.score == pytest.approx(score, abs=1e-5)
    assert (result.height, result.width) == (48, 64)
    assert (result.mask.class_name, result.mask.class_id) == ('Cat', 255)
    np.testing.assert_array_equal(decode_mask(result.mask, 48, 64), pixels)
    client.wait_for(lambda: not rear.is_subscribed, 'the end of the subscription')
    counts = rear.statistics.counts
    assert counts['searched'] == counts['received'] == 3 and counts['labelled'] == 0
    assert not node._cameras[0].statistics.counts['received']


def test_the_best_of_the_time_is_given_and_a_class_in_force_keeps_its_id(
    start_node, client, segmenter, finder
):
    start_node(vocabulary=['road = cat', 'person', 'tree'])
    goal = finder(phrase='CAT', timeout=1)
    for seed in range(3):
        client.send(client.image(seed=seed))
        client.wait_for(lambda seed=seed: len(goal.feedback) == seed + 1, 'the feedback')
    result = goal.wait()
    assert result.score == pytest.approx(max(f.best_score for f in goal.feedback))
    assert (result.mask.class_name, result.mask.class_id) == ('road', 0)
    assert result.found == (result.mask.area > 0) == (goal.status == GoalStatus.STATUS_SUCCEEDED)
    assert '3 images' in result.message


def test_nothing_is_found_where_no_image_comes(start_node, client, finder):
    start_node()
    begin = time.monotonic()
    goal = finder(phrase='cat', timeout=1)
    result = goal.wait()
    assert time.monotonic() - begin >= 1
    assert goal.status == GoalStatus.STATUS_ABORTED and not result.found
    assert result.message == 'no image of camera could be searched: none came'


def test_a_search_is_cancelled_while_an_image_is_computed(
    start_node, client, make_segmenter, finder
):
    segmenter = make_segmenter(Held)
    node = start_node(segmenter)
    goal = finder(phrase='cat')
    client.send(client.image())
    client.wait_for(lambda: goal.feedback, 'the feedback')
    second = finder(phrase='dog')
    assert second.wait().message.startswith("the search for 'cat' is running")
    assert second.status == GoalStatus.STATUS_ABORTED
    segmenter.begun.clear()
    segmenter.may_go_on.clear()
    client.send(client.image())
    client.wait_for(segmenter.begun.is_set, 'the next image')
    assert goal.cancel().goals_canceling
    result = goal.wait()
    assert goal.status == GoalStatus.STATUS_CANCELED
    assert result.camera == 'camera' and len(goal.feedback) == 1
    segmenter.may_go_on.set()
    client.wait_for(lambda: not node._cameras[0].is_subscribed, 'the end of the subscription')
    third = finder(phrase='dog', timeout=60)
    client.send(client.image())
    client.wait_for(lambda: third.feedback, 'the feedback')
    _, values = client.diagnostics(lambda _, v: v['requests'] == '3', camera=None)
    assert (
        values['requests_refused'] == '1'
        and "find: the search for 'cat'" in (values['last_request_refused'])
    )
    third.cancel()
    third.wait()


@pytest.mark.parametrize('end', ['deactivate', 'shutdown'])
def test_a_search_ends_with_the_state_it_runs_in(start_node, client, finder, end):
    node = start_node()
    goal = finder(phrase='cat', min_score=1.0)
    client.send(client.image())
    client.wait_for(lambda: goal.feedback, 'the feedback')
    assert change(client, end)
    result = goal.wait()
    assert goal.status == GoalStatus.STATUS_ABORTED
    assert result.message == 'the node was deactivated meanwhile' and result.score > 0
    if end == 'deactivate':
        assert not node._cameras[0].is_subscribed
        assert change(client, 'activate')
        goal = finder(phrase='cat', min_score=1e-6)
        client.send(client.image())
        goal.wait()


def test_goals_that_cannot_be_searched_for(start_node, client, finder):
    start_node(max_phrase_length=40, background=['sky', 'wall'])
    for fields, reason in (
        ({'phrase': ' '}, 'blank'),
        ({'phrase': 'a' * 41}, 'max_phrase_length'),
        ({'phrase': 'cat = kitten'}, 'blank, or has'),
        ({'phrase': 'cat', 'cameras': ['rear']}, "no camera 'rear'; this node has camera"),
        ({'phrase': 'cat', 'min_score': 1.5}, 'min_score is 1.5'),
        ({'phrase': 'cat', 'min_score': float('nan')}, 'min_score is nan'),
        ({'phrase': 'cat', 'timeout': -1}, 'timeout is -1'),
    ):
        goal = finder(**fields)
        assert reason in goal.wait().message
        assert goal.status == GoalStatus.STATUS_ABORTED
    client.diagnostics(lambda _, v: v['requests_refused'] == '7', camera=None)


def test_words_that_change_during_a_search(start_node, client, finder):
    start_node()
    goal = finder(phrase='cat')
    for count, words in enumerate((['road'], ['tree', 'cat', 'road']), 1):
        assert client.set_parameters(vocabulary=words)[0].successful
        client.diagnostics(lambda _, v, n=count: v['vocabulary_version'] == f'{1 + n}', camera=None)
        client.send(client.image())
        client.wait_for(lambda n=count: len(goal.feedback) == n, 'the feedback')
    assert goal.cancel().goals_canceling
    assert goal.wait().mask.class_name == 'cat' and goal.feedback[-1].images == 2


def test_words_that_cannot_be_encoded_keep_nobody_waiting(start_node, client, make_segmenter):
    class Failing(Segmenter):
        def encode_vocabulary(self, vocabulary):
            raise RuntimeError('no memory left')

    start_node(make_segmenter(Failing))
    answer = segment(client, client.image())
    assert answer.message == 'no words are in force: RuntimeError: no memory left'


def test_images_that_fail_do_not_end_a_search(start_node, client, make_segmenter, finder):
    segmenter = make_segmenter(Held)
    node = start_node(segmenter)
    segmenter.bad = 32
    goal = finder(phrase='cat', timeout=60)
    client.send(client.image(32, 64))
    counts = node._cameras[0].statistics.counts
    client.wait_for(lambda: counts['failed'], 'the failure')
    client.send(client.image())
    client.wait_for(lambda: goal.feedback, 'the feedback')
    goal.cancel()
    goal.wait()
    assert counts['received'] == counts['searched'] + counts['failed'] == 2


def test_labelled_images_are_searched_too(start_node, client, segmenter, finder):
    node = start_node()
    client.listen_to_label()
    *_, (score, _, image) = shown_best(client, segmenter)
    before = client.label_of(client.send(image))
    goal = finder(phrase='cat', min_score=score - 1e-4)
    client.diagnostics(lambda _, v: v['searching'] == 'cat', camera=None)
    image.header.stamp.nanosec += 1
    after = client.label_of(client.send(image))
    result = goal.wait()
    assert result.found and result.header == image.header
    assert after.data == before.data
    counts = node._cameras[0].statistics.counts
    client.wait_for(lambda: counts['labelled'] == counts['received'] == 2, 'the count')
    assert counts['searched'] == 0


def test_a_node_that_is_destroyed_during_a_search_leaves_no_thread(start_node, client, finder):
    node = start_node()
    goal = finder(phrase='cat')
    client.send(client.image())
    client.wait_for(lambda: goal.feedback, 'the feedback')
    node.executor.remove_node(node)
    node.destroy_node()
    names = {thread.name.partition('_')[0] for thread in threading.enumerate()}
    assert not names & {'reception', 'listeners', 'inference', 'publishing', 'transition'}


def test_a_phrase_among_the_words_in_force():
    words = parse_vocabulary(['road = street', 'tree'], ['sky', 'Wall'])
    assert with_phrase(words, 'Street') is words
    more = with_phrase(words, 'wall')
    assert [entry.name for entry in more.classes] == ['road', 'tree', 'wall']
    assert more.background == ('sky',) and more.version == 0
    assert more.classes[:2] == words.classes and more.classes[2].id not in words.ids
    full = parse_vocabulary([f'thing {i}' for i in range(255)], [])
    with pytest.raises(VocabularyError, match='255 classes'):
        with_phrase(full, 'cat')
