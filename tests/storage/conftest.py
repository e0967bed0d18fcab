"""A world on either storage with a runner in it, and one on PostgreSQL with a look from outside."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from engine.core.seal import Codecs
from engine.encryption import AesGcm
from engine.storage.protocol import LaneSession
from tests.storage.world import ONE, Process, World, memory_world, postgres_world


@pytest.fixture(params=["memory", "postgres", "memory, encrypted"])
def rests(request: pytest.FixtureRequest) -> tuple[str | None, Codecs | None]:
    """Where: a DSN or memory. And behind which codecs."""
    dsn = request.getfixturevalue("dsn") if "postgres" in request.param else None
    return dsn, Codecs([AesGcm({"a": b"k" * 32})]) if "encrypted" in request.param else None


@pytest.fixture
async def world(rests: tuple[str | None, Codecs | None]) -> AsyncIterator[World]:
    dsn, codecs = rests
    async with memory_world() if dsn is None else postgres_world(dsn) as world:
        world.codecs = codecs
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
