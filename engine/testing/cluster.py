"""``TestCluster``: a runner and a client over a storage of the test's own."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

from engine.client import Client
from engine.core.clock import Clock, SystemClock
from engine.core.ids import ShardId
from engine.node import OpenStorage, postgres
from engine.runner import Registered, Runner
from engine.settings import Settings
from engine.storage.memory import MemoryDatabase, MemoryStorage
from engine.storage.protocol import Storage
from engine.testing.clock import VirtualClock


class TestCluster:
    """Runs the given workflows and entities; enter it and use ``client``.

    Without ``dsn`` everything is in memory and time is virtual: it moves with ``advance`` only;
    ``database`` is that of another cluster, whose rows this one goes on with. With ``dsn`` it is a
    runner on that (migrated) database, in real time.
    """

    __test__ = False

    def __init__(
        self,
        *prototypes: Registered,
        dsn: str | None = None,
        database: MemoryDatabase | None = None,
        **settings: Any,
    ) -> None:
        options: dict[str, Any] = {"shards_per_group": 8, **settings}
        self.settings: Settings = Settings(dsn=dsn or "memory", **options)
        self.prototypes = prototypes
        self.clock: Clock
        self._open: OpenStorage
        if dsn is None:
            self.database: MemoryDatabase | None = database or MemoryDatabase(VirtualClock())
            self.clock = self.database.clock
            self._open = _memory(self.database, self.settings)
        else:
            self.clock = SystemClock()
            self.database = None
            self._open = postgres(self.settings)
        self.runner: Runner = Runner(self.settings, clock=self.clock, open_storage=self._open)

    @property
    def client(self) -> Client:
        return self.runner.client

    async def __aenter__(self) -> Self:
        await self.runner.register(*self.prototypes).__aenter__()
        await self._owning()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.runner.__aexit__(*exc)

    async def advance(self, duration: timedelta) -> None:
        """Move the virtual clock; what becomes due fires in order."""
        if not isinstance(self.clock, VirtualClock):
            raise RuntimeError("time is real on PostgreSQL; advance() works in memory only")
        await self.clock.advance(duration)

    async def settle(self) -> None:
        """Let everything that can run now run (in memory)."""
        if isinstance(self.clock, VirtualClock):
            await self.clock.settle()

    async def crash(self) -> None:
        """Cut all of the runner's sessions at once: what it had in memory is gone, and it takes
        its shards again under new epochs."""
        before = self.runner.epochs
        self.runner.crash()
        await self._owning(before)

    async def _owning(self, before: Mapping[ShardId, int] | None = None) -> None:
        """Until the runner owns every shard, under epochs later than ``before``."""
        total = self.settings.shards_per_group * len(self.settings.groups)
        old = before or {}
        async with asyncio.timeout(10):
            while True:
                now = self.runner.epochs
                if len(now) == total and all(epoch > old.get(id, 0) for id, epoch in now.items()):
                    return
                await asyncio.sleep(0.001)


def _memory(
    database: MemoryDatabase, settings: Settings
) -> Callable[[UUID | None, Clock], Storage]:
    def make(identity: UUID | None, clock: Clock) -> Storage:
        return MemoryStorage(
            database,
            identity=identity,
            shards_per_group=settings.shards_per_group,
            notifications=settings.notifications,
        )

    return make
