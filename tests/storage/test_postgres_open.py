"""Opening a storage on PostgreSQL: what it says when it cannot, and what it needs."""

import asyncio
import socket
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from engine.core.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from engine.core.ids import MACHINE_IDS, RunnerId
from engine.storage import connect
from engine.storage.entities import DeadFilter, EntityFilter
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import ExecutionFilter, Post, PostKind
from tests.eventually import eventually
from tests.storage.pooler import transaction_pooler
from tests.storage.test_postgres_doorbell import Ear
from tests.storage.world import World, ack, interrupt, message, next_id, start

GRANTS = """
create role {role} login;
grant usage on schema engine to {role};
grant select on all tables in schema engine to {role};
"""


async def opening(dsn: str, **options: object) -> str:
    """What opening fails with."""
    storage = PostgresStorage(dsn, **options)  # type: ignore[arg-type]
    with pytest.raises((ConfigurationError, SchemaMismatch, StorageUnavailable)) as failed:
        await storage.open()
    await storage.close()
    return f"{type(failed.value).__name__}: {failed.value}"


async def test_an_unreachable_server_is_named_without_the_password(dsn: str) -> None:
    said = await opening("postgresql://me:s3cret@127.0.0.1:1/shop")

    assert said.startswith("StorageUnavailable: PostgreSQL at 127.0.0.1:1/shop cannot be reached")
    assert "s3cret" not in said


async def test_a_database_that_does_not_exist_is_named(dsn: str) -> None:
    said = await opening(dsn.rsplit("/", 1)[0] + "/nowhere_to_be_found")

    assert "StorageUnavailable: there is no such database at" in said
    assert "/nowhere_to_be_found" in said


@pytest.mark.parametrize(
    "dsn", ["mysql://me:s3cret@host/shop", "nonsense", "postgresql://me:s3cret@h:port/x"]
)
async def test_a_dsn_that_cannot_be_read_is_refused_without_the_password(dsn: str) -> None:
    said = await opening(dsn)

    assert said.startswith("ConfigurationError: the DSN cannot be read")
    assert "s3cret" not in said


async def test_a_database_without_the_schema_says_what_to_run(empty_dsn: str) -> None:
    assert "outlast migrate" in await opening(empty_dsn)


async def test_a_server_that_is_too_old_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "OLDEST_SERVER", 99)

    assert "needs 99 or newer" in await opening(dsn)


async def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        said = await opening(
            f"postgresql://me@127.0.0.1:{port}/shop", connect_timeout=timedelta(seconds=0.2)
        )

    assert "StorageUnavailable" in said


