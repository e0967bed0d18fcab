"""A lane's session on PostgreSQL: its locks, its epochs, and how it ends."""

import asyncio
from datetime import timedelta
from time import monotonic
from uuid import uuid4

import asyncpg
import pytest

from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId, entity_key
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import BadBatch, Commit, NewReply
from engine.storage.schedules import ScheduleRow
from tests.eventually import eventually
from tests.storage.world import (
    NOW,
    ONE,
    THREE,
    TWO,
    World,
    event,
    ids_of,
    message,
    next_id,
    save_one,
    seqs_of,
    start,
    step,
    success,
    sweep_of,
    take_over,
    update,
)

BACKENDS = "select pid from pg_stat_activity where application_name like 'outlast:' || $1 || $2"
END = "select pg_terminate_backend(pid) from (" + BACKENDS + ") s"
LOCKS = "select count(*) from pg_locks where locktype = 'advisory' and pid in (" + BACKENDS + ")"


def schedule(*, settings: bytes) -> ScheduleRow:
    return ScheduleRow(
        name="nightly",
        shard=ONE,
        schedule="0 3 * * *",
        timezone="UTC",
        settings=settings,
        done_until=NOW,
    )


async def test_a_lane_holds_an_advisory_lock_per_shard_in_its_own_session(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()

    await lane.acquire([ONE, TWO, THREE])
    await lane.acquire([ONE, TWO])
    await lane.release([TWO])

    assert await sql.fetchval(LOCKS, str(process.runner), ":lane-0") == 2


async def test_a_lock_asked_for_twice_is_free_after_one_release(postgres: World) -> None:
    _, lane = await postgres.runner_with_lane()
    _, other = await postgres.runner_with_lane()

    assert await lane.acquire([ONE, ONE]) == {ONE: 1}
    assert await lane.acquire([ONE]) == {}
    await lane.release([ONE, ONE])

    assert await other.acquire([ONE]) == {ONE: 2}


async def test_an_ended_backend_is_noticed_at_once_and_its_locks_are_free(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    _, other = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    closed = asyncio.Event()
    lane.on_close(closed.set)

    await sql.fetch(END, str(process.runner), ":lane-0")
    ended = monotonic()
    async with asyncio.timeout(1):
        await closed.wait()

    assert monotonic() - ended < 0.2
    assert lane.closed
    assert await eventually(lambda: other.acquire([ONE])) == {ONE: 2}
    with pytest.raises(StorageUnavailable):
        await lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])])


async def test_a_callback_after_the_end_is_called_too(postgres: World) -> None:
    _, lane = await postgres.runner_with_lane()
    lane.terminate()
    closed = asyncio.Event()

    lane.on_close(closed.set)

    async with asyncio.timeout(1):
        await closed.wait()


async def test_a_flush_whose_caller_is_cancelled_ends_the_session_with_its_locks(
    postgres: World, sql: asyncpg.Connection
) -> None:
    _, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])

    async with sql.transaction():
        await sql.execute("lock table engine.journal in share mode")
        flush = asyncio.ensure_future(lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])]))
        await eventually(lambda: waiting_for_a_lock(sql))
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush

    assert lane.closed
    _, next_lane = await postgres.runner_with_lane()
    assert await eventually(lambda: next_lane.acquire([ONE])) == {ONE: 2}


async def test_a_flush_that_meets_a_lock_is_refused_and_may_be_tried_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    _, lane = await postgres.runner_with_lane()
    commit = Commit(shard=ONE, journal=[step(next_id(), 1)], requests=[message()])

    async with sql.transaction():
        await sql.execute("lock table engine.journal in share mode")
        with pytest.raises(BadBatch) as refused:
            await lane.flush([commit])
    flushed = await lane.flush([commit])

    assert refused.value.transient
    assert len(flushed.requests) == 1


async def test_a_statement_that_takes_too_long_ends_the_session(
    dsn: str, sql: asyncpg.Connection
) -> None:
    runner = RunnerId(uuid4())
    storage = PostgresStorage(dsn, identity=runner, statement_timeout=timedelta(seconds=0.5))
    async with storage:
        await storage.ensure_groups(["default"])
        lane = await storage.open_lane(runner, 0)
        await sql.execute(
            "create function pause() returns trigger language plpgsql as $$"
            " begin perform pg_sleep(30); return new; end $$"
        )
        await sql.execute(
            "create trigger pause before insert on engine.journal"
            " for each row execute function pause()"
        )

        began = monotonic()
        with pytest.raises(StorageUnavailable):
            await lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])])

    assert monotonic() - began < 5
    assert lane.closed


