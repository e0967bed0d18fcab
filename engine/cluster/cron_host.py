"""The crons of one runner, each kept where its shard is owned (a ``ShardFollower`` of delivery)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any

from engine.cluster.cron import CronDefinition
from engine.cluster.cron_keeper import CronKeeper, CronTools, Order
from engine.cluster.delivery import Delivery
from engine.cluster.replies import ReplyBoard
from engine.cluster.shard import OwnedShard
from engine.cluster.stream import Moved
from engine.core.clock import Clock
from engine.core.envelope import Interrupt
from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId, Snowflake, SnowflakeGenerator
from engine.core.retry import again_in
from engine.storage.protocol import Storage
from engine.storage.schedules import Fire

log: logging.Logger = logging.getLogger(__name__)


class CronHost:
    """Makes a keeper for each cron whose shard comes, and lets it go with the shard."""

    def __init__(
        self,
        *,
        delivery: Delivery,
        storage: Storage,
        clock: Clock,
        ids: SnowflakeGenerator,
        renew_lease: Callable[[], Awaitable[None]],
        replies: ReplyBoard,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._delivery = delivery
        self._storage = storage
        self._tools = CronTools(
            delivery=delivery,
            clock=clock,
            ids=ids,
            renew_lease=renew_lease,
            replies=replies,
            spawn=spawn,
            interrupt=self._interrupt,
            known=storage.known,
        )
        self._spawn = spawn
        self._definitions: dict[str, CronDefinition] = {}
        self._shards: dict[ShardId, OwnedShard] = {}
        self._keepers: dict[str, CronKeeper] = {}
        self._to_load: list[CronKeeper] = []
        self._loading = False

    def register(self, definition: CronDefinition) -> None:
        """Keep a cron, at once if its shard is owned already."""
        if definition.name in self._definitions:
            raise ConfigurationError(
                f"two crons are registered as {definition.name!r}; give one another name"
            )
        self._definitions[definition.name] = definition
        owned = self._shards.get(definition.shard)
        if owned is not None and owned.accepting:  # what is given away is the next owner's
            self._keep(definition, owned)

    async def ask(self, name: str, order: Order) -> Fire | None:
        """Have an order carried out; returns once that is durable. Only for a message that was
        delivered here: ``Moved`` when its shard has gone or goes, so the next owner handles it."""
        keeper = self._keepers.get(name)
        if keeper is None:
            raise Moved
        return await keeper.ask(order)

    def now(self) -> datetime:
        return self._tools.clock.now()

    # --- shards come and go -----------------------------------------------------------------------

    def acquired(self, shard: OwnedShard) -> None:
        self._shards[shard.id] = shard
        for definition in self._definitions.values():
            if definition.shard == shard.id:
                self._keep(definition, shard)

    def drop(self, shard: OwnedShard) -> None:
        for keeper in self._on(shard):
            keeper.drop()
        self._forget(shard)

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        await asyncio.gather(*(keeper.drain(grace) for keeper in self._on(shard)))
        self._forget(shard)

    def _on(self, shard: OwnedShard) -> list[CronKeeper]:
        return [keeper for keeper in self._keepers.values() if keeper.shard is shard]

    def _forget(self, shard: OwnedShard) -> None:
        if self._shards.get(shard.id) is shard:
            del self._shards[shard.id]
        for keeper in self._on(shard):
            del self._keepers[keeper.definition.name]

    # --- loading ----------------------------------------------------------------------------------

    def _keep(self, definition: CronDefinition, shard: OwnedShard) -> None:
        keeper = CronKeeper(definition, shard, self._tools)
        self._keepers[definition.name] = keeper
        self._to_load.append(keeper)
        if not self._loading:
            self._loading = True
            self._spawn(self._load())

    async def _load(self) -> None:
        """Read the rows of crons that came here, those that came together by one statement."""
        failures = 0
        try:
            while self._to_load:
                keepers, self._to_load = self._to_load, []
                try:
                    # INVARIANT orders-first: what was asked for while nobody kept a cron, such as
                    # a pause, is in hand before the instants that are due.
                    await asyncio.gather(*(lane.sweep() for lane in _lanes(keepers)))
                    names = sorted({keeper.definition.name for keeper in keepers})
                    rows = {row.name: row for row in await self._storage.schedules(names)}
                except Exception as error:  # noqa: BLE001 -- who is not loaded never goes on
                    failures += 1
                    if failures == 1:
                        log.warning("cannot load crons, trying again", extra={"error": str(error)})
                    self._to_load = keepers + self._to_load
                    await asyncio.sleep(again_in(failures))
                    continue
                failures = 0
                for keeper in keepers:
                    if self._keepers.get(keeper.definition.name) is keeper:
                        keeper.begin(rows.get(keeper.definition.name))
        finally:
            self._loading = False

    # --- interrupts -------------------------------------------------------------------------------

    async def _interrupt(self, requests: Sequence[Snowflake]) -> None:
        """Ask for the end of requests, until the database has it."""
        failures = 0
        while True:
            try:
                found = [await self._storage.request(request) for request in requests]
                envelopes = [envelope for envelope in found if envelope is not None]
                await self._storage.interrupt(
                    [
                        Interrupt(request_id=each.request_id, address=each.address)
                        for each in envelopes
                    ]
                )
                break
            except Exception as error:  # noqa: BLE001 -- the next run waits for it
                failures += 1
                if failures == 1:
                    log.warning(
                        "cannot interrupt a cron's run, trying again", extra={"error": str(error)}
                    )
                await asyncio.sleep(again_in(failures))
        shards = {envelope.address.shard for envelope in envelopes}
        elsewhere = self._delivery.ring(shards)
        if elsewhere:
            self._storage.doorbell.ring_shards(elsewhere)


def _lanes(keepers: Sequence[CronKeeper]) -> set[Any]:
    return {keeper.shard.lane for keeper in keepers}
