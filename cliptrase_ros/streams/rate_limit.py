"""At most so many frames a second, by a clock or by stamps that may jump either way."""


class RateLimiter:
    """At most so many frames a second. Rates are in frames a second, 0 for any number."""

    def __init__(self):
        self._due_ns: int | None = None

    def wait_ns(self, now_ns: int, rate: float) -> int:
        """Nanoseconds until a frame is due, 0 if it is now."""
        if rate <= 0 or self._due_ns is None:
            return 0
        wait = self._due_ns - now_ns
        # A wait longer than a period means that the clock ran backwards (a bag loops) or the rate
        # rose; the frame is due then.
        return wait if 0 < wait <= _period_ns(rate) else 0

    def take(self, now_ns: int, rate: float) -> bool:
        """Note that a frame is taken, if one is due; returns whether it is."""
        if self.wait_ns(now_ns, rate):
            return False
        if rate > 0:
            period = _period_ns(rate)
            due = now_ns if self._due_ns is None else self._due_ns
            # Counted from the time it was due, so that small delays do not add up to a lower rate;
            # but after a long pause from now, so that it earns no burst.
            self._due_ns = (due if 0 <= now_ns - due < period else now_ns) + period
        return True


def _period_ns(rate: float) -> int:
    return round(1e9 / rate)
