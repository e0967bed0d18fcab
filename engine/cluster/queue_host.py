"""The queues of one runner: a dispatcher for each, while the queue's shard is owned here.

Follows the shards of delivery, like ``cron_host``; the ``cluster.queue_door`` of a queue hands its
rows on from here.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from engine.cluster.delivery import Delivery
from engine.cluster.dispatcher import Change, Dispatcher, DispatchTools
from engine.cluster.limits import Limits, QueueSettings
from engine.cluster.queue import QueueDefinition, queue_shard
from engine.cluster.queue_home import refuse_two_homes
from engine.cluster.roster import Roster
from engine.cluster.shard import OwnedShard
from engine.cluster.stream import Moved
from engine.core.clock import Clock
from engine.core.ids import ShardId
from engine.core.retry import again_in
from engine.storage.protocol import Storage

log: logging.Logger = logging.getLogger(__name__)


class QueueHost:
    """Makes a dispatcher for each queue whose shard comes, and lets it go with the shard (a
    ``ShardFollower`` of delivery)."""

    def __init__(
        self,
        *,
        delivery: Delivery,
        storage: Storage,
        clock: Clock,
        roster: Roster,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._storage = storage
        self._tools = DispatchTools(delivery=delivery, clock=clock, roster=roster, spawn=spawn)
        self._spawn = spawn
        self._definitions: dict[str, QueueDefinition] = {}
        self._shards: dict[ShardId, OwnedShard] = {}
        self._dispatchers: dict[str, Dispatcher] = {}
        roster.changed.append(self._look)

    def register(self, definition: QueueDefinition) -> None:
        """Keep a queue, at once if its shard is owned already."""
        self._definitions[definition.name] = definition
        owned = self._shards.get(self._shard_of(definition))
        if owned is not None and owned.accepting:  # what is given away is the next owner's
            self._keep(definition, owned)

    async def ask(self, name: str, change: Change) -> None:
        """Have a queue's settings changed; returns once that is durable. Only for a message that
        was delivered here: ``Moved`` when its shard has gone or goes."""
        dispatcher = self._dispatchers.get(name)
        if dispatcher is None:
            raise Moved
        await dispatcher.ask(change)

    def dispatcher(self, name: str, shard: OwnedShard) -> Dispatcher | None:
        """That of a queue, if the shard is the queue's."""
        found = self._dispatchers.get(name)
        return found if found is not None and found.shard is shard else None

    async def limits(self, name: str) -> Limits | None:
        """What a queue may do, as its owner has it, wherever that is; None if it had none yet."""
        rows = await self._storage.queue_rows([name])
        settings = [QueueSettings.decode(row.settings, paused=row.paused) for row in rows]
        return settings[0].limits if settings else None

    def _look(self) -> None:
        for dispatcher in self._dispatchers.values():
            dispatcher.look()

    def _shard_of(self, definition: QueueDefinition) -> ShardId:
        group = definition.group
        return queue_shard(definition.name, group, self._storage.shards_in(group))

    # --- shards come and go -----------------------------------------------------------------------

    def acquired(self, shard: OwnedShard) -> None:
        self._shards[shard.id] = shard
        for definition in self._definitions.values():
            if self._shard_of(definition) == shard.id:
                self._keep(definition, shard)

    def drop(self, shard: OwnedShard) -> None:
        for dispatcher in self._on(shard):
            dispatcher.drop()
        self._forget(shard)

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        await asyncio.gather(*(dispatcher.drain(grace) for dispatcher in self._on(shard)))
        self._forget(shard)

    def _on(self, shard: OwnedShard) -> list[Dispatcher]:
        return [each for each in self._dispatchers.values() if each.shard is shard]

    def _forget(self, shard: OwnedShard) -> None:
        if self._shards.get(shard.id) is shard:
            del self._shards[shard.id]
        for dispatcher in self._on(shard):
            del self._dispatchers[dispatcher.definition.name]

    def _failed(self, dispatcher: Dispatcher) -> None:
        """Another goes on from what is stored, and from the rows that are not settled."""
        shard = dispatcher.shard
        if self.dispatcher(dispatcher.definition.name, shard) is dispatcher and shard.accepting:
            self._keep(dispatcher.definition, shard)
            for row in dispatcher.rows():
                shard.give_back(row.seq, row.recipient)
            self._tools.delivery.ring({shard.id})

    def _keep(self, definition: QueueDefinition, shard: OwnedShard) -> None:
        dispatcher = Dispatcher(definition, shard, self._tools, failed=self._failed)
        self._dispatchers[definition.name] = dispatcher
        self._spawn(self._load(dispatcher))

    async def _load(self, dispatcher: Dispatcher) -> None:
        """Read what is stored of a queue.

        INVARIANT read-after-lock: the shard is locked, so that its former owner writes no more."""
        failures = 0
        while dispatcher.shard.alive:
            try:
                await refuse_two_homes(self._storage, dispatcher.definition)
                contents = await self._storage.queue(dispatcher.definition.name)
            except Exception as error:  # noqa: BLE001 -- a queue that is not loaded never goes on
                failures += 1
                if failures == 1:
                    log.warning("cannot go on with a queue yet", extra={"error": str(error)})
                await asyncio.sleep(again_in(failures))
            else:
                dispatcher.begin(contents)
                return
