"""One request in the hands of its owner, from its delivery to its exit.

Made by ``cluster.entity_host``; waits in a ``mailbox``; run by ``cluster.handling``.
"""

import asyncio

from engine.cluster.answering import Answers, StoredAnswers
from engine.cluster.shard import OwnedShard
from engine.core.envelope import EnvelopeRequest, Uninterruptible
from engine.core.ids import Snowflake
from engine.storage.protocol import InboxRow


class Message:
    """``row`` is its inbox row, None for a volatile one. ``failures`` counts its failed deliveries.

    ``readonly``: its handler cannot write. ``begun``: its handler runs. ``tried``: one has run, so
    that a volatile message must not go to another owner. ``interrupted``: an interrupt has reached
    its handler. ``handled``: that has come to its end. ``answered``: its exit is on its way.
    """

    __slots__ = (
        "answered",
        "answers",
        "begun",
        "envelope",
        "failures",
        "handled",
        "interrupted",
        "readonly",
        "row",
        "shard",
        "task",
        "tried",
    )

    def __init__(
        self,
        *,
        shard: OwnedShard,
        envelope: EnvelopeRequest,
        answers: Answers,
        row: InboxRow | None = None,
        readonly: bool = False,
    ) -> None:
        self.shard: OwnedShard = shard
        self.envelope: EnvelopeRequest = envelope
        self.answers: Answers = answers
        self.row: InboxRow | None = row
        self.failures: int = 0 if row is None else row.failures
        self.readonly: bool = readonly
        self.begun: bool = False
        self.tried: bool = False
        self.interrupted: bool = False
        self.handled: bool = False
        self.answered: bool = False
        self.task: asyncio.Task[None] | None = None

    @property
    def id(self) -> Snowflake:
        return self.envelope.request_id

    @property
    def interruptible(self) -> bool:
        """Whether an interrupt by its sender still means anything."""
        over = self.handled or self.answered
        return not (over or self.envelope.uninterruptible & Uninterruptible.CLIENT)

    @property
    def stays(self) -> bool:
        """Whether a hand-over of its shard waits for it."""
        return bool(self.envelope.uninterruptible & Uninterruptible.SERVER)

    @property
    def put_off(self) -> bool:
        """Whether it is left to the shard's next owner, as it would keep the shard here."""
        leaving = self.shard.leaving
        return leaving is not None and leaving.closed and self.stays

    def interrupted_by(self, seq: int) -> None:
        """Note the inbox row of an interrupt, to be settled with the exit."""
        if isinstance(self.answers, StoredAnswers):
            self.answers.seqs.append(seq)
