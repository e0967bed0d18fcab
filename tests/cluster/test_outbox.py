"""What a process sends: batches of a bounded size, and keys that somebody's transaction holds."""

import asyncio
from typing import Any

import asyncpg

from engine import Client, Workflow
from engine.core.clock import monotonic
from engine.testing import TestCluster

CONNECTIONS = """
    select count(*) from pg_stat_activity
    where application_name like 'outlast:%' and datname = current_database()
"""


class Echo(Workflow[str, int]):
    @classmethod
    def key(cls, request: str) -> str:
        return request[:20]

    async def execute(self, request: str) -> int:
        return len(request)


async def test_starts_of_any_total_size_get_through(where: dict[str, Any]) -> None:
    async with TestCluster(Echo(), **where) as cluster:
        starts = [
            cluster.client.execute(Echo, f"{number:>20}" + "x" * (6 << 20)) for number in range(8)
        ]
        assert await asyncio.gather(*starts) == [20 + (6 << 20)] * 8


async def test_held_keys_hold_up_no_other_start_and_cost_one_connection_together(
    dsn: str,
) -> None:
    async with TestCluster(Echo(), dsn=dsn) as cluster:
        holder, watcher = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        transaction = holder.transaction()
        await transaction.start()
        for number in range(40):
            await cluster.client.start(Echo, f"held-{number}", connection=holder)
        async with Client(cluster.settings) as client, asyncio.TaskGroup() as group:
            await client.start(Echo, "before")
            connections = await watcher.fetchval(CONNECTIONS)
            blocked = [group.create_task(client.start(Echo, f"held-{n}")) for n in range(40)]
            await asyncio.sleep(0.005)
            began = monotonic()
            await client.start(Echo, "among them")
            assert monotonic() - began < 2
            await asyncio.sleep(1)
            began = monotonic()
            for number in range(20):
                await client.start(Echo, f"after-{number}")
                again = group.create_task(client.start(Echo, f"held-{number}"))
                blocked.append(again)
            assert monotonic() - began < 2
            assert await watcher.fetchval(CONNECTIONS) <= connections + 3
            assert not any(each.done() for each in blocked)
            await transaction.commit()
            for start in blocked:
                assert await (await start).join() == len((await start).id)
        await holder.close()
        await watcher.close()
