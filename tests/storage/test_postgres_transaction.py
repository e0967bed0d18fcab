"""User transactions on PostgreSQL: the fence, the unknown commit, and what a step may do in one."""

import asyncio
from contextlib import suppress

import asyncpg
import pytest
from sqlalchemy import Integer, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from engine.core.errors import ConfigurationError, OwnershipLost, StorageUnavailable
from engine.core.ids import Snowflake
from engine.core.journal import JournalRow
from engine.storage.protocol import Fence, LaneSession
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.storage.world import ONE, Process, World, next_id, step

COUNT = "select count(*) from payments"


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"
    cents: Mapped[int] = mapped_column(Integer, primary_key=True)


@pytest.fixture
async def owner(postgres: World, sql: asyncpg.Connection) -> tuple[Process, LaneSession, Fence]:
    """A runner that owns shard ``ONE``, and a table of the user's."""
    await sql.execute("create table payments (cents int primary key)")
    process, lane = await postgres.runner_with_lane()
    epochs = await lane.acquire([ONE])
    return process, lane, Fence(shard=ONE, epoch=epochs[ONE], runner=process.runner)


Owner = tuple[Process, LaneSession, Fence]


def paying(cents: int, row: JournalRow):
    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values ($1)", cents)
        return row

    return work


async def test_the_users_rows_and_the_journal_commit_together(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner
    row = step(next_id(), 1, payload=b"5")

    await process.storage.transact(fence, paying(5, row))

    assert await sql.fetchval(COUNT) == 1
    assert await process.storage.history(row.execution) == [row]


async def test_a_taken_over_shard_refuses_its_former_owner(
    owner: Owner, postgres: World, sql: asyncpg.Connection
) -> None:
    process, lane, fence = owner
    await lane.release([ONE])
    _, other = await postgres.runner_with_lane()
    await other.acquire([ONE])

    with pytest.raises(OwnershipLost):
        await process.storage.transact(fence, paying(5, step(next_id(), 1)))

    assert await sql.fetchval(COUNT) == 0


async def test_the_next_owner_cannot_begin_while_a_user_transaction_is_open(
    owner: Owner, postgres: World
) -> None:
    process, lane, fence = owner
    _, other = await postgres.runner_with_lane()
    execution, inside, go_on = next_id(), asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        inside.set()
        await go_on.wait()
        return step(execution, 1)

    running = asyncio.ensure_future(process.storage.transact(fence, work))
    await inside.wait()
    lane.terminate()
    early = [await other.acquire([ONE]) for _ in range(10)]
    go_on.set()
    await running

    assert early == [{}] * 10
    assert await eventually(lambda: other.acquire([ONE])) == {ONE: 2}
    assert len(await process.storage.history(execution)) == 1


async def test_a_fence_waits_for_a_takeover_under_way_and_then_refuses(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async with sql.transaction():
        await sql.execute("update engine.shards set epoch = epoch + 1 where shard = 1")
        running = asyncio.ensure_future(
            process.storage.transact(fence, paying(5, step(next_id(), 1)))
        )
        await asyncio.sleep(0.2)
        waits = not running.done()

    assert waits
    with pytest.raises(OwnershipLost):
        await running


async def test_no_transaction_begins_on_a_server_that_took_another_ones_place(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    """A standby that was promoted has the epoch, and perhaps not what was written after it."""
    process, _, fence = owner
    await sql.execute(
        "update engine.shards set server_started_at = server_started_at - '1 s'::interval"
    )

    with pytest.raises(OwnershipLost, match="another server's"):
        await process.storage.transact(fence, paying(5, step(next_id(), 1)))

    assert await sql.fetchval(COUNT) == 0


async def test_a_position_that_is_taken_rolls_the_users_rows_back(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner
    row = step(next_id(), 1)
    await process.storage.transact(fence, paying(5, row))

    with pytest.raises(OwnershipLost, match="position 1"):
        await process.storage.transact(fence, paying(6, row))

    assert await sql.fetchval(COUNT) == 1


async def test_what_the_work_raises_rolls_back_and_comes_out(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        raise LookupError("no such order")

    with pytest.raises(LookupError):
        await process.storage.transact(fence, work)
    with pytest.raises(asyncpg.UndefinedTableError):
        await process.storage.transact(fence, failing_sql)

    assert await sql.fetchval(COUNT) == 0
    await process.storage.transact(fence, paying(5, step(next_id(), 1)))


async def failing_sql(tx: Transaction) -> JournalRow:
    await tx.execute("select * from nowhere")
    raise AssertionError


async def test_a_constraint_that_fails_at_commit_is_the_steps_own_error(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner
    await sql.execute(
        "create table late (id int references payments deferrable initially deferred)"
    )
    row = step(next_id(), 1)

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into late values (77)")
        return row

    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await process.storage.transact(fence, work)

    assert await process.storage.history(row.execution) == []


async def test_a_connection_lost_in_the_work_is_known_not_to_have_committed(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        await sql.execute("select pg_terminate_backend($1)", await tx.fetchval(PID))
        await tx.execute("select 1")
        raise AssertionError("the connection should have been lost")

    with pytest.raises(StorageUnavailable):
        await process.storage.transact(fence, work)

    assert await sql.fetchval(COUNT) == 0


async def test_a_connection_lost_in_a_sqlalchemy_session_is_no_error_of_the_step(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        async with tx.session() as session:
            await sql.execute("select pg_terminate_backend($1)", await session.scalar(text(PID)))
            await session.scalar(text(PID))
        raise AssertionError("the connection should have been lost")

    with pytest.raises(StorageUnavailable):
        await process.storage.transact(fence, work)


async def test_a_session_that_is_ended_between_two_messages_of_a_statement_is_lost(
    owner: Owner,
) -> None:
    process, _, _ = owner

    async with process.storage._pools.user.session() as session:  # type: ignore[attr-defined]

        def end() -> object:
            with session.deadline(None):
                session.terminate()
                return session._protocol.bind_execute  # with which asyncpg goes on

        with pytest.raises(asyncpg.InterfaceError, match="closed meanwhile"):
            end()


PID = "select pg_backend_pid()"


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_unknown_outcome_is_found_out(
    owner: Owner, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    process, _, fence = owner
    row = step(next_id(), 1)
    lose_the_next_commit(monkeypatch, committed=committed)

    if committed:
        await process.storage.transact(fence, paying(5, row))
    else:
        with pytest.raises(StorageUnavailable):
            await process.storage.transact(fence, paying(5, row))

    assert await sql.fetchval(COUNT) == int(committed)
    assert len(await process.storage.history(row.execution)) == int(committed)


async def test_the_question_waits_for_a_backend_that_is_still_committing(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner
    row = step(next_id(), 1)
    # A deferred trigger holds the commit up; the connection is lost meanwhile, but not the backend.
    await sql.execute(SLOW_COMMIT)

    running = asyncio.ensure_future(process.storage.transact(fence, paying(5, row)))
    pool = process.storage._pools.user  # type: ignore[attr-defined]
    await eventually(lambda: committing(sql))
    for session in tuple(pool._lent):
        session.terminate()
    await running

    assert await sql.fetchval(COUNT) == 1


SLOW_COMMIT = """
create function slowly() returns trigger language plpgsql as
    $$ begin perform pg_sleep(0.5); return null; end $$;
create constraint trigger slowly after insert on payments deferrable initially deferred
    for each row execute function slowly();
"""


async def committing(sql: asyncpg.Connection) -> bool:
    return bool(
        await sql.fetchval(
            "select count(*) from pg_stat_activity where application_name like 'outlast:%:user'"
            " and datname = current_database() and wait_event = 'PgSleep'"
        )
    )


async def test_a_cancelled_step_rolls_back(owner: Owner, sql: asyncpg.Connection) -> None:
    process, _, fence = owner
    inside = asyncio.Event()

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        inside.set()
        await asyncio.Event().wait()
        raise AssertionError

    running = asyncio.ensure_future(process.storage.transact(fence, work))
    await inside.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await sql.fetchval(COUNT) == 0
    await sql.fetchval("select 1 from engine.shards where shard = 1 for update nowait")


async def test_a_cancellation_during_the_commit_waits_and_is_dropped_when_it_committed(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner
    await sql.execute(SLOW_COMMIT)

    running = asyncio.ensure_future(process.storage.transact(fence, paying(5, step(next_id(), 1))))
    await eventually(lambda: committing(sql))
    running.cancel()
    await running

    assert await sql.fetchval(COUNT) == 1


async def test_a_sqlalchemy_session_is_in_the_same_transaction(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("insert into payments values (1)")
        async with tx.session() as session:
            assert await session.scalar(text(COUNT)) == 1
            session.add(Payment(cents=2))
        with suppress(LookupError):
            async with tx.session() as session:
                session.add(Payment(cents=3))
                await session.flush()
                raise LookupError
        async with tx.session() as session:
            session.add(Payment(cents=4))
            await session.commit()
        assert await tx.fetchval(COUNT) == 3
        assert await sql.fetchval(COUNT) == 0
        return step(next_id(), 1)

    for _ in range(2):
        await process.storage.transact(fence, work)
        assert [row[0] for row in await sql.fetch("select * from payments order by 1")] == [1, 2, 4]
        await sql.execute("delete from payments")


async def test_a_failed_step_takes_back_what_its_sqlalchemy_session_committed(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        async with tx.session() as session:
            session.add(Payment(cents=2))
            await session.commit()
        raise LookupError

    with pytest.raises(LookupError):
        await process.storage.transact(fence, work)

    assert await sql.fetchval(COUNT) == 0


async def test_a_step_that_commits_by_itself_is_told_not_to(
    owner: Owner, sql: asyncpg.Connection
) -> None:
    process, _, fence = owner

    async def work(tx: Transaction) -> JournalRow:
        await tx.execute("commit")
        return step(next_id(), 1)

    with pytest.raises(ConfigurationError, match="leave commit and rollback"):
        await process.storage.transact(fence, work)
    await process.storage.transact(fence, paying(5, step(next_id(), 1)))


async def test_a_transaction_kept_for_later_is_of_no_use(owner: Owner) -> None:
    process, _, fence = owner
    kept: list[Transaction] = []

    async def work(tx: Transaction) -> JournalRow:
        kept.append(tx)
        return step(next_id(), 1)

    await process.storage.transact(fence, work)

    with pytest.raises(ConfigurationError, match="has ended"):
        await kept[0].fetchval("select 1")


async def test_settings_of_one_step_do_not_reach_the_next(owner: Owner) -> None:
    process, _, fence = owner
    seen: list[str] = []

    async def work(tx: Transaction) -> JournalRow:
        seen.append(await tx.fetchval("show search_path"))
        await tx.execute("set search_path = pg_catalog")
        return step(next_id(), 1)

    await process.storage.transact(fence, work)
    await process.storage.transact(fence, work)

    assert seen[0] == seen[1]


async def test_a_user_transaction_carries_the_runners_name(owner: Owner) -> None:
    process, _, fence = owner
    names: list[str] = []

    async def work(tx: Transaction) -> JournalRow:
        names.append(await tx.fetchval("show application_name"))
        return step(Snowflake(1), 1)

    await process.storage.transact(fence, work)

    assert names == [f"outlast:{process.runner}:user"]


def lose_the_next_commit(monkeypatch: pytest.MonkeyPatch, *, committed: bool) -> None:
    """The connection is lost when COMMIT was sent, before or after the server did it."""
    outer = asyncpg.transaction.Transaction
    real = outer.commit

    async def commit(self: asyncpg.transaction.Transaction) -> None:
        monkeypatch.setattr(outer, "commit", real)
        if committed:
            await real(self)
        self._connection.terminate()
        raise ConnectionResetError("lost while committing")

    monkeypatch.setattr(outer, "commit", commit)
