"""Runners that are killed again and again while they work."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import cycle
from pathlib import Path

import pytest

from engine import Client, Settings
from tests.chaos.app import Five, Job
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.journals import assert_once, statistics

log = logging.getLogger(__name__)

EXECUTIONS = 1000
BATCH = 25
QUICK = {"heartbeat_interval": 0.5, "time_to_live": 3}


@asynccontextmanager
async def killing(cluster: Cluster) -> AsyncIterator[list[int]]:
    """Kill one runner after the other every two to three seconds, and start another for it."""
    killed: list[int] = []

    async def kill() -> None:
        for turn in cycle(range(3)):
            await asyncio.sleep(random.uniform(2, 3))
            runners = cluster.runners
            victim = runners[turn % len(runners)]
            await victim.kill()
            killed.append(victim.pid)
            await cluster.start_runner()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(kill())
        try:
            yield killed
        finally:
            task.cancel()


async def start(client: Client, job: Job) -> None:
    """Start, and start again: nothing comes of the second."""
    first = await client.start(Five, job)
    second = await client.start(Five, job)
    assert first.request_id == second.request_id


@pytest.mark.timeout(180)
async def test_every_execution_finishes_once_while_runners_are_killed(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, **QUICK) as chaos:
        await chaos.start_runners(3)
        jobs = [Job(id=f"j{n}", number=n, pause=0.3) for n in range(EXECUTIONS)]
        async with killing(chaos) as killed, Client(Settings(dsn=dsn)) as client:
            for batch in range(0, EXECUTIONS, BATCH):
                await asyncio.gather(*(start(client, job) for job in jobs[batch : batch + BATCH]))
                await asyncio.sleep(0.8)
            results = await asyncio.gather(
                *(client.execution(Five, job.id).join(timedelta(seconds=90)) for job in jobs)
            )
            await asyncio.gather(*(start(client, job) for job in jobs))
        assert len(killed) >= 5
        assert results == [Five.result(n) for n in range(EXECUTIONS)]
        steps = dict.fromkeys(["fetch", "Ledger.book", "record", "pack"], EXECUTIONS)
        await assert_once(chaos, "Five", steps=steps, effects=["record"])
        log.info("%d killed; %s", len(killed), await statistics(chaos))
