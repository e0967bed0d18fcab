"""The cluster of a test: any number of processes over one database."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from engine.core.clock import SystemClock
from engine.storage.memory import MemoryDatabase, MemoryStorage
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import Storage
from tests.cluster.peers import GROUP, SHARDS

NewStorage = Callable[..., PostgresStorage | MemoryStorage]


class Cluster:
    """Opens the storages of processes, and closes them when the test is over."""

    def __init__(self, stack: AsyncExitStack, storage: NewStorage) -> None:
        self.shards = SHARDS
        self._stack = stack
        self._storage = storage

    async def process(self, *, notifications: bool = True) -> Storage:
        """One more process's storage."""
        storage = self._storage(notifications=notifications)
        await self._stack.enter_async_context(storage)
        await storage.ensure_groups([GROUP])
        return storage


@pytest.fixture(params=["memory", "postgres"])
def new_storage(request: pytest.FixtureRequest) -> NewStorage:
    """How a process of this test's cluster gets at its database."""
    if request.param == "postgres":
        return partial(PostgresStorage, request.getfixturevalue("dsn"), shards_per_group=SHARDS)
    return partial(MemoryStorage, MemoryDatabase(SystemClock()), shards_per_group=SHARDS)


@pytest.fixture
async def cluster(new_storage: NewStorage) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack, new_storage)
