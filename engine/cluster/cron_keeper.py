"""One cron while its shard is owned here: plans, sends what starts, notes what became of it.

Made by ``cluster.cron_host``; plans by ``cluster.cron_plan``; writes through the shard's lane.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from engine.cluster.backoff import Backoff
from engine.cluster.cron import CronDefinition
from engine.cluster.cron_plan import Plan, Standing, plan
from engine.cluster.cron_row import row_of, same_row, standing_of
from engine.cluster.delivery import Delivery
from engine.cluster.instants import Instants
from engine.cluster.replies import ReplyBoard
from engine.cluster.shard import OwnedShard
from engine.cluster.stream import Moved
from engine.cluster.timetable import Overlap, Rules
from engine.cluster.write import Write
from engine.core.clock import Alarm, Clock
from engine.core.errors import ConfigurationError, NotFound, OwnershipLost, StorageUnavailable
from engine.core.ids import Snowflake, SnowflakeGenerator
from engine.storage.protocol import BadBatch, Commit, Flushed, SaveOutcome, SaveRequest
from engine.storage.schedules import Fire, FireOutcome, ScheduleRow

log: logging.Logger = logging.getLogger(__name__)
_RETRY = timedelta(milliseconds=100)
_RETRY_LIMIT = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CronTools:
    """What the crons of a runner stand on. ``interrupt`` ends requests early; it tries until it
    could say so. ``known`` gives those deduplication keys that a request was stored with."""

    delivery: Delivery
    clock: Clock
    ids: SnowflakeGenerator
    renew_lease: Callable[[], Awaitable[None]]
    replies: ReplyBoard
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    interrupt: Callable[[Sequence[Snowflake]], Awaitable[None]]
    known: Callable[[Collection[str]], Awaitable[Collection[str]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """What somebody asked of a cron: to ``change`` its standing, or to run an instant (``asked``).

    ``done`` ends when it is durable: with the fire of that instant, None if the instant waits; or
    with ``Moved`` when the shard goes first.
    """

    change: Callable[[Standing, datetime], Standing]
    asked: datetime | None = None
    done: "asyncio.Future[Fire | None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class CronKeeper:
    """Carries out one plan at a time: first the requests of what starts, then the cron's row.

    INVARIANT fire-once: the key of a request is the cron's name and the instant. An owner that
    decides an instant which another had decided before it was lost, and had not noted, starts
    nothing again: it finds the request that is there. Before it leaves out what may have been
    decided so, it looks.
    """

    def __init__(self, definition: CronDefinition, shard: OwnedShard, tools: CronTools) -> None:
        self.definition = definition
        self.shard: OwnedShard = shard
        self._tools = tools
        self._since = tools.clock.now()
        self._standing = Standing(done_until=self._since)
        self._former: Rules | None = None
        self._orders: deque[Order] = deque()
        self._carried_out: list[Order] = []
        self._fires: list[Fire] = []
        self._noted = False
        self._runs: dict[Snowflake, asyncio.Task[None]] = {}
        self._interrupted: set[Snowflake] = set()
        self._wake = asyncio.Event()
        self._alarm: Alarm | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving = False

    # --- from outside -----------------------------------------------------------------------------

    def begin(self, row: ScheduleRow | None) -> None:
        """Go on from where the row says that the former owner was; without one, begin now."""
        if self._leaving:
            return
        if row is not None:
            self._standing = standing_of(row)
            for request in row.running:
                self._follow(request, stored=True)
            self._noted = same_row(row, self._row())
            self._former = self._rules_until_now(row)
        self._task = self._tools.spawn(self._serve())

    def ask(self, order: Order) -> "asyncio.Future[Fire | None]":
        """Carry out an order as soon as what is under way has been noted."""
        if self._leaving:
            raise Moved
        self._orders.append(order)
        self._wake.set()
        return order.done

    def drop(self) -> None:
        """The shard is lost: nothing more is written."""
        self._leaving = True
        self._silence()
        for order in (*self._orders, *self._carried_out):
            if not order.done.done():
                order.done.set_exception(Moved())
        for task in (self._task, *self._runs.values()):
            if task is not None:
                task.cancel()

    async def drain(self, grace: timedelta) -> None:
        """Begin nothing more but what was asked for, and note what is under way."""
        self._leaving = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace.total_seconds())
        self.drop()

    # --- planning ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        backoff = Backoff(initial=_RETRY, maximum=_RETRY_LIMIT)
        while True:
            self._wake.clear()
            try:
                if await self._do_what_is_due():
                    backoff.reset()
                    continue
            except OwnershipLost:
                return
            except Exception as error:  # whatever it was, the next instant must come
                backoff.failed()
                log.warning(
                    "a cron cannot go on, trying again", extra=self._named(), exc_info=error
                )
                self._call_at(self._tools.clock.now() + timedelta(seconds=backoff.wait))
            if self._leaving:
                return
            await self._wake.wait()

    async def _do_what_is_due(self) -> bool:
        """Whether there was anything; else the alarm is set for when there will be."""
        order = self._orders[0] if self._orders else None
        if self._leaving and order is None and self._noted:
            return False
        now = self._tools.clock.now()
        standing = replace(self._standing, running=tuple(self._runs))
        made = self._plan(standing, now, order)
        begun = await self._begun(made, standing, order)
        if begun:
            made = self._plan(standing, now, order, begun)
        if order is not None or made.decisions or made.standing != standing or not self._noted:
            await self._carry_out(made, order, now)
            return True
        self._cancel_running(made)
        if made.next_at is not None:
            self._call_at(made.next_at)
        return False

    def _plan(
        self,
        standing: Standing,
        now: datetime,
        order: Order | None,
        begun: Collection[datetime] = (),
    ) -> Plan:
        asked = () if order is None or order.asked is None else (order.asked,)
        changed = standing if order is None else order.change(standing, now)
        made = plan(self._rules, changed, now, asked=asked, begun=begun)
        if self._former is not None and not made.more:
            made = replace(made, standing=replace(made.standing, done_until=now))
        return made

    async def _begun(
        self, made: Plan, standing: Standing, order: Order | None
    ) -> Collection[datetime]:
        """Of the instants that a plan leaves out, or lets wait, those that were started before: by
        a former owner that was lost before it noted them, or for a message that comes again."""
        left = {each.instant for each in made.decisions if each.outcome is not FireOutcome.STARTED}
        waits = made.standing.buffered
        if waits is not None and waits != standing.buffered:
            left.add(waits)
        asked = None if order is None else order.asked
        requests = await self._requests(at for at in left if at <= self._since or at == asked)
        keys = {at: each.envelope.key for at, each in requests.items()}
        known = await self._tools.known({key for key in keys.values() if key}) if keys else ()
        return {at for at, key in keys.items() if key in known}

    @property
    def _rules(self) -> Rules:
        return self._former or self.definition.rules

    def _rules_until_now(self, row: ScheduleRow) -> Rules | None:
        """Where the definition has changed, the former one holds for the time before."""
        rules = self.definition.rules
        former = row.schedule, row.timezone
        if former == (rules.instants.schedule, rules.instants.timezone):
            return None
        try:
            return replace(rules, instants=Instants(*former))
        except ConfigurationError as error:  # a time zone that is not known here
            log.warning(
                "a schedule's former definition is not understood; what it left is not made up for",
                extra=self._named() | {"error": str(error)},
            )
            self._standing = replace(self._standing, done_until=self._since)
            return None

    # --- carrying out -----------------------------------------------------------------------------

    async def _carry_out(self, made: Plan, order: Order | None, now: datetime) -> None:
        requests = await self._requests(each.instant for each in made.starts)
        ids = await self._send(requests) if requests else {}
        # INVARIANT decided: the requests are durable, so this is what happened, come what may.
        self._standing = made.standing
        if not made.more:
            self._former = None
        for each in made.decisions:
            lost = each.outcome is FireOutcome.STARTED and each.instant not in ids
            self._fires.append(
                Fire(
                    schedule=self.definition.name,
                    instant=each.instant,
                    outcome=FireOutcome.FAILED if lost else each.outcome,
                    request_id=ids.get(each.instant),
                    manual=each.manual,
                    at=now,
                )
            )
        if order is not None:
            self._orders.remove(order)
            self._carried_out.append(order)
        await self._note()
        self._cancel_running(made)

    async def _requests(self, instants: Iterable[datetime]) -> dict[datetime, SaveRequest]:
        """The requests of instants, but for those that cannot be made."""
        requests: dict[datetime, SaveRequest] = {}
        for instant in instants:
            id = await self._next_id()
            try:
                requests[instant] = self.definition.start(id, instant)
            except Exception:
                log.exception(
                    "an instant's request cannot be made; it is left out",
                    extra=self._named() | {"instant": str(instant)},
                )
        return requests

    async def _next_id(self) -> Snowflake:
        try:
            return self._tools.ids.next()
        except StorageUnavailable:
            await self._tools.renew_lease()
            return self._tools.ids.next()

    async def _send(self, requests: dict[datetime, SaveRequest]) -> dict[datetime, Snowflake]:
        """Store the requests; gives their ids, or those that were there before."""
        commit = Commit(shard=self.shard.id, requests=list(requests.values()))
        try:
            flushed = await self._write(commit)
        except BadBatch as error:
            if len(requests) > 1:  # one of them is to blame
                alone = [await self._send({at: each}) for at, each in requests.items()]
                return {at: id for each in alone for at, id in each.items()}
            log.error("a request was refused", extra=self._named() | {"error": str(error)})
            return {}
        ids: dict[datetime, Snowflake] = {}
        for instant, request in requests.items():
            saved = flushed.requests[request.envelope.request_id]
            ids[instant] = saved.request_id
            if self.definition.rules.overlap is not Overlap.ALLOW:
                here = request.envelope.address.shard == self.shard.id
                created = saved.outcome is SaveOutcome.CREATED
                self._follow(saved.request_id, stored=not (created and here))
        return ids

    async def _note(self) -> None:
        """Write the row as it is to be, and what became of instants; then say so."""
        self._noted = False
        fires, orders = list(self._fires), list(self._carried_out)
        await self._write(Commit(shard=self.shard.id, schedules=[self._row()], fires=fires))
        self._noted = True
        by_instant = {fire.instant: fire for fire in fires}
        del self._fires[: len(fires)], self._carried_out[: len(orders)]
        for order in orders:
            if not order.done.done():
                order.done.set_result(None if order.asked is None else by_instant.get(order.asked))

    async def _write(self, commit: Commit) -> Flushed:
        source = _Write(self._tools.delivery, self.shard, commit)
        self.shard.submit(source)
        await source.done
        return source.flushed

    def _row(self) -> ScheduleRow:
        definition = replace(self.definition, rules=self._rules)
        return row_of(definition, replace(self._standing, running=tuple(self._runs)))

    # --- what runs --------------------------------------------------------------------------------

    def _follow(self, request: Snowflake, *, stored: bool) -> None:
        """Notice the end of a run. ``stored``: it may run elsewhere, or have ended already."""
        if request not in self._runs:
            self._runs[request] = self._tools.spawn(self._see_end(request, stored=stored))

    async def _see_end(self, request: Snowflake, *, stored: bool) -> None:
        try:
            with self._tools.replies.expect(request) as exit:
                if stored:
                    self._tools.replies.watch(request)
                await exit
        except StorageUnavailable:  # this process is leaving
            return
        except NotFound:
            pass  # a fail-over has lost it, or it was pruned: it runs no more
        del self._runs[request]
        self._interrupted.discard(request)
        self._wake.set()

    def _cancel_running(self, made: Plan) -> None:
        running = self._runs.keys() - self._interrupted
        if made.interrupt and running:
            self._interrupted |= running
            self._tools.spawn(self._interrupt(sorted(running)))

    async def _interrupt(self, requests: Sequence[Snowflake]) -> None:
        await self._tools.interrupt(requests)

    # --- alarms -----------------------------------------------------------------------------------

    def _call_at(self, when: datetime) -> None:
        self._silence()
        self._alarm = self._tools.clock.call_at(when, self._wake.set)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _named(self) -> dict[str, object]:
        return {"cron": self.definition.name, "shard": str(self.shard.id)}


class _Write(Write):
    """A commit whose answer is kept."""

    __slots__ = ("flushed",)
    flushed: Flushed

    def committed(self, flushed: Flushed) -> None:
        self.flushed = flushed
        super().committed(flushed)
