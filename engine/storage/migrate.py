"""Make the schema what this code expects, and refuse to work on another.

From ``outlast migrate`` and the roots to the alembic scripts: in the wheel they are
``engine/_migrations``, in a checkout ``migrations/``.
"""

import asyncio
import io
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateSchema

from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.storage.outage import Address, transient, unavailable, unconnected
from engine.storage.queries import schema_name
from engine.storage.schema_version import HEAD, refuse_newer, refuse_other

VERSION_TABLE = "schema_version"
OLDEST_SERVER = 14
CONNECT_SECONDS = 10

LOCK_TIMEOUT = "100ms"
"""How long a lock of a table is waited for, as by lanes: whoever comes after waits behind."""
TRIES = 120
PAUSE = 1.0
"""Seconds between two tries for the locks."""

log: logging.Logger = logging.getLogger(__name__)
T = TypeVar("T")

# Alembic keeps the migration that runs in a module of its own (`alembic.op`), one per process.
_alembic_in_use = threading.Lock()


async def migrate(dsn: str, *, schema: str = "engine") -> None:
    """Bring the schema to this code's revision, creating it if need be; one that is later and that
    this code works on stays as it is.

    One transaction, under an advisory lock: any number of processes may call this at once, each
    returns when the schema is as it should be, and a failure leaves it as it was. Runners and
    clients may be at work. Locks of tables are waited for but a moment, since whoever comes after
    waits behind, and asked for again for two minutes.

    Raises ``SchemaMismatch`` when the schema is too new for this code, ``ConfigurationError`` when
    the DSN, the schema's name or the server cannot work, ``StorageUnavailable`` when it cannot be
    reached or others do not let go of a table.
    """
    await asyncio.to_thread(_migrate_alone, dsn, schema_name(schema))


async def check(dsn: str, *, schema: str = "engine") -> None:
    """Raise ``SchemaMismatch`` unless this code works on the schema; needs SELECT only."""
    refuse_other(await revision(dsn, schema=schema), schema)


async def revision(dsn: str, *, schema: str = "engine") -> str | None:
    """The revision that the database's schema has, None when it has not been migrated."""
    return await _with_connection(dsn, lambda connection: _revision(connection, schema))


def migration_sql(*, schema: str = "engine") -> str:
    """All of the migration as SQL for an empty schema, to be reviewed and run by hand."""
    printed = io.StringIO()
    with _alembic_in_use:
        command.upgrade(_config(schema_name(schema), output=printed), HEAD, sql=True)
    return printed.getvalue()


def scripts() -> Path:
    """The directory of the migration scripts."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.with_name("migrations")


def _migrate_alone(dsn: str, schema: str) -> None:
    with _alembic_in_use:
        asyncio.run(_migrate(dsn, schema))


async def _migrate(dsn: str, schema: str) -> None:
    for tries in range(1, TRIES + 1):
        try:
            await _with_connection(dsn, lambda connection: _upgrade(connection, schema))
            return
        except StorageUnavailable as error:
            if not _locked(error.__cause__):
                raise
            if tries == TRIES:
                raise StorageUnavailable(
                    f"a table of schema {schema!r} is in use by a transaction that does not end,"
                    " and nothing was changed: end it (pg_stat_activity shows it), and run"
                    " 'outlast migrate' again"
                ) from error
            log.warning("a table to be changed is in use, trying again", extra={"schema": schema})
        await asyncio.sleep(PAUSE)


def _locked(error: BaseException | None) -> bool:
    """Whether a statement met somebody's lock."""
    cause = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig else None
    return cause is not None and transient(cause)


def _upgrade(connection: Connection, schema: str) -> None:
    key = func.hashtextextended(f"outlast migrate {schema}", 0)
    connection.execute(select(func.pg_advisory_xact_lock(key)))
    found = _revision(connection, schema)
    refuse_newer(found, schema)
    if found is not None and found >= HEAD:
        return
    connection.execute(select(func.set_config("lock_timeout", LOCK_TIMEOUT, True)))
    if not inspect(connection).has_schema(schema):  # asked, since IF NOT EXISTS needs the privilege
        connection.execute(CreateSchema(schema))
    command.upgrade(_config(schema, connection=connection), HEAD)


def _revision(connection: Connection, schema: str) -> str | None:
    options = {"version_table": VERSION_TABLE, "version_table_schema": schema}
    return MigrationContext.configure(connection, opts=options).get_current_revision()


def _config(
    schema: str, *, connection: Connection | None = None, output: io.StringIO | None = None
) -> Config:
    config = Config(output_buffer=output) if output else Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.attributes.update(schema=schema, connection=connection)
    return config


async def _with_connection(dsn: str, work: Callable[[Connection], T]) -> T:
    """Do the work in one transaction on a connection of its own."""
    address = Address.of(dsn)
    database = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: _connect(dsn), poolclass=NullPool
    )
    try:
        async with database.begin() as connection:
            version = (connection.dialect.server_version_info or (0,))[0]
            if int(version) < OLDEST_SERVER:
                raise ConfigurationError(
                    f"the server at {address} is PostgreSQL {version}:"
                    f" outlast needs {OLDEST_SERVER} or newer"
                )
            return await connection.run_sync(work)
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig else None
        raise unavailable(cause or error, address) from error


async def _connect(dsn: str) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(dsn, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        unconnected(error, dsn)
