"""Runners that are killed again and again while they work."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from engine import Client, Settings
from engine.core.clock import monotonic
from tests.chaos import audit
from tests.chaos.app import Five, Job, Lingers, Mixed, Steps
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.journals import assert_once, statistics
from tests.chaos.load import EFFECTS, STEPS
from tests.eventually import eventually

log = logging.getLogger(__name__)

BATCH = 25
QUICK = {"heartbeat_interval": 0.5, "time_to_live": 3}


@asynccontextmanager
async def killing(cluster: Cluster) -> AsyncIterator[list[int]]:
    """Kill one runner after the other, every two to three seconds, but none before the last one has
    been replaced."""
    killed: list[int] = []

    async def kill() -> None:
        period = 0.0
        while True:
            await asyncio.sleep(max(0.5, random.uniform(2, 3) - period))
            began = monotonic()
            owners = [runner for runner in cluster.runners if runner.owned]
            victim = random.choice(owners or cluster.runners)
            await victim.kill()
            killed.append(victim.pid)
            restarted = await cluster.start_runner()
            await eventually(lambda r=restarted: r.owned, timeout=60)
            period = monotonic() - began

    async with asyncio.TaskGroup() as group:
        task = group.create_task(kill())
        try:
            yield killed
        finally:
            task.cancel()


async def start(client: Client, workflow: type[Steps], job: Job) -> None:
    """Start, and start again: nothing comes of the second."""
    first = await client.start(workflow, job)
    second = await client.start(workflow, job)
    assert first.request_id == second.request_id


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("workflow", "executions"), [(Five, 1000), (Mixed, 500)], ids=["in a row", "branches"]
)
async def test_every_execution_finishes_once_while_runners_are_killed(
    dsn: str, tmp_path: Path, workflow: type[Five] | type[Mixed], executions: int
) -> None:
    async with cluster(dsn, tmp_path, **QUICK) as chaos:
        await audit.install(chaos.database)
        await chaos.start_runners(3)
        jobs = [Job(id=f"j{n}", number=n, pause=0.3) for n in range(executions)]
        async with killing(chaos) as killed, Client(Settings(dsn=dsn)) as client:
            for first in range(0, executions, BATCH):
                batch = jobs[first : first + BATCH]
                await asyncio.gather(*(start(client, workflow, job) for job in batch))
                await asyncio.sleep(0.8)
            results = await asyncio.gather(
                *(client.execution(workflow, job.id).join(timedelta(seconds=90)) for job in jobs)
            )
            await asyncio.gather(*(start(client, workflow, job) for job in jobs))
        assert len(killed) >= 3
        assert results == [workflow.result(n) for n in range(executions)]
        steps = dict.fromkeys(STEPS[workflow], executions)
        await assert_once(chaos, workflow.name, steps=steps, effects=EFFECTS[workflow])
        await audit.assert_no_foreign_rows(chaos.database)
        log.info("numbers: %d killed; %s", len(killed), await statistics(chaos))


@pytest.mark.timeout(120)
async def test_a_transaction_whose_runner_is_killed_during_its_commit_is_not_done_again(
    dsn: str, tmp_path: Path
) -> None:
    """The server goes on committing for a runner that is gone; nobody was told."""
    async with (
        cluster(dsn, tmp_path, **QUICK, pool_size=30) as chaos,
        Client(Settings(dsn=dsn)) as client,
    ):
        await chaos.database.execute(SLOW_COMMITS)
        killed, _ = await chaos.start_runners(2)
        jobs = [Job(id=f"j{n}", number=n, pause=0.1) for n in range(40)]
        await asyncio.gather(*(client.start(Lingers, job) for job in jobs))

        async def committing() -> bool:
            return await chaos.database.fetchval(COMMITTING, killed.runner) >= 5

        await eventually(committing, timeout=20, every=0.005)
        await killed.kill()
        results = await asyncio.gather(
            *(client.execution(Lingers, job.id).join(timedelta(seconds=60)) for job in jobs)
        )
        assert results == [Lingers.result(job.number) for job in jobs]
        steps = dict.fromkeys(["record", "linger", "again"], len(jobs))
        await assert_once(chaos, "Lingers", steps=steps, effects=["record", "again"])


SLOW_COMMITS = """
    create function take_a_while() returns trigger language plpgsql as $$
        begin perform pg_sleep(1); return null; end $$;
    create constraint trigger slow after insert on effects
    deferrable initially deferred for each row execute function take_a_while();
"""
COMMITTING = """
    select count(*) from pg_stat_activity
    where application_name = 'outlast:' || $1 || ':user' and query ilike 'commit%'
        and wait_event = 'PgSleep' and datname = current_database()
"""
