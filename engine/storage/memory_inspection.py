"""What can be read of the in-memory database: by owners that load, by waiters, and by people.

The reading part of ``memory``; each call takes a turn of the event loop, as one to a server would.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from engine.core.envelope import EnvelopeRequest
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.core.journal import JournalRow
from engine.storage.entities import DeadFilter, DeadLetter, EntityFilter, EntityRow, StoredState
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.lock_holder import LockHolder
from engine.storage.memory_database import MemoryDatabase
from engine.storage.pauses import Pause
from engine.storage.places import Place
from engine.storage.protocol import (
    ExecutionFilter,
    LoadedExecution,
    RunnerRow,
    ShardRow,
    StoredExecution,
    StoredReply,
    StreamPosition,
)
from engine.storage.queues import QueueContents, QueueCounts, QueueRow
from engine.storage.schedules import Fire, ScheduleRow
from engine.storage.standings import PatchAnswer, Standing

_REMEMBERED = timedelta(days=1)


class MemoryInspection:
    """The reading part of ``Storage``."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._opened = False

    # --- requests and replies -----------------------------------------------------------------

    async def replies(
        self, requests: Sequence[Snowflake], *, after: Mapping[Snowflake, int] | None = None
    ) -> Sequence[StoredReply]:
        await self._travel()
        return self._database.rows.replies.of(requests, after)

    async def streams(self, requests: Sequence[Snowflake]) -> Mapping[Snowflake, StreamPosition]:
        await self._travel()
        return {each: self._database.rows.replies.position(each) for each in requests}

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None:
        await self._travel()
        return self._database.rows.envelope(request_id)

    async def dead_letters(self, filter: DeadFilter, *, limit: int) -> Sequence[DeadLetter]:
        await self._travel()
        return self._database.rows.dead_letters(filter, limit)

    # --- executions ---------------------------------------------------------------------------

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        await self._travel()
        rows = self._database.rows
        loaded: list[LoadedExecution] = []
        for each in dict.fromkeys(executions):
            execution, envelope = rows.executions.get(each), rows.envelope(each)
            if execution is not None and envelope is not None:
                journal = rows.executions.journal(each, run=execution.run)
                loaded.append(
                    LoadedExecution(execution=execution, envelope=envelope, journal=journal)
                )
        return loaded

    async def stored(self, requests: Collection[Snowflake]) -> Collection[Snowflake]:
        await self._travel()
        return {each for each in requests if self._database.rows.envelope(each) is not None}

    async def known(self, keys: Collection[str]) -> Collection[str]:
        await self._travel()
        return self._database.rows.known(keys)

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        await self._travel()
        return self._database.rows.find(workflow, execution_id)

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        await self._travel()
        return self._database.rows.executions.page(filter, limit)

    async def start_times(self, executions: Sequence[Snowflake]) -> Mapping[Snowflake, datetime]:
        await self._travel()
        envelopes = {each: self._database.rows.envelope(each) for each in executions}
        return {
            each: envelope.deliver_at
            for each, envelope in envelopes.items()
            if envelope is not None and envelope.deliver_at is not None
        }

    async def workflows(self) -> Mapping[str, str]:
        await self._travel()
        return self._database.rows.executions.workflows()

    async def standings(self) -> Sequence[Standing]:
        await self._travel()
        return self._database.rows.executions.standings()

    async def patch_answers(self) -> Sequence[PatchAnswer]:
        await self._travel()
        return self._database.rows.executions.patch_answers()

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        await self._travel()
        return self._database.rows.executions.journal(execution)

    async def heartbeats(self, executions: Sequence[Snowflake]) -> Sequence[StepHeartbeat]:
        await self._travel()
        return self._database.rows.heartbeats.of(frozenset(executions))

    async def pauses(self) -> Mapping[str, Pause]:
        await self._travel()
        return dict(self._database.pauses)

    async def waiting_rows(self, execution: Snowflake) -> int:
        await self._travel()
        return self._database.rows.waiting(execution)

    # --- entities and schedules ---------------------------------------------------------------

    async def states(
        self, entities: Sequence[tuple[str, str]]
    ) -> Mapping[tuple[str, str], StoredState]:
        await self._travel()
        return self._database.rows.entities.states(entities)

    async def entities(self, filter: EntityFilter, *, limit: int) -> Sequence[EntityRow]:
        await self._travel()
        return self._database.rows.entity_page(filter, limit)

    async def schedules(self, names: Sequence[str] | None = None) -> Sequence[ScheduleRow]:
        await self._travel()
        return self._database.rows.schedules.get(names)

    async def fires(self, schedule: str, *, limit: int) -> Sequence[Fire]:
        await self._travel()
        return self._database.rows.schedules.fires(schedule, limit)

    # --- queues -------------------------------------------------------------------------------

    async def queue(self, name: str) -> QueueContents:
        await self._travel()
        return self._database.rows.queues.contents(name)

    async def queue_rows(self, names: Sequence[str] | None = None) -> Sequence[QueueRow]:
        await self._travel()
        return self._database.rows.queues.rows(names)

    async def queues(self, names: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        await self._travel()
        return self._database.rows.queue_counts(names)

    async def place(self, request_id: Snowflake) -> Place | None:
        await self._travel()
        return self._database.rows.place(request_id)

    # --- the cluster --------------------------------------------------------------------------

    async def shards(self) -> Sequence[ShardRow]:
        await self._travel()
        return [
            ShardRow(
                shard=each.id, epoch=each.epoch, runner=each.runner, acquired_at=each.acquired_at
            )
            for _, each in sorted(self._database.shards.items())
        ]

    async def lock_holders(self) -> Sequence[LockHolder]:
        await self._travel()
        runners = self._database.runners
        held: dict[RunnerId, list[ShardId]] = {}
        for id, shard in sorted(self._database.shards.items()):
            if shard.holder is not None and shard.taker is not None:
                held.setdefault(shard.taker, []).append(id)
        return [
            LockHolder(shards=tuple(shards), pid=0, application=f"outlast:{runner}:lane")
            for runner, shards in held.items()
            if runner not in runners or runners[runner].died_at is not None
        ]

    async def runners(self) -> Sequence[RunnerRow]:
        await self._travel()
        since = self._database.clock.now() - _REMEMBERED
        return [
            row
            for row in list(self._database.runners.values())
            if row.died_at is None or row.died_at > since
        ]

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if not self._opened:
            raise StorageUnavailable("the storage is not open: enter it as a context manager")
        self._database.check_available()
