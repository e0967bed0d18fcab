"""Write the dump of this version: ``.venv/bin/python -m tests.upgrades.dump``.

A dump is plain SQL, for every server that outlast works on: the schema as the migrations make it,
then the rows of every table, taken while a runner and a client were at work. That of a version that
is released is never written again; before a release it is, whenever the schema changes.
"""

import asyncio
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg

from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import VERSION_TABLE, migrate, migration_sql
from tests.upgrades.app import EFFECTS, cluster, fill

DUMPS = Path(__file__).parent / "dumps"
COMMAND = ".venv/bin/python -m tests.upgrades.dump"
DATA = "-- data\n"
TABLES = """
    select c.relname as name, array_agg(quote_ident(a.attname) order by a.attnum) as columns
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
    where c.relnamespace = 'engine'::regnamespace and c.relkind = 'r' and not a.attisdropped
        and a.attgenerated = ''
        and c.relname <> $1
    group by c.relname order by c.relname
"""
SEQUENCES = """
    select 'engine.' || t.relname as table, quote_ident(a.attname) as column,
        'engine.' || s.relname as sequence
    from pg_depend d
    join pg_class s on s.oid = d.objid and s.relkind = 'S'
    join pg_class t on t.oid = d.refobjid
    join pg_attribute a on a.attrelid = t.oid and a.attnum = d.refobjsubid
    where t.relnamespace = 'engine'::regnamespace order by 1
"""


def current() -> Path:
    """The dump of this version."""
    return DUMPS / f"{version('outlast')}.sql"


def schema_of(dump: Path) -> str:
    """The part of a dump that makes the schema."""
    return dump.read_text(encoding="utf-8").partition(DATA)[0]


async def data(connection: "asyncpg.Connection[Any]") -> str:
    """The rows of every table, as of one moment."""
    parts = list[str]()
    async with connection.transaction(isolation="repeatable_read"):
        for table in await connection.fetch(TABLES, VERSION_TABLE):
            name, columns = f"engine.{table['name']}", table["columns"]
            values = ", ".join(f"quote_nullable({column}::text)" for column in columns)
            rows = await connection.fetch(
                f"select concat_ws(', ', {values}) from {name} order by 1"
            )
            if rows:
                into = f"insert into {name} ({', '.join(columns)}) overriding system value values\n"
                parts.append(into + ",\n".join(f"    ({row[0]})" for row in rows) + ";\n")
        for each in await connection.fetch(SEQUENCES):
            last = await connection.fetchval(f"select last_value from {each['sequence']}")
            found = f"pg_get_serial_sequence('{each['table']}', '{each['column']}')"
            parts.append(f"select setval({found}, {last});\n")
    return "".join(parts)


async def write(dsn: str) -> Path:
    """Fill a database that is empty, and dump it."""
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(EFFECTS)
        async with cluster(dsn) as filled:
            await fill(filled.client)
            await connection.execute("update engine.runners set host = 'somewhere', pid = 1")
            rows = await data(connection)
    finally:
        await connection.close()
    dump = current()
    dump.parent.mkdir(exist_ok=True)
    dump.write_text(migration_sql() + DATA + rows, encoding="utf-8")
    return dump


async def main() -> None:
    logging.disable()  # some of it is to fail
    with EmbeddedPostgres(Path(__file__).parents[2], durable=False) as server:
        connection = await asyncpg.connect(server.dsn)
        try:
            await connection.execute("drop database if exists outlast_dump with (force)")
            await connection.execute("create database outlast_dump")
            dump = await write(server.dsn.rpartition("/")[0] + "/outlast_dump")
            await connection.execute("drop database outlast_dump with (force)")
        finally:
            await connection.close()
    print(f"wrote {dump}: {dump.stat().st_size} bytes")  # noqa: T201 a command's output


if __name__ == "__main__":
    asyncio.run(main())
