"""Exits of requests that nobody handles: dead letters, and what was interrupted before it began.

From ``cluster.delivery``, which finds them; on through the shard's lane to whoever waits.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.cluster.shard import OwnedShard
from engine.core.envelope import Uninterruptible
from engine.core.errors import OwnershipLost
from engine.core.ids import Snowflake
from engine.core.reply import Exit, Interrupted
from engine.core.retry import again_in
from engine.storage.protocol import (
    BadBatch,
    Commit,
    Flushed,
    InboxRow,
    StreamPosition,
    exit_reply,
)

log: logging.Logger = logging.getLogger(__name__)
_READ = 200


class Unhandled:
    """Ends requests with an exit of the engine's own, after the chunks that they may have sent.

    ``streams`` is the storage's, ``committed`` is told of each commit.
    """

    def __init__(
        self,
        *,
        streams: Callable[[Sequence[Snowflake]], Awaitable[Mapping[Snowflake, StreamPosition]]],
        committed: Callable[[OwnedShard, Commit, Flushed], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._streams = streams
        self._committed = committed
        self._spawn = spawn
        self._ending: list[_Ending] = []
        self._task: asyncio.Task[None] | None = None

    def interrupt(self, shard: OwnedShard, row: InboxRow) -> bool:
        """Obey an interrupt of a request that nobody can have begun here; whether that ends it."""
        refused = row.envelope.uninterruptible & Uninterruptible.CLIENT
        if row.reply is not None or refused:
            self._submit(shard, Commit(shard=shard.id, settled=[row.seq]))
            return False
        self.end(shard, row, Interrupted())
        return True

    def end(
        self, shard: OwnedShard, row: InboxRow, exit: Exit, *, settled: Sequence[int] = ()
    ) -> None:
        """Write the exit of the row's request, and settle the row and its ``target``."""
        self._ending.append(_Ending(shard=shard, row=row, exit=exit, settled=settled))
        if self._task is None:
            self._task = self._spawn(self._end_all())

    async def _end_all(self) -> None:
        failures = 0
        try:
            while self._ending:
                batch = self._ending[:_READ]
                try:
                    found = await self._streams([each.row.envelope.request_id for each in batch])
                except Exception as error:  # noqa: BLE001 -- whatever it was, their callers wait
                    failures += 1
                    if failures == 1:
                        log.warning(
                            "cannot end requests, trying again", extra={"error": str(error)}
                        )
                    await asyncio.sleep(again_in(failures))
                    continue
                failures = 0
                del self._ending[: len(batch)]
                for each in batch:
                    end = found[each.row.envelope.request_id].next_sequence
                    self._submit(each.shard, each.commit(sequence=end))
        finally:
            self._task = None

    def _submit(self, shard: OwnedShard, commit: Commit) -> None:
        try:
            shard.submit(_Exit(shard, commit, committed=self._committed))
        except OwnershipLost:
            return  # the next owner ends it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ending:
    shard: OwnedShard
    row: InboxRow
    exit: Exit
    settled: Sequence[int]

    def commit(self, *, sequence: int) -> Commit:
        row = self.row
        envelope = row.envelope
        reply = exit_reply(envelope.request_id, self.exit, envelope.reply_to, sequence=sequence)
        settled = [row.seq] if row.target is None else [row.seq, row.target]
        settled.extend(self.settled)
        return Commit(shard=self.shard.id, replies=[reply], settled=settled)


class _Exit:
    """One such exit on its way into the lane."""

    __slots__ = ("_commit", "_committed", "_shard")

    def __init__(
        self,
        shard: OwnedShard,
        commit: Commit,
        *,
        committed: Callable[[OwnedShard, Commit, Flushed], None],
    ) -> None:
        self._shard = shard
        self._commit = commit
        self._committed = committed

    def collect(self) -> Commit:
        return self._commit

    def committed(self, flushed: Flushed) -> None:
        self._committed(self._shard, self._commit, flushed)

    def refused(self, error: BadBatch) -> None:
        log.error(
            "an exit was refused; its request waits for the shard's next owner",
            extra={"shard": str(self._shard.id), "error": str(error)},
        )
