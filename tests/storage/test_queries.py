"""Every query runs on a real server; the hot ones keep to their indexes when tables are full."""

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from engine.core.errors import ConfigurationError
from engine.storage.connect import OUR_PLANS
from engine.storage.queries import Queries, schema_name
from engine.storage.session import Session

QUERIES = Queries("engine")
HOT_TABLES = {
    "inbox",
    "dedup",
    "envelopes",
    "executions",
    "journal",
    "replies",
    "acks",
    "post",
    "waiters",
    "entity_states",
    "schedule_fires",
    "step_heartbeats",
    "queue_items",
}
NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOT = {
    "save": (*[[]] * 20, None),
    "save alone": (
        *(1, 7, 1, "Fulfil", "o-1", "signal/say", 0, None, None, None, None, "message/Fulfil/o-1"),
        *(b"", b"", "run/Fulfil/o-1", None, None, None, False, None, None),
    ),
    "open": (
        *(1, 7, 1, "Fulfil", "o-1", None, "run/Fulfil/o-1", None, b"", 0, None, True),
        *(2, "signal/say", "message/Fulfil/o-1", None, b"", False, None, None),
    ),
    "flush": (*[[]] * 20, None, *[[]] * 42),
    "start_times": ([],),
    "stored": ([],),
    "finish": [[]] * 35,
    "finish alone": (
        *(1, 1, 2, 1, 0, 1, 0, 0, None, NOON, None, None, "step", b"1", 1, 0, 1, b"1", None, None),
        *(None, 7, 1, 1, 1, 1, 5, NOON, NOON, None, None, 0, 1, None, None),
    ),
    "flush_journal": [[]] * 14,
    "count_failed": ([], [], []),
    "mark_tried": ([], [], []),
    "count_lost": ([], [], 3, 200),
    "sweep": ([], [], [], [], 100, 64, timedelta(seconds=1), [], [], None, []),
    "ring": (*[[]] * 7, False),
    "ring_owner": (7, 1),
    "ring_waiters": (1,),
    "start": (1, 7, 1, "Fulfil", "o-1", None, "run/Fulfil/o-1", None, b"", 1, None, None),
    "watch": ([], "outlast_1"),
    "unwatch": ([], "outlast_1"),
    "replies": ([], [], []),
    "streams": ([],),
    "acknowledge": ([], [], "outlast_1"),
    "interrupt": ([],),
    "post": (*[[]] * 6,),
    "take_post": ("00000000-0000-0000-0000-000000000001", []),
    "states": ([], []),
    "dead_letters": (0, 1 << 62, None, None, 100),
    "dead": ([],),
    "revive": ([], []),
    "write_heartbeats": (*[[]] * 8,),
    "drop_heartbeats": ([], [], []),
    "heartbeats": ([],),
    "dispatch": ("Parcels", 7, 1, *[[]] * 17, None, None, None, [], [], []),
    "queue_held": ("Parcels",),
    "fires": ("nightly", 100),
    "request": (1,),
    "known": ([],),
    "load": ([],),
    "load_journal": ([], []),
    "history": (1,),
    "find": ("run/Fulfil/o-1",),
    "waiting_rows": (1,),
}
FULL = """
insert into engine.dedup select 'run/Fulfil/' || i, i from generate_series(1, 100000) i;
insert into engine.envelopes (request_id, group_id, shard, entity_type, entity_id, tag, payload)
    select i, 7, i % 300 + 1, 'Fulfil', i::text, 'run', '1' from generate_series(1, 100000) i;
insert into engine.inbox (group_id, shard, kind, request_id, execution, due_at)
    select 7, i % 300 + 1, 0, i, i, case when i % 10 = 0 then now() + interval '1 hour' end
    from generate_series(1, 100000) i;
insert into engine.executions
    (request_id, workflow, execution_id, group_id, shard, status, version, wake_at)
    select i, 'Fulfil', i::text, 7, i % 300 + 1, 2, 1,
        case when i % 2 = 0 then now() + interval '1 hour' end
    from generate_series(1, 100000) i;
insert into engine.journal
    (execution, run, position, kind, outcome, attempt, ordinal, digest, at, name, payload)
    select i, 1, 1, 1, 0, 1, 1, 0, now(), 'charge', '1' from generate_series(1, 100000) i;
insert into engine.replies (request_id, sequence, kind, payload)
    select i, 0, 1, '1' from generate_series(1, 100000) i;
insert into engine.replies (request_id, sequence, kind, payload)
    select i, 0, 5, '1' from generate_series(100001, 100100) i;
insert into engine.waiters select i, 'outlast_1' from generate_series(1, 100000) i;
insert into engine.acks select i, 1 from generate_series(1, 100000) i;
insert into engine.post (channel, kind, request_id, body)
    select gen_random_uuid(), 0, i, '1' from generate_series(1, 100000) i;
insert into engine.entity_states (entity_type, entity_id, group_id, shard, version, payload)
    select 'Stock', i::text, 7, i % 300 + 1, 1, '1' from generate_series(1, 100000) i;
insert into engine.schedule_fires (schedule, instant, outcome, at)
    select 'nightly', now() - i * interval '1 minute', 0, now() from generate_series(1, 100000) i;
insert into engine.step_heartbeats (execution, run, step, ordinal, attempt, at, name, details)
    select i, 1, i, 0, 1, now(), 'crawl', '1' from generate_series(1, 100000) i;
insert into engine.queue_items (request_id, queue, seq, priority, key, shard)
    select i, 'Parcels', i, 0, (i % 100)::text, case when i <= 20 then i end
    from generate_series(1, 100000) i;
analyze;
"""

