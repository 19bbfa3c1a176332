"""At most so many frames a second, by a clock or by stamps that may jump either way."""


class RateLimiter:
    """At most so many frames a second, on a clock that may jump either way."""

    def __init__(self):
        self._due_ns: int | None = None

    def wait_ns(self, now_ns: int, rate: float) -> int:
        """Nanoseconds until a frame is due, 0 if it is now; rate in frames a second, 0 for any."""
        if rate <= 0 or self._due_ns is None:
            return 0
        wait = self._due_ns - now_ns
        # A wait longer than a period means that the clock ran backwards (a bag loops) or the rate
        # rose; the frame is due then.
        return wait if 0 < wait <= _period_ns(rate) else 0

    def take(self, now_ns: int, rate: float) -> None:
        """Note that a frame was taken."""
        if rate <= 0:
            return
        period = _period_ns(rate)
        due = now_ns if self._due_ns is None else self._due_ns
        # Counted from the time it was due, so that small delays do not add up to a lower rate; but
        # after a long pause from now, so that it earns no burst.
        self._due_ns = (due if 0 <= now_ns - due < period else now_ns) + period


class RateLimit:
    """At most so many images a second, by the images' own times."""

    def __init__(self, rate: float):
        """Take every image if `rate` (images a second) is 0."""
        self._rate = rate
        self._limiter = RateLimiter()

    def takes(self, stamp_ns: int) -> bool:
        """Whether the image of this time is taken; counts it if so."""
        if self._limiter.wait_ns(stamp_ns, self._rate):
            return False
        self._limiter.take(stamp_ns, self._rate)
        return True


def _period_ns(rate: float) -> int:
    return round(1e9 / rate)
