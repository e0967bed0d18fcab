"""``@transaction`` steps on real PostgreSQL: their SQL and their journal row are one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy import text

from engine import (
    Deferred,
    ExecutionFailed,
    JournalKind,
    RetryPolicy,
    StepFailed,
    Transaction,
    Workflow,
    transaction,
)
from engine.testing import TestCluster
from tests.eventually import eventually

LIMIT = timedelta(seconds=20)


@pytest.fixture
async def effects(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    await connection.execute("create table effects (who text, n int check (n < 100))")
    yield connection
    await connection.close()


class Books(Workflow[int, int]):
    def __init__(self) -> None:
        self.runs = 0

    async def execute(self, request: int) -> int:
        return await self.book(request)

    @transaction
    async def book(self, tx: Transaction, n: int) -> int:
        self.runs += 1
        await tx.execute("insert into effects values ($1, $2)", self.execution_id, n)
        rows = await tx.fetch("select n from effects where who = $1", self.execution_id)
        one = await tx.fetchrow(
            "select count(*) as many from effects where who = $1", self.execution_id
        )
        assert one is not None
        assert one["many"] == len(rows) == 1
        return int(
            await tx.fetchval("select sum(n) from effects where who = $1", self.execution_id)
        )


async def test_the_effect_and_the_step_are_there_once(
    dsn: str, effects: asyncpg.Connection
) -> None:
    async with TestCluster(Books(), dsn=dsn) as cluster:
        assert await cluster.client.execute(Books, 7, key="a", timeout=LIMIT) == 7
        assert await effects.fetch("select * from effects") == [("a", 7)]
        history = await cluster.client.execution(Books, "a").history()
        assert [(e.kind, e.name, e.payload) for e in history] == [(JournalKind.STEP, "book", 7)]


async def test_what_the_step_raises_rolls_back_and_comes_to_the_body(
    dsn: str, effects: asyncpg.Connection
) -> None:
    class Fails(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            try:
                await self.book()
            except StepFailed as error:
                return error.error.type
            return "?"

        @transaction(retry=RetryPolicy(attempts=2, initial=timedelta(milliseconds=1)))
        async def book(self, tx: Transaction) -> None:
            await tx.execute("insert into effects values ('x', 1)")
            raise ValueError("after all, no")

    async with TestCluster(Fails(), dsn=dsn) as cluster:
        assert await cluster.client.execute(Fails, 1, timeout=LIMIT) == "ValueError"
        assert await effects.fetchval("select count(*) from effects") == 0


async def test_an_error_of_the_database_is_an_attempt_like_any_other(
    dsn: str, effects: asyncpg.Connection
) -> None:
    class Violates(Workflow[int, None]):
        async def execute(self, request: int) -> None:
            await self.book()

        @transaction(retry=RetryPolicy(attempts=2, initial=timedelta(milliseconds=1)))
        async def book(self, tx: Transaction) -> None:
            await tx.execute("insert into effects values ('x', 1000)")

    async with TestCluster(Violates(), dsn=dsn) as cluster:
        with pytest.raises(ExecutionFailed, match="after 2 attempts: CheckViolationError"):
            await cluster.client.execute(Violates, 1, timeout=LIMIT)


async def test_a_sqlalchemy_session_is_in_the_same_transaction(
    dsn: str, effects: asyncpg.Connection
) -> None:
    class Session(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            return await self.book(request)

        @transaction(retry=RetryPolicy(attempts=2, initial=timedelta(milliseconds=1), jitter=0))
        async def book(self, tx: Transaction, n: int) -> int:
            await tx.execute("insert into effects values ('tx', 1)")
            async with tx.session() as session:
                seen = await session.scalar(text("select count(*) from effects"))
                await session.execute(text("insert into effects values ('session', 2)"))
                await session.commit()
            if self.attempt == 1:
                raise ConnectionError("once more")
            return int(seen or 0)

    async with TestCluster(Session(), dsn=dsn) as cluster:
        assert await cluster.client.execute(Session, 1, timeout=LIMIT) == 1
        assert len(await effects.fetch("select * from effects")) == 2


async def test_a_lost_lane_in_the_middle_of_a_transaction_commits_it_once_at_most(
    dsn: str, effects: asyncpg.Connection
) -> None:
    class Slow(Workflow[int, int]):
        entered = 0

        async def execute(self, request: int) -> int:
            return await self.book(request)

        @transaction
        async def book(self, tx: Transaction, n: int) -> int:
            type(self).entered += 1
            await tx.execute("insert into effects values ($1, $2)", self.execution_id, n)
            if type(self).entered == 1:
                await asyncio.sleep(0.5)
            return n

    async with TestCluster(Slow(), dsn=dsn) as cluster:
        execution = await cluster.client.start(Slow, 3, key="s")
        await eventually(lambda: Slow.entered == 1)
        await cluster.crash()
        assert await execution.join(LIMIT) == 3
        assert Slow.entered == 2
        assert await effects.fetch("select * from effects") == [("s", 3)]


async def test_many_transactions_of_one_execution_at_once_each_take_effect_once(
    dsn: str, effects: asyncpg.Connection
) -> None:
    class Many(Workflow[int, int]):
        go = Deferred(bool)

        async def execute(self, request: int) -> int:
            booked = await asyncio.gather(*(self.book(n) for n in range(request)))
            return sum(booked)

        @transaction
        async def book(self, tx: Transaction, n: int) -> int:
            await tx.execute("insert into effects values ($1, $2)", self.execution_id, n)
            return n

    async with TestCluster(Many(), dsn=dsn) as cluster:
        handles = [await cluster.client.start(Many, 20, key=f"m{i}") for i in range(5)]
        for _ in range(3):
            await asyncio.sleep(0.02)
            await cluster.crash()
        assert [await h.join(LIMIT) for h in handles] == [190] * 5
        rows = await effects.fetch(
            "select who, count(*), count(distinct n) from effects group by who"
        )
        assert sorted(rows) == [(f"m{i}", 20, 20) for i in range(5)]
        for handle in handles:
            assert len(await handle.history()) == 20
