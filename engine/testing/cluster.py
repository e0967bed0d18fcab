"""``TestCluster``: a runner and a client over a storage of the test's own."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, Self
from uuid import UUID

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from engine.client import Client
from engine.core.clock import Clock, SystemClock
from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId
from engine.node import OpenStorage, postgres
from engine.runner import Registered, Runner
from engine.settings import Settings
from engine.storage.memory import Fault, MemoryDatabase, MemoryStorage
from engine.storage.protocol import Storage
from engine.storage.sealed import sealed
from engine.testing.clock import VirtualClock
from engine.testing.stub import Stub, stubbed


class TestCluster:
    """Runs the given workflows and entities; enter it and use ``client``.

    Without ``dsn`` everything is in memory and time is virtual: it moves with ``advance`` only;
    ``database`` is that of another cluster, whose rows this one goes on with; nothing is pruned but
    by a workflow's own ``retention``. With ``dsn`` it is a
    runner on that (migrated) database, in real time. ``stubs`` do the work of steps. Further
    arguments are ``Settings``; in memory, variables of the environment are not read.

    >>> from engine import Workflow, activity
    >>> from engine.testing import stub
    >>> class Pay(Workflow[int, str]):
    ...     async def execute(self, request: int) -> str:
    ...         await self.sleep(timedelta(days=30))
    ...         return await self.charge(request)
    ...
    ...     @activity
    ...     async def charge(self, cents: int) -> str:
    ...         raise ConnectionError("the real thing")
    >>> async def main() -> str:
    ...     paid = stub(Pay.charge).by(lambda cents: "paid")
    ...     async with TestCluster(Pay(), stubs=[paid]) as cluster:
    ...         execution = await cluster.client.start(Pay, 100)
    ...         await cluster.advance(timedelta(days=30))
    ...         return await execution.join()
    >>> asyncio.run(main())
    'paid'
    """

    __test__ = False

    def __init__(
        self,
        *prototypes: Registered,
        dsn: str | None = None,
        database: MemoryDatabase | None = None,
        stubs: Sequence[Stub] = (),
        **settings: Any,
    ) -> None:
        options: dict[str, Any] = {"dsn": dsn or "memory", "shards_per_group": 8}
        if dsn is None:  # who lets months go by still wants to see what became of it
            options |= {"retention": None, "retention_failed": None}
        options |= settings
        self.settings: Settings = Settings(**options) if dsn else GivenSettings(**options)
        self.prototypes: Sequence[Registered] = stubbed(prototypes, stubs)
        self.clock: Clock
        self._stack = AsyncExitStack()
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
        async with AsyncExitStack() as stack:
            if isinstance(self.clock, VirtualClock):
                stack.enter_context(self.clock.watching(lambda: self.runner.threads_in_use))
            await stack.enter_async_context(self.runner.register(*self.prototypes))
            await self._owning()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def advance(self, duration: timedelta) -> None:
        """Move the virtual clock; what becomes due fires in order."""
        if not isinstance(self.clock, VirtualClock):
            raise ConfigurationError("advance() is for a cluster in memory; with dsn= time is real")
        await self.clock.advance(duration)

    async def settle(self) -> None:
        """Let everything that can run now run (in memory)."""
        if isinstance(self.clock, VirtualClock):
            await self.clock.settle()

    def fail_next_flush(self, fault: Fault = Fault.BEFORE_COMMIT, *, after: int = 0) -> None:
        """Let a write of the runner go wrong, once ``after`` others have gone well (in memory).

        ``Fault.BEFORE_COMMIT`` and ``AFTER_COMMIT`` are crashes with nothing or all of it written;
        the runner takes its shards again by itself.
        """
        self._in_memory("fail_next_flush()").fail_next_flush(fault, after=after)

    def stop_database(self) -> None:
        """The database is away, all sessions have ended, until ``start_database`` (in memory)."""
        self._in_memory("stop_database()").stop()

    def start_database(self) -> None:
        """The database answers again."""
        self._in_memory("start_database()").start()

    def lose_notifications(self) -> None:
        """Every ring under way is lost, and all who listen are told so (in memory)."""
        self._in_memory("lose_notifications()").interrupt_notifications()

    async def crash(self) -> None:
        """Cut all of the runner's sessions at once: what it had in memory is gone, and it takes
        its shards again under new epochs."""
        before = self.runner.epochs
        self.runner.crash()
        await self._owning(before)

    def _in_memory(self, what: str) -> MemoryDatabase:
        if self.database is None:
            raise ConfigurationError(f"{what} is for a cluster in memory; leave out dsn=")
        return self.database

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


class GivenSettings(Settings):
    """Settings that come from arguments alone, so that no variable of the shell is in a test."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _memory(
    database: MemoryDatabase, settings: Settings
) -> Callable[[UUID | None, Clock], Storage]:
    def make(identity: UUID | None, clock: Clock) -> Storage:
        storage = MemoryStorage(
            database,
            identity=identity,
            shards_per_group=settings.shards_per_group,
            notifications=settings.notifications,
        )
        return sealed(storage, settings.codecs())

    return make
