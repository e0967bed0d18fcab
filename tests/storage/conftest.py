"""A world on PostgreSQL, and a plain connection to look at it from outside."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.storage.world import World, postgres_world


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[World]:
    async with postgres_world(dsn) as world:
        yield world


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()
