"""The migrations make exactly the tables, once, whoever runs them."""

import asyncio
import os
import subprocess
import sys
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from engine.core.errors import ConfigurationError, SchemaMismatch, StorageUnavailable
from engine.storage.migrate import (
    VERSION_TABLE,
    check,
    migrate,
    migration_sql,
    revision,
    scripts,
)
from engine.storage.schema_version import HEAD
from engine.storage.tables import metadata_for

RELATIONS = """
    select c.relname, c.relkind::text, c.relpersistence::text, c.reloptions
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relname !~ '^schema_version' order by 1
"""
COLUMNS = """
    select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) as type, a.attnotnull,
           a.attidentity::text, l.collname, pg_get_expr(d.adbin, d.adrelid) as default
    from pg_attribute a
    join pg_class c on c.oid = a.attrelid and c.relkind = 'r'
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_collation l on l.oid = a.attcollation
    left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    where n.nspname = $1 and a.attnum > 0 and c.relname !~ '^schema_version'
    order by c.relname, a.attnum
"""
INDEXES = """
    select indexname, replace(indexdef, quote_ident(schemaname) || '.', '') as definition
    from pg_indexes
    where schemaname = $1 and tablename !~ '^schema_version' order by 1
"""
CATALOG = {"relations": RELATIONS, "columns": COLUMNS, "indexes": INDEXES}


async def catalog(dsn: str, schema: str) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(dsn)
    try:
        return {
            name: [tuple(row) for row in await connection.fetch(query, schema)]
            for name, query in CATALOG.items()
        }
    finally:
        await connection.close()


async def in_sync(dsn: str, work: Any) -> Any:
    engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://", 1))
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


async def create_from_tables(dsn: str, schema: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f'create schema "{schema}"')
    await connection.close()
    await in_sync(dsn, metadata_for(schema).create_all)


async def test_alembic_finds_nothing_to_change_after_migrating(dsn: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: kind != "schema" or name == "engine",
                "version_table": VERSION_TABLE,
                "version_table_schema": "engine",
                "compare_server_default": True,
            },
        )
        return compare_metadata(context, metadata_for("engine"))

    assert await in_sync(dsn, differences) == []


async def test_the_catalog_is_that_of_the_tables_down_to_storage_parameters(dsn: str) -> None:
    await create_from_tables(dsn, "engine_tables")

    migrated, described = await catalog(dsn, "engine"), await catalog(dsn, "engine_tables")

    assert migrated == described
    assert any(row[2] == "u" for row in migrated["relations"])


async def test_a_schema_of_another_name_is_the_same(empty_dsn: str) -> None:
    await migrate(empty_dsn, schema="billing_flows")
    await migrate(empty_dsn)

    assert await catalog(empty_dsn, "billing_flows") == await catalog(empty_dsn, "engine")
    await check(empty_dsn, schema="billing_flows")


async def test_printed_sql_makes_the_same_schema(empty_dsn: str) -> None:
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute(migration_sql(schema="printed"))
    await connection.close()
    await migrate(empty_dsn)

    assert await catalog(empty_dsn, "printed") == await catalog(empty_dsn, "engine")
    await check(empty_dsn, schema="printed")


async def test_four_processes_migrate_at_once(empty_dsn: str) -> None:
    program = (
        "import asyncio, sys; from engine.storage.migrate import migrate;"
        "asyncio.run(migrate(sys.argv[1]))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, empty_dsn]) for _ in range(4)]

    codes = await asyncio.gather(*(asyncio.to_thread(process.wait) for process in processes))

    assert codes == [0, 0, 0, 0]
    await check(empty_dsn)


async def test_callers_in_one_process_migrate_at_once(empty_dsn: str) -> None:
    await asyncio.gather(*(migrate(empty_dsn) for _ in range(3)), migrate(empty_dsn, schema="b"))

    await check(empty_dsn)
    await check(empty_dsn, schema="b")


async def test_migrating_again_changes_nothing(dsn: str) -> None:
    before = await catalog(dsn, "engine")

    await migrate(dsn)

    assert await catalog(dsn, "engine") == before


async def test_a_newer_schema_is_refused_and_left_alone(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(f"update engine.{VERSION_TABLE} set version_num = '9999'")
    await connection.close()

    with pytest.raises(SchemaMismatch, match=r"9999.*upgrade outlast"):
        await check(dsn)
    with pytest.raises(SchemaMismatch, match=r"9999.*upgrade outlast"):
        await migrate(dsn)
    assert await revision(dsn) == "9999"


async def test_a_schema_that_is_not_there_is_refused_with_the_command_to_run(
    empty_dsn: str,
) -> None:
    with pytest.raises(SchemaMismatch, match="run 'outlast migrate'"):
        await check(empty_dsn)


async def test_a_migrated_schema_passes(dsn: str) -> None:
    await check(dsn)

    assert await revision(dsn) == HEAD


def test_the_revision_that_the_code_needs_is_the_newest() -> None:
    found = ScriptDirectory(str(scripts()))

    assert found.get_current_head() == HEAD
    assert max(script.revision for script in found.walk_revisions()) == HEAD


def test_neither_runner_nor_client_loads_what_only_migrations_need() -> None:
    program = "import engine, sys; print({'alembic', 'sqlalchemy'} & sys.modules.keys())"

    said = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )

    assert said.stdout == "set()\n", said.stderr


async def test_a_dsn_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="DSN"):
        await migrate("postgresql://postgres@127.0.0.1:port/postgres")


async def test_a_login_that_may_not_create_the_schema_is_told_so(empty_dsn: str) -> None:
    role = f"mere_client_{os.getpid()}"
    connection = await asyncpg.connect(empty_dsn)
    await connection.execute(f"create role {role} login")
    try:
        with pytest.raises(StorageUnavailable, match="may not do this"):
            await migrate(empty_dsn.replace("//postgres@", f"//{role}@"))
    finally:
        await connection.execute(f"drop role {role}")
        await connection.close()


async def test_a_server_that_is_down_is_named() -> None:
    with pytest.raises(StorageUnavailable, match=r"127\.0\.0\.1:1/postgres cannot be reached"):
        await migrate("postgresql://postgres@127.0.0.1:1/postgres")
