"""When to try again what just failed, for loops that must neither spin nor sleep too long."""

import random
from datetime import timedelta

from engine.core.clock import monotonic
from engine.core.retry import RetryPolicy


class Backoff:
    """Delays that double from ``initial`` to ``maximum``, less up to a fifth at random."""

    __slots__ = ("_draw", "_failures", "_policy", "_ready_at")

    def __init__(self, *, initial: timedelta, maximum: timedelta) -> None:
        self._policy = RetryPolicy(
            attempts=0, initial=initial, maximum=max(initial, maximum), jitter=0.2
        )
        self._draw = random.Random()
        self.reset()

    @property
    def wait(self) -> float:
        """Seconds until the next try is due; 0 when it is."""
        return max(0.0, self._ready_at - monotonic())

    def failed(self) -> None:
        self._failures += 1
        delay = self._policy.delay(self._failures, self._draw)
        self._ready_at = monotonic() + delay.total_seconds()

    def reset(self) -> None:
        """Try at once: it worked, or something changed."""
        self._failures = 0
        self._ready_at = 0.0
