"""The volatile requests that a process has sent, until they are answered.

From ``cluster.sender``; to the runner of this very process if it owns the shard, without any
statement, else out through the ``postbox``. Replies come back by the ``postman``, or directly, and
go on to the process's reply board.
"""

import asyncio
import logging
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from engine.cluster.answering import Answers, Chunks
from engine.cluster.letter import (
    Malformed,
    Refusal,
    checked,
    no_request,
    order_body,
    read_reply,
    request_body,
    request_parts,
)
from engine.cluster.postbox import Outgoing, Overtaken, Postbox, Whereabouts
from engine.cluster.replies import ReplyBoard
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails, MailboxFull
from engine.core.ids import ShardId, Snowflake
from engine.core.reply import RUNNER_LOST, Defect, Exit, ReplyKind, encode_exit
from engine.storage.entities import StateWrite
from engine.storage.protocol import Post, Posted, PostKind, Received, Storage, StoredReply

log: logging.Logger = logging.getLogger(__name__)


class LocalOwner(Protocol):
    """The runner of this process."""

    @property
    def id(self) -> UUID: ...
    def holds(self, shard: ShardId, /) -> bool:
        """Whether it owns the shard, so that nobody else does."""
        ...

    def deliver(self, envelope: EnvelopeRequest, answers: Answers, /) -> int | None:
        """Hand on a request: the epoch of its shard, None when that is not owned here, or being
        given away. ``MailboxFull`` when there is no room."""
        ...

    def interrupt(self, request_id: Snowflake, /) -> None: ...
    def acknowledged(self, request_id: Snowflake, sequence: int, /) -> None: ...


