"""Volatile messages to other processes: rows of an unlogged table that the receiver takes out.

From ``postgres``. Calls that come while a statement is in flight share the next one, so that what
one process sends arrives in the order it was sent. No message is sent twice: when a connection is
lost, whoever sent on it is told that nobody knows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from engine.core.errors import StorageUnavailable
from engine.core.ids import ShardId
from engine.storage.groups import Groups, UnknownGroup
from engine.storage.pool import Pool
from engine.storage.protocol import Post, Posted, PostKind, Received

log: logging.Logger = logging.getLogger(__name__)


class PostOffice:
    """``sending`` is a pool of one session, which waits for no disk; ``pool`` serves the rest."""

    def __init__(
        self,
        *,
        sending: Pool,
        pool: Pool,
        identity: UUID,
        groups: Groups,
        learn_groups: Callable[[], Awaitable[None]],
    ) -> None:
        self._sending = sending
        self._pool = pool
        self._identity = identity
        self._groups = groups
        self._learn_groups = learn_groups
        self._turn = asyncio.Lock()
        self._waiting: list[_Bundle] = []
        self._taking = asyncio.Lock()
        self._read: list[int] = []

    async def post(self, messages: Sequence[Post]) -> Sequence[Posted]:
        if not messages:
            return []
        bundle = _Bundle(messages)
        self._waiting.append(bundle)
        # Its companions must not be lost when the caller that happens to send them is cancelled.
        await asyncio.shield(self._send_waiting())
        return bundle.answer()

    async def take(self) -> Sequence[Received]:
        """Each message once. Its row goes with the next call: what was read on a connection that
        is lost before the answer has come is read again."""
        async with self._taking:
            rows = await self._pool.fetch("take_post", self._identity, self._read)
            if not all(row["group_id"] is None or self._knows(row) for row in rows):
                await self._learn_groups()
            self._read = [row["seq"] for row in rows]
            received = (self._received(row) for row in rows)
            return [message for message in received if message is not None]

    async def sweep(self, older_than: timedelta) -> int:
        rows = await self._pool.fetch("sweep_post", older_than)
        return int(rows[0]["messages"])

    async def _send_waiting(self) -> None:
        """Send what nobody has sent yet; the caller's own may be gone with the one before."""
        async with self._turn:
            bundles, self._waiting = self._waiting, []
            if not bundles:
                return
            try:
                sent = await self._send([each for bundle in bundles for each in bundle.messages])
            except StorageUnavailable as error:
                for bundle in bundles:
                    bundle.error = error
                return
            for bundle in bundles:
                count = len(bundle.messages)
                bundle.posted, sent = sent[:count], sent[count:]

    async def _send(self, messages: Sequence[Post]) -> list[Posted]:
        if any(isinstance(m.to, ShardId) and m.to.group not in self._groups for m in messages):
            await self._learn_groups()
        columns = zip(*(self._columns(message) for message in messages), strict=True)
        rows = await self._sending.fetch_once("post", *columns)
        return [Posted(runner=row["receiver"], epoch=row["epoch"]) for row in rows]

    def _columns(self, message: Post) -> tuple[object, ...]:
        channel, group_id, number = None, None, None
        if isinstance(message.to, UUID):
            channel = message.to
        elif message.to.group in self._groups:
            group_id, number = self._groups.id(message.to.group), message.to.number
        return channel, group_id, number, message.kind.value, message.request_id, message.body

    def _knows(self, row: asyncpg.Record) -> bool:
        try:
            self._groups.shard(row["group_id"], row["shard"])
        except UnknownGroup:
            return False
        return True

    def _received(self, row: asyncpg.Record) -> Received | None:
        """None for a row that nothing of ours wrote: it must not cost those beside it."""
        try:
            shard = None
            if row["group_id"] is not None:
                shard = self._groups.shard(row["group_id"], row["shard"])
            return Received(
                kind=PostKind(row["kind"]),
                shard=shard,
                request_id=row["request_id"],
                body=row["body"],
                epoch=row["epoch"],
            )
        except (UnknownGroup, ValueError) as error:
            log.warning(
                "a volatile message was not understood and is thrown away",
                extra={"request_id": row["request_id"], "error": str(error)},
            )
            return None


class _Bundle:
    """The messages of one call, and what became of them."""

    __slots__ = ("error", "messages", "posted")

    def __init__(self, messages: Sequence[Post]) -> None:
        self.messages = messages
        self.posted: Sequence[Posted] = ()
        self.error: StorageUnavailable | None = None

    def answer(self) -> Sequence[Posted]:
        if self.error is not None:
            raise self.error
        return self.posted
