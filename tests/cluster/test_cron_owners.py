"""Crons whose owner changes: what one has decided is neither lost nor repeated by the next."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

import pytest

from engine import FireInfo, StorageUnavailable
from engine.cluster.cron_host import CronHost
from engine.cluster.cron_keeper import Order
from engine.storage.memory import MemoryStorage
from engine.storage.memory_lane import MemoryLane
from engine.storage.protocol import Commit, Flushed
from engine.storage.schedules import Fire, ScheduleRow
from engine.testing import TestCluster
from tests.cluster.cron_cases import enumerated
from tests.cluster.hourly import (
    HOUR,
    MINUTE,
    MISSED,
    START,
    STARTED,
    Allowing,
    Cancelling,
    Skipping,
    database_at,
    hours,
    outcomes,
    registered,
    sleep_through,
)
from tests.eventually import eventually


def lose_its_session(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[Commit], object], *, committed: bool
) -> None:
    """End the session that writes the first such commit: right after that, or before it."""
    flush = MemoryLane.flush

    async def lost(self: MemoryLane, commits: Sequence[Commit]) -> Flushed:
        if not any(when(commit) for commit in commits):
            return await flush(self, commits)
        monkeypatch.undo()
        if committed:
            await flush(self, commits)
        self.terminate()
        raise StorageUnavailable("the session was ended by order of the test")

    monkeypatch.setattr(MemoryLane, "flush", lost)


# --- another schedule -----------------------------------------------------------------------------


async def test_the_former_schedule_holds_until_then_also_when_the_first_try_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Former(Allowing):
        name = "Changing"
        catch_up = 2 * HOUR

    class Latter(Former):
        name = "Changing"
        schedule = "*/10 * * * *"

    async def known(self: MemoryStorage, keys: Collection[str]) -> Collection[str]:
        tries.append(keys)
        if len(tries) == 1:
            raise StorageUnavailable("the connection was lost")
        return []

    tries: list[Collection[str]] = []

    after, database = Latter(), database_at()
    async with TestCluster(Former(), database=database) as cluster:
        await registered(cluster, "Changing")
    await sleep_through(database, 3.25 * HOUR)
    monkeypatch.setattr(MemoryStorage, "known", known)
    async with TestCluster(after, database=database) as cluster:
        await cluster.advance(MINUTE)

        assert after.ended == hours(2, 3)
        assert await outcomes(cluster, Latter) == [(1, MISSED), (2, STARTED), (3, STARTED)]


async def test_the_former_schedule_holds_until_then_also_when_an_owner_is_lost_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Former(Allowing):
        name = "Changing"
        schedule = "*/5 * * * * *"

    class Latter(Former):
        name = "Changing"
        schedule = "1 * * * * *"

    after, database = Latter(), database_at()
    async with TestCluster(Former(), database=database) as cluster:
        await registered(cluster, "Changing")
    await sleep_through(database, HOUR)
    lose_its_session(monkeypatch, lambda commit: commit.schedules, committed=True)
    async with TestCluster(after, database=database) as cluster:
        expected = enumerated("*/5 * * * * *", "UTC", START, START + HOUR)
        await eventually(lambda: set(after.ended) == set(expected), timeout=20)

        async def caught_up() -> bool:
            return (await cluster.client.schedule(Latter).describe()).schedule == "1 * * * * *"

        assert await eventually(caught_up)
        await cluster.settle()

    assert set(after.ended) == set(expected)


# --- triggers -------------------------------------------------------------------------------------


async def test_a_trigger_that_is_delivered_again_does_not_end_its_own_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with TestCluster(cron := Cancelling()) as cluster:
        cron.gate.clear()
        schedule = cluster.client.schedule(Cancelling)
        lose_its_session(monkeypatch, lambda commit: commit.replies, committed=False)
        fire = await schedule.trigger()
        await eventually(lambda: cron.begun == [fire.instant] * 2)
        await cluster.settle()
        cron.gate.set()
        await eventually(lambda: cron.ended == [fire.instant])
        (stored,) = await schedule.fires()

    assert (fire.outcome, stored.request_id) == (STARTED, fire.request_id)


async def trigger_over_a_hand_over(asked: asyncio.Event, gone: asyncio.Event) -> FireInfo:
    """Give its shard away once ``asked`` is set, and set ``gone``; the next owner answers."""
    database = database_at()
    first = TestCluster(Allowing(), database=database, grace_period=HOUR, handover_limit=HOUR)
    second = TestCluster(Allowing(), database=database)
    async with TestCluster(Skipping(), database=database, groups=["elsewhere"]) as bystander:
        await first.__aenter__()
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            trigger = group.create_task(bystander.client.schedule(Allowing).trigger())
            await asked.wait()
            group.create_task(first.__aexit__(None, None, None))
            await eventually(lambda: len(first.runner.epochs) <= 1)
            gone.set()
            group.create_task(second.__aenter__())
        await second.__aexit__(None, None, None)
    return trigger.result()


def when_it_asks(
    monkeypatch: pytest.MonkeyPatch, asked: asyncio.Event, wait: Callable[[], Awaitable[object]]
) -> None:
    """Set ``asked`` when a message's handler asks the cron for something, and let it wait first."""
    ask = CronHost.ask

    async def waiting(self: CronHost, name: str, order: Order) -> Fire | None:
        monkeypatch.setattr(CronHost, "ask", ask)
        asked.set()
        await wait()
        return await ask(self, name, order)

    monkeypatch.setattr(CronHost, "ask", waiting)


async def test_a_trigger_whose_owner_goes_before_it_has_read_the_cron_is_the_next_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    schedules = MemoryStorage.schedules

    async def slow(
        self: MemoryStorage, names: Sequence[str] | None = None
    ) -> Sequence[ScheduleRow]:
        monkeypatch.setattr(MemoryStorage, "schedules", schedules)
        await gone.wait()
        return await schedules(self, names)

    monkeypatch.setattr(MemoryStorage, "schedules", slow)
    when_it_asks(monkeypatch, asked, lambda: asyncio.sleep(0))

    assert (await trigger_over_a_hand_over(asked, gone)).outcome is STARTED


async def test_a_trigger_that_comes_to_a_cron_that_has_been_given_away_is_the_next_owners(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, gone = asyncio.Event(), asyncio.Event()
    when_it_asks(monkeypatch, asked, gone.wait)

    assert (await trigger_over_a_hand_over(asked, gone)).outcome is STARTED