async def test_a_row_that_postgres_refuses_leaves_the_session_as_it_was(postgres: World) -> None:
    _, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    reply = NewReply(request_id=next_id(), sequence=2**40, kind=ReplyKind.SUCCESS, payload=b"")

    with pytest.raises(BadBatch) as refused:
        await lane.flush([Commit(shard=ONE, replies=[reply])])
    with pytest.raises(BadBatch):
        await lane.flush([Commit(shard=ONE, requests=[message(entity="nul \0")])])
    await lane.flush([Commit(shard=ONE, replies=[success(next_id())])])

    assert not refused.value.transient
    assert not lane.closed


async def test_a_note_that_is_refused_does_not_cost_what_was_committed_before_it(
    postgres: World,
) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    await process.storage.save([message(), message()])
    done, failed = await seqs_of(lane)
    bad = schedule(settings=b"{")

    await lane.flush([Commit(shard=ONE, settled=[done], failed=[failed], schedules=[bad])])

    (row,) = (await sweep_of(lane)).rows
    assert (row.seq, row.failures) == (failed, 1)
    with pytest.raises(BadBatch):
        await lane.flush([Commit(shard=ONE, schedules=[bad])])
    assert not lane.closed


async def test_a_takeover_counts_a_bounded_part_of_a_deep_backlog(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    await process.storage.save([message()])
    await sql.execute(
        "insert into engine.inbox (group_id, shard, kind, request_id, entity)"
        " select i.group_id, i.shard, 0, i.request_id, i.entity from engine.inbox i"
        " cross join generate_series(1, 50000)"
    )

    began = monotonic()
    await take_over(postgres, lane)

    assert monotonic() - began < 2
    assert await sql.fetchval("select count(*) from engine.inbox where failures = 1") == 200


async def test_a_sweep_passes_over_a_deep_backlog_of_an_entity_that_is_held(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    await process.storage.save([message(entity="full")])
    await sql.execute(
        "insert into engine.inbox (group_id, shard, kind, request_id, entity)"
        " select i.group_id, i.shard, 0, i.request_id, i.entity from engine.inbox i"
        " cross join generate_series(1, 50000)"
    )
    behind = message(entity="idle")
    await process.storage.save([behind])

    swept = await sweep_of(lane, held=(entity_key("Stock", "full"),), limit=1)

    assert ids_of(swept) == [behind.envelope.request_id]
    assert not swept.more


async def test_a_sweep_tells_of_every_transaction_that_has_begun_to_write(
    postgres: World, sql: asyncpg.Connection
) -> None:
    _, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])

    async with sql.transaction():
        writes = int(await sql.fetchval("select pg_current_xact_id()::text"))
        first = await sweep_of(lane)  # nothing that began later has ended
        await sweep_of(lane)
        later = await sweep_of(lane)

        assert writes < first.newest
        assert writes in later.running


async def test_a_shard_that_a_user_transaction_fences_is_left_for_later(
    postgres: World, sql: asyncpg.Connection
) -> None:
    _, lane = await postgres.runner_with_lane()

    async with sql.transaction():
        await sql.fetch("select from engine.shards where shard = 1 for share")
        first = await lane.acquire([ONE, TWO])
    second = await lane.acquire([ONE, TWO])

    assert (first, second) == ({TWO: 1}, {ONE: 1})


async def test_a_release_waits_for_the_user_transaction_of_the_shard(
    postgres: World, sql: asyncpg.Connection
) -> None:
    _, lane = await postgres.runner_with_lane()
    _, other = await postgres.runner_with_lane()
    await lane.acquire([ONE])

    async with sql.transaction():
        await sql.fetch("select from engine.shards where shard = 1 for share")
        release = asyncio.ensure_future(lane.release([ONE]))
        await asyncio.sleep(0.3)
        early = await other.acquire([ONE])
    await release

    assert early == {}
    assert await other.acquire([ONE]) == {ONE: 2}


