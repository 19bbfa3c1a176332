"""Parts that need no node: the rate limiter, the counting for diagnostics, the overlay."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs ROS 2; `make test` brings it')

import rclpy
from diagnostic_msgs.msg import DiagnosticStatus
from hypothesis import example, given
from hypothesis import strategies as st

from cliptrase_ros.ros.diagnostics import SILENCE_S, camera_status
from cliptrase_ros.ros.executable import initialized
from cliptrase_ros.ros.settings import phrase_topic_name
from cliptrase_ros.segmentation.overlay import draw_overlay
from cliptrase_ros.segmentation.vocabulary import parse_vocabulary
from cliptrase_ros.streams.rate_limit import RateLimiter

SECOND = 1_000_000_000


def test_initialisation_of_jazzy_is_enough(monkeypatch):
    """Before Kilted `rclpy.init` returned nothing, so that it was no context manager."""
    init = rclpy.init
    monkeypatch.setattr(rclpy, 'init', lambda **options: init(**options) and None)
    with initialized([]):
        assert rclpy.ok()
    assert not rclpy.ok()


def taken(limiter, times_ns, rate):
    result = []
    for now in times_ns:
        if limiter.wait_ns(now, rate) == 0:
            limiter.take(now, rate)
            result.append(now)
    return result


def test_rate_is_the_mean_of_a_jittering_camera():
    jitter = np.random.default_rng(0).integers(-10, 10, 300) * 1_000_000
    times = (SECOND + np.arange(300) * SECOND // 30 + jitter).tolist()
    assert len(taken(RateLimiter(), times, 10.0)) == pytest.approx(100, abs=2)


def test_pause_earns_no_burst():
    limiter = RateLimiter()
    limiter.take(SECOND, 10.0)
    after = [60 * SECOND + i * 1_000_000 for i in range(100)]
    assert len(taken(limiter, after, 10.0)) == 1


@given(st.floats(0.001, 1000))
@example(15.0)  # a period that is rounded up
@example(30.0)  # and one that is rounded down
def test_after_a_frame_the_next_is_due_in_one_period(rate):
    limiter = RateLimiter()
    now = 10**15
    limiter.take(now, rate)
    wait = limiter.wait_ns(now, rate)
    assert wait == pytest.approx(SECOND / rate, abs=1)
    assert limiter.wait_ns(now + wait - 1, rate) == 1
    assert limiter.wait_ns(now + wait, rate) == 0
    # Late by half a period, so that the one after it comes earlier by as much.
    limiter.take(now + wait + wait // 2, rate)
    assert limiter.wait_ns(now + wait + wait // 2, rate) == wait - wait // 2


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=30), st.floats(0.001, 1000))
@example([10**10, 10**10], 15.0)
def test_whatever_the_clock_did_a_frame_is_due_within_a_period(jumps, rate):
    limiter = RateLimiter()
    for now in jumps:
        wait = limiter.wait_ns(now, rate)
        assert 0 <= wait <= SECOND / rate + 1
        limiter.take(now + wait, rate)
        assert limiter.wait_ns(now + wait, rate) > 0, 'two frames in one moment'


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=200), st.floats(0.1, 1000))
@example([10**10, 10**10, 10**10], 15.0)
def test_rate_is_never_exceeded(times, rate):
    times = sorted(times)
    at_most = (times[-1] - times[0]) * rate / SECOND * (1 + 1e-6) + 2
    assert len(taken(RateLimiter(), times, rate)) <= at_most


def test_no_limit_means_always_due():
    limiter = RateLimiter()
    assert taken(limiter, [5, 5, 6], 0.0) == [5, 5, 6]


def test_silence_counts_only_while_subscribed(reported_camera):
    def report(subscribed):
        reported_camera.is_subscribed = subscribed
        return camera_status('node', reported_camera, 1.0)

    for _ in range(300):
        assert report(subscribed=False).level == DiagnosticStatus.OK
    assert report(subscribed=True).level == DiagnosticStatus.OK
    for _ in range(int(SILENCE_S) - 1):
        status = report(subscribed=True)
    assert status.level == DiagnosticStatus.WARN and status.message == (
        'no image for 3 s on /front/image_raw; no publisher'
    )
    reported_camera.statistics.count('received')
    assert report(subscribed=True).level == DiagnosticStatus.OK


@pytest.mark.parametrize(
    ('name', 'topic'),
    [
        ('person', 'person'),
        ('Red car', 'Red_car'),
        ('Käse (alt)', 'Kase_alt'),
        ('3D printer', 'class_3D_printer'),
        ('__a  b__', 'a_b'),
    ],
)
def test_phrases_become_names_of_topics(name, topic):
    assert phrase_topic_name('mask_topics', name) == topic


def test_overlay_colours_classes_and_keeps_the_rest():
    vocabulary = parse_vocabulary(['road', 'Käse'])
    image = np.full((60, 80, 3), 100, np.uint8)
    label = np.full((60, 80), 255, np.uint8)
    label[30:, 40:] = vocabulary.classes[0].id
    before = image.copy()
    plain = draw_overlay(image, label, vocabulary, opacity=1.0, legend=False)
    assert (plain[30:, 40:] == vocabulary.classes[0].color).all()
    assert (plain[:30] == 100).all() and (plain[:, :40] == 100).all()
    assert (draw_overlay(image, label, vocabulary)[:20, :20] != plain[:20, :20]).any()
    assert (image == before).all()


@pytest.mark.parametrize('size', [(1, 1), (7, 300), (2000, 30)])
def test_overlay_of_any_size_and_many_classes(size):
    vocabulary = parse_vocabulary([f'thing {i}' for i in range(255)])
    label = np.random.default_rng(0).integers(0, 256, size, np.uint8, endpoint=False)
    overlay = draw_overlay(np.zeros((*size, 3), np.uint8), label, vocabulary)
    assert overlay.shape == (*size, 3) and overlay.dtype == np.uint8
