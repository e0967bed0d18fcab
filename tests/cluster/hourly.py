"""Crons of every hour on a virtual clock, and what tests ask about them."""

import asyncio
from datetime import UTC, datetime, timedelta

from engine import Cron, FireOutcome, Overlap, ScheduleInfo
from engine.core.reply import Success
from engine.storage.memory import MemoryDatabase
from engine.testing import TestCluster, VirtualClock
from tests.eventually import eventually

NONE = timedelta(0)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
STARTED, OVERLAPPED = FireOutcome.STARTED, FireOutcome.OVERLAPPED
MISSED, TOO_OLD = FireOutcome.MISSED, FireOutcome.TOO_OLD
RAN = Success(b"null")


class Hourly(Cron):
    """Keeps what it ran; while ``gate`` is shut its runs wait for it."""

    schedule = "0 * * * *"

    def __init__(self) -> None:
        self.begun: list[datetime] = []
        self.ended: list[datetime] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, at: datetime) -> None:
        self.begun.append(at)
        await self.gate.wait()
        self.ended.append(at)


class Skipping(Hourly):
    overlap = Overlap.SKIP


class Buffering(Hourly):
    overlap = Overlap.BUFFER_ONE


class Allowing(Hourly):
    overlap = Overlap.ALLOW


class Cancelling(Hourly):
    overlap = Overlap.CANCEL


def database_at(begin: datetime = START) -> MemoryDatabase:
    return MemoryDatabase(VirtualClock(begin))


def hours(*numbers: float) -> list[datetime]:
    return [START + number * HOUR for number in numbers]


async def outcomes(cluster: TestCluster, cron: type[Cron]) -> list[tuple[float, FireOutcome]]:
    """What became of each instant, by hours since the start, oldest first."""
    fires = await cluster.client.schedule(cron).fires(1000)
    return [
        ((f.instant - START) / HOUR, f.outcome) for f in reversed(fires) if f.outcome is not None
    ]


async def registered(cluster: TestCluster, name: str) -> ScheduleInfo:
    """The cron, as soon as a runner keeps it."""

    async def found() -> ScheduleInfo | None:
        return next((i for i in await cluster.client.schedules() if i.name == name), None)

    info = await eventually(found)
    assert info is not None
    return info


async def sleep_through(database: MemoryDatabase, duration: timedelta) -> None:
    """Time goes by while no runner is there."""
    assert isinstance(database.clock, VirtualClock)
    await database.clock.advance(duration)
