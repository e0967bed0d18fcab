"""Pruning on PostgreSQL while somebody sends a dead letter again: one of the two comes first."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import asyncpg
import pytest

from engine.core.ids import Snowflake
from engine.core.journal import JournalKind
from engine.core.status import Status
from engine.storage.protocol import Commit, ExecutionUpdate, LaneSession, Storage
from engine.storage.queries import Queries
from tests.eventually import eventually
from tests.storage.test_conformance_dead import STOCK, bury
from tests.storage.test_conformance_pruning import ENDED, LATER, requests
from tests.storage.world import ONE, Process, World, message, save_one, start, step, sweep_of

QUERIES = Queries("engine")
Prune = Callable[[Storage, Snowflake], Awaitable[object]]


async def prune(storage: Storage, execution: Snowflake) -> object:
    return await storage.prune([execution], before=LATER)


async def prune_runs(storage: Storage, execution: Snowflake) -> object:
    return await storage.prune_runs({"Fulfil": LATER}, after=Snowflake(0), limit=9, runs=9)


async def prune_requests(storage: Storage, execution: Snowflake) -> object:
    return await storage.prune_requests(requests(), after=Snowflake(0), limit=9)


WAYS = {prune: Status.SUCCEEDED, prune_runs: Status.RUNNING, prune_requests: Status.RUNNING}


async def dead_letter(
    process: Process, lane: LaneSession, status: Status
) -> tuple[Snowflake, Snowflake]:
    """A dead letter, and the execution that has sent it in its first run, long ago."""
    letter = (await bury(process, lane, message())).envelope.request_id
    execution = (await save_one(process, start("o-1"))).envelope.request_id
    sent = replace(step(execution, 1), kind=JournalKind.CALL, source=letter, at=ENDED)
    update = ExecutionUpdate(
        request_id=execution,
        run=1 if status.finished else 2,
        status=status,
        finished_at=ENDED if status.finished else None,
    )
    settled = [row.seq for row in (await sweep_of(lane, ONE)).rows]
    await lane.flush([Commit(shard=ONE, journal=[sent], settled=settled, execution=update)])
    return letter, execution


@pytest.fixture
async def process(postgres: World) -> Process:
    return await postgres.process()


@pytest.fixture
async def lane(postgres: World, process: Process) -> LaneSession:
    lane = await process.lane()
    postgres.stack.push_async_callback(lane.close)
    assert (await lane.acquire([ONE])).keys() == {ONE}
    return lane


@pytest.fixture
async def watch(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.mark.parametrize("way", WAYS)
async def test_a_dead_letter_that_is_being_sent_again_is_not_pruned(
    process: Process,
    lane: LaneSession,
    sql: asyncpg.Connection,
    watch: asyncpg.Connection,
    way: Prune,
) -> None:
    letter, execution = await dead_letter(process, lane, WAYS[way])
    async with sql.transaction():
        await sql.execute(*QUERIES.call("revive", [letter], [STOCK]))
        pruning = asyncio.create_task(_done(way(process.storage, execution)))
        await eventually(lambda: _done_or_waits(pruning, watch), every=0.001)
    await pruning

    assert await process.storage.request(letter) is not None
    (row,) = (await sweep_of(lane, ONE)).rows
    assert row.envelope.request_id == letter


@pytest.mark.parametrize("way", WAYS)
async def test_a_dead_letter_that_is_not_sent_again_is_pruned(
    process: Process, lane: LaneSession, way: Prune
) -> None:
    letter, execution = await dead_letter(process, lane, WAYS[way])

    await way(process.storage, execution)

    assert await process.storage.request(letter) is None
    assert await process.storage.replies([letter]) == []
    assert await process.storage.revive([letter]) == []


async def test_what_was_pruned_meanwhile_is_not_sent_again(
    process: Process, lane: LaneSession, sql: asyncpg.Connection, watch: asyncpg.Connection
) -> None:
    letter, _ = await dead_letter(process, lane, Status.RUNNING)
    group = await sql.fetchval("select group_id from engine.shard_groups where name = 'default'")
    far = requests().until
    async with sql.transaction():
        await sql.fetch(*QUERIES.call("prune_requests", group, 0, 1 << 62, far, far, 9))
        reviving = asyncio.create_task(_done(process.storage.revive([letter])))
        await eventually(lambda: _done_or_waits(reviving, watch), every=0.001)
    await reviving

    assert await process.storage.request(letter) is None
    assert (await sweep_of(lane, ONE)).rows == []


async def _done_or_waits(work: "asyncio.Task[object]", watch: asyncpg.Connection) -> bool:
    """Whether it goes on only once the transaction beside it has ended."""
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    return work.done() or bool(await watch.fetchval(waits))


async def _done(work: Awaitable[object]) -> object:
    return await work