async def test_a_runner_declared_dead_gets_no_epoch(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    _, other = await postgres.runner_with_lane()
    await sql.execute("update engine.runners set died_at = now() where id = $1", process.runner)

    assert await lane.acquire([ONE]) == {}
    assert await other.acquire([ONE]) == {ONE: 1}


async def test_a_runner_declared_dead_holds_no_lock_for_a_moment(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    await sql.execute("update engine.runners set died_at = now() where id = $1", process.runner)

    async with sql.transaction():
        await sql.execute("lock table engine.shards in access exclusive mode")  # it can be frozen
        acquiring, held = asyncio.ensure_future(lane.acquire([ONE])), 0
        while not acquiring.done():
            held += await sql.fetchval(LOCKS, str(process.runner), ":lane-0")
        assert await acquiring == {}
        assert held == 0


async def test_two_lanes_of_two_runners_never_hold_one_shard(postgres: World) -> None:
    lanes = [(await postgres.runner_with_lane())[1] for _ in range(3)]
    shards = [ShardId("default", number) for number in range(1, 13)]

    for _ in range(10):
        taken = await asyncio.gather(*(lane.acquire(shards) for lane in lanes))
        assert sorted(shard for epochs in taken for shard in epochs) == shards
        await asyncio.gather(
            *(lane.release(list(epochs)) for lane, epochs in zip(lanes, taken, strict=True))
        )


async def test_an_epoch_that_a_fail_over_has_lost_is_not_given_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    assert await lane.acquire([ONE, TWO]) == {ONE: 1, TWO: 1}
    await lane.close()
    await sql.execute("update engine.shards set epoch = 0, runner_id = null where shard = 1")

    again = await process.lane()
    postgres.stack.push_async_callback(again.close)

    assert await again.acquire([ONE, TWO]) == {ONE: 2, TWO: 2}


async def test_a_request_in_a_flush_finds_the_one_that_won_the_race(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    mine, theirs = start("o-1"), start("o-1", payload=b"2")
    transaction = sql.transaction()
    await transaction.start()
    await process.storage.save_on(sql, theirs)

    flush = asyncio.ensure_future(
        lane.flush([Commit(shard=ONE, requests=[mine], journal=[step(next_id(), 1)])])
    )
    await eventually(lambda: waiting_for_a_lock(sql), every=0.001)
    await transaction.commit()

    saved = (await flush).requests[mine.envelope.request_id]
    assert saved.request_id == theirs.envelope.request_id
    assert saved.payload == b"2"


async def test_the_end_that_a_flush_writes_comes_to_a_follower_that_began_since_its_snapshot(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE, TWO])
    await lane._session.execute("set lock_timeout = '10s'")  # type: ignore[attr-defined]
    followed = await save_one(process, start("followed"))
    id = followed.envelope.request_id
    transaction = sql.transaction()
    await transaction.start()
    await process.storage.save_on(sql, start("o-1"))

    ended = update(id, Status.SUCCEEDED, finished_at=NOW).execution
    flush = asyncio.ensure_future(
        lane.flush([Commit(shard=ONE, requests=[start("o-1")], execution=ended)])
    )
    await eventually(lambda: waiting_for_a_lock(sql), every=0.001)
    follower = await save_one(process, start("follower", shard=TWO))
    assert await process.storage.follow(id, follower.envelope.request_id)
    await transaction.commit()

    assert (await flush).followed == {id: [TWO]}


async def test_a_deep_backlog_of_one_shard_is_swept_in_parts_in_order(postgres: World) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE, TWO])
    sent = [message(entity=str(n)) for n in range(300)]
    await process.storage.save([*sent, *(message(shard=TWO) for _ in range(3))])
    seen: list[str] = []

    while (sweep := await sweep_of(lane, ONE, TWO, limit=20)).rows:
        assert sweep.more == (len(sweep.rows) == 20)
        await lane.flush([Commit(shard=row.shard, settled=[row.seq]) for row in sweep.rows])
        seen += [row.envelope.address.entity_id for row in sweep.rows if row.shard == ONE]

    assert seen == [str(n) for n in range(300)]


async def test_a_sweep_aligns_the_clock_with_the_database(dsn: str) -> None:
    runner = RunnerId(uuid4())
    async with PostgresStorage(dsn, identity=runner, shards_per_group=12) as storage:
        await storage.ensure_groups(["default"])
        lane = await storage.open_lane(runner, 0)
        storage.clock.align(database=storage.clock.now() + timedelta(days=1), sent=0, received=0)

        sweep = await sweep_of(lane)

        assert abs(storage.clock.now() - sweep.now) < timedelta(seconds=1)
        await lane.close()


async def test_an_event_waits_for_the_execution_of_its_target(postgres: World) -> None:
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    run = start("o-1")
    await process.storage.save([run])
    await process.storage.save([event("o-1")])

    assert await process.storage.waiting_rows(run.envelope.request_id) == 2


async def test_sessions_are_named_and_set_up_to_be_ended(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane = await postgres.runner_with_lane()
    session = lane._session  # type: ignore[attr-defined]

    shown = {
        name: await session.fetchval(f"show {name}")
        for name in ("statement_timeout", "lock_timeout", "client_connection_check_interval")
    }

    assert shown == {
        "statement_timeout": "10s",
        "lock_timeout": "100ms",
        "client_connection_check_interval": "5s",
    }
    assert await sql.fetchval(f"select count(*) from ({BACKENDS}) s", str(process.runner), ":%") > 1


async def waiting_for_a_lock(sql: asyncpg.Connection) -> bool:
    return bool(
        await sql.fetchval(
            "select count(*) from pg_stat_activity"
            " where application_name like 'outlast:%:lane-0' and wait_event_type = 'Lock'"
        )
    )
