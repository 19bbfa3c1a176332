"""Memory that is free goes back to the system, but not again and again."""

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from cliptrase_ros import unused_memory
from cliptrase_ros.unused_memory import UnusedMemory, give_back_unused_memory


def resident_mb():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library than glibc')
def test_free_memory_goes_back_to_the_system():
    give_back_unused_memory()
    before = resident_mb()
    # Too small to be mapped one by one; the last one keeps what lies before it from going back.
    blocks = [np.ones(60_000, np.uint8) for _ in range(4000)]
    last = np.ones(60_000, np.uint8)
    assert resident_mb() > before + 200
    del blocks
    assert give_back_unused_memory()
    assert resident_mb() < before + 50 and last.all()


def test_only_after_images_of_another_kind(monkeypatch):
    monkeypatch.setattr(unused_memory, '_PERIOD_S', 0.0)
    given_back = []
    monkeypatch.setattr(
        unused_memory, 'give_back_unused_memory', lambda: given_back.append(1) or True
    )
    memory = UnusedMemory()
    cameras = [(480, 640), (240, 320)]
    assert memory.give_back_after(cameras)
    for _ in range(20):
        assert not memory.give_back_after(cameras) and not memory.give_back_after(cameras[:1])
    assert memory.give_back_after([(1080, 1920)]) and not memory.give_back_after(cameras)
    for width in range(100):
        assert memory.give_back_after([(width, 1), *cameras])
    assert memory.give_back_after([(1080, 1920)]) and len(given_back) == 103


def test_not_more_often_than_the_next_images_can_bear():
    memory = UnusedMemory()
    assert not any(memory.give_back_after([(width, 1)]) for width in range(100))
