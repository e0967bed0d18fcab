"""A storage that keeps everything in memory, for tests and ``TestCluster``.

``MemoryDatabase`` stands for the server, each ``MemoryStorage`` for one process's connections to
it. It means what PostgreSQL means, as the conformance suite says, except for SQL: there is none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.core.ids import MachineLease, RunnerId, Snowflake
from engine.core.journal import JournalRow
from engine.storage.memory_database import Fault, MemoryDatabase
from engine.storage.memory_doorbell import MemoryDoorbell
from engine.storage.memory_lane import MemoryLane
from engine.storage.memory_registry import MemoryRegistry
from engine.storage.memory_transaction import MemoryTransaction, UserConnection
from engine.storage.protocol import (
    Doorbell,
    ExecutionFilter,
    Fence,
    LaneSession,
    LoadedExecution,
    Registry,
    RunnerRow,
    Saved,
    SaveRequest,
    ShardRow,
    StoredExecution,
    StoredReply,
)
from engine.storage.transaction import Transaction

__all__ = ["Fault", "MemoryDatabase", "MemoryStorage"]

_REMEMBERED = timedelta(days=1)


class MemoryStorage:
    """One process's handle on a ``MemoryDatabase``; see ``Storage``.

    ``identity`` is what the process leases machine ids as. ``shards_per_group`` is the size of the
    groups it creates. Without ``notifications`` its doorbell is dumb: everything waits for polls.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        identity: UUID | None = None,
        shards_per_group: int = 300,
        notifications: bool = True,
    ) -> None:
        self._database = database
        self._identity = identity or uuid4()
        self._shards_per_group = shards_per_group
        self._doorbell = MemoryDoorbell(database, notifications=notifications)
        self._opened = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        await asyncio.sleep(0)
        self._database.check_available()
        self._opened = True
        self._doorbell.open()

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._opened = False
        self._doorbell.close()

    @property
    def doorbell(self) -> Doorbell:
        return self._doorbell

    def shards_in(self, group: str) -> int:
        try:
            return self._database.groups[group]
        except KeyError:
            raise ConfigurationError(
                f"there is no shard group {group!r}: start a runner of that group first"
            ) from None

    async def ensure_groups(self, groups: Sequence[str]) -> None:
        await self._travel()
        for group in groups:
            self._database.create_group(group, self._shards_per_group)

    async def lease_machine(self, lease: MachineLease | None) -> MachineLease:
        await self._travel()
        return self._database.lease_machine(self._identity, lease)

    async def release_machine(self, lease: MachineLease) -> None:
        await self._travel()
        self._database.release_machine(self._identity, lease)

    # --- requests and replies -----------------------------------------------------------------

    async def save(
        self, requests: Sequence[SaveRequest], *, patient: bool = False
    ) -> Sequence[Saved]:
        await self._travel()
        saved = self._database.rows.save(requests)
        asked = [request.envelope.request_id for request in requests]
        stored = {mine: each.request_id for mine, each in zip(asked, saved, strict=True)}
        self._watch_saved(requests, stored)
        await self._travel()
        return saved

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        await self._travel()
        raise ConfigurationError(
            "the in-memory storage has no transactions of the caller's: leave out `connection`,"
            " or test against PostgreSQL (`TestCluster(dsn=…)`)"
        )

    async def watch(self, requests: Sequence[Snowflake]) -> None:
        await self._travel()
        self._doorbell.watch(requests)

    async def replies(self, requests: Sequence[Snowflake]) -> Sequence[StoredReply]:
        await self._travel()
        return self._database.rows.replies(requests)

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None:
        await self._travel()
        return self._database.rows.envelope(request_id)

    # --- executions ---------------------------------------------------------------------------

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        await self._travel()
        rows = self._database.rows
        loaded: list[LoadedExecution] = []
        for each in dict.fromkeys(executions):
            execution, envelope = rows.execution(each), rows.envelope(each)
            if execution is not None and envelope is not None:
                journal = rows.journal(each, run=execution.run)
                loaded.append(
                    LoadedExecution(execution=execution, envelope=envelope, journal=journal)
                )
        return loaded

    async def transact(
        self, fence: Fence, work: Callable[[Transaction], Awaitable[JournalRow]]
    ) -> None:
        await self._travel()
        with UserConnection(self._database, fence) as connection:
            row = await work(MemoryTransaction())
            await self._travel()
            connection.commit(row)

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        await self._travel()
        return self._database.rows.find(workflow, execution_id)

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        await self._travel()
        return self._database.rows.page(filter, limit)

    async def workflows(self) -> Mapping[str, str]:
        await self._travel()
        return self._database.rows.workflows()

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        await self._travel()
        return self._database.rows.journal(execution)

    async def waiting_rows(self, execution: Snowflake) -> int:
        await self._travel()
        return self._database.rows.waiting(execution)

    # --- the cluster --------------------------------------------------------------------------

    async def shards(self) -> Sequence[ShardRow]:
        await self._travel()
        return [
            ShardRow(
                shard=each.id, epoch=each.epoch, runner=each.runner, acquired_at=each.acquired_at
            )
            for _, each in sorted(self._database.shards.items())
        ]

    async def runners(self) -> Sequence[RunnerRow]:
        await self._travel()
        since = self._database.clock.now() - _REMEMBERED
        return [
            row
            for row in list(self._database.runners.values())
            if row.died_at is None or row.died_at > since
        ]

    async def open_registry(self, runner: RunnerId) -> Registry:
        await self._travel()
        return MemoryRegistry(self._database)

    async def open_lane(self, runner: RunnerId, index: int) -> LaneSession:
        await self._travel()
        return MemoryLane(
            self._database, runner=runner, doorbell=self._doorbell, watch=self._watch_saved
        )

    def _watch_saved(
        self, requests: Sequence[SaveRequest], stored: Mapping[Snowflake, Snowflake]
    ) -> None:
        waited = [stored[each.envelope.request_id] for each in requests if each.wait]
        self._doorbell.watch(each for each in waited if not self._database.rows.ended(each))

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if not self._opened:
            raise StorageUnavailable("the storage is not open: enter it as a context manager")
        self._database.check_available()
