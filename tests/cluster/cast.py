"""The entities and singletons that the behaviour suite's runners serve.

What a handler does is written to tables of the tests' own, so that it can be seen from outside and
outlives the process: ``notes`` in the order they were made, and ``gates`` that a test opens.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import asyncpg

from engine import Client, Entity, Singleton, SingletonContext, rpc
from tests.chaos.app import Outside
from tests.eventually import eventually

TABLES = """
    create table notes (nth bigint generated always as identity, who text not null,
                        what text not null, pid int not null,
                        at timestamptz not null default clock_timestamp());
    create index on notes (who);
    create table gates (name text primary key);
"""
ANNEX = "annex"
"""A shard group that no runner serves unless it is told to."""


class Stage(Outside):
    """What handlers see of the world: they leave notes and wait at gates.

    ``client`` is that of their runner.
    """

    client: Client

    def __init__(self) -> None:
        super().__init__()
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()

    async def note(self, who: str, what: str) -> None:
        await self.write(
            "insert into notes (who, what, pid) values ($1, $2, $3)", who, what, os.getpid()
        )

    async def times(self, who: str, what: str) -> int:
        """How often it was noted, in whichever process."""
        query = "select count(*) from notes where who = $1 and what = $2"
        return int(await (await self._reads()).fetchval(query, who, what))

    async def is_open(self, gate: str) -> bool:
        query = "select exists (select from gates where name = $1)"
        return bool(await (await self._reads()).fetchval(query, gate))

    async def pass_gate(self, name: str) -> None:
        """Wait until the test has opened it."""
        await eventually(partial(self.is_open, name), timeout=300)

    async def _reads(self) -> "asyncpg.Pool[Any]":
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    os.environ["OUTLAST_DSN"], min_size=1, max_size=2
                )
        return self._pool


class Actor(Entity):
    """What the entities below have in common: they stand on a stage."""

    name = "Actor"

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @rpc
    async def echo(self, value: str) -> str:
        return value

    @rpc
    async def note(self, what: str) -> int:
        """Note it; which process did."""
        await self.stage.note(self.entity_id, what)
        return os.getpid()

    @rpc(key=lambda what: what)
    async def note_once(self, what: str) -> int:
        await self.stage.note(self.entity_id, what)
        return os.getpid()

    @rpc
    async def wait_at(self, gate: str) -> int:
        """Note the beginning, wait for the gate, note the end."""
        await self.stage.note(self.entity_id, f"begins {gate}")
        await self.stage.pass_gate(gate)
        await self.stage.note(self.entity_id, f"ends {gate}")
        return os.getpid()

    @rpc
    async def count(self, number: int) -> AsyncIterator[int]:
        """Note the beginning and the end, and give all numbers in between."""
        await self.stage.note(self.entity_id, "begins")
        try:
            for each in range(number):
                yield each
        finally:
            await self.stage.note(self.entity_id, "ends")

    @rpc(resumable=True)
    async def count_on(self, number: int) -> AsyncIterator[int]:
        for each in range(self.next_sequence, number):
            yield each

    @rpc
    async def refuse(self, why: str) -> None:
        raise LookupError(why)

    async def not_for_others(self) -> None:
        """No handler."""


class Single(Actor):
    """One message at a time."""


class Triple(Actor):
    concurrency = 3


class Unbounded(Actor):
    concurrency = 0


class Annexed(Actor):
    """Lives in a shard group of its own."""

    shard_group = ANNEX


class Clerk(Singleton):
    """Notes when it begins, is asked to end, and ends."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self, context: SingletonContext) -> None:
        try:
            await self.stage.note(self.name, "begins")
            await context.cancelled.wait()
            await self.stage.note(self.name, "is asked")
        finally:
            await self.stage.note(self.name, "ends")


class AnnexedClerk(Clerk):
    shard_group = ANNEX


ENTITIES: list[type[Actor]] = [Single, Triple, Unbounded, Annexed]
SINGLETONS: list[type[Clerk]] = [Clerk, AnnexedClerk]
