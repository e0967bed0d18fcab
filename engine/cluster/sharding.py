"""``Sharding``: messages to entities, directly. What the layers above stand on, open to users.

Implemented by ``cluster.cluster_sharding``, over the same pieces that a client sends through.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from engine.cluster.entity import Entity
from engine.cluster.entity_client import EntityClient
from engine.cluster.events import ShardingRegistrationEvent
from engine.cluster.receiver import ReplyReceiver
from engine.cluster.singleton import SingletonContext
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt
from engine.core.ids import EntityId, EntityType, ShardId, Snowflake, SnowflakeGenerator
from engine.core.reply import Reply


class Sharding(Protocol):
    """A runner's view of the cluster as an orchestrator of messages.

    Usable while its runner is entered. Once the runner stops, nothing new is taken from outside
    (``ShuttingDown``), while handlers, steps and singletons that are still running may send.
    """

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
        """Whether it takes no new work: before its runner is entered, and from the moment the
        runner begins to stop. A runner that lost its shards and comes back is not shut down."""
        ...

    async def register_entity(self, entity: Entity) -> None:
        """Serve an entity type from now on, and deliver what has been waiting for it."""
        ...

    async def register_singleton(
        self,
        name: str,
        run: Callable[[SingletonContext], Awaitable[None]],
        *,
        shard_group: str | None = None,
    ) -> None:
        """Run ``run`` on one live runner of ``shard_group`` (without it, ``default``) of all that
        have registered a singleton of this name; not here, if this one does not serve the group."""
        ...

    def make_client(self, entity_type: EntityType) -> EntityClient:
        """A client of one entity type by its name, registered here or with other runners."""
        ...

    async def send(self, envelope: EnvelopeRequest) -> ReplyReceiver:
        """Store a request and give the way to its answer. With a key that is taken, it is that of
        the stored request; ``PayloadConflict`` when its payload differs."""
        ...

    async def notify(self, envelope: EnvelopeRequest) -> None:
        """Store a request whose answer nobody here waits for."""
        ...

    async def ack_chunk(self, ack: AckChunk) -> None:
        """Say that the stream's chunks up to and with this one were taken; returns when that is
        durable. They are deleted, and its producer goes on. ``NotFound`` for an unknown request."""
        ...

    async def interrupt(self, interrupt: Interrupt) -> None:
        """Have a request end early, whoever handles it, now or later; returns when that is stored.
        One that has ended, or that nobody knows, is left as it is."""
        ...

    async def poll_storage(self) -> None:
        """Read the inboxes of all shards owned here now; returns when what was there has been
        handed to its mailboxes."""
        ...

    def active_entity_count(self) -> int:
        """How many entities and executions are in this runner's memory."""
        ...

    def registration_events(self) -> AsyncIterator[ShardingRegistrationEvent]:
        """What is registered here from this call on, in order; what was before is not told again.
        The iteration ends when the runner stops."""
        ...

    async def replies_for(self, request_id: Snowflake) -> list[Reply]:
        """Stored replies: chunks in sequence, the exit last; none gives an empty list. Chunks that
        were acknowledged are stored no more."""
        ...

    async def await_reply(self, request_id: Snowflake) -> ReplyReceiver:
        """The stored exit at once, else when it comes; whoever sent the request."""
        ...

    async def shutdown(self) -> None:
        """Stop as ``Runner.run`` does when it is told to, and return when that is done: refuse new
        work, let what is running end, interrupt what remains after the grace period, give each
        shard away when nothing of it is left. The runner's client works until the runner is left.

        Whoever stops waiting for this stops nothing. Awaited by a handler, it lasts for the grace
        period, since the handler is waited for.
        """
        ...
