"""Which revision of the schema this code needs.

From ``postgres`` at every start, and so without SQLAlchemy and alembic, which take as long to
import as all the rest. ``migrate`` brings a schema there with them.
"""

from typing import Final

import asyncpg

from engine.core.errors import SchemaMismatch, StorageUnavailable
from engine.storage.pool import Pool

HEAD: Final = "0001"
"""The newest revision of ``migrations/versions``; they are numbered."""


async def check_schema(pool: Pool) -> None:
    """Raise ``SchemaMismatch`` unless the schema is exactly this code's; needs SELECT only."""
    refuse_other(await _revision(pool), pool.queries.schema)


def refuse_other(found: str | None, schema: str) -> None:
    """Raise ``SchemaMismatch`` for any revision but this code's."""
    if found is None:
        raise SchemaMismatch(f"schema {schema!r} is not there yet: run 'outlast migrate'")
    refuse_newer(found, schema)
    if found != HEAD:
        raise SchemaMismatch(
            f"schema {schema!r} is at revision {found}, this code needs {HEAD}: "
            "run 'outlast migrate'"
        )


def refuse_newer(found: str | None, schema: str) -> None:
    """Raise ``SchemaMismatch`` for a revision that this code does not know."""
    if found is not None and found > HEAD:
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
