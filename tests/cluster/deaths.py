"""A runner of the test's own process that dies as a killed process does, and comes back as another.

Its peers mark it dead and end its sessions while it has work in hand; it drops everything, releases
nothing, and takes its shards again under a new id.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from engine.core.ids import RunnerId
from engine.storage.memory import MemoryStorage
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import Registry, RunnerRow
from engine.testing import TestCluster
from tests.eventually import eventually

QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=50),
    "time_to_live": timedelta(minutes=1),
    "poll_interval": timedelta(milliseconds=500),
    "shards_per_group": 4,
}
"""Settings under which a runner soon sees that it is dead, and its shards are its own again."""


class Reaper:
    """Ends the cluster's runner whenever somebody asks for it with ``strike``."""

    def __init__(self, cluster: TestCluster, me: RunnerId, registry: Registry) -> None:
        self.deaths = 0
        self._cluster = cluster
        self._me = me
        self._registry = registry
        self._asked = asyncio.Event()

    async def strike(self) -> None:
        """For handlers and steps: the process dies now, so this does not return."""
        self._asked.set()
        await asyncio.Event().wait()

    async def kill(self) -> None:
        """The runner dies; returns when the next owns all shards."""
        dead = self._cluster.runner.id
        assert dead is not None
        await eventually(
            lambda: self._registry.bury(dead, by=self._me, ttl=timedelta(days=-1)), timeout=20
        )
        await eventually(partial(self._ended, dead))
        self.deaths += 1

        def back() -> bool:
            runner, shards = self._cluster.runner, self._cluster.settings.shards_per_group
            return runner.id not in {None, dead} and len(runner.epochs) == shards

        await eventually(back, timeout=20)

    async def _ended(self, runner: RunnerId) -> bool:
        return await self._registry.end_sessions(runner) == 0

    async def work(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            await self.kill()


@asynccontextmanager
async def deadly(cluster: TestCluster) -> AsyncGenerator[Reaper]:
    """A reaper at work as long as the block lasts; the cluster's settings should be ``QUICK``."""
    me = RunnerId(uuid4())
    if cluster.database is not None:
        storage: MemoryStorage | PostgresStorage = MemoryStorage(cluster.database, identity=me)
    else:
        storage = PostgresStorage(cluster.settings.dsn, identity=me, notifications=False)
    async with storage:
        registry = await storage.open_registry(me)
        await registry.register(RunnerRow(id=me, groups=()))
        reaper = Reaper(cluster, me, registry)
        work = asyncio.create_task(reaper.work())
        try:
            yield reaper
        finally:
            work.cancel()
            await asyncio.wait([work])
            await registry.leave(me)
            await registry.close()
