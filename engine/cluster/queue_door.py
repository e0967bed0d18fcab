"""What comes for one queue on one runner, told apart: its own rows, and items to be processed.

From ``cluster.delivery``; items that arrive go to the ``dispatcher``, those that are admitted to
the ``entity_host`` of the queue's desk, as many at once as a runner may process.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from datetime import datetime, timedelta
from typing import Any

from engine.cluster.delivery import Delivery
from engine.cluster.dispatcher import Dispatcher
from engine.cluster.entity_host import EntityHost
from engine.cluster.handover import InHand
from engine.cluster.message import Message
from engine.cluster.queue import QueueDefinition, limits_of
from engine.cluster.queue_host import QueueHost
from engine.cluster.shard import OwnedShard
from engine.core.clock import Clock
from engine.core.errors import ErrorDetails, InvalidPayload
from engine.core.ids import Snowflake
from engine.core.reply import Defect
from engine.storage.protocol import InboxKind, InboxRow
from engine.storage.queues import PROCESS

log: logging.Logger = logging.getLogger(__name__)
_READ_EVERY = timedelta(seconds=5)


class QueueDoor:
    """A ``MessageHost``. ``desk`` is told of when it is made, since it tells ``done``.

    INVARIANT per-runner: the dispatcher admits by where shards are going to be, so what a runner
    has of a queue may be more than it may process when shards move. The rest waits here.
    """

    desk: EntityHost

    def __init__(
        self,
        definition: QueueDefinition,
        *,
        queues: QueueHost,
        delivery: Delivery,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._name = definition.name
        self._queues = queues
        self._delivery = delivery
        self._clock = clock
        self._spawn = spawn
        self._most = limits_of(definition.cls).per_runner
        self._read_at: datetime | None = None
        self._running: set[Snowflake] = set()
        self._waiting: deque[tuple[OwnedShard, InboxRow]] = deque()

    def __len__(self) -> int:
        return len(self.desk)

    def deliver(self, shard: OwnedShard, row: InboxRow) -> None:
        id = row.envelope.request_id
        if row.envelope.tag != PROCESS:
            self.desk.deliver(shard, row)
        elif row.kind is InboxKind.ADMITTED:
            self._read_limits()
            self._waiting.append((shard, row))
            self.begin()
        elif row.kind is InboxKind.INTERRUPT and self.desk.has(shard, id):
            self.desk.deliver(shard, row)
        else:
            self._dispatch(self._queues.dispatcher(self._name, shard), shard, row)

    def done(self, message: Message) -> None:
        """A message of the desk has ended, or its shard has gone."""
        row = message.row
        if row is not None and row.kind is InboxKind.ADMITTED:
            self._running.discard(message.id)
            self._delivery.ring_anywhere({message.envelope.address.shard})
            self.begin()

    def begin(self) -> None:
        """Process those that wait, as far as there is room. What was given back for want of it
        would be read again and again, before all that came after it."""
        while self._waiting and not 0 < self._most <= len(self._running):
            if self.desk.residency.close_when_crowded():
                return
            shard, row = self._waiting.popleft()
            if shard.alive and shard.accepting:
                id = row.envelope.request_id
                self._running.add(id)
                self.desk.deliver(shard, row)
                if not self.desk.has(shard, id):  # it was given back, and comes again
                    self._running.discard(id)

    def _dispatch(self, dispatcher: Dispatcher | None, shard: OwnedShard, row: InboxRow) -> None:
        match row.kind:
            case InboxKind.INTERRUPT:
                self._leave(lambda _, each: each.envelope.request_id == row.envelope.request_id)
                if dispatcher is None:
                    self._delivery.interrupt(shard, row)
                else:
                    dispatcher.interrupt(row)
            case _ if dispatcher is None:
                shard.give_back(row.seq, row.recipient)
            case InboxKind.FREED:
                dispatcher.free(row)
            case _:
                self._arrive(dispatcher, shard, row)

    def _arrive(self, dispatcher: Dispatcher, shard: OwnedShard, row: InboxRow) -> None:
        try:
            dispatcher.arrive(row)
        except InvalidPayload as error:
            self._delivery.unhandled.end(shard, row, Defect(ErrorDetails.of(error)))

    def _leave(self, who: Callable[[OwnedShard, InboxRow], bool]) -> None:
        """Some of those that wait do so no more."""
        self._waiting = deque(each for each in self._waiting if not who(*each))

    # --- how many at once -------------------------------------------------------------------------

    def _read_limits(self) -> None:
        """People may have changed them: looked at with the work, and not without it."""
        now = self._clock.now()
        if self._read_at is None or now - self._read_at > _READ_EVERY:
            self._read_at = now
            self._spawn(self._read())

    async def _read(self) -> None:
        try:
            limits = await self._queues.limits(self._name)
        except Exception as error:  # noqa: BLE001 -- the limit known holds until the next look
            log.info("cannot read a queue's limits", extra={"error": str(error)})
            return
        if limits is not None:
            self._most = limits.per_runner
            self.begin()

    # --- shards go --------------------------------------------------------------------------------

    def in_hand(self, shard: OwnedShard) -> InHand:
        return self.desk.in_hand(shard)

    def keys(self, shard: OwnedShard) -> Collection[int]:
        return self.desk.keys(shard)

    def stay(self, shard: OwnedShard) -> None:
        self.desk.stay(shard)

    def drop(self, shard: OwnedShard) -> None:
        self._leave(lambda its, _: its is shard)
        self.desk.drop(shard)

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        self._leave(lambda its, _: its is shard)
        await self.desk.drain(shard, grace)
