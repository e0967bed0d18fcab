"""Workflows and entities whose values are encrypted: what is stored, rotation, a missing key."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from engine import (
    Deferred,
    Entity,
    InvalidPayload,
    PayloadConflict,
    Queue,
    RetryPolicy,
    State,
    Status,
    Transaction,
    Workflow,
    activity,
    rpc,
    signal,
    transaction,
    update,
)
from engine.cluster import shard
from engine.encryption import AesGcm
from engine.storage import sealed
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World

OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "s3cret"
TWICE = RetryPolicy(attempts=2, initial=timedelta(milliseconds=1), jitter=0)


class Vault(Entity):
    """Keeps what it is given."""

    kept = State(list[str])

    @rpc
    async def put(self, what: str) -> list[str]:
        self.kept.append(what)
        return self.kept

    @rpc
    async def each(self) -> AsyncIterator[str]:
        for what in self.kept:
            yield what

    @rpc
    async def lose(self, what: str) -> None:
        raise KeyError(what)

    @rpc(persisted=False)
    async def peek(self, what: str) -> list[str]:
        return [what, *self.kept]


class Shredder(Queue[str, str]):
    async def process(self, item: str) -> str:
        return item[::-1]


class Told(Workflow[str, str]):
    """A child."""

    async def execute(self, request: str) -> str:
        return request


class Handles(Workflow[str, list[str]]):
    """Passes a secret through everything there is."""

    agreed = Deferred(str)

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def execute(self, request: str) -> list[str]:
        await self.ship(request)
        await self.record(request)
        vault = self.entity(Vault, "v")
        await vault.put(request)
        child = await self.run_child(Told, request, key=f"of {self.execution_id}")
        shredded = await self.submit(Shredder, request)
        await self.wait_until(lambda: len(self.heard) == 2)
        return [child, shredded, await self.agreed.wait(), *self.heard]

    @activity(retry=TWICE, heartbeat_timeout=timedelta(minutes=5))
    async def ship(self, what: str) -> str:
        self.heartbeat({"last": what})
        if self.attempt == 1:
            raise ConnectionError(what)
        return what

    @transaction
    async def record(self, tx: Transaction, what: str) -> str:
        return what

    @signal
    def say(self, what: str) -> None:
        self.heard.append(what)

    @update
    async def ask(self, what: str) -> str:
        self.heard.append(what)
        return what


class Asks(Workflow[str, str]):
    """Fails, or calls its step with what it reads then, and waits."""

    argument = SECRET
    agreed = Deferred(str)

    async def execute(self, request: str) -> str:
        if request == "fail":
            raise ValueError(SECRET)
        await self.use(self.argument)
        return await self.agreed.wait()

    @activity
    async def use(self, what: str) -> str:
        return what


ALL = (Handles, Told, Asks, Vault, Shredder)


def cluster_of(world: World, codec: Any, **options: Any) -> TestCluster:
    return world.cluster(*(each() for each in ALL), codec=codec, **options)


async def test_nothing_that_a_user_said_is_stored_or_logged_in_the_clear(
    dsn: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG, "engine")
    made = [each() for each in ALL]
    async with TestCluster(*made, dsn=dsn, codec=AesGcm({"a": OLD})) as cluster:
        client = cluster.client
        handled = await client.start(Handles, SECRET, key="h")
        await handled.signal(Handles.say, SECRET)
        assert await handled.update(Handles.ask, SECRET) == SECRET
        await handled.resolve(Handles.agreed, SECRET)
        assert await handled.join() == [SECRET, SECRET[::-1], SECRET, SECRET, SECRET]
        vault = client.entity(Vault, "v")
        assert await vault.peek(SECRET) == [SECRET, SECRET]
        assert [each async for each in vault.each()] == [SECRET]
        with pytest.raises(Exception, match=SECRET):
            await vault.lose(SECRET)
        failed = await client.start(Asks, "fail", key="f")
        with pytest.raises(Exception, match=SECRET):
            await failed.join()
        ended = await client.start(Asks, SECRET, key="i")
        await ended.interrupt(f"because of {SECRET}")
        with pytest.raises(Exception, match=SECRET):
            await ended.join()
        blocked = await client.start(Asks, SECRET, key="b")
        await eventually(lambda: steps_of(blocked))
        monkeypatch.setattr(Asks, "argument", f"another {SECRET}")
        await cluster.crash()

        async def is_blocked() -> bool:
            return (await blocked.describe()).status is Status.BLOCKED

        await eventually(is_blocked)
        assert SECRET in (await blocked.describe()).why
        seen = await dump(dsn)

    hidden = (SECRET, SECRET[::-1], SECRET.encode().hex(), SECRET[::-1].encode().hex())
    assert len(seen) > 50
    assert [line for line in seen if any(each in line for each in hidden)] == []
    logged = [str(vars(record)) for record in caplog.records]
    assert [line for line in logged if SECRET in line] == []


async def steps_of(execution: Any) -> bool:
    return len(await execution.history()) > 0


async def dump(dsn: str) -> list[str]:
    """All rows of all tables, and what other logins see of the sessions."""
    connection = await asyncpg.connect(dsn)
    try:
        named = "select tablename from pg_tables where schemaname = 'engine'"
        tables = [f'engine."{name}"' for (name,) in await connection.fetch(named)]
        return [
            str(dict(row))
            for table in [*tables, "pg_stat_activity"]
            for row in await connection.fetch(f"select t.*, t::text as all from {table} t")
        ]
    finally:
        await connection.close()


async def test_what_an_old_key_wrote_goes_on_under_a_new_one(world: World) -> None:
    async with cluster_of(world, AesGcm({"2025": OLD})) as before:
        waiting = await before.client.start(Asks, "a", key="a")
        await world.until(before, lambda: steps_of(waiting))
        options = {"database": before.database} if world.virtual else {}

    async with cluster_of(world, AesGcm({"2026": NEW, "2025": OLD}), **options) as after:
        client = after.client
        assert (await client.start(Asks, "a", key="a")).id == waiting.id
        with pytest.raises(PayloadConflict):
            await client.start(Asks, "b", key="a")
        execution = client.execution(Asks, "a")
        await execution.resolve(Asks.agreed, "yes")
        assert await world.result(after, execution) == "yes"


async def test_what_was_stored_plain_goes_on_when_it_is_switched_on(world: World) -> None:
    async with cluster_of(world, ()) as before:
        waiting = await before.client.start(Asks, "a", key="a")
        await before.client.entity(Vault, "v").put("one")
        await world.until(before, lambda: steps_of(waiting))
        options = {"database": before.database} if world.virtual else {}

    async with cluster_of(world, AesGcm({"2026": NEW}), **options) as after:
        execution = after.client.execution(Asks, "a")
        await execution.resolve(Asks.agreed, "yes")
        assert await world.result(after, execution) == "yes"
        assert await after.client.entity(Vault, "v").put("two") == ["one", "two"]


async def test_without_its_key_an_execution_is_blocked_and_an_entity_waits(world: World) -> None:
    async with cluster_of(world, AesGcm({"2025": OLD})) as before:
        waiting = await before.client.start(Asks, "a", key="a")
        await before.client.entity(Vault, "v").put("one")
        await world.until(before, lambda: steps_of(waiting))
        options = {"database": before.database} if world.virtual else {}

    async with cluster_of(world, (), **options) as bare:
        execution = bare.client.execution(Asks, "a")
        await execution.resolve(Asks.agreed, "yes")

        async def is_blocked() -> bool:
            return (await execution.describe()).status is Status.BLOCKED

        await world.until(bare, is_blocked)
        why = (await execution.describe()).why
        assert "with key '2025', and this process cannot decode it" in why
        with pytest.raises(InvalidPayload, match="OUTLAST_CODEC"):
            await bare.client.start(Asks, "a", key="a")
        await bare.client.tell(bare.client.entity(Vault, "v").put, "two")

    async with cluster_of(world, AesGcm({"2025": OLD}), **options) as after:
        assert await world.result(after, after.client.execution(Asks, "a")) == "yes"
        assert await after.client.entity(Vault, "v").put("three") == ["one", "two", "three"]


class Sulks:
    """A codec that cannot decode for a while, as when its key service is away."""

    number = 101

    def __init__(self) -> None:
        self.away = False
        self.refused = 0

    async def encode(self, payload: bytes, place: bytes) -> bytes:
        return payload

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        if self.away and payload.endswith(b'"one"}'):
            self.refused += 1
            raise ConnectionError("no key service")
        return payload


async def test_what_could_not_be_decoded_is_delivered_before_what_came_later(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_READ_ALL_EVERY", 3600)
    monkeypatch.setattr(shard, "_RIPE_AFTER", 0)
    monkeypatch.setattr(sealed, "_AGAIN", 0.3)
    codec = Sulks()
    async with TestCluster(Vault(), dsn=dsn, codec=codec, shards_per_group=1) as cluster:
        assert cluster.runner._incarnation is not None
        (owned,) = cluster.runner._incarnation.delivery.shards.values()
        client, codec.away = cluster.client, True
        await client.tell(client.entity(Vault, "v").put, "one")
        await eventually(lambda: codec.refused > 0)

        async def others() -> bool:
            await client.entity(Vault, "w").put("x")
            return owned.floor > 0 or codec.refused > 3

        await eventually(others)
        await client.tell(client.entity(Vault, "v").put, "two")
        codec.away = False
        async with asyncio.timeout(10):
            kept = await client.entity(Vault, "v").put("three")

    assert kept == ["one", "two", "three"]
