"""Memory of the process that nobody uses: given back, or not taken at all."""

import contextlib
import ctypes
import time
from collections.abc import Hashable

#: Kinds of batches remembered at a time: of some cameras, together in any number.
_MOST_KINDS = 64

#: Giving memory back makes the next images fetch it again, so not more often than this, seconds.
_PERIOD_S = 10.0


class UnusedMemory:
    """Gives free memory back to the system after batches of kinds not met lately.

    The C library keeps what is freed for the next use. With batches of one kind that use comes at
    once; blocks for a size that never comes again would stay for as long as the process runs.
    """

    def __init__(self):
        self._known: set[Hashable] = set()
        self._is_due = False
        self._given_back_at = time.monotonic()

    def give_back_after(self, kind: Hashable) -> bool:
        """Give memory back if it is due after a batch like this, which takes some milliseconds.

        Args:
            kind: Equal for batches that need memory in blocks of the same sizes.
        """
        self._is_due |= kind not in self._known
        self._known.add(kind)
        if len(self._known) > _MOST_KINDS:
            self._known = {kind}
        now = time.monotonic()
        if not self._is_due or now - self._given_back_at < _PERIOD_S:
            return False
        self._is_due, self._given_back_at = False, now
        return give_back_unused_memory()


def give_back_unused_memory() -> bool:
    """Give free memory back to the system, if the C library can; returns whether there was any."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False


def share_memory_between_threads() -> None:
    """Let the threads that start from now on allocate from common pools, two in all.

    By default each has a pool of its own, and keeps there what another could use. Does nothing
    where the C library cannot.
    """
    m_arena_max = -8  # of glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(m_arena_max, 2)
