"""Where volatile requests arrive at the runner that owns their shard.

From ``cluster.postman``, or directly from ``cluster.volatile`` of the same process; on to the host
of the entity type. Replies leave by the process's ``postbox``.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from uuid import UUID

from engine.cluster.acknowledger import Producers
from engine.cluster.answering import Answers, Chunks
from engine.cluster.letter import (
    LARGEST,
    Asked,
    Malformed,
    Refusal,
    no_request,
    read_order,
    read_request,
    reply_body,
    too_large,
)
from engine.cluster.postbox import Outgoing, Postbox
from engine.cluster.shard import OwnedShard
from engine.cluster.volatile import ended
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails, InvalidPayload, MailboxFull
from engine.core.ids import ShardId, Snowflake
from engine.core.reply import Defect, Exit, ReplyKind, encode_exit
from engine.storage.entities import StateWrite
from engine.storage.protocol import Post, PostKind, Received

log: logging.Logger = logging.getLogger(__name__)


class VolatileHost(Protocol):
    """Handles the volatile messages of one entity type."""

    def deliver_volatile(
        self, shard: OwnedShard, envelope: EnvelopeRequest, answers: Answers, /
    ) -> None: ...
    def interrupt(self, shard: OwnedShard, request_id: Snowflake, /) -> None: ...


class Reception:
    """The volatile requests that this runner has in hand (a ``LocalOwner`` and ``ShardFollower``).

    ``shards`` are those it owns now; ``producers`` are told of chunks that were taken. ``home``
    is the channel that this process gets its own replies by, ``arrived`` told of each request from
    there that came by post.
    """

    def __init__(
        self,
        *,
        id: UUID,
        home: UUID,
        shards: Mapping[ShardId, OwnedShard],
        shards_in: Callable[[str], int],
        postbox: Postbox,
        producers: Producers,
        arrived: Callable[[EnvelopeRequest], None],
    ) -> None:
        self.id: UUID = id
        self._home = home
        self._arrived = arrived
        self._shards = shards
        self._shards_in = shards_in
        self._postbox = postbox
        self._producers = producers
        self._hosts: dict[str, VolatileHost] = {}
        self._in_hand: dict[Snowflake, _InHand] = {}
        self._heard: dict[UUID, float] = {}
        self._early: dict[ShardId, list[_Early]] = {}
        self._had: dict[ShardId, int] = {}

    def __len__(self) -> int:
        return len(self._in_hand)

    def serve_entity(self, entity_type: str, host: VolatileHost) -> None:
        self._hosts[entity_type] = host

    # --- shards come and go (a ShardFollower) -----------------------------------------------------

    def acquired(self, shard: OwnedShard) -> None:
        self._had[shard.id] = shard.epoch
        self._end_early(shard.id)

    def drop(self, shard: OwnedShard) -> None:
        """Its messages are the hosts', which answer them or give them back."""

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        """As above."""

    def close(self) -> None:
        for shard in list(self._early):
            self._end_early(shard)

    def _end_early(self, shard: ShardId) -> None:
        """Hand on, or give back, what came before this runner knew that the shard is its own."""
        for early in self._early.pop(shard, ()):
            self._deliver_posted(early.asked, early.epoch)

    # --- from this process ------------------------------------------------------------------------

    def holds(self, shard: ShardId, /) -> bool:
        return shard in self._shards

    def deliver(
        self, envelope: EnvelopeRequest, answers: Answers, /, sender: UUID | None = None
    ) -> int | None:
        """Hand a request to its host: the epoch of its shard, None when that is not owned here, or
        not for long. ``MailboxFull`` when there is no room."""
        shard = self._shards.get(envelope.address.shard)
        if shard is None or not shard.accepting:
            return None
        if envelope.request_id in self._in_hand:
            raise no_request(envelope.request_id)
        host = self._hosts.get(envelope.address.entity_type)
        if host is None:
            answers.end(_not_registered(envelope))
            return shard.epoch
        self._in_hand[envelope.request_id] = _InHand(host=host, shard=shard, sender=sender)
        try:
            host.deliver_volatile(shard, envelope, _Noted(answers, self, envelope.request_id))
        except BaseException:
            self.forget(envelope.request_id)
            raise
        return shard.epoch

    def interrupt(self, request_id: Snowflake, /, sender: UUID | None = None) -> None:
        found = self._in_hand.get(request_id)
        if found is not None and found.sender == sender:
            found.host.interrupt(found.shard, request_id)

    def acknowledged(
        self, request_id: Snowflake, sequence: int, /, sender: UUID | None = None
    ) -> None:
        found = self._in_hand.get(request_id)
        if found is not None and found.sender == sender:
            self._producers.acknowledged(request_id, sequence)

    def forget(self, request_id: Snowflake) -> None:
        self._in_hand.pop(request_id, None)

    # --- from others (the postman's receiver) -----------------------------------------------------

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
            except Exception:  # one message must not cost those behind it
                log.exception(
                    "a volatile message cannot be handled",
                    extra={"request_id": received.request_id},
                )

    def _receive(self, received: Received) -> None:
        match received.kind:
            case PostKind.REQUEST:
                asked = read_request(received, self._shards_in)
                self._hear(asked.sender)
                self._asked(asked, received.epoch)
            case PostKind.ACK | PostKind.INTERRUPT | PostKind.SIGN as kind:
                sender, sequence = read_order(received)
                self._hear(sender)
                if kind is PostKind.ACK:
                    self.acknowledged(received.request_id, sequence, sender=sender)
                elif kind is PostKind.INTERRUPT:
                    self.interrupt(received.request_id, sender=sender)
            case PostKind.CHUNK | PostKind.EXIT:
                raise Malformed("a reply to somebody who has asked nothing")

    def _hear(self, sender: UUID) -> None:
        self._heard[sender] = asyncio.get_running_loop().time()

    def silent(self, seconds: float) -> Set[UUID]:
        """The processes that take streams from here and have said nothing for so long."""
        now = asyncio.get_running_loop().time()
        senders = {each.sender for each in self._in_hand.values() if each.sender is not None}
        self._heard = {sender: self._heard.get(sender, now) for sender in senders}
        return {s for s in self._taking().values() if now - self._heard[s] > seconds}

    def end_streams(self, sender: UUID) -> None:
        """Nobody takes what this process has asked for. (What is no stream ends by itself.)"""
        for request_id in [id for id, each in self._taking().items() if each == sender]:
            self.interrupt(request_id, sender=sender)

    def _taking(self) -> Mapping[Snowflake, UUID]:
        """The streams in hand that another process takes, and which."""
        return {
            id: each.sender
            for id, each in self._in_hand.items()
            if each.sender is not None and id in self._producers
        }

    def _asked(self, asked: Asked, epoch: int | None) -> None:
        id = asked.envelope.address.shard
        if asked.sender == self._home:
            self._arrived(asked.envelope)
        if epoch is None or epoch <= self._had.get(id, 0):
            self._deliver_posted(asked, epoch)
            return
        # The database knows already whose the shard is; this process is about to be told.
        if id not in self._early:
            self._early[id] = []
            asyncio.get_running_loop().call_later(_EARLY, self._end_early, id)
        self._early[id].append(_Early(asked=asked, epoch=epoch))

    def _deliver_posted(self, asked: Asked, epoch: int | None) -> None:
        """Hand on what was sent to this epoch, and give back what was sent to another: nobody knows
        what has gone to the owners between."""
        shard = self._shards.get(asked.envelope.address.shard)
        answers = PostedAnswers(self._postbox, asked)
        if shard is None or shard.epoch != epoch:
            answers.give_back()
            return
        if asked.envelope.request_id in self._in_hand:
            log.warning(
                "a volatile message came twice", extra={"request_id": asked.envelope.request_id}
            )
            return
        try:
            if self.deliver(asked.envelope, answers, sender=asked.sender) is None:
                answers.give_back()
        except MailboxFull as error:
            answers.refuse(Refusal.FULL, str(error).encode())