class Volatile:
    """Requests by id. Each ends: with its exit, with an error, or when it turns out that its owner
    is gone. ``local`` is the runner of this process while there is one; ``watched`` is called when
    a request leaves the process."""

    def __init__(
        self, *, storage: Storage, replies: ReplyBoard, postbox: Postbox, patience: timedelta
    ) -> None:
        self._local: LocalOwner | None = None
        self.watched: Callable[[], None] = lambda: None
        self._storage = storage
        self._replies = replies
        self._postbox = postbox
        self._patience = patience.total_seconds()
        self._sent: dict[Snowflake, SentRequest] = {}
        self._told: deque[SentRequest] = deque()
        self._looping: dict[ShardId, set[Snowflake]] = {}
        self._early: set[Snowflake] = set()

    def __contains__(self, request_id: Snowflake) -> bool:
        """Whether the request was sent from here and is not answered yet."""
        return request_id in self._sent

    def __len__(self) -> int:
        return len(self._sent)

    @property
    def local(self) -> LocalOwner | None:
        return self._local

    @local.setter
    def local(self, owner: LocalOwner | None) -> None:
        self._local = owner
        self._looping.clear()

    async def send(self, envelope: EnvelopeRequest, *, wait: bool) -> None:
        """Returns once the request is in a mailbox of this process, or on its way to another.

        With ``wait``, somebody waits for it at the reply board already. ``MailboxFull``;
        ``NoRunner`` when nobody owns its shard for a while; ``StorageUnavailable`` when nobody
        knows whether it was sent. The last two, and a ``MailboxFull`` from afar, come to whoever
        waits for the reply as well.
        """
        checked(envelope, self._storage.shards_in)
        if envelope.request_id in self._sent:
            raise no_request(envelope.request_id)
        if wait:
            self._replies.volatile(envelope.request_id)
        sent = SentRequest(self, envelope, awaited=wait)
        self._sent[sent.id] = sent
        try:
            if self._postbox.busy(envelope.address.shard) or not self._is_here(sent):
                await self._post(sent)
        except (
            Exception
        ):  # one whose caller was cancelled may be on its way, and is interrupted then
            self.forget(sent)
            raise

    def _is_here(self, sent: "SentRequest") -> bool:
        return self.hand_over(sent) is Whereabouts.HERE

    def hand_over(self, sent: "SentRequest") -> Whereabouts:
        """Give a request to the runner of this process, if that owns its shard.

        INVARIANT post-order: what was posted to the runner of this very process, before that knew
        its shard, is in a mailbox before anything else of the shard is.
        """
        shard = sent.envelope.address.shard
        if self._local is None:
            return Whereabouts.ELSEWHERE
        if self._looping.get(shard):
            return Whereabouts.SOON
        epoch = self._local.deliver(sent.envelope, LocalAnswers(self, sent))
        if epoch is not None:
            self._postbox.passed(sent, epoch)
            return Whereabouts.HERE
        return Whereabouts.SOON if self._local.holds(shard) else Whereabouts.ELSEWHERE

    def posted(self, sent: "SentRequest", runner: UUID | None) -> None:
        """The request is on its way to that runner, which may be that of this process."""
        if sent.id in self._early:
            self._early.discard(sent.id)
        elif self._local is not None and self._local.id == runner:
            self._looping.setdefault(sent.envelope.address.shard, set()).add(sent.id)

    def arrived(self, request: EnvelopeRequest) -> None:
        """The runner of this process has got a request of this process by post, perhaps before it
        is known here that it was posted."""
        looping = self._looping.get(request.address.shard, set())
        if request.request_id not in looping:
            if request.request_id in self._sent:
                self._early.add(request.request_id)
            return
        looping.discard(request.request_id)
        if not looping:
            del self._looping[request.address.shard]

    async def _post(self, sent: "SentRequest") -> None:
        now = asyncio.get_running_loop().time()
        gone = sent.leave(self._storage.identity, patience=now + self._patience)
        if not sent.awaited:
            self._told.append(sent)
        while self._told and (self._told[0].patience or 0) < now:
            self.forget(self._told.popleft())
        self._postbox.put(sent)
        self.watched()
        await gone

    def interrupt(self, request_id: Snowflake) -> None:
        """End a request early, as far as its handler lets itself be interrupted."""
        self._order(PostKind.INTERRUPT, request_id)

    def acknowledge(self, request_id: Snowflake, sequence: int, *, more: bool = False) -> None:
        """The chunks up to and with this one were taken; ``more`` of them comes by itself."""
        self._order(PostKind.ACK, request_id, sequence)

    def _order(self, kind: PostKind, request_id: Snowflake, sequence: int = 0) -> None:
        sent = self._sent.get(request_id)
        if sent is None:
            return
        if sent.remote:
            body = order_body(self._storage.identity, sequence)
            self._postbox.put(_Order(sent.to, kind, request_id, body))
        elif self._local is not None and kind is PostKind.ACK:
            self._local.acknowledged(request_id, sequence)
        elif self._local is not None:
            self._local.interrupt(request_id)

    def sign(self, runners: Iterable[UUID]) -> None:
        """Tell runners, which have requests in hand, that this process still waits for replies."""
        for runner in runners:
            body = order_body(self._storage.identity)
            self._postbox.put(_Order(runner, PostKind.SIGN, Snowflake(0), body))

    # --- what becomes of them ---------------------------------------------------------------------

    def replied(self, sent: "SentRequest", kind: ReplyKind, sequence: int, payload: bytes) -> None:
        """A chunk, or the exit, which ends the request."""
        if kind is not ReplyKind.CHUNK:
            self.forget(sent)
        if sent.awaited:
            reply = StoredReply(request_id=sent.id, sequence=sequence, kind=kind, payload=payload)
            self._replies.delivered(reply)

    def failed(self, sent: "SentRequest", error: Exception) -> None:
        """There will be no reply."""
        self.forget(sent)
        if isinstance(error, Overtaken):
            self.lost(sent, _OVERTAKEN)
        elif sent.awaited:
            self._replies.failed(sent.id, error)
        elif sent.remote and sent.gone is not None and sent.gone.done():
            log.info(
                "a volatile message that nobody waits for was not delivered: %s",
                error,
                extra={"request_id": sent.id},
            )

    def lost(self, sent: "SentRequest", why: str) -> None:
        """Its owner is gone."""
        details = ErrorDetails(
            RUNNER_LOST, f"{sent.envelope.address} {sent.envelope.tag} was not answered: {why}"
        )
        kind, payload = encode_exit(Defect(details))
        self.replied(sent, kind, 0, payload)

    def give_back(self, sent: "SentRequest") -> None:
        """Its owner has not begun with it: send it to the next."""
        now = asyncio.get_running_loop().time()
        if not sent.remote:
            sent.leave(self._storage.identity, patience=now + self._patience)
            self.watched()
        self._sent[sent.id] = sent
        sent.runner, sent.patience = None, now + self._patience
        self._postbox.give_back(sent)

    def forget(self, sent: "SentRequest") -> None:
        if self._sent.get(sent.id) is sent:
            del self._sent[sent.id]
            self._early.discard(sent.id)
            if self._looping:
                self.arrived(sent.envelope)

    @property
    def under_way(self) -> Mapping[Snowflake, "SentRequest"]:
        """Those that another process is to answer."""
        return {id: each for id, each in self._sent.items() if each.remote and each.awaited}

    # --- the postman's receiver -------------------------------------------------------------------

    def receive(self, messages: Iterable[Received]) -> None:
        for received in messages:
            try:
                self._receive(received)
            except Malformed as error:
                log.warning(
                    "a volatile message was not understood and is thrown away: %s",
                    error,
                    extra={"request_id": received.request_id},
                )

    def _receive(self, received: Received) -> None:
        if received.kind not in _REPLIES:
            raise Malformed(f"{received.kind.name.lower()} messages go to the owners of shards")
        sent = self._sent.get(received.request_id)
        if sent is None or not sent.remote:
            return  # it was given up
        answer = read_reply(received)
        if answer.attempt != sent.tries:
            return  # of an owner that had refused it
        match answer.outcome:
            case Refusal.NOT_HERE:
                self.give_back(sent)
            case Refusal.FULL:
                self.failed(sent, MailboxFull(answer.payload.decode(errors="replace")))
            case kind:
                if (kind is ReplyKind.CHUNK) is not (received.kind is PostKind.CHUNK):
                    raise Malformed("a reply of another kind than it says")
                self.replied(sent, kind, answer.sequence, answer.payload)


