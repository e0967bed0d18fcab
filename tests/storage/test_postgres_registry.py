"""Burying on PostgreSQL: what is ended, in which order, and who may say so."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from engine.core.errors import OwnershipLost
from engine.core.journal import JournalRow
from engine.storage.protocol import Fence, RunnerRow
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.storage.world import ONE, Process, World, next_id, step

TTL = timedelta(seconds=10)


async def silence(sql: asyncpg.Connection, process: Process) -> None:
    """Let the last heartbeat be long ago."""
    await sql.execute(
        "update engine.runner_heartbeats set beat_at = now() - interval '1 hour'"
        " where runner_id = $1",
        process.runner,
    )


async def buried_by(peer: Process, dead: Process) -> None:
    assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)

    async def none_left() -> bool:
        return await peer.registry.end_sessions(dead.runner) == 0

    await eventually(none_left)


async def test_a_burial_ends_every_session_and_then_clears_the_shards(
    postgres: World, sql: asyncpg.Connection
) -> None:
    dead, lane = await postgres.runner_with_lane()
    peer, other = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    closed = asyncio.Event()
    lane.on_close(closed.set)
    await silence(sql, dead)

    assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)
    assert await peer.registry.unburied() == [dead.runner]
    assert (await peer.storage.shards())[0].runner == dead.runner
    assert await other.acquire([ONE]) == {}
    assert await peer.registry.end_sessions(dead.runner) >= 2

    async def buried() -> bool:
        return await peer.registry.end_sessions(dead.runner) == 0

    await eventually(buried)
    assert closed.is_set()
    assert await peer.registry.unburied() == []
    assert (await peer.storage.shards())[0].runner is None
    assert await other.acquire([ONE]) == {ONE: 2}


async def test_a_frozen_user_transaction_ends_with_its_runner(
    postgres: World, sql: asyncpg.Connection
) -> None:
    await sql.execute("create table payments (cents int)")
    dead, lane = await postgres.runner_with_lane()
    peer, other = await postgres.runner_with_lane()
    epochs = await lane.acquire([ONE])
    inside, frozen = asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        inside.set()
        await frozen.wait()
        return step(next_id(), 1)

    fence = Fence(shard=ONE, epoch=epochs[ONE], runner=dead.runner)
    running = asyncio.ensure_future(dead.storage.transact(fence, work))
    await inside.wait()
    await silence(sql, dead)
    await buried_by(peer, dead)
    assert await other.acquire([ONE]) == {ONE: 2}
    frozen.set()

    with pytest.raises(Exception, match=r"cannot be reached|failed|lost"):
        await running
    assert await sql.fetchval("select count(*) from payments") == 0


async def test_one_of_many_peers_declares_a_runner_dead(
    postgres: World, sql: asyncpg.Connection
) -> None:
    dead = await postgres.process()
    peers = [await postgres.process() for _ in range(5)]
    await silence(sql, dead)

    won = await asyncio.gather(
        *(peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL) for peer in peers)
    )

    assert sorted(won) == [False] * 4 + [True]


async def test_a_runner_whose_heartbeat_is_missing_is_not_declared_dead(
    postgres: World, sql: asyncpg.Connection
) -> None:
    # The heartbeats are unlogged: a crash of the server empties them.
    quiet, peer = await postgres.process(), await postgres.process()
    await sql.execute("truncate engine.runner_heartbeats")

    assert not await peer.registry.bury(quiet.runner, by=peer.runner, ttl=timedelta(0))
    beat = await peer.registry.beat(peer.runner)
    assert beat.alive
    # From then on its silence counts.
    assert {row.id: row.beat_at is None for row in beat.runners} == {
        quiet.runner: False,
        peer.runner: False,
    }
    assert not await peer.registry.bury(quiet.runner, by=peer.runner, ttl=TTL)


async def test_a_runner_that_died_with_the_server_is_overdue_in_the_end(
    postgres: World, sql: asyncpg.Connection
) -> None:
    dead, peer = await postgres.process(), await postgres.process()
    await sql.execute("truncate engine.runner_heartbeats")
    seen = {row.id: row.beat_at for row in (await peer.registry.beat(peer.runner)).runners}
    assert seen[dead.runner] is not None
    assert not await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)
    short = timedelta(milliseconds=200)

    async def buried() -> bool:
        return await peer.registry.bury(dead.runner, by=peer.runner, ttl=short)

    await eventually(buried)


async def test_a_beat_of_one_that_is_dead_is_none_also_when_it_speaks_for_others(
    postgres: World, sql: asyncpg.Connection
) -> None:
    dead, peer = await postgres.process(), await postgres.process()
    await silence(sql, dead)
    await buried_by(peer, dead)
    await sql.execute("truncate engine.runner_heartbeats")
    assert not (await dead.registry.beat(dead.runner)).alive


async def test_the_dead_bury_nobody(postgres: World, sql: asyncpg.Connection) -> None:
    ghost, quiet = await postgres.process(), await postgres.process()
    await sql.execute("update engine.runners set died_at = now() where id = $1", ghost.runner)
    await silence(sql, quiet)

    assert not await ghost.registry.bury(quiet.runner, by=ghost.runner, ttl=TTL)


async def test_the_sessions_of_the_living_are_not_ended(
    postgres: World, sql: asyncpg.Connection
) -> None:
    alive, lane = await postgres.runner_with_lane()
    peer = await postgres.process()

    assert await peer.registry.end_sessions(alive.runner) == 0

    assert not lane.closed
    assert await peer.registry.unburied() == []
    assert (await alive.registry.beat(alive.runner)).alive


async def test_a_runner_declared_dead_cannot_beat_or_register_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    ghost, peer = await postgres.process(), await postgres.process()
    await silence(sql, ghost)
    await buried_by(peer, ghost)

    assert not (await ghost.registry.beat(ghost.runner)).alive
    with pytest.raises(OwnershipLost):
        await ghost.registry.register(RunnerRow(id=ghost.runner, groups=["default"]))
    assert ghost.runner not in {row.id for row in (await peer.registry.beat(peer.runner)).runners}


async def test_a_registry_connects_again(postgres: World, sql: asyncpg.Connection) -> None:
    process = await postgres.process()
    await sql.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'outlast:' || $1 || ':registry'",
        str(process.runner),
    )

    assert (await process.registry.beat(process.runner)).alive


async def test_a_registry_serves_the_event_loop_of_another_thread(postgres: World) -> None:
    process = await postgres.process()

    def beat_elsewhere() -> bool:
        async def beat() -> bool:
            registry = await process.storage.open_registry(process.runner)
            try:
                return (await registry.beat(process.runner)).alive
            finally:
                await registry.close()

        return asyncio.run(beat())

    assert await asyncio.to_thread(beat_elsewhere)
