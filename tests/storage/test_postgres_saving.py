"""Saving on PostgreSQL: races for a key, other people's transactions, lost connections."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from engine.core.errors import ConfigurationError, InvalidPayload, StorageUnavailable
from engine.core.ids import EntityAddress
from engine.storage.protocol import SaveOutcome, SaveRequest
from tests.eventually import eventually
from tests.storage.world import World, event, message, next_id, start

CREATED, EXISTS, BLOCKED = SaveOutcome.CREATED, SaveOutcome.EXISTS, SaveOutcome.BLOCKED


@pytest.fixture
async def engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"))
    yield engine
    await engine.dispose()


async def test_of_many_racing_starts_of_one_key_all_learn_the_same_request(
    postgres: World,
) -> None:
    processes = [await postgres.process(register=False) for _ in range(4)]

    for nth in range(20):
        racing = [start(f"o-{nth}", payload=b"%d" % n) for n in range(16)]
        saved = await asyncio.gather(
            *(
                processes[n % 4].storage.save([request, start(f"other-{nth}-{n}")])
                for n, request in enumerate(racing)
            )
        )
        answers = [first for first, _ in saved]
        assert len({answer.request_id for answer in answers}) == 1
        assert sorted(a.outcome.value for a in answers) == ["created"] + ["exists"] * 15


async def test_batches_that_hold_the_same_keys_in_opposite_order_do_not_deadlock(
    postgres: World, sql: asyncpg.Connection
) -> None:
    one, other = [await postgres.process(register=False) for _ in range(2)]

    for nth in range(30):
        keys = [f"o-{nth}-{n}" for n in range(40)]
        await asyncio.gather(
            one.storage.save([start(key) for key in keys]),
            other.storage.save([start(key) for key in reversed(keys)]),
        )

    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    assert await sql.fetchval(deadlocks) == 0
    assert await sql.fetchval("select count(*) from engine.dedup") == 1200


async def test_a_key_in_an_open_transaction_blocks_only_itself_once_it_is_known(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    held = start("held")
    batch = [start(f"o-{n}") for n in range(60)]
    batch.insert(33, start("held"))

    async with sql.transaction():
        await process.storage.save_on(sql, held)
        keyless = message()
        saved = await process.storage.save([*batch, keyless])
        assert [answer.outcome for answer in saved] == [BLOCKED] * 61 + [CREATED]
        saved = await process.storage.save(batch, apart=True)
        assert [answer.outcome for answer in saved] == [CREATED] * 33 + [BLOCKED] + [CREATED] * 27

    (answer,) = await process.storage.save([batch[33]], apart=True)
    assert (answer.outcome, answer.request_id) == (EXISTS, held.envelope.request_id)


async def test_a_blocked_start_is_created_when_the_transaction_before_it_rolls_back(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    transaction = sql.transaction()
    await transaction.start()
    await process.storage.save_on(sql, start("o-1"))
    mine = start("o-1")

    (answer,) = await process.storage.save([mine], apart=True)
    assert answer.outcome is BLOCKED
    await transaction.rollback()

    (answer,) = await process.storage.save([mine], apart=True)
    assert (answer.outcome, answer.request_id) == (CREATED, mine.envelope.request_id)


async def test_one_key_twice_in_one_batch_is_stored_once(postgres: World) -> None:
    process = await postgres.process(register=False)
    first, second = start("o-1", payload=b"1"), start("o-1", payload=b"2")

    one, other = await process.storage.save([first, second])

    assert (one.outcome, other.outcome) == (CREATED, EXISTS)
    assert other.request_id == first.envelope.request_id
    assert other.payload == b"1"


async def test_a_start_in_an_asyncpg_transaction_happens_if_it_commits(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)

    async with sql.transaction():
        saved = await process.storage.save_on(sql, start("o-1"))
        assert await process.storage.find("Fulfil", "o-1") is None

    assert saved.outcome is CREATED
    assert await process.storage.find("Fulfil", "o-1") is not None


async def test_a_start_in_an_asyncpg_transaction_vanishes_if_it_rolls_back(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    transaction = sql.transaction()
    await transaction.start()

    await process.storage.save_on(sql, start("o-1"))
    await transaction.rollback()

    assert await process.storage.find("Fulfil", "o-1") is None
    assert await sql.fetchval("select count(*) from engine.inbox") == 0


async def test_a_pooled_asyncpg_connection_carries_a_start_too(postgres: World, dsn: str) -> None:
    process = await postgres.process(register=False)

    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
        pool.acquire() as proxy,
        proxy.transaction(),
    ):
        saved = await process.storage.save_on(proxy, start("o-1"))

    assert saved.outcome is CREATED


@pytest.mark.parametrize("used_before", [False, True])
async def test_a_start_in_a_sqlalchemy_session_happens_if_it_commits(
    postgres: World, engine: AsyncEngine, used_before: bool
) -> None:
    process = await postgres.process(register=False)

    async with AsyncSession(engine) as session:
        if used_before:
            await session.execute(text("select 1"))
        await process.storage.save_on(session, start("o-1"))
        assert await process.storage.find("Fulfil", "o-1") is None
        await session.commit()
        await process.storage.save_on(session, start("o-2"))
        await session.rollback()

    assert await process.storage.find("Fulfil", "o-1") is not None
    assert await process.storage.find("Fulfil", "o-2") is None


async def test_a_start_in_a_sqlalchemy_connection_happens_if_it_commits(
    postgres: World, engine: AsyncEngine
) -> None:
    process = await postgres.process(register=False)

    async with engine.begin() as connection:
        await process.storage.save_on(connection, start("o-1"))

    assert await process.storage.find("Fulfil", "o-1") is not None


async def test_a_connection_without_a_transaction_is_refused(
    postgres: World, sql: asyncpg.Connection, engine: AsyncEngine
) -> None:
    process = await postgres.process(register=False)

    with pytest.raises(ConfigurationError, match="no transaction is open"):
        await process.storage.save_on(sql, start("o-1"))
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(ConfigurationError, match="no transaction is open"):
            await process.storage.save_on(connection, start("o-1"))


async def test_another_driver_is_refused_with_what_would_do(postgres: World, dsn: str) -> None:
    process = await postgres.process(register=False)

    with psycopg.connect(dsn) as connection, pytest.raises(ConfigurationError, match="asyncpg"):
        await process.storage.save_on(connection, start("o-1"))
    with pytest.raises(ConfigurationError, match="asyncpg"):
        await process.storage.save_on(object(), start("o-1"))


async def test_a_save_whose_connection_is_lost_runs_again_and_is_still_created(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    request = start("o-1", wait=True)
    async with sql.transaction():
        await sql.execute("lock table engine.inbox in share mode")
        saving = asyncio.ensure_future(process.storage.save([request]))
        await end_sessions_when_waiting(sql, process.storage.identity)  # type: ignore[attr-defined]

    (saved,) = await saving

    assert (saved.outcome, saved.request_id) == (CREATED, request.envelope.request_id)
    assert await sql.fetchval("select count(*) from engine.inbox") == 1


async def test_what_committed_before_the_connection_was_lost_is_created_not_existing(
    postgres: World,
) -> None:
    process = await postgres.process(register=False)
    request, message_ = start("o-1"), message()
    storage = process.storage
    pool = storage._pool  # type: ignore[attr-defined]
    real = pool.run

    async def commit_and_lose(session: object, *args: object, **options: object) -> object:
        pool.run = real
        await real(session, *args, **options)
        raise ConnectionResetError("lost after the commit")

    pool.run = commit_and_lose
    saved = await storage.save([request, message_])

    assert [answer.outcome for answer in saved] == [CREATED, CREATED]
    (again, _) = await storage.save([request, message_])
    assert again.outcome is EXISTS


async def test_what_was_opened_before_the_connection_was_lost_is_created_with_its_message(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    request = replace(event("o-1"), opening=start("o-1"))
    pool = process.storage._pool  # type: ignore[attr-defined]
    real = pool.run

    async def commit_and_lose(session: object, *args: object, **options: object) -> object:
        pool.run = real
        await real(session, *args, **options)
        raise ConnectionResetError("lost after the commit")

    pool.run = commit_and_lose
    (saved,) = await process.storage.save([request])

    assert saved.opened is not None
    assert (saved.outcome, saved.opened.outcome) == (CREATED, CREATED)
    assert await sql.fetchval("select count(*) from engine.inbox") == 2


async def test_of_racing_openings_of_one_execution_one_starts_it_and_every_message_is_stored(
    postgres: World, sql: asyncpg.Connection
) -> None:
    processes = [await postgres.process(register=False) for _ in range(4)]
    for n in range(10):
        requests = [replace(event(f"o-{n}"), opening=start(f"o-{n}")) for _ in processes]
        answers = await asyncio.gather(
            *(
                process.storage.save([request])
                for process, request in zip(processes, requests, strict=True)
            )
        )
        opened = [saved.opened for (saved,) in answers if saved.opened is not None]
        assert [saved.outcome for (saved,) in answers] == [CREATED] * 4
        assert [each.outcome for each in opened].count(CREATED) == 1
        assert len({each.request_id for each in opened}) == 1
    assert await sql.fetchval("select count(*) from engine.inbox") == 50
    assert await sql.fetchval("select count(*) from engine.executions") == 10


async def test_a_request_that_cannot_be_stored_is_refused_before_anything_is_written(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    good = message()
    for bad in (
        with_id("nul \0"),
        with_id("lone \ud800"),
        replace(message(), target="nul \0"),
        message(key="x" * 2001),
        start("o-1", attributes=b'{"a": "\\u0000"}'),
        start("o-1", attributes=b"{not json"),
    ):
        with pytest.raises(InvalidPayload):
            await process.storage.save([good, bad])

    assert await sql.fetchval("select count(*) from engine.envelopes") == 0


async def test_a_save_says_that_the_server_has_gone(postgres: World, dsn: str) -> None:
    process = await postgres.process(register=False)
    await process.storage.close()

    with pytest.raises(StorageUnavailable):
        await process.storage.save([message()])


def with_id(id: str) -> SaveRequest:
    request = message(id=next_id())
    address = request.envelope.address
    named = EntityAddress(address.shard, address.entity_type, type(address.entity_id)(id))
    return replace(request, envelope=replace(request.envelope, address=named))


async def end_sessions_when_waiting(sql: asyncpg.Connection, identity: object) -> None:
    """End the sessions of a process as soon as one of them waits for a lock."""

    async def ended() -> bool:
        rows = await sql.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where application_name like 'outlast:' || $1 || ':%' and wait_event_type = 'Lock'",
            str(identity),
        )
        return bool(rows)

    await eventually(ended, every=0.005)
