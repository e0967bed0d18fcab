"""``ClusterSharding``: what stands behind a runner's ``Sharding``.

Requests go through the process's ``sender``, replies come back to its reply board; what is served,
and on which shards, is the runner's, which is a ``Place`` here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial

from engine.cluster.acknowledger import Acknowledger
from engine.cluster.call import IN_HAND
from engine.cluster.delivery import Delivery
from engine.cluster.entity import Entity
from engine.cluster.entity_client import EntityClient, Way
from engine.cluster.events import ShardingRegistrationEvent
from engine.cluster.outbox import Outbox
from engine.cluster.receiver import ReplyReceiver
from engine.cluster.replies import ReplyBoard
from engine.cluster.rpc import RpcDefinition
from engine.cluster.rpc_group import rpcs_of
from engine.cluster.sender import Sender
from engine.cluster.served import served
from engine.cluster.singleton import Singleton, SingletonContext, singleton_of
from engine.cluster.volatile import Volatile
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt
from engine.core.errors import ConfigurationError, NotFound, ShuttingDown
from engine.core.ids import (
    EntityAddress,
    EntityId,
    EntityType,
    ShardId,
    Snowflake,
    SnowflakeGenerator,
    shard_of,
)
from engine.core.names import definition_name
from engine.core.reply import Reply, ReplyChunk, ReplyKind, ReplyWithExit, decode_exit
from engine.core.trace import checked_headers, checked_trace
from engine.storage.protocol import Storage, StoredReply


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The runner behind a ``Sharding``.

    ``entered``: it has connections; ``serving``: and takes new work. ``group_of`` and ``entity``
    know what is registered there.
    """

    entered: Callable[[], bool]
    serving: Callable[[], bool]
    delivery: Callable[[], Delivery | None]
    group_of: Callable[[str], str | None]
    entity: Callable[[str], type[Entity] | None]
    register: Callable[[Entity | Singleton], Awaitable[None]]
    know: Callable[[str], Awaitable[None]]
    ring: Callable[[Collection[ShardId]], None]
    events: Callable[[], AsyncIterator[ShardingRegistrationEvent]]
    shut_down: Callable[[], Awaitable[None]]