_EARLY = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Early:
    """A request to an epoch that this runner does not know yet."""

    asked: Asked
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _InHand:
    """A request; ``sender`` is None for this process."""

    host: VolatileHost
    shard: OwnedShard
    sender: UUID | None


class _Noted:
    """Answers of a request that is forgotten with its end."""

    __slots__ = ("_answers", "_reception", "_request_id")

    def __init__(self, answers: Answers, reception: Reception, request_id: Snowflake) -> None:
        self._answers = answers
        self._reception = reception
        self._request_id = request_id

    async def put(self, chunks: Chunks) -> None:
        await self._answers.put(chunks)

    def end(
        self, exit: Exit, *, chunks: Chunks = (), sequence: int = 0, state: StateWrite | None = None
    ) -> "asyncio.Future[None]":
        self._reception.forget(self._request_id)
        return self._answers.end(exit, chunks=chunks, sequence=sequence, state=state)

    def give_back(self) -> None:
        self._reception.forget(self._request_id)
        self._answers.give_back()


class PostedAnswers:
    """Of a request that another process has sent."""

    __slots__ = ("_asked", "_postbox")

    def __init__(self, postbox: Postbox, asked: Asked) -> None:
        self._postbox = postbox
        self._asked = asked

    async def put(self, chunks: Chunks) -> None:
        last: _Reply | None = None
        for sequence, payload in chunks:
            if len(payload) > LARGEST:
                raise InvalidPayload(too_large(payload))
            last = self._send(ReplyKind.CHUNK, payload, sequence)
        if last is not None:
            await last.gone()

    def end(
        self, exit: Exit, *, chunks: Chunks = (), sequence: int = 0, state: StateWrite | None = None
    ) -> "asyncio.Future[None]":
        for number, chunk in chunks:
            self._send(ReplyKind.CHUNK, chunk, number)
        kind, payload = encode_exit(exit)
        if len(payload) > LARGEST:
            error = ErrorDetails.of(InvalidPayload(too_large(payload)))
            kind, payload = encode_exit(Defect(error))
        self._send(kind, payload, sequence)
        return ended()

    def give_back(self) -> None:
        self.refuse(Refusal.NOT_HERE)

    def refuse(self, why: Refusal, text: bytes = b"") -> None:
        """It is not handled here. Whoever does not wait for replies hears of it, too."""
        self._put(why, text, 0)

    def _send(self, kind: ReplyKind, payload: bytes, sequence: int) -> "_Reply | None":
        return self._put(kind, payload, sequence) if self._asked.awaited else None

    def _put(self, outcome: ReplyKind | Refusal, payload: bytes, sequence: int) -> "_Reply":
        body = reply_body(outcome, payload, attempt=self._asked.attempt, sequence=sequence)
        reply = _Reply(self._asked, outcome, body)
        self._postbox.put(reply)
        return reply