LATER = """
insert into engine.inbox (group_id, shard, kind, request_id, execution, due_at)
    select 7, 1, 0, i, i, now() + interval '1 month' from generate_series(1, 100000) i;
analyze engine.inbox;
"""

ONE_SHARD = """
insert into engine.inbox (group_id, shard, kind, request_id, entity)
    select 7, 75, 0, i, 5 from generate_series(1, 100000) i;
analyze engine.inbox;
"""

STREAMED = 100_000
TAKEN = f"""
insert into engine.replies (request_id, sequence, kind, payload)
    select 1, i, 0, '1' from generate_series(0, {STREAMED + 9}) i;
delete from engine.replies where sequence < {STREAMED};
insert into engine.acks values (1, {STREAMED - 1});
"""


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def test_every_query_can_be_prepared_without_asking_what_its_types_are(dsn: str) -> None:
    session = await asyncpg.connect(dsn, connection_class=Session)
    session.know_arrays()
    asked: list[str] = []
    session.add_query_logger(lambda record: asked.append(record.query))
    refused: dict[str, asyncpg.PostgresError] = {}
    for name in QUERIES.names():
        try:
            await session.prepare(QUERIES[name])
        except asyncpg.PostgresError as error:
            refused[name] = error
    await session.close()

    assert refused == {}
    assert asked == []


async def test_hot_queries_keep_to_indexes_however_full_the_tables_are(
    connection: asyncpg.Connection,
) -> None:
    # The engine's sessions make generic plans and may have made them when the tables were empty.
    for setting, value in OUR_PLANS.items():
        await connection.execute(f"set {setting} = {value}")
    new = {name: await plan(connection, name) for name in HOT}
    await connection.execute("vacuum analyze")
    emptied = {name: await plan(connection, name) for name in HOT}
    await connection.execute(FULL)
    full = {name: await plan(connection, name) for name in HOT}

    # An update cannot be told its join order; executions that were all pruned and vacuumed when
    # `flush` was planned are read through until it is planned again, a minute later at most.
    remains = {name: {"executions"} for name in ("flush", "finish")}
    for plans, known in ((new, {}), (emptied, remains), (full, {})):
        assert {name: scanned(plan) & HOT_TABLES for name, plan in plans.items()} == {
            name: known.get(name, set()) for name in HOT
        }