class ClusterSharding:
    """The ``Sharding`` of one runner."""

    def __init__(
        self,
        *,
        place: Place,
        storage: Storage,
        outbox: Outbox,
        sender: Sender,
        replies: ReplyBoard,
        acknowledger: Acknowledger,
        volatile: Volatile,
        ids: SnowflakeGenerator,
    ) -> None:
        self._place = place
        self._storage = storage
        self._sender = sender
        self._replies = replies
        self._acknowledger = acknowledger
        self._volatile = volatile
        self._ids = ids
        self._way = Way(
            send=self.send,
            notify=self.notify,
            next_id=outbox.next_id,
            address=self._address,
            rpc=self._rpc,
        )
        self._rpcs: dict[type[Entity], dict[str, RpcDefinition]] = {}
        self._groups: dict[str, str] = {}

    # --- where things are -------------------------------------------------------------------------

    def get_shard_id(self, entity_type: EntityType, entity_id: EntityId) -> ShardId:
        group = self._place.group_of(entity_type) or self._groups.get(entity_type) or _DEFAULT
        return shard_of(group, self._storage.shards_in(group), entity_type, entity_id)

    def has_shard_id(self, shard_id: ShardId) -> bool:
        delivery = self._place.delivery()
        return delivery is not None and shard_id in delivery.shards

    def snowflake(self) -> SnowflakeGenerator:
        return self._ids

    def active_entity_count(self) -> int:
        delivery = self._place.delivery()
        return 0 if delivery is None else delivery.active

    # --- its life ---------------------------------------------------------------------------------

    def is_shutdown(self) -> bool:
        return not self._place.serving()

    async def register_entity(self, entity: Entity) -> None:
        await self._place.register(entity)

    async def register_singleton(
        self,
        name: str,
        run: Callable[[SingletonContext], Awaitable[None]],
        *,
        shard_group: str | None = None,
    ) -> None:
        await self._place.register(singleton_of(name, run, shard_group or _DEFAULT))

    def registration_events(self) -> AsyncIterator[ShardingRegistrationEvent]:
        return self._place.events()

    async def shutdown(self) -> None:
        await self._place.shut_down()

    async def poll_storage(self) -> None:
        delivery = self._place.delivery()
        if delivery is not None:
            await asyncio.gather(*(lane.sweep() for lane in delivery.lanes))

    # --- messages out -----------------------------------------------------------------------------

    def make_client(self, entity_type: EntityType) -> EntityClient:
        definition_name(entity_type, what="an entity type")
        if self._place.group_of(entity_type) and self._place.entity(entity_type) is None:
            raise _no_entity(entity_type)
        return EntityClient(entity_type, self._way)

    async def send(self, envelope: EnvelopeRequest) -> ReplyReceiver:
        if envelope.persisted:
            return ReplyReceiver(self._replies, await self._save(envelope))
        kept = self._replies.keep(envelope.request_id)
        try:
            return ReplyReceiver(self._replies, await self._save(envelope, wait=True), kept)
        except BaseException:
            self._replies.drop(envelope.request_id)
            raise

    async def notify(self, envelope: EnvelopeRequest) -> None:
        await self._save(envelope)

    async def ack_chunk(self, ack: AckChunk) -> None:
        self._check_entered()
        if self._is_volatile(ack.request_id):
            self._volatile.acknowledge(ack.request_id, ack.sequence)
            return
        request = await self._storage.request(ack.request_id)
        if request is None:
            raise NotFound(f"there is no request {ack.request_id}; it may have been pruned")
        taken = ack.request_id, request.address.shard, ack.sequence
        await self._acknowledger.acknowledged(*taken)
        again = partial(self._acknowledger.acknowledge, *taken, more=True)
        self._replies.acknowledged(ack.request_id, again)

    async def interrupt(self, interrupt: Interrupt) -> None:
        self._check_entered()
        if self._is_volatile(interrupt.request_id):
            self._volatile.interrupt(interrupt.request_id)
            return
        (stored,) = await self._storage.interrupt([interrupt])
        if stored:
            self._place.ring((interrupt.address.shard,))

    def _is_volatile(self, request_id: Snowflake) -> bool:
        """Also when it has ended, as long as somebody has what was kept of it."""
        return request_id in self._volatile or self._replies.keeps(request_id)

    async def _save(self, envelope: EnvelopeRequest, *, wait: bool = False) -> Snowflake:
        self._check_entered()
        if not self._place.serving() and not IN_HAND.get():
            raise ShuttingDown(
                "this runner is stopping and takes nothing new; send with another runner's"
                " sharding, or with a client, which needs no runner of its own"
            )
        checked_headers(envelope.headers)
        checked_trace(envelope.trace)
        return (await self._sender.send(envelope, wait=wait)).request_id

    def _check_entered(self) -> None:
        if not self._place.entered():
            raise ConfigurationError(
                "this runner's sharding is connected while the runner is entered:"
                " 'async with runner', or in runner.run()"
            )

    def _rpc(self, entity_type: EntityType, tag: str) -> RpcDefinition | None:
        entity = self._place.entity(entity_type)
        if entity is None:
            return None
        found = self._rpcs.get(entity)
        if found is None:
            found = self._rpcs[entity] = rpcs_of(entity)
        return found.get(tag)

    async def _address(self, entity_type: EntityType, entity_id: EntityId) -> EntityAddress:
        self._check_entered()
        group = self._place.group_of(entity_type) or self._groups.get(entity_type)
        if group is None:
            found = served(await self._storage.runners()).get(entity_type)
            if found is not None and found.kind in _NO_ENTITIES:
                raise _no_entity(entity_type)
            if found is not None:
                self._groups[entity_type] = found.group
            group = _DEFAULT if found is None else found.group
        await self._place.know(group)
        shard = shard_of(group, self._storage.shards_in(group), entity_type, entity_id)
        return EntityAddress(shard, entity_type, entity_id)

    # --- answers back -----------------------------------------------------------------------------

    async def replies_for(self, request_id: Snowflake) -> list[Reply]:
        return [_reply(stored) for stored in await self._storage.replies([request_id])]

    async def await_reply(self, request_id: Snowflake) -> ReplyReceiver:
        return ReplyReceiver(self._replies, request_id)


_DEFAULT = "default"
_NO_ENTITIES = frozenset({"workflow", "singleton"})


def _no_entity(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"{name} is registered, but not as an entity; start workflows with client.start()"
    )


def _reply(stored: StoredReply) -> Reply:
    if stored.kind is ReplyKind.CHUNK:
        return ReplyChunk(
            request_id=stored.request_id, sequence=stored.sequence, value=stored.payload
        )
    return ReplyWithExit(
        request_id=stored.request_id, exit=decode_exit(stored.kind, stored.payload)
    )
