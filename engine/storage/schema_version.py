"""Which revision of the schema this code needs.

From ``postgres`` at every start, and so without SQLAlchemy and alembic, which take as long to
import as all the rest. ``migrate`` brings a schema there with them.
"""

from typing import Final

import asyncpg

from engine.core.errors import SchemaMismatch, StorageUnavailable
from engine.storage.pool import Pool

HEAD: Final = "0001"
"""The newest revision of ``migrations/versions``. The first two of its four digits go up with what
older code cannot work on, the last two with what only adds: code works on its own revision and on
all later ones of the same first two digits, so that its processes may begin, too, during a deploy.
"""
_BREAKING = slice(0, 2)


async def check_schema(pool: Pool) -> None:
    """Raise ``SchemaMismatch`` unless this code works on the schema; needs SELECT only."""
    refuse_other(await _revision(pool), pool.queries.schema)


def refuse_other(found: str | None, schema: str) -> None:
    """Raise ``SchemaMismatch`` for any revision that this code does not work on."""
    if found is None:
        raise SchemaMismatch(f"schema {schema!r} is not there yet: run {_migrate(schema)}")
    refuse_newer(found, schema)
    if found < HEAD:
        raise SchemaMismatch(
            f"schema {schema!r} is at revision {found}, this code needs {HEAD}: "
            f"run {_migrate(schema)}"
        )


def _migrate(schema: str) -> str:
    of = "" if schema == "engine" else f" --schema {schema}"
    return f"'outlast migrate{of}'"


def refuse_newer(found: str | None, schema: str) -> None:
    """Raise ``SchemaMismatch`` for a later revision that does not only add to this code's."""
    if found is not None and found[_BREAKING] > HEAD[_BREAKING]:
        raise SchemaMismatch(
            f"schema {schema!r} is at revision {found}, which this version of outlast does not "
            f"know (its newest is {HEAD}): upgrade outlast"
        )


async def _revision(pool: Pool) -> str | None:
    try:
        rows = await pool.fetch("schema_version")
    except StorageUnavailable as error:
        missing = asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError
        if isinstance(error.__cause__, missing):
            return None
        raise
    return rows[0]["version_num"] if rows else None
