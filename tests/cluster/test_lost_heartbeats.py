"""A runner that died together with the server, whose crash emptied the heartbeats."""

from datetime import timedelta

import asyncpg

from engine import Workflow
from engine.testing import TestCluster


class Nothing(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request


async def test_its_shards_go_to_who_comes_after_it(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "insert into engine.runners (id, groups, weight, host, pid, version, types, machine,"
        " draining) values (gen_random_uuid(), '{default}', 1, 'gone', 1, '0', '{}', 7, false)"
    )
    await connection.close()
    quick = timedelta(milliseconds=200)
    async with TestCluster(
        Nothing(), dsn=dsn, heartbeat_interval=quick, time_to_live=quick * 4
    ) as cluster:
        assert len(cluster.runner.epochs) == cluster.settings.shards_per_group
        assert await cluster.client.execute(Nothing, 1, timeout=quick * 50) == 1
