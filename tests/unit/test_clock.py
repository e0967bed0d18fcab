"""The engine's clock is never ahead of the database's, however slow an answer was."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from engine.core import clock
from engine.core.clock import SystemClock, monotonic

START = datetime(2026, 1, 1, tzinfo=UTC)


class Times:
    """The machine's monotonic clock, and a database whose time is the same."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    @property
    def database(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def ask(self, system: SystemClock, *, there: float, back: float) -> None:
        """An answer that took so long on its way there and back."""
        sent = self.now
        self.now += there
        said = self.database
        self.now += back
        system.align(database=said, sent=sent, received=self.now)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Times:
    made = Times()
    monkeypatch.setattr(clock.time, "monotonic", made.monotonic)
    return made


@pytest.mark.parametrize(("there", "back"), [(0.0, 0.0), (0.8, 0.0), (0.0, 0.8), (0.4, 0.4)])
def test_it_is_never_ahead_of_the_database(times: Times, there: float, back: float) -> None:
    system = SystemClock()
    times.ask(system, there=there, back=back)
    assert system.now() <= times.database
    assert times.database - system.now() <= timedelta(seconds=back, microseconds=10)
    times.ask(system, there=0.001, back=0.001)
    assert system.now() <= times.database
    assert times.database - system.now() <= timedelta(seconds=0.002)


def test_a_slow_answer_does_not_spoil_what_a_quick_one_has_shown(times: Times) -> None:
    system = SystemClock()
    times.ask(system, there=0.001, back=0.001)
    times.now += 1
    times.ask(system, there=0.0, back=2.0)
    assert times.database - system.now() <= timedelta(seconds=0.002)


async def test_an_alarm_that_waits_for_long_comes_when_the_clock_is_set_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clock, "LONGEST_WAIT", 0.01)
    system, rung = SystemClock(), asyncio.Event()
    system.call_at(system.now() + timedelta(hours=1), rung.set)
    an_hour_ahead = system.now() + timedelta(hours=1)
    system.align(database=an_hour_ahead, sent=monotonic(), received=monotonic())
    async with asyncio.timeout(10):
        await rung.wait()


async def test_an_alarm_does_not_come_early_when_the_clock_is_set_back() -> None:
    system, rung = SystemClock(), asyncio.Event()
    when = system.now() + timedelta(milliseconds=20)
    system.call_at(when, rung.set)
    a_bit_behind = system.now() - timedelta(milliseconds=30)
    system.align(database=a_bit_behind, sent=monotonic(), received=monotonic())
    async with asyncio.timeout(10):
        await rung.wait()
    assert system.now() >= when


async def test_an_alarm_that_is_cancelled_never_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "LONGEST_WAIT", 0.001)
    system, rung, later = SystemClock(), asyncio.Event(), asyncio.Event()
    alarm = system.call_at(system.now() + timedelta(hours=1), rung.set)
    await asyncio.sleep(0.01)  # it has looked at the clock a few times
    alarm.cancel()
    an_hour_ahead = system.now() + timedelta(hours=1)
    system.align(database=an_hour_ahead, sent=monotonic(), received=monotonic())
    system.call_at(system.now() + timedelta(milliseconds=10), later.set)
    async with asyncio.timeout(10):
        await later.wait()
    assert not rung.is_set()


def test_it_follows_a_database_whose_clock_was_set_back(times: Times) -> None:
    system = SystemClock()
    times.ask(system, there=0.001, back=0.001)
    sent = times.now
    times.now += 0.002
    earlier = times.database - timedelta(minutes=5)
    system.align(database=earlier, sent=sent, received=times.now)
    assert abs(system.now() - earlier) <= timedelta(milliseconds=2)
