"""How often a failed step is tried again, and when; and so for loops that must not end."""

import math
import random
from dataclasses import dataclass
from datetime import timedelta

from engine.core.errors import ConfigurationError, GiveUp, RetryLater


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off: ``initial * factor ** (attempt - 1)``, at most ``maximum``.

    ``attempts`` counts the first try; 0 means without end. ``jitter`` is the share of the delay
    that is drawn at random (0.1: up to 10 % less). An error is retried when it is of a type in
    ``retry_on`` and of none in ``give_up_on``; ``GiveUp`` and ``RetryLater`` decide for themselves.
    Attempts and their times are durable: after a crash
    attempt 4 follows attempt 3.

    >>> policy = RetryPolicy(attempts=3, initial=timedelta(seconds=1), jitter=0)
    >>> [policy.delay(attempt, random.Random()).seconds for attempt in (1, 2, 3)]
    [1, 2, 4]
    >>> policy.retries(OSError(), attempt=2), policy.retries(OSError(), attempt=3)
    (True, False)
    """

    attempts: int = 5
    initial: timedelta = timedelta(milliseconds=200)
    factor: float = 2.0
    maximum: timedelta = timedelta(minutes=1)
    jitter: float = 0.1
    retry_on: tuple[type[Exception], ...] = (Exception,)
    give_up_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.attempts < 0:
            raise ConfigurationError("RetryPolicy.attempts must be 0 (without end) or more")
        if self.initial < timedelta(0) or self.maximum < self.initial:
            raise ConfigurationError(
                f"RetryPolicy needs 0 <= initial <= maximum: initial is {self.initial}, and maximum"
                f" {self.maximum}; give both for delays above its default of a minute"
            )
        if not self.factor >= 1 or not 0 <= self.jitter <= 1:
            raise ConfigurationError("RetryPolicy needs factor >= 1 and jitter between 0 and 1")

    def retries(self, error: BaseException, attempt: int) -> bool:
        """Whether another attempt follows number ``attempt``, which failed with ``error``."""
        if isinstance(error, GiveUp) or (self.attempts and attempt >= self.attempts):
            return False
        if isinstance(error, RetryLater):
            return True
        return isinstance(error, self.retry_on) and not isinstance(error, self.give_up_on)

    def delay(
        self, attempt: int, draw: random.Random, error: BaseException | None = None
    ) -> timedelta:
        """How long to wait after failed attempt number ``attempt``, which ended with ``error``."""
        if isinstance(error, RetryLater):
            return max(error.after, timedelta(0))
        if not self.initial:
            return timedelta(0)
        try:
            grown = self.initial.total_seconds() * float(self.factor) ** (attempt - 1)
        except OverflowError:
            grown = math.inf
        seconds = min(grown, self.maximum.total_seconds())
        return timedelta(seconds=seconds * (1 - self.jitter * draw.random()))


def again_in(failures: int, *, first: float = 0.05, longest: float = 5.0) -> float:
    """Seconds until the next try of a loop that has failed so often in a row: ``first``, doubled
    for each failure up to ``longest``, less up to a half at random."""
    return min(longest, first * 2.0 ** min(failures, 64)) * random.uniform(0.5, 1)
