"""Reads, for owners that load, for waiters and for people.

The reading part of ``postgres``; every query runs on the pool and needs SELECT only.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

import asyncpg

from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.ids import RunnerId, Snowflake, entity_key
from engine.core.journal import JournalRow
from engine.storage.entities import (
    DeadFilter,
    DeadLetter,
    EntityFilter,
    EntityRow,
    StoredState,
)
from engine.storage.groups import Groups, once_known
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.lock_holder import LockHolder
from engine.storage.pauses import Pause
from engine.storage.places import Place
from engine.storage.pool import Pool
from engine.storage.protocol import (
    ExecutionFilter,
    LoadedExecution,
    RunnerRow,
    ShardRow,
    StoredExecution,
    StoredReply,
    StreamPosition,
)
from engine.storage.queues import PROCESS, QueueContents, QueueCounts, QueueRow, queue_type
from engine.storage.records import (
    dead_letter_from,
    entity_from,
    envelope_from,
    fire_from,
    heartbeat_from,
    journal_from,
    line_from,
    owned_execution_from,
    patch_answer_from,
    pause_from,
    place_from,
    queue_counts_from,
    queue_from,
    queue_item_from,
    reply_from,
    runner_from,
    schedule_from,
    standing_from,
    state_from,
)
from engine.storage.schedules import Fire, ScheduleRow
from engine.storage.standings import MISFIT, PatchAnswer, Standing

T = TypeVar("T")

_PAGE = 1000
_LAST_ID = (1 << 63) - 1
_LAST_SEQUENCE = (1 << 31) - 1


class Inspection:
    """The reading part of ``Storage``."""

    def __init__(self, *, pool: Pool, groups: Groups) -> None:
        self._pool = pool
        self._groups = groups

    # --- requests and replies ---------------------------------------------------------------------

    async def replies(
        self, requests: Sequence[Snowflake], *, after: Mapping[Snowflake, int] | None = None
    ) -> Sequence[StoredReply]:
        ids, seen = list(dict.fromkeys(requests)), after or {}
        behind = [min(max(seen.get(id, -1), -1), _LAST_SEQUENCE) for id in ids]
        pages = [_PAGE if id in seen else None for id in ids]
        return [reply_from(row) for row in await self._pool.fetch("replies", ids, behind, pages)]

    async def streams(self, requests: Sequence[Snowflake]) -> Mapping[Snowflake, StreamPosition]:
        rows = await self._pool.fetch("streams", list(dict.fromkeys(requests)))
        return {
            row["request_id"]: StreamPosition(
                next_sequence=max(row["stored"], row["acked"]) + 1, acked=row["acked"]
            )
            for row in rows
        }

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None:
        rows = await self._pool.fetch("request", request_id)
        found = await self._read(lambda: [envelope_from(row, self._groups) for row in rows])
        return found[0] if found else None

    async def dead_letters(self, filter: DeadFilter, *, limit: int) -> Sequence[DeadLetter]:
        first, last = 0, _LAST_ID
        if filter.after is not None:
            last = filter.after - 1
        if filter.request_id is not None:
            first, last = filter.request_id, min(filter.request_id, last)
        rows = await self._pool.fetch(
            "dead_letters", first, last, filter.entity_type, filter.entity_id, limit
        )
        return await self._read(lambda: [dead_letter_from(row, self._groups) for row in rows])

    # --- executions -------------------------------------------------------------------------------

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        rows = await self._pool.fetch("load", list(dict.fromkeys(executions)))
        found = await self._read(
            lambda: [
                (owned_execution_from(row, self._groups), envelope_from(row, self._groups))
                for row in rows
            ]
        )
        ids = [state.request_id for state, _ in found]
        runs = [state.run for state, _ in found]
        journals: dict[Snowflake, list[JournalRow]] = {id: [] for id in ids}
        for row in await self._pool.fetch("load_journal", ids, runs) if ids else ():
            journals[row["execution"]].append(journal_from(row))
        return [
            LoadedExecution(execution=state, envelope=envelope, journal=journals[state.request_id])
            for state, envelope in found
        ]

    async def stored(self, requests: Collection[Snowflake]) -> Collection[Snowflake]:
        rows = await self._pool.fetch("stored", list(requests))
        return {Snowflake(row["request_id"]) for row in rows}

    async def known(self, keys: Collection[str]) -> Collection[str]:
        return {row["key"] for row in await self._pool.fetch("known", list(keys))}

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        rows = await self._pool.fetch("find", dedup_key("run", workflow, execution_id))
        found = await self._read(lambda: [owned_execution_from(row, self._groups) for row in rows])
        return found[0] if found else None

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        from engine.storage.execution_page import execution_page  # with it SQLAlchemy

        query, arguments = execution_page(self._pool.queries.schema, filter, limit)
        rows = await self._pool.search(query, *arguments)
        return await self._read(lambda: [owned_execution_from(row, self._groups) for row in rows])

    async def start_times(self, executions: Sequence[Snowflake]) -> Mapping[Snowflake, datetime]:
        rows = await self._pool.fetch("start_times", list(executions))
        return {row["request_id"]: row["deliver_at"] for row in rows}

    async def workflows(self) -> Mapping[str, str]:
        rows = await self._pool.fetch("workflows")
        return {row["workflow"]: row["group"] for row in rows}

    async def standings(self) -> Sequence[Standing]:
        return [standing_from(row) for row in await self._pool.fetch("standings", MISFIT)]

    async def patch_answers(self) -> Sequence[PatchAnswer]:
        return [patch_answer_from(row) for row in await self._pool.fetch("patch_answers")]

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        return [journal_from(row) for row in await self._pool.fetch("history", execution)]

    async def heartbeats(self, executions: Sequence[Snowflake]) -> Sequence[StepHeartbeat]:
        ids = list(dict.fromkeys(executions))
        return [heartbeat_from(row) for row in await self._pool.fetch("heartbeats", ids)]

    async def pauses(self) -> Mapping[str, Pause]:
        return {row["workflow"]: pause_from(row) for row in await self._pool.fetch("pauses")}

    async def waiting_rows(self, execution: Snowflake) -> int:
        rows = await self._pool.fetch("waiting_rows", execution)
        return int(rows[0]["rows"])

    # --- entities and schedules -------------------------------------------------------------------

    async def states(
        self, entities: Sequence[tuple[str, str]]
    ) -> Mapping[tuple[str, str], StoredState]:
        names = list(dict.fromkeys(entities))
        rows = await self._pool.fetch(
            "states", [entity_type for entity_type, _ in names], [id for _, id in names]
        )
        found = await self._read(lambda: [state_from(row, self._groups) for row in rows])
        return {(state.entity_type, state.entity_id): state for state in found}

    async def entities(self, filter: EntityFilter, *, limit: int) -> Sequence[EntityRow]:
        number = None
        if filter.entity_type is not None and filter.entity_id is not None:
            number = entity_key(filter.entity_type, filter.entity_id)
        rows = await self._pool.fetch(
            "entities",
            filter.entity_type,
            filter.entity_id,
            *(filter.after or ("", "")),
            limit,
            number,
        )
        return await self._read(lambda: [entity_from(row, self._groups) for row in rows])

    async def schedules(self, names: Sequence[str] | None = None) -> Sequence[ScheduleRow]:
        rows = await self._pool.fetch("schedules", names)
        return await self._read(lambda: [schedule_from(row, self._groups) for row in rows])

    async def fires(self, schedule: str, *, limit: int) -> Sequence[Fire]:
        return [fire_from(row) for row in await self._pool.fetch("fires", schedule, limit)]

    # --- queues -----------------------------------------------------------------------------------

    async def queue(self, name: str) -> QueueContents:
        rows = await self.queue_rows([name])
        return QueueContents(
            row=rows[0] if rows else None,
            waiting=[line_from(row) for row in await self._pool.fetch("queue_lines", name)],
            held=[queue_item_from(row) for row in await self._pool.fetch("queue_held", name)],
        )

    async def queues(self, names: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        rows = await self.queue_rows(names)
        known = [row.name for row in rows]
        types = [queue_type(each) for each in known]
        counted = await self._pool.fetch("queue_counts", known, types, PROCESS)
        counts = {each["queue"]: each for each in counted}
        return [queue_counts_from(row, counts.get(row.name)) for row in rows]

    async def queue_rows(self, names: Sequence[str] | None = None) -> Sequence[QueueRow]:
        rows = await self._pool.fetch("queues", names)
        return await self._read(lambda: [queue_from(row, self._groups) for row in rows])

    async def place(self, request_id: Snowflake) -> Place | None:
        rows = await self._pool.fetch("place", request_id)
        found = await self._read(lambda: [place_from(row, self._groups) for row in rows])
        return found[0] if found else None

    # --- the cluster ------------------------------------------------------------------------------

    async def shards(self) -> Sequence[ShardRow]:
        rows = await self._pool.fetch("shards")
        return await self._read(lambda: [self._shard(row) for row in rows])

    async def lock_holders(self) -> Sequence[LockHolder]:
        rows = await self._pool.fetch("lock_holders")
        return await self._read(lambda: [self._holder(row) for row in rows])

    async def runners(self) -> Sequence[RunnerRow]:
        return [runner_from(row) for row in await self._pool.fetch("runners")]

    def _holder(self, row: asyncpg.Record) -> LockHolder:
        pairs = zip(row["group_ids"], row["numbers"], strict=True)
        return LockHolder(
            shards=tuple(self._groups.shard(group_id, number) for group_id, number in pairs),
            pid=row["pid"],
            login=row["login"],
            application=row["application"],
            address=row["address"],
            since=row["since"],
        )

    def _shard(self, row: asyncpg.Record) -> ShardRow:
        runner = row["runner_id"]
        return ShardRow(
            shard=self._groups.shard(row["group_id"], row["shard"]),
            epoch=row["epoch"],
            runner=RunnerId(runner) if runner is not None else None,
            acquired_at=row["acquired_at"],
        )

    async def _read(self, read: Callable[[], T]) -> T:
        return await once_known(read, self._learn_groups)

    async def _learn_groups(self) -> None:
        self._groups.learn(await self._pool.fetch("groups"))
