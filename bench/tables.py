"""S1 and S2: what the settings of tables that the migrations make are worth, against PostgreSQL's
own, and what their indexes take and are used for."""

from datetime import timedelta
from functools import partial

from bench.driver import repeated
from bench.place import Options, Place, other_process
from bench.results import Results, percentile
from bench.server import Connection, Database, Server
from bench.soak import KEPT, METRICS, sampled
from bench.workflows import Steps

RATE = 1500.0
"""Workflows a second: what any hour of a small machine has room for."""
SECONDS, FULL_SECONDS, SAMPLES = 100.0, 300.0, 10
LATER, AT_ONCE = 300_000, 500
"""Starts that are due in a month: queues are full as well as busy."""
SET = """
    select c.oid::regclass::text as name, array_agg(split_part(o, '=', 1)) as options
    from pg_class c cross join lateral unnest(c.reloptions) o
    where c.relnamespace = 'engine'::regnamespace and c.relkind = 'r'
    group by c.oid
"""
LOOK = """
    select
        s.relname as name, s.n_tup_hot_upd / nullif(s.n_tup_upd, 0)::float8 as in_place,
        s.n_dead_tup as dead_rows, s.autovacuum_count as vacuums,
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


async def tables(server: Server, results: Results, options: Options) -> None:
    for variant in ("as migrated", "as PostgreSQL has it"):
        async with other_process(server, results, options, env=KEPT) as place:
            if variant != "as migrated":
                await _reset(place.database)
            await repeated(partial(_start_later, place), options.sized(LATER), at_once=AT_ONCE)
            await _measure(place, variant)


async def _reset(database: Database) -> None:
    async with database.connected() as connection:
        for row in await connection.fetch(SET):
            options = ", ".join(row["options"])
            await connection.execute(f"alter table {row['name']} reset ({options})")


async def _start_later(place: Place) -> None:
    await place.client.start(Steps, 1, key=place.keys(), delay=timedelta(days=30))


async def _measure(place: Place, variant: str) -> None:
    options, results = place.options, place.results
    seconds = (FULL_SECONDS if options.full else SECONDS) * min(1.0, options.scale)
    async with place.metered() as meter:
        samples = await sampled(place, RATE, SAMPLES, seconds / SAMPLES)
    total = sum(int(sample["rate"] * seconds / SAMPLES) for sample in samples)
    last = samples[SAMPLES // 2 :]
    for metric in ("p50", "p99", "cpu_ms"):
        value = percentile([sample[metric] for sample in last], 0.5)
        results.add("S1", variant, METRICS[metric][0], value, METRICS[metric][1], n=total)
    async with place.database.connected() as admin:
        await _look(admin, results, variant)
        if variant == "as migrated":
            for row in await admin.fetch(INDEXES):
                scans = round(row["scans"] / total, 3)
                results.add("S2", row["name"], "size", row["size_mb"], "MiB", scans=scans)
    results.add("S1", variant, "all", total, "workflows", cores=meter.cores(), **meter.per(total))


async def _look(admin: Connection, results: Results, variant: str) -> None:
    for row in await admin.fetch(LOOK, LOOKED_AT):
        figures = {
            name: round(float(value or 0), 3) for name, value in row.items() if name != "name"
        }
        results.add("S1", variant, row["name"], figures.pop("table_mb"), "MiB", **figures)
