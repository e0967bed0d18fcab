"""A start on the caller's own connection happens if and only if his transaction commits."""

import asyncio
from datetime import timedelta
from itertools import count

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from engine import (
    Client,
    ConfigurationError,
    NotFound,
    PayloadConflict,
    StorageUnavailable,
    Workflow,
)
from engine.cluster import shard
from engine.testing import TestCluster
from tests.eventually import eventually

SOON = timedelta(seconds=4)


class Double(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request * 2


async def test_it_starts_with_the_commit_of_an_asyncpg_transaction_without_waiting_for_a_poll(
    dsn: str,
) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Double(), dsn=dsn, poll_interval=timedelta(minutes=5)) as cluster:
        async with connection.transaction():
            await connection.execute("create table orders (id text)")
            execution = await cluster.client.start(Double, 4, key="a", connection=connection)
            with pytest.raises(NotFound):
                await cluster.client.execution(Double, "a").poll()
        assert await execution.join(SOON) == 8
    await connection.close()


async def test_it_starts_with_the_commit_though_later_rows_were_delivered_long_before(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_READ_ALL_EVERY", 3600)
    monkeypatch.setattr(shard, "_RIPE_AFTER", 0)
    connection, keys = await asyncpg.connect(dsn), count()
    async with TestCluster(
        Double(),
        dsn=dsn,
        shards_per_group=1,
        poll_interval=timedelta(minutes=5),
        statement_timeout=timedelta(milliseconds=500),
    ) as cluster:
        assert cluster.runner._incarnation is not None
        (owned,) = cluster.runner._incarnation.delivery.shards.values()
        async with connection.transaction():
            execution = await cluster.client.start(Double, 4, key="a", connection=connection)
            seq = await connection.fetchval("select max(seq) from engine.inbox")

            async def passed() -> bool:
                await cluster.client.execute(Double, 5, key=f"{next(keys)}")
                await cluster.runner.sharding.poll_storage()
                return owned.floor >= seq

            await eventually(passed)
        assert await execution.join(SOON) == 8
    await connection.close()


async def test_a_rollback_leaves_nothing_of_it(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Double(), dsn=dsn) as cluster:
        transaction = connection.transaction()
        await transaction.start()
        await cluster.client.start(Double, 4, key="a", connection=connection)
        await transaction.rollback()
        with pytest.raises(NotFound):
            await cluster.client.execution(Double, "a").poll()
        assert await cluster.client.execute(Double, 5, key="a", timeout=SOON) == 10
    await connection.close()


async def test_it_starts_with_the_commit_of_a_sqlalchemy_session(dsn: str) -> None:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    async with TestCluster(Double(), dsn=dsn) as cluster:
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            execution = await cluster.client.start(Double, 4, key="a", connection=session)
            await session.commit()
        assert await execution.join(SOON) == 8
        async with AsyncSession(engine) as session:
            await cluster.client.start(Double, 4, key="b", connection=session)
            await session.rollback()
        with pytest.raises(NotFound):
            await cluster.client.execution(Double, "b").poll()
    await engine.dispose()


async def test_the_same_key_with_another_request_is_refused_there_too(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Double(), dsn=dsn) as cluster:
        await cluster.client.start(Double, 4, key="a")
        async with connection.transaction():
            same = await cluster.client.start(Double, 4, key="a", connection=connection)
            with pytest.raises(PayloadConflict):
                await cluster.client.start(Double, 5, key="a", connection=connection)
        assert await same.join(SOON) == 8
    await connection.close()


async def test_a_connection_without_a_transaction_or_of_another_kind_is_refused(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Double(), dsn=dsn) as cluster:
        with pytest.raises(ConfigurationError, match="no transaction is open"):
            await cluster.client.start(Double, 4, connection=connection)
        with pytest.raises(ConfigurationError, match="hand in an asyncpg connection"):
            await cluster.client.start(Double, 4, connection="dsn")
    await connection.close()


async def test_a_start_whose_key_an_open_transaction_holds_keeps_only_itself_waiting(
    dsn: str,
) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Double(), dsn=dsn) as cluster:
        transaction = connection.transaction()
        await transaction.start()
        await cluster.client.start(Double, 1, key="held", connection=connection)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(cluster.client.execute(Double, 1, key="held"))
            for number in range(20):
                assert await cluster.client.execute(Double, number, timeout=SOON) == number * 2
            assert not waiting.done()
            await transaction.commit()
            assert await waiting == 2
    await connection.close()


async def test_closing_a_client_waits_for_nobodys_transaction(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    transaction = connection.transaction()
    await transaction.start()
    async with TestCluster(Double(), dsn=dsn) as cluster:
        await cluster.client.start(Double, 4, key="a", connection=connection)
        async with asyncio.TaskGroup() as group:
            async with Client(cluster.settings) as client:
                start = group.create_task(_refused(client))
                await asyncio.sleep(0.5)  # longer than a lock is waited for
                assert not start.done()
            async with asyncio.timeout(5):
                assert await start
    await transaction.rollback()
    await connection.close()


async def _refused(client: Client) -> bool:
    with pytest.raises(StorageUnavailable, match="closed"):
        await client.start(Double, 4, key="a")
    return True