async def test_pruning_reads_no_table_from_end_to_end(
    connection: asyncpg.Connection,
) -> None:
    for setting, value in OUR_PLANS.items():
        await connection.execute(f"set {setting} = {value}")
    await connection.execute(FULL)
    pruning = {
        "finished": (*[[]] * 4, 500),
        "prune": ([], datetime(2025, 6, 1, tzinfo=UTC)),
        "prune_runs": ([], [], 0, 500, 20),
        "prune_requests": (
            1,
            0,
            1 << 40,
            datetime(2025, 6, 1, tzinfo=UTC),
            datetime(2025, 6, 1, tzinfo=UTC),
            500,
        ),
    }

    plans = {
        name: await explained(connection, name, arguments, "format json")
        for name, arguments in pruning.items()
    }

    assert {name: scanned(plan) & HOT_TABLES for name, plan in plans.items()} == {
        name: set() for name in pruning
    }
    # Few have ended, or so it seems: all the more is each found by its id. Of 100,000 that go on
    # only those are looked at that have left runs behind.
    assert indexes(plans["finished"], "executions") == {"executions_finished"}
    assert indexes(plans["prune"], "executions") == {"executions_pkey"}
    assert indexes(plans["prune_runs"], "executions") == {"executions_runs", "executions_pkey"}


async def test_a_sweep_does_not_look_at_what_is_due_later(connection: asyncpg.Connection) -> None:
    for setting, value in OUR_PLANS.items():
        await connection.execute(f"set {setting} = {value}")
    sweep = ([7], [1], *HOT["sweep"][2:7], [], [0], None, [])
    new = await explained(connection, "sweep", sweep, "format json")
    await connection.execute(LATER)

    read = await pages(connection, "sweep", sweep)
    full = await explained(connection, "sweep", sweep, "format json")

    assert read < 50
    assert indexes(new, "inbox") == indexes(full, "inbox")
    assert indexes(full, "inbox") >= {"inbox_ready", "inbox_due"}


async def test_a_shard_is_not_read_for_others_when_all_that_waits_is_in_it(
    connection: asyncpg.Connection,
) -> None:
    for setting, value in OUR_PLANS.items():
        await connection.execute(f"set {setting} = {value}")
    await connection.execute(ONE_SHARD)
    shards = [7] * 150, [*range(1, 151)]

    sweep = (*shards, *HOT["sweep"][2:7], [6], [0] * 150, None, [1])
    read = {
        "sweep": await pages(connection, "sweep", sweep),
        "count_lost": await pages(connection, "count_lost", (*shards, 3, 200)),
    }

    assert {name: number for name, number in read.items() if number > 5000} == {}


async def test_what_waits_in_one_inbox_is_found_without_reading_all_inboxes(
    connection: asyncpg.Connection,
) -> None:
    await connection.execute(FULL)

    for name, arguments in {
        "place": (5,),
        "queue_counts": (["Parcels"], ["Fulfil"], "item"),
    }.items():
        found = await explained(connection, name, arguments, "format json")
        assert "inbox" not in scanned(found), name
        assert indexes(found, "inbox") >= {"inbox_ready", "inbox_due"}, name


async def test_hot_queries_keep_to_indexes_without_our_settings(
    connection: asyncpg.Connection,
) -> None:
    # Behind a transaction pooler settings come late: full tables must be enough of a reason.
    await connection.execute("set plan_cache_mode = force_generic_plan")
    await connection.execute(FULL)

    plans = {name: await plan(connection, name) for name in HOT}

    assert {name: scanned(plan) & HOT_TABLES for name, plan in plans.items()} == {
        name: set() for name in HOT
    }


async def test_a_stream_does_not_look_at_what_was_taken_though_nothing_can_be_vacuumed(
    connection: asyncpg.Connection, dsn: str
) -> None:
    for setting, value in OUR_PLANS.items():
        await connection.execute(f"set {setting} = {value}")
    somebody = await asyncpg.connect(dsn)
    try:
        await somebody.execute("begin isolation level repeatable read; select 1")
        await connection.execute(TAKEN)
        last = STREAMED + 9
        chunk = ([1], [last + 1], [0], [b"1"], [None], [None], [None])
        flush = [*HOT["flush"]]
        flush[35:42] = chunk
        read = {
            name: await pages(connection, name, arguments)
            for name, arguments in {
                "acknowledge": ([1], [last], None),
                "streams": ([1],),
                "replies": ([1], [last - 1], [1000]),
                "flush": flush,
            }.items()
        }
    finally:
        await somebody.close()

    assert {name: number for name, number in read.items() if number > 150} == {}


