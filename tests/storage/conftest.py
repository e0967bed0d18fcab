"""A world on either storage with a runner in it, and one on PostgreSQL with a look from outside."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from engine.storage.protocol import LaneSession
from tests.storage.world import ONE, Process, World, memory_world, postgres_world


@pytest.fixture(params=["memory", "postgres"])
def dsn_or_memory(request: pytest.FixtureRequest) -> str | None:
    return request.getfixturevalue("dsn") if request.param == "postgres" else None


@pytest.fixture
async def world(dsn_or_memory: str | None) -> AsyncIterator[World]:
    made = memory_world() if dsn_or_memory is None else postgres_world(dsn_or_memory)
    async with made as world:
        yield world


@pytest.fixture
async def process(world: World) -> Process:
    return await world.process()


@pytest.fixture
async def lane(process: Process, world: World) -> LaneSession:
    """The only runner's lane; it holds shard ``ONE``."""
    lane = await process.lane()
    world.stack.push_async_callback(lane.close)
    assert await lane.acquire([ONE]) == {ONE: 1}
    return lane


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[World]:
    async with postgres_world(dsn) as world:
        yield world


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()
