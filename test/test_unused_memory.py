"""Memory that is free goes back to the system, but not again and again."""

import platform
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cliptrase_ros.streams import unused_memory
from cliptrase_ros.streams.unused_memory import UnusedMemory, give_back_unused_memory


def resident_mb():
    # Counted anew when read; the figure in statm lags behind, by the more the more cores there are.
    rollup = Path('/proc/self/smaps_rollup').read_text()
    return int(re.search(r'^Rss: +(\d+) kB', rollup, re.M)[1]) / 1e3


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library than glibc')
def test_free_memory_goes_back_to_the_system():
    give_back_unused_memory()
    before = resident_mb()
    # Too small to be mapped one by one; those that stay keep what lies between them.
    blocks = [np.ones(60_000, np.uint8) for _ in range(4000)]
    kept = blocks[::50]
    del blocks
    held = resident_mb()
    assert held > before + 200
    assert give_back_unused_memory()
    assert resident_mb() < held - 200 and all(block.all() for block in kept)


def test_only_after_batches_of_another_kind(monkeypatch):
    monkeypatch.setattr(unused_memory, '_PERIOD_S', 0.0)
    given_back = []
    monkeypatch.setattr(
        unused_memory, 'give_back_unused_memory', lambda: given_back.append(1) or True
    )
    memory = UnusedMemory()
    assert memory.give_back_after('one camera') and memory.give_back_after('both cameras')
    for _ in range(20):
        assert not memory.give_back_after('one camera')
        assert not memory.give_back_after('both cameras')
    assert memory.give_back_after('a large image') and not memory.give_back_after('one camera')
    for width in range(100):
        assert memory.give_back_after(width)
    # Not met lately.
    assert memory.give_back_after('a large image') and len(given_back) == 104


def test_not_more_often_than_the_next_images_can_bear(monkeypatch):
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now)
    monkeypatch.setattr(unused_memory, 'time', clock)
    monkeypatch.setattr(unused_memory, 'give_back_unused_memory', lambda: True)
    memory = UnusedMemory()

    def given_back_at(times, kind):
        given_back = []
        for clock.now in times:
            if memory.give_back_after(kind(clock.now)):
                given_back.append(clock.now)
        return given_back

    assert given_back_at(range(35), lambda second: second) == [10, 20, 30]
    # What was left since goes later, but once.
    assert given_back_at(range(35, 60), lambda _: 34) == [40]
