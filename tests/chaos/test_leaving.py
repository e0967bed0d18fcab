"""A runner that is told to leave, or is killed, in the middle of its executions' steps."""

import asyncio
import signal
from datetime import timedelta
from pathlib import Path

import pytest

from engine import Client, Settings
from engine.core.clock import monotonic
from tests.chaos import audit
from tests.chaos.app import Job, Lingers
from tests.chaos.cluster import SHARDS, Cluster, cluster
from tests.chaos.journals import assert_once
from tests.chaos.load import load
from tests.eventually import eventually

EXECUTIONS = 40
STEPS = dict.fromkeys(["record", "linger", "again"], EXECUTIONS)


async def lingering(chaos: Cluster, client: Client, *, seconds: float) -> list[Job]:
    """Executions that are all in the middle of their second step."""
    jobs = [Job(id=f"j{n}", number=n, pause=seconds) for n in range(EXECUTIONS)]
    await asyncio.gather(*(client.start(Lingers, job) for job in jobs))

    async def all_in_it() -> bool:
        return await touched(chaos, "linger") == EXECUTIONS

    await eventually(all_in_it, timeout=20)
    return jobs


async def touched(chaos: Cluster, step: str) -> int:
    return await chaos.database.fetchval("select count(*) from touched where step = $1", step)


async def results(client: Client, jobs: list[Job]) -> list[int]:
    return await asyncio.gather(
        *(client.execution(Lingers, job.id).join(timedelta(seconds=60)) for job in jobs)
    )


@pytest.mark.timeout(120)
async def test_a_runner_told_to_leave_ends_its_running_steps_and_hands_over(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, forked=True) as chaos, Client(Settings(dsn=dsn)) as client:
        leaves, stays = await chaos.start_runners(2)
        jobs = await lingering(chaos, client, seconds=2)
        told_at = monotonic()
        leaves.send(signal.SIGTERM)
        # Shards in which nothing runs move before the others' steps have ended.
        await eventually(lambda: stays.owned >= SHARDS - EXECUTIONS, timeout=5)
        assert await asyncio.wait_for(leaves.process.wait(), 15) == 0
        assert monotonic() - told_at < 15
        await eventually(lambda: stays.owned == SHARDS, timeout=5)
        assert await results(client, jobs) == [Lingers.result(job.number) for job in jobs]
        await assert_once(chaos, "Lingers", steps=STEPS, effects=["record", "again"])
        assert await touched(chaos, "linger") == await touched(chaos, "lingered") == EXECUTIONS


@pytest.mark.timeout(120)
async def test_what_a_killed_runner_had_finished_is_not_done_again(
    dsn: str, tmp_path: Path
) -> None:
    quick = {"heartbeat_interval": 0.5, "time_to_live": 3}
    async with (
        cluster(dsn, tmp_path, forked=True, **quick) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        killed, _ = await chaos.start_runners(2)
        jobs = await lingering(chaos, client, seconds=4)
        await killed.kill()
        assert await results(client, jobs) == [Lingers.result(job.number) for job in jobs]
        await assert_once(chaos, "Lingers", steps=STEPS, effects=["record", "again"])


@pytest.mark.timeout(180)
async def test_runners_that_are_replaced_one_after_the_other_under_load_lose_nothing(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, forked=True, handover_limit=30) as chaos:
        await audit.install(chaos.database)
        await chaos.start_runners(2)
        async with load(dsn, pace=0.04) as work:
            for _ in range(4):
                leaves = chaos.runners[0]
                await chaos.start_runner()
                await chaos.shared(chaos.runners)
                leaves.send(signal.SIGTERM)
                assert await asyncio.wait_for(leaves.process.wait(), 20) == 0
                await chaos.shared(chaos.runners, within=30)
            assert await work.check(chaos) > 50
        await audit.assert_no_foreign_rows(chaos.database)
        # Steps that a hand-over caught were given time to end, so none was done again.
        done = {step: await touched(chaos, step) for step in ("fetch", "pack")}
        executions = await chaos.database.fetchval("select count(*) from engine.executions")
        assert done == {"fetch": executions, "pack": executions}
