"""What is sent to a cron's own address: its runs, and what people ask of it.

An ``Entity`` of the engine's own, one per cron, served like any other by ``cluster.entity_host``;
it passes on to the cron's object and to its keeper, by ``cluster.cron_host``.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

from engine.cluster.cron import Cron, CronDefinition, cron_address, cron_type
from engine.cluster.cron_host import CronHost
from engine.cluster.cron_keeper import Order
from engine.cluster.cron_plan import Span, Standing
from engine.cluster.entity import Entity
from engine.cluster.instants import instant_text
from engine.cluster.rpc import RpcDefinition, rpc, rpc_of
from engine.cluster.timetable import Rules, Timetable
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import ConfigurationError
from engine.core.ids import Snowflake, snowflake_time
from engine.storage.protocol import SaveRequest
from engine.storage.schedules import FireOutcome

log: logging.Logger = logging.getLogger(__name__)
BACKFILL_LIMIT = 10_000
_PER_MILLISECOND = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Triggered:
    """What became of an instant that was asked for. ``outcome`` None: it waits for a run to end."""

    instant: datetime
    outcome: FireOutcome | None
    request_id: int | None


class CronDesk(Entity):
    """Handles the messages of one cron. Asking again changes nothing, so that a message that is
    delivered again does no harm."""

    concurrency = 0

    def __init__(self, table: Timetable, *, crons: CronHost) -> None:
        self.__dict__["name"] = cron_type(table.name)
        self._table = table
        self._rules = Rules.of(table)
        self._crons = crons

    @rpc
    async def run(self, at: datetime) -> None:
        """Run the cron's method for an instant."""
        if not isinstance(self._table, Cron):
            raise ConfigurationError(f"{self._table.name} has no run(); it starts a workflow")
        try:
            await self._table.run(at)
        except Exception:
            log.exception("a cron's run failed", extra=self._named(at))
            raise

    @rpc
    async def pause(self, reason: str = "") -> None:
        """Fire nothing until ``resume``; an instant that waits is left out."""

        def change(standing: Standing, now: datetime) -> Standing:
            return replace(standing, paused=True, reason=reason)

        await self._ask(Order(change=change))

    @rpc
    async def resume(self) -> None:
        """Fire again from now on; what came meanwhile is left out."""

        def change(standing: Standing, now: datetime) -> Standing:
            if not standing.paused:
                return standing
            done = max(now, standing.done_until)
            return replace(standing, paused=False, reason="", done_until=done)

        await self._ask(Order(change=change))

    @rpc
    async def trigger(self) -> Triggered:
        """Run now, as far as the overlap policy lets it. The instant is the message's own."""
        id = self._call().envelope.request_id
        # No schedule has instants within a second. Of one millisecond, those of two machines, or of
        # one, differ.
        instant = snowflake_time(id) + timedelta(microseconds=1 + id % _PER_MILLISECOND % 999)
        order = Order(change=lambda standing, now: standing, asked=instant)
        fire = await self._crons.ask(self._table.name, order)
        return Triggered(
            instant=instant,
            outcome=None if fire is None else fire.outcome,
            request_id=None if fire is None else fire.request_id,
        )

    @rpc
    async def backfill(self, first: datetime, last: datetime) -> int:
        """Make up for the instants of a time that were never fired; how many instants there are."""
        last = min(last, self._crons.now())
        found = self._rules.instants.between(first, last)
        count = sum(1 for _ in islice(found, BACKFILL_LIMIT + 1))
        if count > BACKFILL_LIMIT:
            raise ConfigurationError(
                f"more than {BACKFILL_LIMIT} instants are too many for one backfill;"
                " ask for a shorter time, and for the rest afterwards"
            )
        if not count:
            return 0
        span = Span(first=first, last=last)

        def change(standing: Standing, now: datetime) -> Standing:
            if span in standing.backlog:
                return standing
            return replace(standing, backlog=(*standing.backlog, span))

        await self._ask(Order(change=change))
        return count

    async def _ask(self, order: Order) -> None:
        await self._crons.ask(self._table.name, order)

    def _named(self, at: datetime) -> dict[str, object]:
        return {"cron": self._table.name, "instant": instant_text(at)}


def method_cron(cron: Cron, *, shards_in: Callable[[str], int]) -> CronDefinition:
    """The definition of a cron whose method runs."""
    address, run = cron_address(cron, shards_in(cron.shard_group)), _rpc(CronDesk.run)

    def start(request_id: Snowflake, at: datetime) -> SaveRequest:
        envelope = EnvelopeRequest(
            request_id=request_id,
            address=address,
            tag=run.name,
            payload=run.signature.encode((), {"at": at}),
            key=dedup_key("cron", cron.name, instant_text(at)),
        )
        return SaveRequest(envelope=envelope)

    rules = Rules.of(cron)
    return CronDefinition(
        name=cron.name, shard=address.shard, rules=rules, starts="run()", start=start
    )


def _rpc(method: object) -> RpcDefinition:
    definition = rpc_of(method)
    assert definition is not None
    return definition
