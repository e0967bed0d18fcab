"""Processes that start, join and poll what another process runs."""

import asyncio
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.chaos.app import Five
from tests.chaos.cluster import Cluster, Process, cluster
from tests.eventually import eventually

NAMES: Iterator[int] = count(1)


@pytest.fixture(params=[True, False], ids=["notifications", "polling"])
def notifications(request: pytest.FixtureRequest) -> bool:
    return request.param


async def start(client: Process, workflow: str, **job: object) -> str:
    """Have a process start an execution; its id."""
    id = f"x{next(NAMES)}"
    await client.ask("start", workflow=workflow, job={"id": id, "number": 5, **job})
    return id


async def join(client: Process, workflow: str, id: str, *, waiters: int = 1) -> list[object]:
    return await client.ask("join", workflow=workflow, execution=id, waiters=waiters)


async def registered(chaos: Cluster, id: str) -> None:
    """Wait until somebody waits for the execution; without notifications nobody registers."""

    async def waits() -> bool:
        return await chaos.database.fetchval(
            "select exists (select from engine.waiters w join engine.executions x"
            " on x.request_id = w.request_id where x.execution_id = $1)",
            id,
        )

    await eventually(waits)


@pytest.mark.timeout(120)
async def test_one_process_starts_another_joins_a_third_polls(
    dsn: str, tmp_path: Path, notifications: bool
) -> None:
    async with cluster(dsn, tmp_path, forked=True, notifications=notifications) as chaos:
        starts, joins, polls = [await chaos.start_client() for _ in range(3)]

        # Before anybody runs it.
        early = await start(starts, "Approval")
        waiting = asyncio.create_task(join(joins, "Approval", early))
        assert await polls.ask("poll", workflow="Approval", execution=early) == ["Pending", None]
        await chaos.start_runner()
        # While it runs.
        if notifications:
            await registered(chaos, early)
        late = asyncio.create_task(join(polls, "Approval", early))
        assert await joins.ask("resolve", execution=early, value=37)
        assert not await starts.ask("resolve", execution=early, value=38)
        assert await waiting == await late == [42]
        # After it has ended, everywhere.
        for client in (starts, joins, polls):
            assert await join(client, "Approval", early) == [42]
            told = await client.ask("poll", workflow="Approval", execution=early)
            assert told == ["Succeeded", 42]

        racing = [await start(starts, "Five", pause=0) for _ in range(30)]
        joined = await asyncio.gather(
            *(join(client, "Five", id) for id in racing for client in (starts, joins, polls))
        )
        assert joined == [[Five.result(5)]] * 90


@pytest.mark.timeout(120)
async def test_two_hundred_waiters_in_several_processes_all_get_the_result(
    dsn: str, tmp_path: Path, notifications: bool
) -> None:
    async with cluster(dsn, tmp_path, forked=True, notifications=notifications) as chaos:
        clients = [await chaos.start_client() for _ in range(4)]
        await chaos.start_runners(2)
        id = await start(clients[0], "Approval")
        waiting = [
            asyncio.create_task(join(client, "Approval", id, waiters=50)) for client in clients
        ]
        if notifications:
            await registered(chaos, id)
        assert await clients[1].ask("resolve", execution=id, value=1)
        assert await asyncio.gather(*waiting) == [[6] * 50] * 4


@pytest.mark.timeout(120)
async def test_a_waiter_whose_process_loses_its_sessions_gets_the_result(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, forked=True) as chaos:
        client = await chaos.start_client()
        await chaos.start_runners(1)
        ids = [await start(client, "Five", pause=2) for _ in range(50)]
        waiting = [asyncio.create_task(join(client, "Five", id)) for id in ids]
        for _ in range(8):
            await chaos.database.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name like 'outlast:%' and datname = current_database()"
            )
            await asyncio.sleep(0.4)
        assert await asyncio.gather(*waiting) == [[Five.result(5)]] * 50
