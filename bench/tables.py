"""S1 to S3: a steady load beside starts that are due much later, what the indexes take and are used
for then, and what the fill factors of the migrations are worth."""

import random
from datetime import timedelta
from functools import partial
from time import perf_counter

from bench.driver import repeated
from bench.place import Options, Place, other_process
from bench.results import Results, percentile
from bench.server import Connection, Server
from bench.soak import KEPT, METRICS, sampled
from bench.workflows import Steps

RATE = 1500.0
"""Workflows a second: what any hour of a small machine has room for."""
SECONDS, FULL_SECONDS, SAMPLES = 100.0, 600.0, 10
LATER, FULL_LATER, AT_ONCE = 300_000, 3_000_000, 500
"""Starts that are due in a month: queues are full as well as busy."""
LOOK = """
    select
        s.relname as name, s.n_dead_tup as dead_rows, s.autovacuum_count as vacuums,
        pg_table_size(s.relid) / 2^20 as table_mb, pg_indexes_size(s.relid) / 2^20 as index_mb
    from pg_stat_user_tables s
    where s.relname = any($1) and s.schemaname = 'engine'
    order by array_position($1, s.relname::text)
"""
LOOKED_AT = ["inbox", "waiters", "envelopes", "executions"]
"""A queue, a queue that is not logged, what is only added and deleted, and what is updated."""
INDEXES = """
    select
        indexrelname as name, pg_relation_size(indexrelid) / 2^20 as size_mb, idx_scan as scans
    from pg_stat_user_indexes
    where schemaname = 'engine' and pg_relation_size(indexrelid) > 2^17
    order by relname, indexrelname
"""
ROWS, UPDATES, BATCH = 100_000, 300_000, 50
UPDATED = {
    "entity_states": (
        """
        insert into engine.entity_states
            (entity_type, entity_id, group_id, shard, version, payload)
        select 'Stock', i, 7, i % 300 + 1, 1, convert_to(repeat('x', 200), 'utf8')
        from generate_series(1, $1::bigint) i
        """,
        """
        update engine.entity_states set version = version + 1
        where entity_type = 'Stock' and entity_id = any($1::bigint[]::text[])
        """,
    ),
    "acks": (
        "insert into engine.acks select i, 1 from generate_series(1, $1::bigint) i",
        "update engine.acks set sequence = sequence + 1 where request_id = any($1::bigint[])",
    ),
}
"""How each is filled, and how some of its rows are updated."""
HOT = """
    select n_tup_hot_upd / nullif(n_tup_upd, 0)::float8
    from pg_stat_user_tables where schemaname = 'engine' and relname = $1
"""


async def tables(server: Server, results: Results, options: Options) -> None:
    for later in (0, options.sized(FULL_LATER if options.full else LATER)):
        async with other_process(server, results, options, env=KEPT) as place:
            await repeated(partial(_start_later, place), later, at_once=AT_ONCE)
            async with place.database.connected() as admin:
                await _measure(place, admin, later)
    for name in UPDATED:
        await _filled(server, results, options, name)


async def _start_later(place: Place) -> None:
    await place.client.start(Steps, 1, key=place.keys(), delay=timedelta(days=30))


async def _measure(place: Place, admin: Connection, later: int) -> None:
    results, variant = place.results, f"beside {later:,} starts of later"
    seconds = (FULL_SECONDS if place.options.full else SECONDS) * min(1.0, place.options.scale)
    vacuumed = {row["name"]: row["vacuums"] for row in await admin.fetch(LOOK, LOOKED_AT)}
    read = {row["name"]: row["scans"] for row in await admin.fetch(INDEXES)}
    async with place.metered() as meter:
        samples = await sampled(place, RATE, SAMPLES, seconds / SAMPLES)
    total = sum(int(sample["rate"] * seconds / SAMPLES) for sample in samples)
    last = samples[SAMPLES // 2 :]
    for metric in ("rate", "p50", "p99", "cpu_ms"):
        value = percentile([sample[metric] for sample in last], 0.5)
        results.add("S1", variant, METRICS[metric][0], value, METRICS[metric][1], n=total)
    for row in await admin.fetch(LOOK, LOOKED_AT):
        name, *figures = row.items()
        rounded = {key: round(float(value), 3) for key, value in figures}
        rounded["vacuums"] -= vacuumed[name[1]]
        results.add("S1", variant, name[1], rounded.pop("table_mb"), "MiB", **rounded)
    results.add("S1", variant, "all", total, "workflows", cores=meter.cores(), **meter.per(total))
    if later:
        for row in await admin.fetch(INDEXES):
            scans = round((row["scans"] - read.get(row["name"], 0)) / total, 3)
            results.add("S2", row["name"], "size", row["size_mb"], "MiB", scans=scans)


async def _filled(server: Server, results: Results, options: Options, name: str) -> None:
    """Its rows are updated at random: as full as migrated, and as full as they can be."""
    fill, update = UPDATED[name]
    rows, updates = options.sized(ROWS), options.sized(UPDATES)
    for variant in ("as migrated", "100"):
        async with server.database() as database, database.connected() as connection:
            if variant == "100":
                await connection.execute(f"alter table engine.{name} set (fillfactor = 100)")
            await connection.execute(fill, rows)
            await connection.execute("vacuum analyze")
            await connection.execute("checkpoint")
            updating = await connection.prepare(update)
            before, began = await database.counted(), perf_counter()
            for _ in range(updates // BATCH):
                await updating.fetch(random.sample(range(1, rows + 1), min(rows, BATCH)))
            taken, after = perf_counter() - began, await database.counted()
            results.add(
                "S3",
                f"{name}, fill factor {variant}",
                "updates",
                updates / taken,
                "rows/s",
                n=updates,
                in_place=await _in_place(connection, name),
                wal_bytes=round((after.wal - before.wal) / updates),
            )


async def _in_place(connection: Connection, name: str) -> float:
    await connection.execute("select pg_stat_force_next_flush()")
    share = await connection.fetchval(HOT, name)
    return round(share or 0.0, 3)