async def test_a_login_that_may_only_read_can_inspect(
    dsn: str, postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process(register=False)
    await process.storage.save([start("o-1"), message()])
    role = f"reader_{uuid4().hex}"
    await sql.execute(GRANTS.format(role=role))
    try:
        async with PostgresStorage(f"postgresql://{role}@{dsn.split('@')[1]}") as storage:
            assert await storage.find("Fulfil", "o-1") is not None
            assert len(await storage.executions(ExecutionFilter(), limit=5)) == 1
            assert len(await storage.shards()) == 12
            assert len(await storage.entities(EntityFilter(), limit=5)) == 1
            assert await storage.dead_letters(DeadFilter(), limit=5) == []
            assert await storage.schedules() == []
            assert await storage.fires("nightly", limit=5) == []
            assert await storage.states([("Stock", "sku-1")]) == {}
            assert await storage.runners() == []

            async def one_session() -> bool:
                count = "select count(*) from pg_stat_activity where usename = $1"
                return await sql.fetchval(count, role) == 1

            await eventually(one_session)
            with pytest.raises(StorageUnavailable, match="grants"):
                await storage.save([message()])
    finally:
        await sql.execute(f"drop owned by {role}; drop role {role}")


async def test_two_schemas_in_one_database_do_not_meet(
    dsn: str, postgres: World, sql: asyncpg.Connection
) -> None:
    from engine.storage.migrate import migrate

    await migrate(dsn, schema="other")
    process = await postgres.process(register=False)
    await process.storage.save([start("o-1")])

    async with PostgresStorage(dsn, schema="other", shards_per_group=4) as other:
        await other.ensure_groups(["default"])
        assert other.shards_in("default") == 4
        assert await other.find("Fulfil", "o-1") is None
        await other.save([message()])

    assert await sql.fetchval("select count(*) from engine.inbox") == 1


async def test_groups_are_made_once_by_any_number_of_processes(dsn: str) -> None:
    storages = [PostgresStorage(dsn, shards_per_group=7) for _ in range(6)]
    for storage in storages:
        await storage.open()
    await asyncio.gather(*(storage.ensure_groups(["a", "b", "c"]) for storage in storages))

    assert len(await storages[0].shards()) == 21
    for storage in storages:
        assert storage.shards_in("b") == 7
        await storage.close()


async def test_machine_ids_of_the_living_are_never_shared(dsn: str) -> None:
    storages = [PostgresStorage(dsn) for _ in range(8)]
    for storage in storages:
        await storage.open()
    leases = await asyncio.gather(*(s.lease_machine(None) for s in storages for _ in range(5)))

    assert len({lease.machine for lease in leases}) == len(leases)
    for storage in storages:
        await storage.close()


async def test_when_every_machine_id_is_leased_it_says_so(
    dsn: str, sql: asyncpg.Connection
) -> None:
    await sql.execute(
        "insert into engine.machine_ids select n, gen_random_uuid(), now() + interval '1 hour'"
        f" from generate_series(0, {MACHINE_IDS - 1}) n"
    )
    async with PostgresStorage(dsn) as storage:
        with pytest.raises(StorageUnavailable, match="machine ids are leased"):
            await storage.lease_machine(None)
        await sql.execute("update engine.machine_ids set expires_at = now() where machine = 77")
        assert (await storage.lease_machine(None)).machine == 77


async def test_a_lease_ends_here_before_it_ends_there(dsn: str, sql: asyncpg.Connection) -> None:
    async with PostgresStorage(dsn, machine_lease=timedelta(minutes=1)) as storage:
        lease = await storage.lease_machine(None)
        again = await storage.lease_machine(lease)

    expires = await sql.fetchval("select expires_at from engine.machine_ids")
    assert again.machine == lease.machine
    assert again.until < expires
    assert again.until > expires - timedelta(seconds=10)


# --- poolers --------------------------------------------------------------------------------------


async def test_a_transaction_pooler_is_refused_for_lanes_with_the_fix(dsn: str) -> None:
    async with transaction_pooler(dsn) as pooled, PostgresStorage(pooled) as storage:
        with pytest.raises(ConfigurationError, match="transaction pooler"):
            await storage.open_lane(RunnerId(uuid4()), 0)


async def test_behind_a_transaction_pooler_a_client_polls(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with transaction_pooler(dsn) as pooled, PostgresStorage(pooled) as storage:
        storage.doorbell.listen(Ear())
        await eventually(lambda: "polling only" in caplog.text)
        assert not storage.doorbell.healthy


async def test_everything_but_lanes_and_listeners_works_through_a_transaction_pooler(
    dsn: str, sql: asyncpg.Connection
) -> None:
    async with (
        transaction_pooler(dsn) as pooled,
        PostgresStorage(dsn, pool_dsn=pooled, shards_per_group=12) as storage,
    ):
        await storage.ensure_groups(["default"])
        saved = await asyncio.gather(*(storage.save([start(f"o-{n}")]) for n in range(40)))
        await storage.watch([next_id()])
        found = await storage.executions(ExecutionFilter(), limit=100)
        lease = await storage.lease_machine(None)
        await storage.release_machine(lease)
        stream = message()
        await storage.save([stream])
        await storage.acknowledge([ack(stream, 0)], wait=True)
        assert await storage.interrupt([interrupt(stream)]) == [True]
        assert (await storage.streams([stream.envelope.request_id])).keys()
        post = Post(kind=PostKind.ACK, to=storage.identity, request_id=next_id(), body=b"1")
        await storage.post([post])
        assert [received.body for received in await storage.take_post()] == [b"1"]

        assert len(found) == len(saved) == 40
        runner = RunnerId(storage.identity)
        lane = await storage.open_lane(runner, 0)
        await lane.close()
    assert await sql.fetchval("select count(*) from engine.dedup") == 40