class _Reply(Outgoing):
    """A chunk, an exit or a refusal on its way to who asked. It may arrive twice: then the second
    is thrown away there."""

    __slots__ = ("_body", "_gone", "_kind", "_request_id")

    def __init__(self, asked: Asked, outcome: ReplyKind | Refusal, body: bytes) -> None:
        super().__init__(asked.sender, again=True)
        self._kind = PostKind.CHUNK if outcome is ReplyKind.CHUNK else PostKind.EXIT
        self._request_id = asked.envelope.request_id
        self._body = body
        self._gone: asyncio.Future[None] | None = None

    def gone(self) -> "asyncio.Future[None]":
        """A future that ends when it has been sent, or cannot be."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        return self._gone

    def post(self) -> Post:
        return Post(kind=self._kind, to=self.to, request_id=self._request_id, body=self._body)

    def sent(self, posted: object) -> None:
        self._end()

    def failed(self, error: Exception) -> None:
        self._end()

    def _end(self) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


def _not_registered(envelope: EnvelopeRequest) -> Exit:
    name = envelope.address.entity_type
    return Defect(
        ErrorDetails(
            "NotRegistered",
            f"the runner of shard {envelope.address.shard} does not serve {name}; register it with"
            " all runners of the group, or make the handler persisted, which waits for that",
        )
    )
