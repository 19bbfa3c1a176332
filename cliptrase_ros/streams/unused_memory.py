"""Memory of the process that nobody uses: given back, or not taken at all."""

import contextlib
import ctypes
import time
from collections.abc import Hashable, Iterable

#: Kinds of images in use at a time: those of the cameras, and what comes with them.
_KINDS = 16

#: Giving memory back makes the next images fetch it again, so not more often than this, seconds.
_PERIOD_S = 10.0


class UnusedMemory:
    """Gives free memory back to the system after images of kinds not met lately.

    The C library keeps what is freed for the next use. With images of one kind that use comes at
    once; blocks for a size that never comes again would stay for as long as the process runs.
    """

    def __init__(self):
        self._latest: dict[Hashable, None] = {}
        self._is_left = False
        self._given_back_at = time.monotonic()

    def give_back_after(self, kinds: Iterable[Hashable]) -> bool:
        """Tell what was dealt with; returns whether memory was given back.

        kinds: of the images, equal where they need memory in blocks of the same sizes. Takes some
        milliseconds when memory is given back.
        """
        for kind in kinds:
            self._is_left |= kind not in self._latest
            self._latest.pop(kind, None)
            self._latest[kind] = None
        self._latest = dict(list(self._latest.items())[-_KINDS:])
        now = time.monotonic()
        if not self._is_left or now - self._given_back_at < _PERIOD_S:
            return False
        self._is_left, self._given_back_at = False, now
        return give_back_unused_memory()


def give_back_unused_memory() -> bool:
    """Give free memory of the process back to the system, if the C library can.

    Returns whether there was any to give.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def share_memory_between_threads() -> None:
    """Let the threads that start from now on allocate from common pools, two in all.

    By default each has one of its own, and keeps there what another could use. Does nothing where
    the C library cannot.
    """
    # M_ARENA_MAX of glibc's malloc.h.
    arena_max = -8
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(arena_max, 2)
