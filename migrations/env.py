"""Bring alembic to our schema.

Run by ``engine.storage.migrate``, which hands in a connection and the schema's name, or by the
``alembic`` command when a migration is written, which takes both from the environment.
"""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.schema import CreateSchema

from engine.storage.tables import metadata_for

SCHEMA = context.config.attributes.get("schema", os.environ.get("OUTLAST_SCHEMA", "engine"))


def run(connection: Connection | None = None) -> None:
    context.configure(
        connection=connection,
        dialect_name="postgresql",
        literal_binds=connection is None,
        target_metadata=metadata_for(SCHEMA),
        include_schemas=True,
        include_name=lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
        version_table="schema_version",
        version_table_schema=SCHEMA,
    )
    with context.begin_transaction():
        if connection is None:
            context.execute(CreateSchema(SCHEMA, if_not_exists=True))
        context.run_migrations()


async def connect_and_run() -> None:
    url = os.environ["OUTLAST_DSN"].replace("postgresql://", "postgresql+asyncpg://", 1)
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(run)
    await engine.dispose()


if context.is_offline_mode():
    run()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(connect_and_run())
