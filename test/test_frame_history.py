"""Which frame of a camera counts as the one before."""

from types import SimpleNamespace

from cliptrase_ros.streams.frame_history import MAX_GAP_NS, CameraHistories


def test_the_frame_before_is_remembered_for_its_time():
    histories, history, start = CameraHistories(), SimpleNamespace(), 10**18
    assert histories.before('front', start) is None
    histories.keep('front', start, history)
    # A stamp that is repeated is no gap.
    for later in (0, 1, MAX_GAP_NS):
        assert histories.before('front', start + later) is history
    for gap in (-1, MAX_GAP_NS + 1):
        assert histories.before('front', start + gap) is None
    assert histories.before('rear', start) is None
    histories.keep('front', start, None)
    assert histories.before('front', start) is None
