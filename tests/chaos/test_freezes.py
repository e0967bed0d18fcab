"""A runner that stands still for longer than its time to live, then goes on as if nothing were."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from engine import Client, Settings
from engine.core.clock import monotonic
from tests.chaos import audit
from tests.chaos.app import Five, Job, Lingers, Mixed, Stalls, Steps
from tests.chaos.cluster import SHARDS, Cluster, cluster
from tests.chaos.journals import assert_once
from tests.eventually import eventually

TTL = 3.0
QUICK = {"heartbeat_interval": 0.5, "time_to_live": TTL}
SESSIONS = """
    select count(*) from pg_stat_activity
    where application_name like 'outlast:' || $1 || ':%' and datname = current_database()
"""


async def start(client: Client, workflow: type[Steps], jobs: list[Job]) -> None:
    await asyncio.gather(*(client.start(workflow, job) for job in jobs))


async def results(client: Client, workflow: type[Steps], jobs: list[Job]) -> list[int]:
    return await asyncio.gather(
        *(client.execution(workflow, job.id).join(timedelta(seconds=60)) for job in jobs)
    )


async def lost(chaos: Cluster, frozen: str) -> float:
    """Wait until nothing of the frozen incarnation is left; how long that took."""
    since = monotonic()

    async def gone() -> bool:
        owned = await chaos.database.fetchval(
            "select count(*) from engine.shards where runner_id = $1::text::uuid", frozen
        )
        return owned == await chaos.database.fetchval(SESSIONS, frozen) == 0

    await eventually(gone, timeout=30)
    return monotonic() - since


@pytest.mark.timeout(150)
async def test_a_frozen_owner_writes_nothing_more_for_the_shards_it_lost(
    dsn: str, tmp_path: Path
) -> None:
    async with (
        cluster(dsn, tmp_path, forked=True, **QUICK) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        await audit.install(chaos.database)
        frozen, stays = await chaos.start_runners(2)
        work = {
            workflow: [Job(id=f"{workflow.name}{n}", number=n, pause=2) for n in range(60)]
            for workflow in (Five, Mixed, Lingers)
        }
        for workflow, jobs in work.items():
            await start(client, workflow, jobs)
        before = frozen.runner

        async def busy() -> bool:
            return await audit.written_by(chaos.database, before) >= 50

        await eventually(busy, timeout=20)
        frozen.freeze()
        assert await lost(chaos, before) < TTL + 4
        await eventually(lambda: stays.owned == SHARDS, timeout=10)
        written = await audit.written_by(chaos.database, before)
        for workflow, jobs in work.items():
            expected = [workflow.result(job.number) for job in jobs]  # type: ignore[attr-defined]
            assert await results(client, workflow, jobs) == expected
        frozen.thaw()
        await eventually(lambda: frozen.runner != before and frozen.owned > 0, timeout=20)
        await chaos.shared([frozen, stays])
        assert await audit.written_by(chaos.database, before) == written
        await audit.assert_no_foreign_rows(chaos.database)
        for workflow, steps in STEPS.items():
            await assert_once(chaos, workflow, steps=steps, effects=EFFECTS[workflow])


STEPS = {
    "Five": dict.fromkeys(["fetch", "Ledger.book", "record", "pack"], 60),
    "Mixed": dict.fromkeys(["record", "fetch", "Ledger.book", "pack", "again"], 60),
    "Lingers": dict.fromkeys(["record", "linger", "again"], 60),
}
EFFECTS = {"Five": ["record"], "Mixed": ["record", "again"], "Lingers": ["record", "again"]}


@pytest.mark.timeout(150)
async def test_a_transaction_frozen_in_the_middle_is_rolled_back_and_done_elsewhere(
    dsn: str, tmp_path: Path
) -> None:
    async with (
        cluster(dsn, tmp_path, forked=True, **QUICK) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        await audit.install(chaos.database)
        frozen, stays = await chaos.start_runners(2)
        jobs = [Job(id=f"s{n}", number=n, pause=1) for n in range(16)]
        await start(client, Stalls, jobs)
        before = frozen.runner

        async def in_the_middle() -> bool:
            stalled = f"outlast:{before}:%"
            return await chaos.database.fetchval(
                "select exists (select from stalls where name like $1)", stalled
            )

        await eventually(in_the_middle, timeout=20, every=0.005)
        frozen.freeze()
        assert await lost(chaos, before) < TTL + 4
        expected = [Stalls.result(job.number) for job in jobs]
        assert await results(client, Stalls, jobs) == expected
        written = await audit.written_by(chaos.database, before)
        frozen.thaw()
        await eventually(lambda: frozen.runner != before and frozen.owned > 0, timeout=20)
        await chaos.shared([frozen, stays])
        assert await audit.written_by(chaos.database, before) == written
        await audit.assert_no_foreign_rows(chaos.database)
        steps = dict.fromkeys(["fetch", "stall", "pack"], len(jobs))
        await assert_once(chaos, "Stalls", steps=steps, effects=["stall"])


@pytest.mark.timeout(150)
async def test_an_owner_that_wakes_while_it_is_being_replaced_writes_nothing_for_the_next(
    dsn: str, tmp_path: Path
) -> None:
    """Freeze for about the time to live, several times over, under load."""
    async with (
        cluster(dsn, tmp_path, forked=True, **QUICK) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        await audit.install(chaos.database)
        runners = await chaos.start_runners(2)
        jobs = [Job(id=f"m{n}", number=n, pause=1) for n in range(240)]
        for turn, pause in enumerate([TTL, TTL + 0.4, TTL + 0.8, TTL + 1.2]):
            await start(client, Mixed, jobs[turn * 60 : turn * 60 + 60])
            await asyncio.sleep(0.3)
            frozen = runners[turn % 2]
            frozen.freeze()
            await asyncio.sleep(pause)
            frozen.thaw()
            await chaos.shared(runners)
        assert await results(client, Mixed, jobs) == [Mixed.result(job.number) for job in jobs]
        await audit.assert_no_foreign_rows(chaos.database)
        steps = dict.fromkeys(["record", "fetch", "Ledger.book", "pack", "again"], len(jobs))
        await assert_once(chaos, "Mixed", steps=steps, effects=["record", "again"])
