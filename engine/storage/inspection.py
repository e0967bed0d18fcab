"""Reads for people and for replay: executions, their journals, shards and runners.

From ``postgres``; every query runs on the pool and needs SELECT only.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import asyncpg
from sqlalchemy import Dialect, Select, Text, and_, cast, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.ids import RunnerId, Snowflake
from engine.core.journal import JournalRow
from engine.storage.groups import Groups, UnknownGroup
from engine.storage.pool import Pool
from engine.storage.protocol import (
    ExecutionFilter,
    LoadedExecution,
    RunnerRow,
    ShardRow,
    StoredExecution,
    StoredReply,
)
from engine.storage.records import (
    envelope_from,
    journal_from,
    owned_execution_from,
    reply_from,
    runner_from,
)
from engine.storage.tables import metadata_for

T = TypeVar("T")

_dialect: Dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]


class Inspection:
    """The reading part of ``Storage``."""

    def __init__(
        self, *, pool: Pool, groups: Groups, learn_groups: Callable[[], Awaitable[None]]
    ) -> None:
        self._pool = pool
        self._groups = groups
        self._learn_groups = learn_groups

    async def replies(self, requests: Sequence[Snowflake]) -> Sequence[StoredReply]:
        rows = await self._pool.fetch("replies", list(dict.fromkeys(requests)))
        return [reply_from(row) for row in rows]

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None:
        rows = await self._pool.fetch("request", request_id)
        found = await self._read(lambda: [envelope_from(row, self._groups) for row in rows])
        return found[0] if found else None

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

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        rows = await self._pool.fetch("find", dedup_key("run", workflow, execution_id))
        found = await self._read(lambda: [owned_execution_from(row, self._groups) for row in rows])
        return found[0] if found else None

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        query, arguments = _compiled(_page(self._pool.queries.schema, filter, limit))
        rows = await self._pool.read(query, *arguments)
        return await self._read(lambda: [owned_execution_from(row, self._groups) for row in rows])

    async def workflows(self) -> Mapping[str, str]:
        rows = await self._pool.fetch("workflows")
        return {row["workflow"]: row["group"] for row in rows}

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        return [journal_from(row) for row in await self._pool.fetch("history", execution)]

    async def shards(self) -> Sequence[ShardRow]:
        rows = await self._pool.fetch("shards")
        return await self._read(lambda: [self._shard(row) for row in rows])

    async def runners(self) -> Sequence[RunnerRow]:
        return [runner_from(row) for row in await self._pool.fetch("runners")]

    async def waiting_rows(self, execution: Snowflake) -> int:
        rows = await self._pool.fetch("waiting_rows", execution)
        return int(rows[0]["rows"])

    def _shard(self, row: asyncpg.Record) -> ShardRow:
        runner = row["runner_id"]
        return ShardRow(
            shard=self._groups.shard(row["group_id"], row["shard"]),
            epoch=row["epoch"],
            runner=RunnerId(runner) if runner is not None else None,
            acquired_at=row["acquired_at"],
        )

    async def _read(self, read: Callable[[], T]) -> T:
        """Read records that may speak of a group made by another process since."""
        try:
            return read()
        except UnknownGroup:
            await self._learn_groups()
            return read()


def _page(schema: str, filter: ExecutionFilter, limit: int) -> Select[tuple[object, ...]]:
    tables = metadata_for(schema).tables
    execution, shard = tables[f"{schema}.executions"].c, tables[f"{schema}.shards"]
    wanted = [
        execution.request_id,
        execution.workflow,
        execution.execution_id,
        execution.group_id,
        execution.shard,
        execution.status,
        execution.run,
        execution.version,
        execution.created_at,
        execution.started_at,
        execution.finished_at,
        execution.wake_at,
        execution.waiting,
        execution.parent,
        cast(execution.attributes, Text).label("attributes"),
        shard.c.runner_id,
    ]
    same_shard = and_(shard.c.group_id == execution.group_id, shard.c.shard == execution.shard)
    page = select(*wanted).select_from(tables[f"{schema}.executions"].outerjoin(shard, same_shard))
    if filter.workflow is not None:
        page = page.where(execution.workflow == filter.workflow)
    if filter.execution_id is not None:
        page = page.where(execution.execution_id == filter.execution_id)
    if filter.statuses:
        page = page.where(execution.status.in_([status.value for status in filter.statuses]))
    if filter.attributes:
        attributes = cast(literal(json.dumps(dict(filter.attributes)), Text), JSONB)
        page = page.where(execution.attributes.op("@>")(attributes))
    if filter.started_after is not None:
        page = page.where(execution.created_at > filter.started_after)
    if filter.parent is not None:
        page = page.where(execution.parent == filter.parent)
    if filter.after is not None:
        page = page.where(execution.request_id < filter.after)
    return page.order_by(execution.request_id.desc()).limit(limit)


def _compiled(page: Select[tuple[object, ...]]) -> tuple[str, list[object]]:
    """The text and arguments as asyncpg takes them."""
    compiled = page.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})
    values = compiled.params
    return str(compiled), [values[name] for name in compiled.positiontup or ()]
