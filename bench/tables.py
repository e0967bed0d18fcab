"""S1: what the settings of tables that the migrations make are worth, against PostgreSQL's own."""

import asyncio

from bench.driver import Keys, run_many
from bench.meter import Meter
from bench.place import Options, settings_of, settled_in
from bench.process import runner_process
from bench.results import Results
from bench.server import Connection, Database, Server
from engine import Client

WORKFLOWS, AT_ONCE = 300_000, 2000
SETTLING = 2.0
"""Seconds after which what a session has counted is told to all."""
SET = """
    select c.oid::regclass::text as name, array_agg(split_part(o, '=', 1)) as options
    from pg_class c cross join lateral unnest(c.reloptions) o
    where c.relnamespace = 'engine'::regnamespace and c.relkind = 'r'
    group by c.oid
"""
LOOK = """
    select
        s.n_tup_hot_upd / nullif(s.n_tup_upd, 0)::float8 as in_place, s.n_dead_tup as dead_rows,
        s.autovacuum_count as vacuums, pg_table_size(s.relid) / 2^20 as table_mb,
        pg_indexes_size(s.relid) / 2^20 as index_mb
    from pg_stat_user_tables s where s.relid = to_regclass('engine.' || $1)
"""
LOOKED_AT = ("inbox", "waiters", "executions")
"""A queue, a queue that is not logged, and what is updated."""


async def tables(server: Server, results: Results, options: Options) -> None:
    for variant in ("as migrated", "as PostgreSQL has it"):
        async with server.database() as database:
            if variant != "as migrated":
                await _reset(database)
            async with runner_process(database) as process:
                await settled_in(database, runners=1)
                await _measure(database, results, options, variant, process.pid)


async def _reset(database: Database) -> None:
    async with database.connected() as connection:
        for row in await connection.fetch(SET):
            options = ", ".join(row["options"])
            await connection.execute(f"alter table {row['name']} reset ({options})")


async def _measure(
    database: Database, results: Results, options: Options, variant: str, runner: int
) -> None:
    count = options.sized(WORKFLOWS)
    async with Client(settings_of(database)) as client, database.connected() as admin:
        async with Meter(database, runners=[runner]) as meter:
            await run_many(client, Keys(), count, at_once=AT_ONCE)
        rate = count / meter.seconds
        results.add("S1", variant, "throughput", rate, "workflows/s", n=count, **meter.per(count))
        await asyncio.sleep(SETTLING)
        for table in LOOKED_AT:
            await _look(admin, results, variant, table)


async def _look(admin: Connection, results: Results, variant: str, table: str) -> None:
    row = await admin.fetchrow(LOOK, table)
    assert row is not None
    figures = {name: round(float(value or 0), 3) for name, value in row.items()}
    results.add("S1", variant, table, figures.pop("table_mb"), "MiB", **figures)
