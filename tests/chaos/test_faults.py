"""Each fault of ``tests.chaos.strangers``, of the disk and of the clock by itself: work goes on
meanwhile, or waits and then goes on.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from engine import (
    Client,
    Deferred,
    Entity,
    NotFound,
    RetryPolicy,
    Settings,
    StorageUnavailable,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
    update,
)
from engine.testing import TestCluster
from engine.testing.databases import new_database, template_database
from tests.chaos import strangers
from tests.chaos.server import Server, own_server
from tests.chaos.strangers import TERMINATE
from tests.chaos.wall_clock import step_wall_clock
from tests.eventually import eventually

LIMIT = timedelta(seconds=20)
QUICK = {
    "heartbeat_interval": timedelta(milliseconds=200),
    "poll_interval": timedelta(milliseconds=500),
    "statement_timeout": timedelta(seconds=1),
}
TABLE = "create table effects (execution text not null)"
EFFECTS = "select count(*) from effects"
EFFECTS_OF_ALL = "select count(*), count(distinct execution) from effects"
WAITING = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock' and query like '%effects%'
"""
END_SESSIONS = TERMINATE, "outlast:%"
Sql = asyncpg.Pool


class Once(Workflow[str, str]):
    """Its transaction may fail no time; it goes on when it is told to."""

    def __init__(self) -> None:
        self.inside, self.go = asyncio.Event(), asyncio.Event()

    async def execute(self, request: str) -> str:
        await self.record()
        return request

    @transaction(retry=RetryPolicy(attempts=1))
    async def record(self, tx: Transaction) -> None:
        self.inside.set()
        await self.go.wait()
        await tx.execute("insert into effects values ($1)", self.execution_id)


