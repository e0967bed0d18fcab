"""A table that somebody locks for a while (a migration, the end of a vacuum) costs time only."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import asyncpg
import pytest

from engine import Deferred, Status, StorageUnavailable, Workflow
from engine.testing import TestCluster
from tests.eventually import eventually

LIMIT = timedelta(seconds=15)
LONGER = 0.6
"""Seconds; a lock is waited for a tenth of one."""


class Waits(Workflow[int, int]):
    go = Deferred(int)

    async def execute(self, request: int) -> int:
        return await self.go.wait()


@asynccontextmanager
async def locked(dsn: str, table: str) -> AsyncIterator[None]:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(f"lock table engine.{table} in access exclusive mode")
            yield
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ["journal", "envelopes"])
async def test_an_execution_is_loaded_when_the_lock_is_gone(dsn: str, table: str) -> None:
    soon = timedelta(milliseconds=50)
    async with TestCluster(Waits(), dsn=dsn, suspend_after=soon, poll_interval=soon) as cluster:
        execution = await cluster.client.start(Waits, 1)

        async def asleep() -> bool:
            return (await execution.describe()).status is Status.SUSPENDED

        await eventually(asleep)
        async with asyncio.TaskGroup() as group:
            async with locked(dsn, table):
                group.create_task(execution.resolve(Waits.go, 7))
                await asyncio.sleep(LONGER)
            assert await execution.join(LIMIT) == 7


@pytest.mark.parametrize("table", ["waiters", "replies"])
async def test_a_joiner_and_its_runner_outlive_the_lock(dsn: str, table: str) -> None:
    async with TestCluster(Waits(), dsn=dsn) as cluster:
        execution = await cluster.client.start(Waits, 1)
        async with asyncio.TaskGroup() as group:
            async with locked(dsn, table):
                joined = group.create_task(execution.join(LIMIT))
                await asyncio.sleep(LONGER)
            await execution.resolve(Waits.go, 7)
        assert joined.result() == 7


@pytest.mark.parametrize("table", ["executions", "inbox"])
async def test_a_lock_that_a_sweep_meets_costs_no_shard(dsn: str, table: str) -> None:
    soon = timedelta(milliseconds=50)
    async with TestCluster(Waits(), dsn=dsn, poll_interval=soon) as cluster:
        execution = await cluster.client.start(Waits, 1)
        before = cluster.runner.epochs
        async with locked(dsn, table):
            await asyncio.sleep(LONGER)
        assert cluster.runner.epochs == before
        assert await execution.resolve(Waits.go, 7)
        assert await execution.join(LIMIT) == 7
        assert cluster.runner.epochs == before


async def test_a_reader_is_told_that_the_database_does_not_answer(dsn: str) -> None:
    limit = timedelta(seconds=1)
    async with TestCluster(Waits(), dsn=dsn, statement_timeout=limit) as cluster:
        execution = await cluster.client.start(Waits, 1)
        async with locked(dsn, "executions"):
            with pytest.raises(StorageUnavailable):
                await execution.poll()
