"""Who waits for replies is registered, and not for longer than that."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta

import asyncpg
import pytest

from engine import Client, Deferred, NotFound, Workflow
from engine.cluster import replies
from engine.cluster.replies import ReplyBoard
from engine.core.clock import SystemClock
from engine.core.ids import Snowflake
from engine.storage.memory import MemoryStorage
from engine.storage.memory_database import MemoryDatabase
from engine.testing import TestCluster
from tests.eventually import eventually


class Echo(Workflow[str, str]):
    @classmethod
    def key(cls, request: str) -> str:
        return request

    async def execute(self, request: str) -> str:
        return request


class Waits(Echo):
    go = Deferred(bool)

    async def execute(self, request: str) -> str:
        await self.go.wait()
        return request


async def registered(sql: asyncpg.Connection) -> int:
    return await sql.fetchval("select count(*) from engine.waiters")


async def test_who_asks_for_what_has_ended_leaves_nothing_behind(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    async with TestCluster(Echo(), dsn=dsn) as cluster, Client(cluster.settings) as other:
        for number in range(20):
            await cluster.client.execute(Echo, f"{number}")
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(other.execution(Echo, f"{number}").join())
                group.create_task(other.execute(Echo, f"{number}"))

        async def nobody() -> bool:
            return await registered(sql) == 0

        await eventually(nobody)
    await sql.close()


async def test_who_stops_waiting_is_registered_no_more_and_who_asks_again_is(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    async with (
        TestCluster(Waits(), dsn=dsn) as cluster,
        Client(cluster.settings.model_copy(update={"poll_interval": timedelta(hours=1)})) as other,
    ):
        execution = await other.start(Waits, "a")

        async def gives_up() -> None:
            with suppress(TimeoutError):
                await execution.join(timedelta(milliseconds=200))

        async def nobody() -> bool:
            return await registered(sql) == 0

        await gives_up()
        await eventually(nobody)
        await gives_up()
        async with asyncio.TaskGroup() as group:
            joined = group.create_task(execution.join(timedelta(seconds=10)))
            await asyncio.sleep(1.5)  # longer than a registration lingers
            await execution.resolve(Waits.go, True)
            assert await joined == "a"
        await eventually(nobody)
    await sql.close()


async def test_a_client_that_closes_takes_its_registrations_along(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    async with TestCluster(Waits(), dsn=dsn) as cluster:
        async with Client(cluster.settings) as other:
            execution = await other.start(Waits, "a")
            with suppress(TimeoutError):
                await execution.join(timedelta(milliseconds=200))
            assert await registered(sql) == 1
        assert await registered(sql) == 0
    await sql.close()


async def test_all_who_wait_for_what_is_not_stored_any_more_are_told(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    async with TestCluster(Waits(), dsn=dsn) as cluster, Client(cluster.settings) as other:
        executions = [await other.start(Waits, f"{number}") for number in range(30)]
        await sql.execute("delete from engine.envelopes where entity_id <> '7'")
        joins = [asyncio.create_task(each.join()) for each in executions]
        gone = [join for number, join in enumerate(joins) if number != 7]
        await asyncio.wait(gone, timeout=20)
        assert all(isinstance(join.exception(), NotFound) for join in gone)
        await executions[7].resolve(Waits.go, True)
        assert await joins[7] == "7"
    await sql.close()


async def test_who_waits_for_nothing_is_told_although_others_are_looked_for_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "_LOOK_AFTER", 0.01)
    looked, answered = list[set[Snowflake]](), asyncio.Event()
    stored = MemoryStorage.stored

    async def slow(self: MemoryStorage, requests: Collection[Snowflake]) -> Collection[Snowflake]:
        looked.append(set(requests))
        await answered.wait()
        return await stored(self, requests)

    monkeypatch.setattr(MemoryStorage, "stored", slow)
    poll = timedelta(minutes=5)
    one, two = Snowflake(1), Snowflake(2)
    async with (
        asyncio.timeout(10),
        MemoryStorage(MemoryDatabase(SystemClock())) as storage,
        ReplyBoard(storage=storage, poll=lambda: poll) as board,
    ):
        first = asyncio.create_task(board.wait(one))
        await eventually(lambda: looked == [{one}])
        second = asyncio.create_task(board.wait(two))
        await eventually(lambda: board._doubted == {one, two})
        answered.set()
        for each in (first, second):
            with pytest.raises(NotFound):
                await each
