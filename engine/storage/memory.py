"""A storage that keeps everything in memory, for tests and ``TestCluster``.

``MemoryDatabase`` stands for the server, each ``MemoryStorage`` for one process's connections to
it. It means what PostgreSQL means, as the conformance suite says, except for SQL: there is none.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt
from engine.core.errors import ConfigurationError
from engine.core.ids import MachineLease, RunnerId, ShardId, Snowflake
from engine.core.journal import JournalRow
from engine.storage import memory_pruning
from engine.storage.memory_database import Fault, MemoryDatabase
from engine.storage.memory_doorbell import MemoryDoorbell
from engine.storage.memory_inspection import MemoryInspection
from engine.storage.memory_lane import MemoryLane
from engine.storage.memory_registry import MemoryRegistry
from engine.storage.memory_transaction import MemoryTransaction, UserConnection
from engine.storage.pauses import Pause
from engine.storage.protocol import (
    Doorbell,
    Fence,
    LaneSession,
    Post,
    Posted,
    Received,
    Registry,
    Saved,
    SaveRequest,
)
from engine.storage.retention import Pruned, RequestTerm, Term
from engine.storage.transaction import Transaction

__all__ = ["Fault", "MemoryDatabase", "MemoryStorage"]


class MemoryStorage(MemoryInspection):
    """One process's handle on a ``MemoryDatabase``; see ``Storage``.

    ``identity`` is what the process leases machine ids as and where its post arrives.
    ``shards_per_group`` is the size of the groups it creates. Without ``notifications`` its
    doorbell is dumb: everything waits for polls.
    """

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        identity: UUID | None = None,
        shards_per_group: int = 300,
        notifications: bool = True,
    ) -> None:
        super().__init__(database)
        self._identity = identity or uuid4()
        self._shards_per_group = shards_per_group
        self._doorbell = MemoryDoorbell(
            database, identity=self._identity, notifications=notifications
        )

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
        self._database.processes.add(self._identity)
        self._doorbell.open()

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._opened = False
        self._database.processes.discard(self._identity)
        self._doorbell.close()

    @property
    def identity(self) -> UUID:
        return self._identity

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

    # --- requests and what becomes of them ------------------------------------------------------

    async def save(
        self, requests: Sequence[SaveRequest], *, apart: bool = False
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

    async def unwatch(self, requests: Sequence[Snowflake]) -> None:
        await self._travel()
        self._database.unwatch(requests, self._doorbell)

    async def sweep_waiters(self) -> int:
        """A process that ends takes its waiters with it."""
        await self._travel()
        return 0

    async def acknowledge(
        self, acks: Sequence[AckChunk], *, wait: bool = False
    ) -> Mapping[Snowflake, int]:
        await self._travel()
        replies = self._database.rows.replies
        for ack in acks:
            replies.acknowledge(ack)
        acked = {ack.request_id: replies.position(ack.request_id).acked for ack in acks}
        if wait:
            self._doorbell.watch(ack.request_id for ack in acks)
        await self._travel()
        return acked

    async def interrupt(self, interrupts: Sequence[Interrupt]) -> Sequence[bool]:
        await self._travel()
        stored = self._database.rows.interrupt(interrupts)
        await self._travel()
        return stored

    async def follow(self, execution: Snowflake, follower: Snowflake) -> bool:
        await self._travel()
        followed = self._database.rows.executions.follow(execution, follower)
        await self._travel()
        return followed

    async def finished(
        self, terms: Sequence[Term], *, limit: int
    ) -> Sequence[Sequence[tuple[Snowflake, datetime]]]:
        await self._travel()
        return memory_pruning.finished(self._database.rows, terms, limit)

    async def prune(
        self, executions: Sequence[Snowflake], *, before: datetime
    ) -> Sequence[Snowflake]:
        await self._travel()
        return memory_pruning.prune(self._database.rows, executions, before)

    async def prune_runs(
        self, until: Mapping[str, datetime], *, after: Snowflake, limit: int, runs: int
    ) -> Pruned:
        await self._travel()
        rows = self._database.rows
        return memory_pruning.prune_runs(rows, until, after=after, limit=limit, runs=runs)

    async def prune_requests(self, term: RequestTerm, *, after: Snowflake, limit: int) -> Pruned:
        await self._travel()
        return memory_pruning.prune_requests(self._database.rows, term, after, limit)

    async def write_pause(self, workflow: str, *, paused: bool, reason: str, by: str) -> bool:
        await self._travel()
        old = self._database.pauses.get(workflow)
        if paused is (old is not None and old.paused):
            return False
        self._database.pauses[workflow] = Pause(
            workflow=workflow, paused=paused, reason=reason, by=by, at=self._database.clock.now()
        )
        await self._travel()
        return True

    async def revive(self, requests: Sequence[Snowflake]) -> Sequence[ShardId]:
        await self._travel()
        shards = self._database.rows.revive(requests)
        await self._travel()
        return shards

    async def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None = None,
    ) -> ShardId | None:
        await self._travel()
        shard = self._database.rows.reopen(request, run=run, journal=journal, version=version)
        await self._travel()
        return shard

    async def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        await self._travel()
        forked = self._database.rows.fork(request, started_at=started_at, journal=journal)
        await self._travel()
        return forked

    async def transact(
        self, fence: Fence, work: Callable[[Transaction], Awaitable[JournalRow]]
    ) -> None:
        await self._travel()
        with UserConnection(self._database, fence) as connection:
            row = await work(MemoryTransaction())
            await self._travel()
            connection.commit(row)

    # --- volatile messages ----------------------------------------------------------------------

    async def post(self, messages: Sequence[Post]) -> Sequence[Posted]:
        await self._travel()
        posted = self._database.post.send(messages)
        self._doorbell.ring_post(each.runner for each in posted if each.runner is not None)
        await self._travel()
        return posted

    async def take_post(self) -> Sequence[Received]:
        await self._travel()
        return self._database.post.take(self._identity)

    async def present(self, processes: Collection[UUID]) -> Set[UUID]:
        await self._travel()
        return self._database.processes & set(processes)

    async def sweep_post(self, older_than: timedelta) -> int:
        await self._travel()
        return self._database.post.sweep(older_than)

    # --- the runner's connections ---------------------------------------------------------------

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