def test_the_schema_of_the_queries_is_replaced_everywhere() -> None:
    queries = Queries("shop_engine")

    assert not any(re.search(r"(?<![\"_\w])engine\.", queries[name]) for name in queries.names())
    assert '"shop_engine".inbox' in queries["save"]


@pytest.mark.parametrize("name", ["", "Engine", "1st", 'x"; drop', "a.b", "é", "x" * 51, "pg-x"])
def test_a_schema_name_that_is_not_an_identifier_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="lower-case identifier"):
        schema_name(name)


def test_flush_stores_requests_by_the_same_sql_as_save() -> None:
    def requests(name: str) -> str:
        text = QUERIES[name]
        return text[text.index("with asked") : text.index("select 0, d.request_id")]

    assert requests("flush") == requests("save")


def test_finish_is_the_middle_of_flush() -> None:
    def middle(name: str, end: str, *, skipped: int) -> str:
        text = QUERIES[name]
        part = text[text.index("written as (") : text.index(end)].strip(" \n,")
        return re.sub(r"\$(\d+)", lambda number: f"${int(number[1]) - skipped}", part)

    assert middle("finish", "\nselect\n", skipped=0) == middle("flush", "offered as", skipped=21)


def test_every_query_is_used() -> None:
    package = Path(__file__).parents[2] / "engine"
    code = "\n".join(path.read_text() for path in package.rglob("*.py"))

    assert [name for name in QUERIES.names() if f'"{name}"' not in code] == []


async def plan(connection: asyncpg.Connection, name: str) -> dict[str, object]:
    return await explained(connection, name, HOT[name], "format json")


async def pages(connection: asyncpg.Connection, name: str, arguments: Sequence[object]) -> int:
    """How many pages the part of the query touches that touches most."""
    found = await explained(connection, name, arguments, "analyze, buffers, format json")
    return max(
        sum(int(str(node[f"Shared {kind} Blocks"])) for kind in ("Hit", "Read"))
        for node in nodes(found)
    )


async def explained(
    connection: asyncpg.Connection, name: str, arguments: Sequence[object], options: str
) -> dict[str, object]:
    text, *called = QUERIES.call(name, *arguments)
    types = [p.name for p in (await connection.prepare(text)).get_parameters()]
    given = ", ".join(literal(value, kind) for value, kind in zip(called, types, strict=True))
    await connection.execute(f"prepare hot as {text}")
    try:
        found = await connection.fetchval(f"explain ({options}) execute hot ({given})")
    finally:
        await connection.execute("deallocate hot")
    return json.loads(found)[0]["Plan"]


def literal(value: object, kind: str) -> str:
    if isinstance(value, list):
        items = ", ".join(literal(each, kind.removesuffix("[]")) for each in value)
        return f"array[{items}]::{kind}"
    if isinstance(value, bytes):
        return f"'{value.decode()}'::{kind}"
    if value is None:
        return f"null::{kind}"
    if isinstance(value, timedelta):
        return f"'{value.total_seconds()} s'::interval"
    return f"'{value}'::{kind}"


def scanned(plan: dict[str, object]) -> set[str]:
    """The tables a plan reads from one end to the other."""
    return {
        str(node["Relation Name"])
        for node in nodes(plan)
        if node["Node Type"] == "Seq Scan"
        or (str(node["Node Type"]).startswith("Index") and "Index Cond" not in node)
    }


def indexes(plan: dict[str, object], table: str) -> set[str]:
    """The indexes by which a plan reads a table."""
    return {
        str(node["Index Name"])
        for node in nodes(plan)
        if "Index Name" in node and str(node["Index Name"]).startswith(f"{table}_")
    }


def nodes(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    for child in plan.get("Plans", ()):  # type: ignore[attr-defined]
        yield from nodes(child)
