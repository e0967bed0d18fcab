"""Real processes that die of what they handle, are started again, and die of it again."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from engine import Client, RequestFailed, Settings, Status
from tests.chaos.cluster import Cluster, cluster
from tests.cluster.killer_process import TABLES, Bomb, Mine
from tests.cluster.live import SHORT, in_process
from tests.eventually import eventually

LIMIT = 10
DEATHS_TAKE = 170


@asynccontextmanager
async def supervised(
    dsn: str, logs: Path, *, runners: int
) -> AsyncGenerator[tuple[Client, Cluster]]:
    """So many runners, each replaced when it has died, as a supervisor would."""
    async with cluster(
        dsn, logs, app="tests.cluster.killer_process", tables=TABLES, forked=True, **SHORT
    ) as processes:

        async def supervise() -> None:
            while True:
                while len(processes.runners) < runners:
                    await processes.start_runner()
                await asyncio.sleep(0.05)

        supervisor = asyncio.create_task(supervise())
        try:
            async with Client(Settings(dsn=dsn, **in_process(SHORT))) as client:
                yield client, processes
        finally:
            supervisor.cancel()
            await asyncio.wait([supervisor])


async def noted(processes: Cluster) -> Counter[tuple[str, str]]:
    """How often each has noted what."""
    rows = await processes.database.fetch("select who, what from notes")
    return Counter((row["who"], row["what"]) for row in rows)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("runners", [1, 2])
async def test_a_message_that_kills_is_a_dead_letter_after_as_many_deaths_and_hurts_no_other(
    dsn: str, tmp_path: Path, runners: int
) -> None:
    async with supervised(dsn, tmp_path, runners=runners) as (client, processes):
        async with asyncio.timeout(DEATHS_TAKE), asyncio.TaskGroup() as group:
            long = {f"long-{n}": 1.5 for n in range(10)}
            seconds = long | {f"short-{n}": 0.01 * n for n in range(40)}
            calls = {
                who: group.create_task(client.entity(Mine, who).dig(lasts))
                for who, lasts in seconds.items()
            }
            with pytest.raises(RequestFailed, match=f"lost {LIMIT} times"):
                await client.entity(Mine, "killer").explode()

        notes = await noted(processes)
        exits = await processes.database.fetch(
            "select request_id, count(*) as exits from engine.replies where kind <> 0 group by 1"
        )
    assert {who: call.result() for who, call in calls.items()} == {who: who for who in calls}
    assert notes["killer", "explodes"] == LIMIT
    assert [row["exits"] for row in exits] == [1] * 51
    assert all(notes[who, "ends"] >= 1 for who in calls)


@pytest.mark.timeout(200)
async def test_an_execution_that_kills_is_blocked_after_as_many_deaths_and_is_shown(
    dsn: str, tmp_path: Path
) -> None:
    async with supervised(dsn, tmp_path, runners=1) as (client, processes):
        execution = await client.start(Bomb, "bomb", key="bomb")

        async def blocked() -> bool:
            return (await execution.describe()).status is Status.BLOCKED

        await eventually(blocked, timeout=DEATHS_TAKE)
        info = await execution.describe()
        notes = await noted(processes)
        with pytest.raises(TimeoutError):
            await execution.join(timedelta(milliseconds=100))
    assert f"lost {LIMIT} times" in info.why
    assert (notes["bomb", "explodes"], notes["bomb", "prepares"]) == (LIMIT, 1)
