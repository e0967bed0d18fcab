"""Where the replies of one request go: stored with the shard's lane, or straight to who asked.

Made with the message by ``cluster.entity_host`` and used by ``cluster.handling``.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

from engine.cluster.delivery import Delivery
from engine.cluster.shard import OwnedShard
from engine.cluster.write import write
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails
from engine.core.reply import Defect, Exit, ReplyKind
from engine.storage.entities import StateWrite
from engine.storage.protocol import BadBatch, Commit, NewReply, exit_reply

log: logging.Logger = logging.getLogger(__name__)

Chunks = Sequence[tuple[int, bytes]]
"""Elements of a stream with their sequences."""


class Answers(Protocol):
    """The way back of one request. Nothing is sent after its exit.

    Both raise ``OwnershipLost`` once the shard is lost to a request that is stored.
    """

    async def put(self, chunks: Chunks) -> None:
        """Send chunks; returns when they are as safe as the request itself is."""
        ...

    def end(
        self, exit: Exit, *, chunks: Chunks = (), sequence: int = 0, state: StateWrite | None = None
    ) -> "asyncio.Future[None]":
        """Send the exit, after the last chunks and together with them and with a new state.

        The future ends when that is done; ``BadBatch`` when the state was not saved (and a
        ``Defect`` was sent instead), ``Overtaken`` when the request had its exit before.
        """
        ...

    def give_back(self) -> None:
        """The request leaves with its shard, and nothing of it was begun."""
        ...


class StoredAnswers:
    """Of a persisted request: rows written by the owner's lane. ``seqs`` are the inbox rows that
    the exit settles: the request's own, and those of interrupts of it."""

    __slots__ = ("_delivery", "_envelope", "_shard", "seqs")

    def __init__(
        self, delivery: Delivery, shard: OwnedShard, envelope: EnvelopeRequest, seq: int
    ) -> None:
        self._delivery = delivery
        self._shard = shard
        self._envelope = envelope
        self.seqs: list[int] = [seq]

    async def put(self, chunks: Chunks) -> None:
        await write(
            self._delivery, self._shard, Commit(shard=self._shard.id, replies=self._rows(chunks))
        )

    def end(
        self, exit: Exit, *, chunks: Chunks = (), sequence: int = 0, state: StateWrite | None = None
    ) -> "asyncio.Future[None]":
        commit = Commit(
            shard=self._shard.id,
            replies=[*self._rows(chunks), self._exit(exit, sequence)],
            settled=self.seqs,
            states=[] if state is None else [state],
        )
        done = write(self._delivery, self._shard, commit)
        done.add_done_callback(lambda ended: self._refused(ended, sequence - len(chunks)))
        return done

    def give_back(self) -> None:
        """Its inbox row is the next owner's."""

    def _refused(self, done: "asyncio.Future[None]", sequence: int) -> None:
        """The reply itself cannot be stored: answer with that error instead."""
        error = None if done.cancelled() else done.exception()
        if not isinstance(error, BadBatch) or not self._shard.alive:
            return
        log.error(
            "a reply was refused",
            extra={"request_id": self._envelope.request_id, "error": str(error)},
        )
        defect = Defect(ErrorDetails("BadBatch", f"the reply was refused: {error}"))
        replies = [self._exit(defect, sequence)]
        commit = Commit(shard=self._shard.id, replies=replies, settled=self.seqs)
        write(self._delivery, self._shard, commit)

    def _rows(self, chunks: Chunks) -> list[NewReply]:
        return [
            NewReply(
                request_id=self._envelope.request_id,
                sequence=sequence,
                kind=ReplyKind.CHUNK,
                payload=payload,
            )
            for sequence, payload in chunks
        ]

    def _exit(self, exit: Exit, sequence: int) -> NewReply:
        envelope = self._envelope
        return exit_reply(envelope.request_id, exit, envelope.reply_to, sequence=sequence)
