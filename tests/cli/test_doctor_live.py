"""Each thing that the doctor looks at, brought about in a real database."""

from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import asyncpg
import psycopg
import pytest

from engine import Client, Runner
from engine.core.ids import first_snowflake
from engine.diagnosis import Severity, upkeep
from engine.storage.postgres import PostgresStorage
from engine.storage.rights import Kind
from engine.storage.upkeep import Bloat, Upkeep
from tests.cli.orders import Slow
from tests.cli.terminal import do, outlast, served, settings
from tests.eventually import eventually
from tests.roles import role
from tests.storage.pooler import transaction_pooler

CHURN = """
alter table engine.inbox set (autovacuum_enabled = false);
insert into engine.inbox (group_id, shard, kind, request_id)
    select 1, 1, 2, i from generate_series(1, 12000) i;
delete from engine.inbox;
"""
WAITING = """
insert into engine.envelopes (request_id, group_id, shard, entity_type, entity_id, tag, payload)
    select id, 1, 1, 'Stock', 'sku-1', 'reserve', '1' from unnest(array[$1::bigint, $2]) as id
"""
DUE = """
insert into engine.inbox (group_id, shard, kind, request_id, due_at)
    values (1, 1, 0, $1, null), (1, 1, 0, $2, now() + interval '1 hour');
"""


async def found(dsn: str, topic: str) -> list[tuple[str, str, str]]:
    """What the doctor says of a topic: severity, message, fix."""
    said = await do("doctor", dsn=dsn)
    assert not said.err
    return [
        (line["severity"], line["message"], line["fix"] or "")
        for line in said.lines
        if line["topic"] == topic
    ]


async def test_a_table_full_of_dead_rows(dsn: str) -> None:
    assert (await found(dsn, "bloat"))[0][0] == "ok"
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute(CHURN.encode())

    async def told() -> bool:
        (severity, message, fix) = (await found(dsn, "bloat"))[0]
        return (
            severity == "wrong"
            and "table inbox holds 12000 dead rows" in message
            and ("switch autovacuum on" in fix)
        )

    await eventually(told, timeout=20)  # statistics arrive when they do


def test_where_autovacuum_works_something_else_keeps_the_rows() -> None:
    seen = Bloat(name="inbox", live=1, dead=50_000, vacuumed_at=None, automatic=True)
    (bloat, _) = upkeep(Upkeep(bloat=[seen]))

    assert (bloat.severity, bloat.fix[:24]) == (Severity.WRONG, "end what keeps old rows,")


async def test_requests_that_nobody_begins(dsn: str) -> None:
    assert (await found(dsn, "inbox"))[0][0] == "ok"
    old = datetime.now(UTC) - timedelta(hours=2)
    sql = await asyncpg.connect(dsn)
    ids = (first_snowflake(old), first_snowflake(old) + 1)
    await sql.execute(WAITING, *ids)
    await sql.execute(DUE, *ids)
    await sql.close()
    async with Client(settings(dsn)) as client:
        await client.start(Slow, 0, key="young")

    ((severity, message, fix),) = await found(dsn, "inbox")
    assert severity == "note"
    assert "requests to Stock that are due and have not begun: 1," in message
    assert old.isoformat(timespec="minutes")[:16] in message
    assert "outlast why" in fix


async def test_runners_whose_logins_may_not_end_each_others_sessions(dsn: str) -> None:
    async with AsyncExitStack() as stack:
        logins = [stack.enter_context(role(dsn, Kind.WORKER)) for _ in range(2)]
        await stack.enter_async_context(Runner(settings(logins[0])).register(Slow()))
        assert await found(dsn, "logins") == []
        await stack.enter_async_context(Runner(settings(logins[1])).register(Slow()))

        told = await found(dsn, "logins")
        assert [severity for severity, _, _ in told] == ["wrong", "wrong"]
        assert all("pg_signal_backend" in fix for _, _, fix in told)
        assert len({message for _, message, _ in told}) == 2
        assert len(await found(logins[0], "logins")) == 2, "whoever asks"


async def test_a_runner_that_gives_no_sign_of_life(dsn: str) -> None:
    async with served(dsn):
        with psycopg.connect(dsn, autocommit=True) as sql:
            sql.execute(
                "insert into engine.runners (id, groups, host, pid, version, types, machine)"
                " values (gen_random_uuid(), '{other}', 'gone', 7, '1', '{}', 1023)"
            )
            sql.execute(
                "insert into engine.runner_heartbeats (runner_id, beat_at)"
                " select id, now() - interval '1 minute' from engine.runners where host = 'gone'"
                " on conflict (runner_id) do update set beat_at = excluded.beat_at"
            )
        told = await found(dsn, "runners")

    assert any("runner gone:7 has given no sign of life for" in said for _, said, _ in told)


async def test_a_transaction_that_is_open(dsn: str) -> None:
    sql = await asyncpg.connect(dsn)
    try:
        async with PostgresStorage(dsn) as storage:
            await sql.execute("begin isolation level repeatable read; select 1")
            begun = await sql.fetchval("select now()")
            assert (await storage.server()).oldest_transaction == begun
    finally:
        await sql.close()


async def test_a_transaction_pooler_where_a_direct_connection_belongs(
    dsn: str,
) -> None:
    async with transaction_pooler(dsn) as pooled:
        ((severity, message, fix),) = await found(pooled, "connection")
    assert severity == "wrong"
    assert "transaction pooler" in message
    assert fix.startswith("set the DSN to the server itself")


async def test_more_shards_than_a_server_has_locks_for(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute(
            "insert into engine.shards (group_id, shard) select n / 10000, n % 10000"
            " from generate_series(0, current_setting('max_locks_per_transaction')::int"
            " * current_setting('max_connections')::int / 2) n"
        )
        sql.execute(
            "insert into engine.shard_groups select group_id::text, group_id, count(*)"
            " from engine.shards group by group_id"
        )

    ((severity, _, fix),) = await found(dsn, "locks")
    assert severity == "wrong"
    assert "raise max_locks_per_transaction" in fix


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("update engine.schema_version set version_num = '9999'", "upgrade outlast"),
        ("update engine.schema_version set version_num = '0000'", "outlast migrate"),
    ],
)
def test_a_schema_of_another_version(dsn: str, change: str, told: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as sql:
        sql.execute(change.encode())

    said = outlast("doctor", dsn=dsn)

    (schema,) = [line for line in said.lines if line["topic"] == "schema"]
    assert (said.code, schema["severity"]) == (1, "wrong")
    assert told in schema["fix"]