_REPLIES = frozenset({PostKind.CHUNK, PostKind.EXIT})
_OVERTAKEN = (
    "its shard moved before a handler had it, and later messages have reached the new owner; it was"
    " not handled, send it again"
)


_SLOTS = 64


class SentRequest(Outgoing):
    """One request. ``awaited``: somebody waits for its reply. ``remote``: it has left this process,
    and is on its way to ``runner``, or there (None: it waits here to be sent). ``gone`` ends when
    it has been sent, or fails."""

    __slots__ = ("_parts", "_volatile", "awaited", "envelope", "gone", "remote", "runner", "since")

    def __init__(self, volatile: Volatile, envelope: EnvelopeRequest, *, awaited: bool) -> None:
        super().__init__(envelope.address.shard)
        # Many entities to a slot, so that what is remembered of slots stays little.
        self.slot = self.to, zlib.crc32(envelope.address.entity_id.encode()) % _SLOTS
        self._volatile = volatile
        self._parts = b""
        self.envelope: EnvelopeRequest = envelope
        self.awaited: bool = awaited
        self.remote: bool = False
        self.runner: UUID | None = None
        self.since: float = 0.0
        self.gone: asyncio.Future[None] | None = None

    @property
    def id(self) -> Snowflake:
        return self.envelope.request_id

    @property
    def wanted(self) -> bool:
        return self.gone is None or not self.gone.cancelled()

    def leave(self, sender: UUID, *, patience: float) -> "asyncio.Future[None]":
        """Make it ready to be posted, with replies to come to ``sender``."""
        loop = asyncio.get_running_loop()
        self._parts = request_parts(self.envelope, sender=sender, awaited=self.awaited)
        self.patience = patience
        self.remote = True
        self.since = loop.time()
        self.gone = loop.create_future()
        return self.gone

    def post(self) -> Post:
        return Post(
            kind=PostKind.REQUEST,
            to=self.to,
            request_id=self.id,
            body=request_body(self._parts, self.tries),
        )

    def sent(self, posted: Posted) -> None:
        self.runner = posted.runner
        self._volatile.posted(self, posted.runner)
        self._leave_hand()

    def hand_over(self) -> Whereabouts:
        self.remote = False
        where = self._volatile.hand_over(self)
        self.remote = where is not Whereabouts.HERE
        if where is Whereabouts.HERE:
            self._leave_hand()
        return where

    def _leave_hand(self) -> None:
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)

    def failed(self, error: Exception) -> None:
        self._volatile.failed(self, error)
        if self.gone is not None and not self.gone.done():
            self.gone.set_exception(error)
            self.gone.exception()  # whoever waits for the reply has it


class LocalAnswers:
    """Of a request that is handled in this very process."""

    __slots__ = ("_sent", "_volatile")

    def __init__(self, volatile: Volatile, sent: SentRequest) -> None:
        self._volatile = volatile
        self._sent = sent

    async def put(self, chunks: Chunks) -> None:
        for sequence, payload in chunks:
            self._volatile.replied(self._sent, ReplyKind.CHUNK, sequence, payload)

    def end(
        self, exit: Exit, *, chunks: Chunks = (), sequence: int = 0, state: StateWrite | None = None
    ) -> "asyncio.Future[None]":
        for number, chunk in chunks:
            self._volatile.replied(self._sent, ReplyKind.CHUNK, number, chunk)
        kind, payload = encode_exit(exit)
        self._volatile.replied(self._sent, kind, sequence, payload)
        return ended()

    def give_back(self) -> None:
        self._volatile.give_back(self._sent)


def ended() -> "asyncio.Future[None]":
    """A future that has ended."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


class _Order(Outgoing):
    """An acknowledgement, an interrupt or a sign of life, on its way to the owner of a request."""

    __slots__ = ("_body", "_kind", "_request_id")

    def __init__(
        self, to: ShardId | UUID, kind: PostKind, request_id: Snowflake, body: bytes
    ) -> None:
        super().__init__(to, again=True)
        self._kind = kind
        self._request_id = request_id
        self._body = body

    def post(self) -> Post:
        return Post(kind=self._kind, to=self.to, request_id=self._request_id, body=self._body)
