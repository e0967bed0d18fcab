"""Databases for tests: a migrated template, and a copy of it for each test that asks.

Used by the pytest fixtures of ``cli.pytest_plugin``.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg

from engine.storage.migrate import migrate


@contextmanager
def template_database(server: str) -> Generator[str]:
    """The name of a migrated database to copy, dropped when the block ends. ``server`` is the DSN
    of one whose role may create databases."""
    with new_database(server, "template0") as dsn:
        asyncio.run(migrate(dsn))
        yield urlsplit(dsn).path.lstrip("/")


@contextmanager
def new_database(server: str, template: str) -> Generator[str]:
    """The DSN of a copy of a database, dropped when the block ends."""
    name = f"outlast_test_{uuid4().hex[:12]}"
    asyncio.run(_execute(server, f'create database {name} template "{template}"'))
    try:
        yield urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    finally:
        asyncio.run(_execute(server, f"drop database {name} with (force)"))


async def _execute(server: str, statement: str) -> None:
    connection = await asyncpg.connect(server)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
