"""Crons that start workflows: one execution per instant, and its end is the end of the run."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from engine import (
    Deferred,
    ExecutionInterrupted,
    FireOutcome,
    Overlap,
    Status,
    Workflow,
    WorkflowCron,
)
from engine.core.reply import Interrupted, Success
from engine.storage.memory import MemoryDatabase
from engine.storage.memory_database import Fault
from engine.testing import TestCluster, VirtualClock
from tests.cluster.hourly import registered
from tests.eventually import eventually

HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)
STARTED, OVERLAPPED = FireOutcome.STARTED, FireOutcome.OVERLAPPED


class Report(Workflow[datetime, str]):
    """Waits for its approval, if it has to."""

    approved = Deferred(bool)

    def __init__(self, *, waits: bool = False) -> None:
        self.waits = waits

    async def execute(self, request: datetime) -> str:
        if self.waits:
            await self.approved.wait()
        return f"{request:%H:%M}"


class Hourly(WorkflowCron[datetime, str]):
    schedule = "0 * * * *"
    workflow = Report

    def request(self, at: datetime) -> datetime:
        return at


class Buffering(Hourly):
    overlap = Overlap.BUFFER_ONE


class Cancelling(Hourly):
    overlap = Overlap.CANCEL


def id_of(cron: type[Hourly], hour: int) -> str:
    return f"{cron.name}/2026-01-01T{hour:02}:00:00Z"


async def ids(cluster: TestCluster) -> list[str]:
    return sorted([info.id async for info in cluster.client.executions(Report)])


async def test_each_instant_starts_an_execution_that_is_named_for_it() -> None:
    async with TestCluster(Report(), Hourly()) as cluster:
        await cluster.advance(3.5 * HOUR)

        assert await ids(cluster) == [id_of(Hourly, hour) for hour in (1, 2, 3)]
        assert await cluster.client.execution(Report, id_of(Hourly, 2)).join() == "02:00"


async def test_its_executions_are_found_by_the_cron_and_the_instant() -> None:
    async with TestCluster(Report(), Hourly()) as cluster:
        await cluster.advance(2 * HOUR)
        wanted = {"cron": "Hourly", "instant": "2026-01-01T02:00:00Z"}
        found = [info async for info in cluster.client.executions(Report, attributes=wanted)]

    assert [info.id for info in found] == [id_of(Hourly, 2)]


async def test_a_key_of_its_own_names_the_execution_and_may_be_shared() -> None:
    class ByDay(Hourly):
        def key(self, at: datetime, request: datetime) -> str:
            return f"{at:%A}"

    async with TestCluster(Report(), ByDay()) as cluster:
        await cluster.advance(25 * HOUR)

        assert await ids(cluster) == ["Friday", "Thursday"]


async def test_a_crash_at_any_time_starts_none_twice_and_loses_none() -> None:
    async with TestCluster(Report(), Hourly()) as cluster:
        for _ in range(6):
            await cluster.advance(HOUR)
            await cluster.crash()
        await cluster.advance(HOUR / 2)

        await eventually(lambda: _all_there(cluster, 6))
        fires = await cluster.client.schedule(Hourly).fires()
    assert [fire.exit for fire in reversed(fires)] == [
        Success(f'"{hour:02}:00"'.encode()) for hour in range(1, 7)
    ]


async def _all_there(cluster: TestCluster, count: int) -> bool:
    ended = [info async for info in cluster.client.executions(Report, status=Status.SUCCEEDED)]
    return len(ended) == count


class Punctual(Hourly):
    skip_if_older_than = timedelta(minutes=1)


class Hasty(Hourly):
    catch_up = timedelta(minutes=1)


@pytest.mark.parametrize("kind", [Punctual, Hasty])
async def test_what_was_started_before_its_owner_was_lost_is_noted_and_followed_by_the_next_one(
    kind: type[Hourly],
) -> None:
    """The owner is lost between the request of an instant and its note."""
    database = MemoryDatabase(VirtualClock(START))
    async with TestCluster(Report(waits=True), kind(), database=database) as cluster:
        schedule = cluster.client.schedule(kind)
        await registered(cluster, kind.name)
        database.fail_next_flush(Fault.AFTER_COMMIT)
        await cluster.advance(1.25 * HOUR)
        await eventually(schedule.fires)
        await cluster.advance(HOUR)

        fires = await schedule.fires()
        assert [fire.outcome for fire in reversed(fires)] == [STARTED, OVERLAPPED]
        assert await ids(cluster) == [id_of(kind, 1)]


async def test_a_run_lasts_until_its_execution_ends() -> None:
    async with TestCluster(Report(waits=True), Hourly()) as cluster:
        await cluster.advance(2 * HOUR)
        execution = cluster.client.execution(Report, id_of(Hourly, 1))
        await execution.resolve(Report.approved, True)
        await execution.join()
        await cluster.advance(HOUR)
        fires = await cluster.client.schedule(Hourly).fires()

        assert await ids(cluster) == [id_of(Hourly, 1), id_of(Hourly, 3)]
        assert [fire.outcome for fire in reversed(fires)] == [STARTED, OVERLAPPED, STARTED]


async def test_what_is_buffered_starts_when_the_execution_ends_also_on_the_next_owner() -> None:
    async with TestCluster(Report(waits=True), Buffering()) as cluster:
        await cluster.advance(2 * HOUR)
        await cluster.crash()
        execution = cluster.client.execution(Report, id_of(Buffering, 1))
        await execution.resolve(Report.approved, True)
        async with asyncio.timeout(10):
            await execution.join()

            async def second() -> bool:
                return await ids(cluster) == [id_of(Buffering, 1), id_of(Buffering, 2)]

            assert await eventually(second)


async def test_cancel_interrupts_the_execution_and_starts_the_next_one() -> None:
    async with TestCluster(Report(waits=True), Cancelling()) as cluster:
        await cluster.advance(2 * HOUR)
        first = cluster.client.execution(Report, id_of(Cancelling, 1))
        with pytest.raises(ExecutionInterrupted):
            async with asyncio.timeout(10):
                await first.join()

        async def fires() -> bool:
            found = await cluster.client.schedule(Cancelling).fires()
            return [fire.exit for fire in found] == [None, Interrupted()]

        assert await eventually(fires)


async def test_an_instant_whose_request_cannot_be_made_is_left_out_and_can_be_made_up_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Picky(Hourly):
        broken = True

        def request(self, at: datetime) -> datetime:
            if self.broken and at.hour == 2:
                raise LookupError("no figures")
            return at

    async with TestCluster(Report(), picky := Picky()) as cluster:
        await cluster.advance(3 * HOUR)
        schedule = cluster.client.schedule(Picky)
        outcomes = [fire.outcome for fire in reversed(await schedule.fires())]
        assert outcomes == [STARTED, FireOutcome.FAILED, STARTED]
        assert "an instant's request cannot be made" in caplog.text

        picky.broken = False
        await schedule.backfill(START + 2 * HOUR, START + 2 * HOUR)
        assert await cluster.client.execution(Report, id_of(Picky, 2)).join() == "02:00"


async def test_a_trigger_starts_an_execution_at_once() -> None:
    async with TestCluster(Report(), Hourly()) as cluster:
        fire = await cluster.client.schedule(Hourly).trigger()
        (id,) = await eventually(lambda: ids(cluster))
        result = await cluster.client.execution(Report, id).join()

    assert (fire.outcome, result) == (STARTED, "00:00")
    assert id.startswith("Hourly/2026-01-01T00:00:00.")


async def test_it_may_start_workflows_of_a_shard_group_that_its_runner_does_not_serve() -> None:
    class Elsewhere(Workflow[str, str]):
        shard_group = "elsewhere"

        async def execute(self, request: str) -> str:
            return f"{request} elsewhere"

    class Sending(WorkflowCron[str, str]):
        schedule = "0 * * * *"
        workflow = Elsewhere

        def request(self, at: datetime) -> str:
            return "done"

    database = MemoryDatabase(VirtualClock(START))
    async with TestCluster(Sending(), database=database) as cluster:
        await cluster.advance(HOUR)
        (fire,) = await cluster.client.schedule(Sending).fires()
        assert fire.outcome is STARTED
    async with TestCluster(Elsewhere(), database=database, groups=["elsewhere"]) as cluster:
        execution = cluster.client.execution(Elsewhere, "Sending/2026-01-01T01:00:00Z")
        assert await execution.join(timedelta(seconds=10)) == "done elsewhere"
