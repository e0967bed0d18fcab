"""The cluster of a test: any number of processes over one database."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from engine.core.clock import SystemClock
from engine.storage.memory import MemoryDatabase, MemoryStorage
from engine.storage.protocol import Storage
from tests.cluster.peers import GROUP

SHARDS = 30


class Cluster:
    """Opens the storages of processes, and closes them when the test is over."""

    def __init__(
        self, stack: AsyncExitStack, storage: Callable[[], AbstractAsyncContextManager[Storage]]
    ) -> None:
        self.shards = SHARDS
        self._stack = stack
        self._storage = storage

    async def process(self) -> Storage:
        """One more process's storage."""
        storage = await self._stack.enter_async_context(self._storage())
        await storage.ensure_groups([GROUP])
        return storage


@pytest.fixture(params=["memory"])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        database = MemoryDatabase(SystemClock())
        yield Cluster(stack, lambda: MemoryStorage(database, shards_per_group=SHARDS))
