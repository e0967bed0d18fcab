"""The only place that reads the system's clocks.

``SystemClock`` follows the database's time (``align``) on a monotonic base, so that a step of the
machine's clock moves nothing; ``storage`` aligns it with each heartbeat. Everything above takes a
``Clock``; tests hand in a virtual one.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from engine.core.errors import ConfigurationError

LONGEST_WAIT = 60.0
"""Seconds after which an alarm asks the clock again."""


class Alarm(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time as the engine sees it. ``now`` is aware UTC; ``call_at`` runs on the host loop."""

    def now(self) -> datetime: ...

    def call_at(
        self, when: datetime, callback: Callable[[], None], *, routine: bool = False
    ) -> Alarm:
        """``routine``: nobody waits for it; it is done again and again for ever."""
        ...


class SystemClock:
    """The database's time, carried on by the monotonic clock between two alignments."""

    __slots__ = ("_aligned", "_base")

    def __init__(self) -> None:
        self._aligned = False
        self._base = datetime.now(UTC) - timedelta(seconds=time.monotonic())

    def now(self) -> datetime:
        return self._base + timedelta(0, time.monotonic())

    def align(self, *, database: datetime, sent: float, received: float) -> None:
        """Follow the database's time, read between two readings of ``monotonic`` (seconds).

        INVARIANT never-early: where in between is not known, so of all times it may be by now this
        takes the earliest, or a later one that a quicker answer has shown to be past.
        """
        earliest = database - timedelta(seconds=received)
        latest = database - timedelta(seconds=sent)
        if not self._aligned or not earliest <= self._base <= latest:
            self._base = earliest
        self._aligned = True

    def call_at(
        self, when: datetime, callback: Callable[[], None], *, routine: bool = False
    ) -> Alarm:
        return _Alarm(self, when, callback)


class _Alarm:
    """Goes by the clock, which may be aligned while it waits: a long wait is made of shorter ones,
    so that after a week it is as precise as after a second, and it never comes early."""

    __slots__ = ("_callback", "_clock", "_handle", "_when")

    def __init__(self, clock: SystemClock, when: datetime, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._when = when
        self._callback = callback
        self._handle = self._wait((when - clock.now()).total_seconds())

    def cancel(self) -> None:
        self._handle.cancel()

    def _wait(self, seconds: float) -> asyncio.TimerHandle:
        delay = min(max(0.0, seconds), LONGEST_WAIT)
        return asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        left = (self._when - self._clock.now()).total_seconds()
        if left > 0:
            self._handle = self._wait(left)
        else:
            self._callback()


def seconds(duration: object, what: str) -> float:
    """Those of a duration that a user gave; ``ConfigurationError`` when it is none."""
    if not isinstance(duration, timedelta):
        raise ConfigurationError(
            f"{what} takes a timedelta, not {duration!r}: write timedelta(seconds={duration!r})"
        )
    return duration.total_seconds()


def due_at(at: datetime | None, delay: timedelta | None, now: datetime) -> datetime | None:
    """The time that a public ``at=`` or ``delay=`` asks for; None: at once."""
    if at is not None and delay is not None:
        raise ConfigurationError("give at= or delay=, not both")
    if at is not None and at.tzinfo is None:
        raise ConfigurationError("at= needs an aware datetime; give it a time zone")
    return at if delay is None else now + timedelta(seconds=seconds(delay, "delay="))


def within(timeout: timedelta | None) -> asyncio.Timeout:
    """What a public ``timeout=`` asks for: ``TimeoutError`` after it; None: wait for ever."""
    return asyncio.timeout(None if timeout is None else seconds(timeout, "timeout="))


def monotonic() -> float:
    """Seconds of the process's monotonic clock, for measuring durations."""
    return time.monotonic()
