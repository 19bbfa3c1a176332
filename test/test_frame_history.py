"""Which frame of a camera counts as the one before."""

from types import SimpleNamespace

from cliptrase_ros.streams.frame_history import REMEMBERED_NS, CameraHistories


def test_the_frame_before_is_remembered_for_its_time():
    histories, memory, start = CameraHistories(), SimpleNamespace(), 10**18
    assert histories.before('front', start) is None
    histories.keep('front', start, memory)
    # A stamp that is repeated is no gap.
    for later in (0, 1, REMEMBERED_NS):
        assert histories.before('front', start + later) is memory
    for gap in (-1, REMEMBERED_NS + 1):
        assert histories.before('front', start + gap) is None
    assert histories.before('rear', start) is None
    histories.keep('front', start, None)
    assert histories.before('front', start) is None
