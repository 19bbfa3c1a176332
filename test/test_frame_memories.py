"""Which frame of a camera counts as the one before."""

from types import SimpleNamespace

from cliptrase_ros.streams.frame_history import REMEMBERED_NS, FrameMemories


def test_the_frame_before_is_remembered_for_its_time():
    memories, memory, start = FrameMemories(), SimpleNamespace(), 10**18
    assert memories.before('front', start) is None
    memories.keep('front', start, memory)
    # A stamp that is repeated is no gap.
    for later in (0, 1, REMEMBERED_NS):
        assert memories.before('front', start + later) is memory
    for gap in (-1, REMEMBERED_NS + 1):
        assert memories.before('front', start + gap) is None
    assert memories.before('rear', start) is None
    memories.keep('front', start, None)
    assert memories.before('front', start) is None
