"""One process's place in the cluster: what a client and a runner both stand on.

Opens a storage, leases request ids, sends requests, waits for replies, and hears the doorbell.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Self
from uuid import UUID

from engine.cluster.acknowledger import Acknowledger
from engine.cluster.delivery import Delivery
from engine.cluster.mail import Mail
from engine.cluster.outbox import Outbox, Taker
from engine.cluster.replies import ReplyBoard
from engine.cluster.sender import Sender
from engine.core.clock import Clock, SystemClock
from engine.core.ids import ShardId, Snowflake, SnowflakeGenerator
from engine.core.payload import PayloadLimit
from engine.settings import Settings
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import SaveRequest, Storage
from engine.storage.sealed import sealed

OpenStorage = Callable[[UUID | None, Clock], Storage]


def postgres(settings: Settings) -> OpenStorage:
    """The storage a production process uses."""

    def make(identity: UUID | None, clock: Clock) -> Storage:
        storage = PostgresStorage(
            settings.database(),
            schema=settings.schema,
            identity=identity,
            pool_dsn=settings.pool_dsn,
            pool_size=settings.pool_size,
            shards_per_group=settings.shards_per_group,
            notifications=settings.notifications,
            statement_timeout=settings.statement_timeout,
            connect_timeout=settings.connect_timeout,
            clock=clock if isinstance(clock, SystemClock) else None,
        )
        return sealed(storage, settings.codecs())

    return make


class Node:
    """Enter it to open. ``delivery`` is that of the runner in this process, while there is one."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        open_storage: OpenStorage | None = None,
    ) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.storage: Storage = (open_storage or postgres(settings))(None, self.clock)
        self.ids: SnowflakeGenerator = SnowflakeGenerator(now=self.clock.now)
        self.limit: PayloadLimit = PayloadLimit(settings.payload_limit)
        self.outbox: Outbox = Outbox(
            storage=self.storage,
            ids=self.ids,
            limit=self.limit,
            stored=self._stored,
            taker=self._taker,
        )
        self.replies: ReplyBoard = ReplyBoard(storage=self.storage, poll=self.poll)
        self.mail: Mail = Mail(
            storage=self.storage,
            replies=self.replies,
            patience=settings.volatile_patience,
            poll=self.poll,
            ttl=settings.time_to_live,
        )
        self.sender: Sender = Sender(outbox=self.outbox, volatile=self.mail.volatile)
        self.acknowledger: Acknowledger = Acknowledger(
            storage=self.storage,
            next_id=self.outbox.next_id,
            registered=self.replies.read,
            ring=self.ring_shards,
            settled=self.outbox.settled,
        )
        self.delivery: Delivery | None = None
        self.entered: bool = False
        self._groups: set[str] = set()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.storage.close)
            await self.storage.open()
            self.storage.doorbell.listen(self)
            await stack.enter_async_context(self.acknowledger)  # until what is stored is known
            await stack.enter_async_context(self.outbox)
            await stack.enter_async_context(self.replies)
            await stack.enter_async_context(self.mail)
            self._stack = stack.pop_all()
        self.entered = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def know(self, group: str) -> None:
        """Make sure that the shard group exists, so that addresses in it can be made."""
        if group not in self._groups:
            await self.storage.ensure_groups([group])
            self._groups.add(group)

    def poll(self) -> timedelta:
        """How long to wait between two reads nobody asked for."""
        healthy = self.storage.doorbell.healthy
        return self.settings.poll_interval if healthy else self.settings.poll_interval_degraded

    def _taker(self, request: SaveRequest) -> Taker | None:
        return None if self.delivery is None else self.delivery.taker(request)

    def _stored(self, request: SaveRequest, taken: bool) -> None:
        self.replies.sent(request.envelope.request_id)
        if not taken and (self.delivery is None or not self.delivery.waits(request)):
            self.ring_shards((request.envelope.address.shard,))

    def ring_shards(self, shards: Collection[ShardId]) -> None:
        """Have the owners of these shards read their inboxes."""
        others = shards if self.delivery is None else self.delivery.ring(shards)
        if others:
            self.storage.doorbell.ring_shards(others)

    # --- the doorbell's listener ----------------------------------------------------------------

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None:
        """Rings for shards go to a runner's own channel."""

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        self.replies.rung(requests)

    def acks_rung(self, requests: Sequence[Snowflake]) -> None:
        """Rings for producers of streams go to a runner's own channel."""

    def post_rung(self) -> None:
        self.mail.rung()

    def topology_rung(self) -> None:
        self.mail.topology_rung()

    def doorbell_restored(self) -> None:
        self.replies.restored()
        self.mail.restored()
