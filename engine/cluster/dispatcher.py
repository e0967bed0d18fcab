"""One queue while its shard is owned here: takes items in, and admits them within the limits.

Made by ``cluster.queue_host``; keeps who is next in a ``cluster.lineup``; writes through the
shard's lane, one statement at a time. What comes meanwhile is the next batch.
"""

import asyncio
import heapq
import logging
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from engine.cluster.backoff import Backoff
from engine.cluster.delivery import Delivery
from engine.cluster.limits import QueueSettings
from engine.cluster.lineup import Lineup
from engine.cluster.queue import QueueDefinition, Terms, limits_of
from engine.cluster.roster import Roster
from engine.cluster.shard import OwnedShard
from engine.cluster.stream import Moved
from engine.core.clock import Alarm, Clock
from engine.core.errors import OwnershipLost
from engine.core.ids import RunnerId, ShardId, Snowflake, snowflake_time
from engine.core.reply import Exit, Interrupted, encode_exit
from engine.storage.protocol import BadBatch, Commit, Flushed, InboxRow, exit_reply
from engine.storage.queues import Dispatched, Line, QueueContents, QueueItem, QueueRow, QueueWrite

log: logging.Logger = logging.getLogger(__name__)
_BATCH = 500
_ARRIVALS = 1000
_PER_RUNNER = 1000
"""How many items of a queue without a limit are admitted at once, for each runner."""
_RETRY = timedelta(milliseconds=100)
_RETRY_LIMIT = timedelta(seconds=5)
_READ_AGAIN = timedelta(seconds=1)
_STALE = 100
"""So many alarms may be set for items that others have taken the place of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchTools:
    """What the dispatchers of a runner stand on."""

    delivery: Delivery
    clock: Clock
    roster: Roster
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Change:
    """What somebody asked of a queue's settings. ``done`` ends when it is durable, or with
    ``Moved`` when the shard goes first."""

    apply: Callable[[QueueSettings], QueueSettings]
    done: "asyncio.Future[None]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


@dataclass(slots=True)
class _Round:
    """What one statement is to write, and what is told when it has."""

    arrived: dict[Snowflake, QueueItem] = field(default_factory=dict[Snowflake, QueueItem])
    lines: list[Line] = field(default_factory=list[Line])
    targets: list[int] = field(default_factory=list[int])
    ripe: list[QueueItem] = field(default_factory=list[QueueItem])
    freed: set[Snowflake] = field(default_factory=set[Snowflake])
    settled: list[int] = field(default_factory=list[int])
    interrupted: list[tuple[Snowflake, int]] = field(default_factory=list[tuple[Snowflake, int]])
    ended: list[tuple[Snowflake, Exit]] = field(default_factory=list[tuple[Snowflake, Exit]])
    changes: list[Change] = field(default_factory=list[Change])
    row: QueueRow | None = None

    def write(self, queue: str, shard: ShardId) -> QueueWrite:
        return QueueWrite(
            queue=queue,
            shard=shard,
            arrived=list(self.arrived.values()),
            lines=self.lines,
            targets=self.targets,
            ripe=[item.request_id for item in self.ripe],
            freed=list(self.freed),
            settled=self.settled,
            interrupted=self.interrupted,
            ended=[(id, *encode_exit(exit)) for id, exit in self.ended],
            row=self.row,
        )

    def __bool__(self) -> bool:
        return bool(
            self.arrived
            or self.lines
            or self.ripe
            or self.freed
            or self.settled
            or self.row is not None
        )


class Dispatcher:
    """Decides alone who is admitted. ``failed`` is told when it cannot go on: another has to, from
    what is stored.

    INVARIANT within-limits: what is admitted is stored by the statement that puts it into a shard's
    inbox, and is forgotten only after its end is stored. So the next owner, who reads what is
    stored, counts all that may still run, wherever that is and whoever was lost.
    """

    def __init__(
        self,
        definition: QueueDefinition,
        shard: OwnedShard,
        tools: DispatchTools,
        *,
        failed: Callable[["Dispatcher"], None],
    ) -> None:
        self.definition = definition
        self.shard: OwnedShard = shard
        self._tools = tools
        self._failed = failed
        self._rows: dict[int, InboxRow] = {}
        self._settings = QueueSettings(declared=limits_of(definition.cls), changes={})
        self._limits = self._settings.limits
        self._full_at: datetime | None = None
        self._noted = False
        self._lineup = Lineup(self._limits.per_key)
        self._admitted: dict[Snowflake, QueueItem] = {}
        self._later: dict[str, QueueItem] = {}
        self._due: list[tuple[datetime, str]] = []
        self._load: Counter[RunnerId | None] = Counter()
        self._turn = 0
        self._arrivals: dict[Snowflake, InboxRow] = {}
        self._taking: set[Snowflake] = set()
        self._over: set[Snowflake] = set()
        self._frees: deque[InboxRow] = deque()
        self._interrupts: deque[InboxRow] = deque()
        self._changes: list[Change] = []
        self._wake = asyncio.Event()
        self._alarm: Alarm | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving = False

    # --- from outside -----------------------------------------------------------------------------

    def begin(self, contents: QueueContents) -> None:
        """Go on from what the former owner has stored; what came meanwhile waits here already."""
        if self._leaving:
            return
        if contents.row is not None:
            stored = QueueSettings.decode(contents.row.settings, paused=contents.row.paused)
            self._noted = (
                stored.declared == self._settings.declared and contents.row.shard == self.shard.id
            )
            self._settings = replace(stored, declared=self._settings.declared)
            self._limits = self._settings.limits
            self._full_at = contents.row.next_at
            self._lineup.limit(self._limits.per_key)
        for line in contents.waiting:
            self._lineup.add_stored(line)
        for item in contents.held:
            if item.shard is None:
                self._wait_until_due(item)
            else:
                self._began(item)
                self._lineup.began(item.key)
        self._task = self._tools.spawn(self._serve())

    def arrive(self, row: InboxRow) -> None:
        """An item; ``InvalidPayload`` when its terms cannot be read."""
        Terms.of(row.envelope.headers)
        self._rows[row.seq] = row
        self._arrivals[row.envelope.request_id] = row
        self._wake.set()

    def free(self, row: InboxRow) -> None:
        """An item that was admitted has ended, and that is stored."""
        self._rows[row.seq] = row
        self._frees.append(row)
        self._wake.set()

    def interrupt(self, row: InboxRow) -> None:
        """An item is to end early; it may be anywhere.

        INVARIANT where-it-is: a lane reads and writes in turn. What had a row in this inbox when
        the interrupt was read, and is not about to be taken in, has not been."""
        id = row.envelope.request_id
        if row.reply is None and row.target is not None and id not in self._taking:
            self._arrivals.pop(id, None)
            self._rows.pop(row.target, None)
            self._tools.delivery.interrupt(self.shard, row)
            return
        self._rows[row.seq] = row
        self._interrupts.append(row)
        self._wake.set()

    def look(self) -> None:
        """Runners came or went."""
        self._load = Counter(self._owner(item) for item in self._admitted.values())
        self._wake.set()

    def ask(self, change: Change) -> "asyncio.Future[None]":
        """Change the settings; ``Moved`` when the shard goes before that is durable."""
        if self._leaving:
            raise Moved
        self._changes.append(change)
        self._wake.set()
        return change.done

    def drop(self) -> None:
        """The shard is lost: nothing more is written."""
        self._leaving = True
        self._silence()
        if self._task is not None:
            self._task.cancel()
        self._fail_changes(Moved())

    def rows(self) -> Sequence[InboxRow]:
        """What was delivered here and is not known to be settled."""
        return list(self._rows.values())

    def _fail_changes(self, error: BaseException) -> None:
        for change in self._changes:
            if not change.done.done():
                change.done.set_exception(error)
                change.done.exception()  # its asker may have gone
        self._changes.clear()

    async def drain(self, grace: timedelta) -> None:
        """Finish what is being written; all else is the next owner's."""
        self._leaving = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace.total_seconds())
        self.drop()

    # --- rounds -----------------------------------------------------------------------------------

    async def _serve(self) -> None:
        while not self._leaving:
            self._wake.clear()
            now = self._tools.clock.now()
            try:
                made = self._plan(now)
                if made:
                    await self._carry_out(made)
                    continue
            except OwnershipLost:
                return
            except Exception as error:
                # INVARIANT in-doubt: what is in memory may differ from what is stored, so it is
                # given up and read anew. No statement is under way.
                log.exception("a queue fails; it is read again", extra=self._named())
                await asyncio.sleep(_READ_AGAIN.total_seconds())
                self._silence()
                self._fail_changes(error)
                self._failed(self)
                return
            self._set_alarm(now)
            await self._wake.wait()

    def _plan(self, now: datetime) -> _Round:
        """Take up what has come, then admit what there is room for."""
        made = _Round()
        while self._interrupts:  # before those that are free: see ``_obey``
            self._obey(self._interrupts.popleft(), made)
        while self._frees:
            row = self._frees.popleft()
            made.settled.append(row.seq)
            self._ended(row.envelope.request_id, made)
        self._ripen(made, now)
        arrived = self._take_in(made, now)
        self._change(made)
        if self._limits.rate is not None and self._full_at is not None:
            self._full_at = self._limits.rate.bounded(self._full_at, now)
        room, runners = self._room(now)
        if room > 0:
            chosen, made.lines = self._lineup.choose(room)
            count = len(chosen) + sum(line.count for line in made.lines)
            targets = self._targets(count, runners)
            made.targets = targets[len(chosen) :]
            for item, shard in zip(chosen, targets, strict=False):
                made.arrived[item.request_id] = replace(item, shard=shard)
            arrived = [item for item in arrived if item.request_id not in made.arrived]
            if self._limits.rate is not None and count:
                self._full_at = self._limits.rate.take(self._full_at, now, count)
                self._noted = False
        if made.changes or not self._noted:
            made.row = self._row()
        made.arrived.update((item.request_id, item) for item in self._lineup.store(arrived))
        return made

    async def _carry_out(self, made: _Round) -> None:
        write = made.write(self.definition.name, self.shard.id)
        dispatched = await self._write(write)
        chosen = dispatched.chosen
        for item in (*chosen, *made.arrived.values()):
            if item.shard is not None:
                self._began(item)
        got = Counter((item.priority, item.key) for item in chosen)
        for line in made.lines:
            missing = line.count - got[line.priority, line.key]
            if missing > 0:
                log.error("a queue has fewer items than its owner thought", extra=self._named())
            for _ in range(missing):
                self._lineup.ended(line.key)
        for item in made.ripe:
            self._lineup.add_stored(Line(priority=item.priority, key=item.key, count=1))
        self._taking.clear()
        self._over = {request_id for request_id, _ in made.ended}
        self._noted = self._noted or made.row is not None
        self._tell(made, dispatched)

    async def _write(self, write: QueueWrite) -> Dispatched:
        backoff = Backoff(initial=_RETRY, maximum=_RETRY_LIMIT)
        while True:
            if not self.shard.alive:
                raise OwnershipLost(f"shard {self.shard.id} is no longer owned here")
            try:
                return await self.shard.lane.dispatch(write, self.shard.generation)
            except BadBatch as error:  # nothing of it was written
                if not error.transient:
                    raise
                backoff.failed()
                log.warning("a queue meets a lock", extra=self._named() | {"error": str(error)})
                await asyncio.sleep(backoff.wait)

    def _tell(self, made: _Round, dispatched: Dispatched) -> None:
        """It is durable: forget the rows, and wake who waits for them."""
        delivery, group = self._tools.delivery, self.shard.id.group
        commit = Commit(
            shard=self.shard.id,
            settled=made.settled,
            replies=[exit_reply(*ended) for ended in made.ended],
        )
        delivery.committed(self.shard, commit, Flushed(requests={}, replies={}))
        for seq in made.settled:
            self._rows.pop(seq, None)
        items = (*dispatched.chosen, *made.arrived.values())
        shards = {item.shard for item in items if item.shard is not None}
        shards.update(shard for _, shard in made.interrupted)
        rung = {*dispatched.told, *(ShardId(group, shard) for shard in shards)}
        if rung:
            delivery.ring_anywhere(rung)
        for change in made.changes:
            if not change.done.done():
                change.done.set_result(None)
            self._changes.remove(change)

    # --- what comes in ----------------------------------------------------------------------------

    def _take_in(self, made: _Round, now: datetime) -> list[QueueItem]:
        """Items that arrived, into their lines; gives them in order."""
        taken: list[QueueItem] = []
        for request_id, row in list(islice(self._arrivals.items(), _ARRIVALS)):
            # A dead letter that is sent again has to wait until its former end is dealt with.
            if request_id in self._admitted or request_id in made.freed:
                continue
            del self._arrivals[request_id]
            self._taking.add(request_id)
            made.settled.append(row.seq)
            terms = Terms.of(row.envelope.headers)
            item = QueueItem(
                request_id=request_id, seq=row.seq, priority=terms.priority, key=terms.key
            )
            if terms.debounce is not None:
                put_off = self._put_off(item, terms, made)
                if put_off.due_at is not None and put_off.due_at > now:
                    self._wait_until_due(put_off)
                    made.arrived[request_id] = put_off
                    continue
            self._lineup.arrive(item)
            taken.append(item)
        return taken

    def _put_off(self, item: QueueItem, terms: Terms, made: _Round) -> QueueItem:
        """The item as it waits for others that may take its place; it takes that of the one before
        it."""
        assert terms.debounce is not None
        at = since = snowflake_time(item.request_id)
        other = self._later.pop(terms.debounce, None)
        if other is not None:
            since = other.since or at
            if made.arrived.pop(other.request_id, None) is None:
                made.freed.add(other.request_id)
            self._end(other.request_id, f"item {item.request_id} has taken its place", made)
        due_at = min(_after(max(at, since), terms.period), _after(since, terms.longest))
        return replace(item, due_at=due_at, debounce=terms.debounce, since=since)

    def _wait_until_due(self, item: QueueItem) -> None:
        assert item.debounce is not None
        assert item.due_at is not None
        self._later[item.debounce] = item
        heapq.heappush(self._due, (item.due_at, item.debounce))
        if len(self._due) > 2 * len(self._later) + _STALE:
            self._due = [(i.due_at, name) for name, i in self._later.items() if i.due_at]
            heapq.heapify(self._due)

    def _ripen(self, made: _Round, now: datetime) -> None:
        """Items that were put off long enough wait in line from now on."""
        while self._due and self._due[0][0] <= now:
            _, debounce = heapq.heappop(self._due)
            item = self._later.get(debounce)
            if item is not None and item.due_at is not None and item.due_at <= now:
                del self._later[debounce]
                made.ripe.append(item)

    def _obey(self, row: InboxRow, made: _Round) -> None:
        """An interrupt of an item that was taken in.

        INVARIANT interrupt-first: it is delivered no later than the row that says that its item is
        free, so what has no exit and is not admitted waits. Unless it was ended here since the
        interrupt was read: in this round or, while that was being written, in the last."""
        id = row.envelope.request_id
        made.settled.append(row.seq)
        if row.reply is not None or id in self._over or id in made.freed:
            return
        if (item := self._admitted.get(id)) is not None and item.shard is not None:
            made.interrupted.append((id, item.shard))
            return
        terms = Terms.of(row.envelope.headers)
        debounce = terms.debounce or ""
        put_off = self._later.get(debounce)
        if put_off is not None and put_off.request_id == id:
            del self._later[debounce]
        elif not self._lineup.leave(terms.priority, terms.key):
            return
        made.freed.add(id)
        self._end(id, "", made)

    def _end(self, request_id: Snowflake, reason: str, made: _Round) -> None:
        made.ended.append((request_id, Interrupted(reason)))

    def _change(self, made: _Round) -> None:
        made.changes = list(self._changes)
        for change in made.changes:
            self._settings = change.apply(self._settings)
        if made.changes:
            self._limits = self._settings.limits
            self._lineup.limit(self._limits.per_key)

    # --- admission --------------------------------------------------------------------------------

    def _room(self, now: datetime) -> tuple[int, dict[RunnerId, Sequence[int]]]:
        """How many may be admitted now, and to whom."""
        limits, name = self._limits, self.definition.name
        runners = dict(self._tools.roster.shards(self.shard.id.group, name))
        if self._settings.paused or self._leaving:
            return 0, runners
        room, each = _BATCH, limits.per_runner
        if limits.concurrency:
            room = min(room, limits.concurrency - len(self._admitted))
        else:
            each = each or _PER_RUNNER
        if limits.rate is not None:
            room = min(room, limits.rate.room(self._full_at, now))
        if each:
            room = min(room, sum(max(0, each - self._load[runner]) for runner in runners))
        return room if runners else 0, runners

    def _targets(self, count: int, runners: dict[RunnerId, Sequence[int]]) -> list[int]:
        """The shards of those runners that have least of this queue in hand; alike ones take
        turns."""
        self._turn += 1
        heap = [
            (self._load[each], (number + self._turn) % len(runners), each)
            for number, each in enumerate(sorted(runners))
        ]
        heapq.heapify(heap)
        targets: list[int] = []
        for _ in range(count):
            load, number, runner = heap[0]
            shards = runners[runner]
            targets.append(shards[(self._turn + load) % len(shards)])
            heapq.heapreplace(heap, (load + 1, number, runner))
        return targets

    def _began(self, item: QueueItem) -> None:
        self._admitted[item.request_id] = item
        self._load[self._owner(item)] += 1

    def _ended(self, request_id: Snowflake, made: _Round) -> None:
        item = self._admitted.pop(request_id, None)
        if item is not None:
            made.freed.add(request_id)
            self._load[self._owner(item)] -= 1
            self._lineup.ended(item.key)

    def _owner(self, item: QueueItem) -> RunnerId | None:
        assert item.shard is not None
        return self._tools.roster.owner(ShardId(self.shard.id.group, item.shard))

    # --- the row, and alarms ----------------------------------------------------------------------

    def _row(self) -> QueueRow:
        return QueueRow(
            name=self.definition.name,
            shard=self.shard.id,
            settings=self._settings.encode(),
            paused=self._settings.paused,
            next_at=self._full_at,
        )

    def _set_alarm(self, now: datetime) -> None:
        """For when the next item that was put off is due, or there is a token again. ``now`` is
        that of the plan: what has come due since was not in it."""
        self._silence()
        times = [when for when, _ in self._due[:1]]
        rate, full_at = self._limits.rate, self._full_at
        if rate is not None and full_at is not None and self._lineup.ready:
            times.append(rate.opens_at(full_at))
        times = [when for when in times if when > now]
        if times:
            self._alarm = self._tools.clock.call_at(min(times), self._wake.set)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _named(self) -> dict[str, object]:
        return {"queue": self.definition.name, "shard": str(self.shard.id)}


def _after(when: datetime, span: timedelta) -> datetime:
    """``span`` later, or at the end of time."""
    return when + min(span, datetime.max.replace(tzinfo=when.tzinfo) - when)
