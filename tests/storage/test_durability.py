"""Whatever is acknowledged has waited for its flush: no write of ours is an asynchronous commit,
but for what may be lost."""

import asyncio
from datetime import timedelta

import asyncpg
from pydantic import BaseModel

from engine import (
    Client,
    Deferred,
    Entity,
    Runner,
    Settings,
    State,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from tests.written import watch

MAY_BE_LOST = {"waiters", "post"}
"""Hints of who waits, and volatile messages."""
TABLES = "select tablename from pg_tables where schemaname = 'engine'"
WRITTEN = "select name, array_agg(distinct durable) as durable from public.written group by name"


class Sum(BaseModel):
    total: int = 0


class Counts(Entity):
    state = State(Sum)

    @rpc
    async def add(self, number: int) -> int:
        self.state.total += number
        return self.state.total


class Does(Workflow[int, int]):
    go = Deferred(int)

    async def execute(self, request: int) -> int:
        done = await self.step(request) + await self.stored(request) + await self.go.wait()
        await self.sleep(timedelta(milliseconds=1))
        return done + await self.entity(Counts, "one").add(request)

    @activity
    async def step(self, number: int) -> int:
        return number

    @transaction
    async def stored(self, tx: Transaction, number: int) -> int:
        return int(await tx.fetchval("select $1::int", number))


async def test_whatever_is_acknowledged_has_been_flushed(dsn: str, sql: asyncpg.Connection) -> None:
    await watch(sql, [row["tablename"] for row in await sql.fetch(TABLES)])
    settings = Settings(dsn=dsn)
    async with Runner(settings).register(Does(), Counts()), Client(settings) as client:
        alone = await client.start(Does, 1, key="alone")
        assert await alone.resolve(Does.go, 2)
        assert await alone.join() == 5
        many = await asyncio.gather(*(client.start(Does, 1, key=f"{n}") for n in range(20)))
        await asyncio.gather(*(each.resolve(Does.go, 2) for each in many))
        await asyncio.gather(*(each.join() for each in many))
        assert await client.entity(Counts, "one").add(0) == 21

    durable = {row["name"]: row["durable"] for row in await sql.fetch(WRITTEN)}
    assert durable.keys() >= {
        "dedup",
        "entity_states",
        "envelopes",
        "executions",
        "inbox",
        "journal",
        "replies",
        "shards",
    }
    assert {name for name, how in durable.items() if how != ["on"]} <= MAY_BE_LOST, durable
