"""The stages of races: processes on a database of the test's own, with gates in it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from engine import Client, Settings
from engine.storage.protocol import LaneSession
from tests.gates import ServerGates, server_gates
from tests.races.starts import NAMES
from tests.storage.world import Process, World, postgres_world


@pytest.fixture
async def gates(dsn: str) -> AsyncIterator[ServerGates]:
    async with server_gates(dsn) as gates:
        yield gates


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[World]:
    async with postgres_world(dsn) as world:
        yield world


@pytest.fixture
async def clients(dsn: str, gates: ServerGates) -> AsyncIterator[list[Client]]:
    """Two, held at a key each: where they have not written it, and where they all but have."""
    async with AsyncExitStack() as stack:
        found: list[Client] = []
        for name in NAMES:
            client = await stack.enter_async_context(Client(Settings(dsn=dsn)))
            sessions = f"outlast:{client._node.storage.identity}:%"
            await gates.hold(f"{name} writes", "dedup", of=sessions)
            await gates.hold(f"{name} commits", "dedup", of=sessions, commit=True)
            found.append(client)
        yield found


@pytest.fixture
async def owner(postgres: World) -> Process:
    return await postgres.process()


@pytest.fixture
async def next_owner(postgres: World) -> tuple[Process, LaneSession]:
    return await postgres.runner_with_lane()
