"""``Sharding``: messages to entities, directly. What the layers above stand on, open to users.

Requests go through the process's ``outbox``, replies come back to its reply board; the shards are
those of the runner's ``delivery``.
"""

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Protocol

from engine.cluster.delivery import Delivery
from engine.cluster.outbox import Outbox
from engine.cluster.replies import ReplyBoard
from engine.core.codec import same_json
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ConfigurationError, PayloadConflict
from engine.core.ids import EntityId, EntityType, ShardId, Snowflake, SnowflakeGenerator, shard_of
from engine.core.reply import (
    Exit,
    Reply,
    ReplyChunk,
    ReplyKind,
    ReplyWithExit,
    decode_exit,
)
from engine.storage.protocol import SaveRequest, Storage, StoredReply


class ReplyReceiver:
    """The answer of a request, to be awaited: ``exit = await receiver``."""

    __slots__ = ("_board", "request_id")

    def __init__(self, board: ReplyBoard, request_id: Snowflake) -> None:
        self._board = board
        self.request_id: Snowflake = request_id

    def __await__(self) -> Generator[Any, None, Exit]:
        return self._board.wait(self.request_id).__await__()


class Sharding(Protocol):
    """A runner's view of the cluster as an orchestrator of messages."""

    def get_shard_id(self, entity_type: EntityType, entity_id: EntityId) -> ShardId:
        """The shard of an entity whose type is registered here, else of the default group."""
        ...

    def has_shard_id(self, shard_id: ShardId) -> bool:
        """Whether this runner owns the shard now."""
        ...

    def snowflake(self) -> SnowflakeGenerator:
        """The generator of this process's request ids."""
        ...

    def is_shutdown(self) -> bool:
        """Whether it takes no more work."""
        ...

    async def send(self, envelope: EnvelopeRequest) -> ReplyReceiver:
        """Store a request and give the way to its answer. With a key that is taken, it is that of
        the stored request; ``PayloadConflict`` when its payload differs."""
        ...

    async def notify(self, envelope: EnvelopeRequest) -> None:
        """Store a request whose answer nobody here waits for."""
        ...

    async def poll_storage(self) -> None:
        """Read the inboxes of all shards owned here now; returns when what was there has been
        handed to its mailboxes."""
        ...

    def active_entity_count(self) -> int:
        """How many entities and executions are in this runner's memory."""
        ...

    async def replies_for(self, request_id: Snowflake) -> list[Reply]:
        """Stored replies: chunks in sequence, the exit last; none gives an empty list."""
        ...

    async def await_reply(self, request_id: Snowflake) -> ReplyReceiver:
        """The stored exit at once, else when it comes; whoever sent the request."""
        ...


class ClusterSharding:
    """The ``Sharding`` of one runner."""

    def __init__(
        self,
        *,
        storage: Storage,
        outbox: Outbox,
        replies: ReplyBoard,
        ids: SnowflakeGenerator,
        delivery: Callable[[], Delivery | None],
        group_of: Callable[[EntityType], str],
    ) -> None:
        self._storage = storage
        self._outbox = outbox
        self._replies = replies
        self._ids = ids
        self._delivery = delivery
        self._group_of = group_of

    def get_shard_id(self, entity_type: EntityType, entity_id: EntityId) -> ShardId:
        group = self._group_of(entity_type)
        return shard_of(group, self._storage.shards_in(group), entity_type, entity_id)

    def has_shard_id(self, shard_id: ShardId) -> bool:
        delivery = self._delivery()
        return delivery is not None and shard_id in delivery.shards

    def snowflake(self) -> SnowflakeGenerator:
        return self._ids

    def is_shutdown(self) -> bool:
        return self._delivery() is None

    async def send(self, envelope: EnvelopeRequest) -> ReplyReceiver:
        return ReplyReceiver(self._replies, await self._save(envelope))

    async def notify(self, envelope: EnvelopeRequest) -> None:
        await self._save(envelope)

    async def poll_storage(self) -> None:
        delivery = self._delivery()
        if delivery is not None:
            await asyncio.gather(*(lane.sweep() for lane in delivery.lanes))

    def active_entity_count(self) -> int:
        delivery = self._delivery()
        return 0 if delivery is None else delivery.active

    async def replies_for(self, request_id: Snowflake) -> list[Reply]:
        return [_reply(stored) for stored in await self._storage.replies([request_id])]

    async def await_reply(self, request_id: Snowflake) -> ReplyReceiver:
        return ReplyReceiver(self._replies, request_id)

    async def _save(self, envelope: EnvelopeRequest) -> Snowflake:
        if not envelope.persisted:
            raise ConfigurationError(
                "volatile messages are not supported yet: send with persisted=True"
            )
        saved = await self._outbox.save(SaveRequest(envelope=envelope))
        if saved.payload is not None and not same_json(saved.payload, envelope.payload):
            raise PayloadConflict(
                f"the key {envelope.key!r} was used before with another payload;"
                " use another key, or send the same payload"
            )
        return saved.request_id


def _reply(stored: StoredReply) -> Reply:
    if stored.kind is ReplyKind.CHUNK:
        return ReplyChunk(
            request_id=stored.request_id, sequence=stored.sequence, value=stored.payload
        )
    return ReplyWithExit(
        request_id=stored.request_id, exit=decode_exit(stored.kind, stored.payload)
    )
