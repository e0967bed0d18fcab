"""What any process does to requests that are stored: it waits for their replies, acknowledges
chunks, interrupts them, and has dead letters delivered again.

From ``postgres``; on the pool. Everything here may be done twice.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime

import asyncpg

from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.journal import JournalRow
from engine.storage.columns import headers_bytes, journal_columns
from engine.storage.groups import Groups, once_known
from engine.storage.pool import Pool
from engine.storage.protocol import SaveRequest
from engine.storage.storable import check_storable


class StoredRequests:
    """``channel`` is where this process hears of replies, if it does; ``listening`` returns when it
    does hear there, or in a little while."""

    def __init__(
        self,
        *,
        pool: Pool,
        groups: Groups,
        learn_groups: Callable[[], Awaitable[None]],
        channel: str | None,
        listening: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._groups = groups
        self._learn_groups = learn_groups
        self._channel = channel
        self._listening = listening

    async def watch(self, requests: Sequence[Snowflake]) -> None:
        if self._channel is not None and requests:
            await self._listening()
            await self._pool.fetch("watch", requests, self._channel)

    async def unwatch(self, requests: Sequence[Snowflake]) -> None:
        if self._channel is not None and requests:
            await self._pool.fetch("unwatch", requests, self._channel)

    async def sweep_waiters(self) -> int:
        rows = await self._pool.fetch("sweep_waiters")
        return int(rows[0]["waiters"])

    async def acknowledge(self, acks: Sequence[AckChunk], *, wait: bool) -> Mapping[Snowflake, int]:
        furthest: dict[Snowflake, int] = {}
        for ack in acks:
            furthest[ack.request_id] = max(ack.sequence, furthest.get(ack.request_id, -1))
        if not furthest:
            return {}
        channel = self._channel if wait else None
        if channel is not None:
            await self._listening()
        sequences = [min(sequence, _LAST_SEQUENCE) for sequence in furthest.values()]
        rows = await self._pool.fetch("acknowledge", list(furthest), sequences, channel)
        return {row["request_id"]: row["acked"] for row in rows}

    async def interrupt(self, interrupts: Sequence[Interrupt]) -> Sequence[bool]:
        ids = [interrupt.request_id for interrupt in interrupts]
        if not ids:
            return []
        rows = await self._pool.fetch("interrupt", list(dict.fromkeys(ids)))
        stored = {row["request_id"] for row in rows}
        return [id in stored for id in ids]

    async def revive(self, requests: Sequence[Snowflake]) -> Sequence[ShardId]:
        dead = await self._pool.fetch("dead", list(dict.fromkeys(requests)))
        if not dead:
            return []
        ids = [row["request_id"] for row in dead]
        numbers = [entity_key(row["entity_type"], row["entity_id"]) for row in dead]
        # The shards of all that were dead: a first run may have done it and lost its answer.
        await self._pool.fetch("revive", ids, numbers)
        return await once_known(lambda: self._shards(dead), self._learn_groups)

    async def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None = None,
    ) -> ShardId | None:
        reruns: list[None] = []
        rows = await self._pool.fetch(
            "reopen",
            *journal_columns(journal),
            request.request_id,
            run,
            headers_bytes(request),
            version,
            again=lambda: reruns.append(None),
        )
        if not rows and reruns:  # a first run may have done it and lost its answer
            rows = await self._pool.fetch("load", [request.request_id])
            rows = [row for row in rows if row["run"] == run + 1]
        return next(iter(self._shards(rows)), None)

    async def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        check_storable(request)
        envelope, execution = request.envelope, request.execution
        assert execution is not None
        shard, attributes = envelope.address.shard, execution.attributes
        reruns: list[None] = []
        rows = await self._pool.fetch(
            "fork",
            *journal_columns(journal),
            envelope.key,
            envelope.request_id,
            self._groups.id(shard.group),
            shard.number,
            envelope.address.entity_type,
            envelope.address.entity_id,
            envelope.tag,
            headers_bytes(envelope),
            envelope.payload,
            execution.version,
            started_at,
            None if attributes is None else attributes.decode(),
            again=lambda: reruns.append(None),
        )
        if not rows and reruns:
            rows = await self._pool.fetch("load", [envelope.request_id])
        return bool(rows)

    def _shards(self, rows: Sequence[asyncpg.Record]) -> list[ShardId]:
        shards = (self._groups.shard(row["group_id"], row["shard"]) for row in rows)
        return list(dict.fromkeys(shards))


_LAST_SEQUENCE = (1 << 31) - 1
