"""A clock that stands still until a test moves it."""

import asyncio
import heapq
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count

from engine.core.clock import monotonic

_IDLE_TURNS = 5
_TURNS = 100_000
_PATIENCE = 1.0
_LOOK = 0.0005


class VirtualClock:
    """A ``Clock``. ``advance`` fires what is due on the way, in order, each at its own time, and
    lets the program settle in between.

    What is on its way outside of the event loop it cannot see, except for steps in threads, which
    it gives a second.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._alarms: list[_Alarm] = []
        self._numbers = count()
        self._outside: list[Callable[[], int]] = []

    def now(self) -> datetime:
        return self._now

    def call_at(
        self, when: datetime, callback: Callable[[], None], *, routine: bool = False
    ) -> "_Alarm":
        alarm = _Alarm(when, next(self._numbers), callback, routine=routine)
        heapq.heappush(self._alarms, alarm)
        if when <= self._now:
            asyncio.get_running_loop().call_soon(self._fire_due)
        return alarm

    async def advance(self, duration: timedelta) -> None:
        """Move on by ``duration``, stopping at each alarm on the way."""
        until = self._now + duration
        await self.settle()
        while self._alarms and self._alarms[0].when <= until:
            self._now = max(self._now, self._alarms[0].when)
            self._fire_due()
            await self.settle()
        self._now = until
        await self.settle()

    async def advance_to_next(self) -> bool:
        """Move on to the next alarm that is no routine; False when there is none."""
        await self.settle()
        alarms = [alarm for alarm in self._alarms if not (alarm.cancelled or alarm.routine)]
        if not alarms:
            return False
        await self.advance(max(min(alarms).when - self._now, timedelta(0)))
        return True

    @contextmanager
    def watching(self, outside: Callable[[], int]) -> Generator[None]:
        """Wait, while time stands, for what ``outside`` counts."""
        self._outside.append(outside)
        try:
            yield
        finally:
            self._outside.remove(outside)

    async def settle(self) -> None:
        """Let everything that can run now run, as far as it needs no outside."""
        await self._settle()
        patience = monotonic() + _PATIENCE
        while any(outside() for outside in self._outside) and monotonic() < patience:
            await asyncio.sleep(_LOOK)
            await self._settle()

    async def _settle(self) -> None:
        ready = getattr(asyncio.get_running_loop(), "_ready", ())
        idle = 0
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            idle = idle + 1 if not ready else 0
            if idle >= _IDLE_TURNS:
                return

    def _fire_due(self) -> None:
        while self._alarms and self._alarms[0].when <= self._now:
            alarm = heapq.heappop(self._alarms)
            if not alarm.cancelled:
                alarm.callback()


class _Alarm:
    __slots__ = ("callback", "cancelled", "number", "routine", "when")

    def __init__(
        self, when: datetime, number: int, callback: Callable[[], None], *, routine: bool
    ) -> None:
        self.when: datetime = when
        self.number: int = number
        self.callback: Callable[[], None] = callback
        self.routine: bool = routine
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def __lt__(self, other: "_Alarm") -> bool:
        return (self.when, self.number) < (other.when, other.number)