class Plain(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.echo(request)

    @activity
    async def echo(self, what: str) -> str:
        return what


class Talks(Workflow[str, int]):
    go = Deferred(int)

    async def execute(self, request: str) -> int:
        return await self.go.wait()

    @update
    async def double(self, number: int) -> int:
        return number * 2


class Sleeps(Workflow[float, float]):
    """How long it has slept, in seconds of the database's clock."""

    async def execute(self, request: float) -> float:
        began = await self.time()
        await self.sleep(timedelta(seconds=request))
        return await self.time() - began

    @transaction
    async def time(self, tx: Transaction) -> float:
        return await tx.fetchval("select extract(epoch from clock_timestamp())::float")


class Echo(Entity):
    @rpc(persisted=False)
    async def say(self, what: str) -> str:
        return what

    @rpc
    async def never(self) -> str:
        await asyncio.Event().wait()
        return ""

    @rpc
    async def drip(self) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator["Sql[Any]"]:
    """The test's own sessions on its database."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        await pool.execute(TABLE)
        yield pool


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with own_server(durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def fresh(own: Server) -> Iterator[str]:
    """A database on that server, for all that ask."""
    with template_database(own.dsn) as template, new_database(own.dsn, template) as dsn:
        yield dsn


async def insist(client: Client, workflow: type[Any], request: Any, key: str) -> Any:
    """Start it as soon as that is acknowledged."""
    while True:
        with suppress(StorageUnavailable):
            return await client.start(workflow, request, key=key)
        await asyncio.sleep(0.05)


async def refused(client: Client, why: str, harm: Callable[[], Awaitable[object]]) -> None:
    """Do harm until nothing can be started."""

    async def start() -> bool:
        await harm()
        try:
            await client.start(Plain, "refused")
        except StorageUnavailable as error:
            return why in str(error)
        return False

    await eventually(start, timeout=20)


@pytest.mark.parametrize(
    ("code", "pausing"), [("40001", False), ("55P03", False), ("53100", False), ("53100", True)]
)
async def test_a_journal_row_that_cannot_be_written_now_is_no_failure_of_a_transaction(
    dsn: str, sql: "Sql[Any]", code: str, pausing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await strangers.install_mishaps(sql)
    once = Once()
    async with TestCluster(once, dsn=dsn, **QUICK) as engine:
        begun = await engine.client.start(Once, "a")
        await once.inside.wait()
        async with strangers.mishaps(dsn, code, 1, table="journal"):
            once.go.set()
            await eventually(lambda: "a step could not reach the database" in caplog.text)
        if pausing:  # before the attempt that follows has begun
            await begun.pause()
            await begun.resume()
        assert await begun.join(LIMIT) == "a"
    assert await sql.fetchval(EFFECTS) == 1


async def test_a_shard_that_others_have_locked_is_no_failure_of_a_transaction(
    dsn: str, sql: "Sql[Any]", caplog: pytest.LogCaptureFixture
) -> None:
    name = await sql.fetchval("select current_database()")
    await sql.execute(f"alter database {name} set lock_timeout = '50ms'")
    once = Once()
    once.go.set()
    async with TestCluster(once, dsn=dsn, **QUICK) as engine:
        async with strangers.locked(dsn, "engine.shards", "for update"):
            begun = await engine.client.start(Once, "a")
            await eventually(lambda: "a step could not reach the database" in caplog.text)
        assert await begun.join(LIMIT) == "a"
    assert await sql.fetchval(EFFECTS) == 1


async def test_transactions_that_have_all_of_the_pool_keep_nothing_else_waiting(
    dsn: str, sql: "Sql[Any]"
) -> None:
    once = Once()
    once.go.set()
    served = once, Plain(), Talks()
    quick = QUICK | {"connect_timeout": timedelta(seconds=1)}
    async with TestCluster(*served, dsn=dsn, pool_size=2, **quick) as engine:
        async with strangers.locked(dsn, "effects", "access exclusive"):
            stuck = [await engine.client.start(Once, f"{n}") for n in range(6)]

            async def waiting() -> bool:
                return await sql.fetchval(WAITING) == 2

            await eventually(waiting)
            plain = await engine.client.start(Plain, "on")
            assert await plain.join(LIMIT) == "on"
            talks = await engine.client.start(Talks, "on")
            assert await talks.update(Talks.double, 21) == 42
            await asyncio.sleep(1.2)  # the others have given up their wait for a session
        assert [await each.join(LIMIT) for each in stuck] == [f"{n}" for n in range(6)]
    assert await sql.fetchval(EFFECTS) == 6


async def test_a_lane_that_may_not_take_a_shard_now_keeps_its_session(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with TestCluster(Plain(), dsn=dsn, **QUICK):
        pass  # which made the shards
    engine = TestCluster(Plain(), dsn=dsn, **QUICK)
    async with strangers.locked(dsn, "engine.shards", "share row exclusive"):
        beginning = asyncio.create_task(engine.__aenter__())
        await eventually(lambda: "shards could not be claimed" in caplog.text)
    await beginning
    await engine.__aexit__()
    assert "lost its session" not in caplog.text


async def test_a_server_without_a_connection_left_is_waited_for(fresh: str) -> None:
    async with TestCluster(Plain(), dsn=fresh, **QUICK) as engine:
        begun = [await engine.client.start(Plain, f"{n}") for n in range(20)]
        async with (
            asyncpg.create_pool(fresh, min_size=1, max_size=1) as pool,
            strangers.connections_taken(fresh),
        ):
            await refused(engine.client, "no connection left", lambda: pool.execute(*END_SESSIONS))
        begun.append(await insist(engine.client, Plain, "20", "after"))
        assert [await each.join(LIMIT) for each in begun] == [f"{n}" for n in range(21)]


async def test_a_full_queue_of_notifications_keeps_nothing_from_happening(fresh: str) -> None:
    settings = Settings(dsn=fresh, shards_per_group=8, **QUICK)
    async with (
        TestCluster(Plain(), Talks(), Echo(), dsn=fresh, **QUICK),
        Client(settings) as client,
        strangers.notifications_stuck(fresh) as full,
    ):
        if not full:
            pytest.skip("this server's queue of notifications is too large to fill")
        plain = await client.start(Plain, "on")
        assert await plain.join(LIMIT) == "on"
        talks = await client.start(Talks, "on")
        assert await talks.update(Talks.double, 21) == 42
        assert await client.entity(Echo, "a").say("still") == "still"
        connection = await asyncpg.connect(fresh)
        async with connection.transaction():
            within = await client.start(Plain, "within", connection=connection)
        await connection.close()
        assert await within.join(LIMIT) == "within"


@pytest.mark.parametrize("hours", [26, -26])
async def test_a_wall_clock_that_is_stepped_moves_no_timer(dsn: str, hours: int) -> None:
    begun: list[Any] = []
    try:
        async with TestCluster(Sleeps(), dsn=dsn, **QUICK) as engine:
            begun.append(await engine.client.start(Sleeps, 1, key="before"))
            step_wall_clock(hours * 3600)
            begun.append(await engine.client.start(Sleeps, 1, key="after"))
            assert 1 <= await begun[-1].join(LIMIT) < 10
            begun.append(await engine.client.start(Sleeps, 2, key="goes on elsewhere"))
        async with TestCluster(Sleeps(), dsn=dsn, **QUICK) as engine:
            begun.append(await engine.client.start(Sleeps, 1, key="begun elsewhere"))
            slept = [await engine.client.execution(Sleeps, each.id).join(LIMIT) for each in begun]
    finally:
        step_wall_clock(-hours * 3600)
    assert all(had >= asked for had, asked in zip(slept, [1, 1, 2, 1], strict=True))
    assert max(slept) < 10


async def test_whoever_waits_for_what_a_fail_over_has_lost_is_told(
    dsn: str, sql: "Sql[Any]"
) -> None:
    async with (
        TestCluster(Talks(), Echo(), dsn=dsn, **QUICK),
        Client(Settings(dsn=dsn, shards_per_group=8, **QUICK)) as client,
    ):
        talks = await client.start(Talks, "lost")
        stream = client.entity(Echo, "a").drip()
        assert await anext(stream) == 1
        waits = [
            asyncio.ensure_future(each)
            for each in (talks.join(LIMIT), client.entity(Echo, "b").never(), anext(stream))
        ]

        async def stored() -> bool:
            return await sql.fetchval("select count(*) from engine.envelopes") == len(waits)

        await eventually(stored)
        await sql.execute("truncate engine.envelopes, engine.inbox, engine.executions")
        await sql.execute(*END_SESSIONS)
        for wait in waits:
            with pytest.raises(NotFound):
                await asyncio.wait_for(wait, 10)


async def test_a_full_disk_loses_nothing(fresh: str, own: Server) -> None:
    if own.disk.why_not:
        pytest.skip(f"no small disk here: {own.disk.why_not}")
    once = Once()
    once.go.set()
    async with TestCluster(once, Plain(), dsn=fresh, **QUICK) as engine:
        async with asyncpg.create_pool(fresh, min_size=1, max_size=1) as pool:
            await pool.execute(TABLE)
        begun: list[Any] = []

        async def full() -> bool:
            # What cannot be compressed needs more of the disk at once.
            payload = secrets.token_hex(40_000)
            try:
                begun.append(await engine.client.start(Once, payload, key=f"{len(begun)}"))
            except StorageUnavailable:
                return True
            return False

        assert not await full()
        own.disk.fill()
        try:
            for _ in range(10):
                await eventually(full, timeout=20)
        finally:
            own.disk.free()
            await asyncio.to_thread(own.start)
        begun.append(await insist(engine.client, Once, "last", "last"))
        for each in begun:
            assert await each.join(LIMIT)
    async with asyncpg.create_pool(fresh, min_size=1, max_size=1) as pool:
        assert await pool.fetchrow(EFFECTS_OF_ALL) == (len(begun), len(begun))
