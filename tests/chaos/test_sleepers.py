"""Thousands of executions asleep: no memory while they sleep, none awake too early."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine import Client, Settings
from engine.core.clock import monotonic
from tests.chaos.app import Job, Sleeper
from tests.chaos.cluster import Cluster, Process, cluster
from tests.eventually import eventually

log = logging.getLogger(__name__)

FEW, WAVE, PART = 100, 250, 1_250
QUICK = {"heartbeat_interval": 0.5, "time_to_live": 3, "suspend_after": 0.2}
MEGABYTE = 1 << 20
WOKEN = """
    select count(*) as woken, count(distinct execution) as executions,
           count(*) filter (where at < due) as early,
           coalesce(max(extract(epoch from at - due)), 0)::float as latest,
           coalesce(avg(extract(epoch from at - due)), 0)::float as late,
           (select max(extract(epoch from at - due_at))::float from engine.journal where kind = 3)
               as timer
    from woken
"""
ASLEEP = """
    select count(*) from engine.executions
    where status = 2 and wake_at is not null and workflow = 'Sleeper'
"""


async def put_to_sleep(
    chaos: Cluster, client: Client, runner: Process, numbers: range, *, until: datetime
) -> float:
    """Start executions that sleep until then, and wait until they are out of memory; wave by wave,
    since memory is needed for those that are awake. Gives the seconds it took."""
    began = monotonic()
    for first in range(numbers.start, numbers.stop, WAVE):
        batch = range(first, min(first + WAVE, numbers.stop))
        left = (until - datetime.now(UTC)).total_seconds()
        jobs = [Job(id=f"s{n}", number=n, pause=left + n % 240 / 20) for n in batch]
        await asyncio.gather(*(client.start(Sleeper, job) for job in jobs))
        await eventually(lambda: runner.resident < WAVE, timeout=60, every=0.01)

    async def asleep() -> bool:
        return await chaos.database.fetchval(ASLEEP) == numbers.stop

    await eventually(asleep, timeout=60, every=0.2)
    await eventually(lambda: runner.resident == 0)
    return monotonic() - began


async def fresh(chaos: Cluster, runner: Process) -> Process:
    """Another runner in the place of this one."""
    await runner.kill()
    (started,) = await chaos.start_runners(1)
    await asyncio.sleep(3)  # it has looked at all of its shards, more than once
    assert started.resident == 0
    return started


@pytest.mark.timeout(400)
async def test_thousands_asleep_take_no_memory_and_wake_on_time(
    dsn: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    many = 10_000 if request.config.getoption("--scale") == "full" else 5_000
    half, total = FEW + many // 2, FEW + many
    async with (
        cluster(dsn, tmp_path, **QUICK) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        (runner,) = await chaos.start_runners(1)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        took = await put_to_sleep(chaos, client, runner, range(FEW), until=tomorrow)
        after_few = runner.rss
        runner = await fresh(chaos, runner)
        beside_few = runner.rss

        until = datetime.now(UTC) + timedelta(seconds=25 + many / 300 * took)
        await put_to_sleep(chaos, client, runner, range(FEW, half), until=until)
        after_half = runner.rss
        grown: list[int] = []
        for part in range(half, total, PART):
            before = runner.rss
            more = range(part, part + PART)
            await put_to_sleep(chaos, client, runner, more, until=until)
            grown.append(runner.rss - before)
        runner = await fresh(chaos, runner)
        beside_all = runner.rss
        log.info("numbers: %s left to sleep", until - datetime.now(UTC))
        assert datetime.now(UTC) < until, "the machine is too slow for this test's times"
        put = [size // MEGABYTE for size in (after_few, after_half, *grown)]
        seen = [size // MEGABYTE for size in (beside_few, beside_all)]
        log.info("numbers: MB of who put them to sleep %s, of who only saw them %s", put, seen)
        # One that has only ever seen them asleep has nothing of them ...
        assert beside_all < beside_few + 8 * MEGABYTE
        # ... and one that put them to sleep keeps what it needed for a few waves, however many; a
        # stall makes some of them large, and what is kept of each would be seen with every part.
        assert after_half < after_few + 128 * MEGABYTE
        assert min(grown) < 3 * MEGABYTE

        async def all_woken() -> bool:
            return await chaos.database.fetchval("select count(*) from woken") >= many

        await eventually(all_woken, timeout=180, every=0.5)
        woken = dict(await chaos.database.fetchrow(WOKEN))
        log.info("numbers: %s", woken)
        assert woken["woken"] == woken["executions"] == many
        assert woken["early"] == 0
        assert woken["latest"] < 60
