"""From a lane's inbox to whoever handles the message, and from a commit to whoever waits for it.

A sweep's rows come in from ``storage.lane``; they go to the host of their execution or of their
entity type. After a commit, what it finished and what it sent goes on from here: to futures and
shards of this process directly, to all others by the doorbell.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from engine.cluster.handover import Handover, InHand
from engine.cluster.parking import Parking
from engine.cluster.residency import Residency
from engine.cluster.shard import OwnedShard
from engine.cluster.suspects import Suspects
from engine.cluster.trials import Trials
from engine.cluster.unhandled import Unhandled
from engine.core.clock import Alarm, Clock, monotonic
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.core.reply import Defect, Exit, ReplyKind
from engine.storage.lane import Lane
from engine.storage.protocol import (
    STARTS,
    Commit,
    Doorbell,
    Flushed,
    InboxKind,
    InboxRow,
    NewReply,
    Saved,
    SaveOutcome,
    SaveRequest,
    StoredExecution,
    StreamPosition,
    Sweep,
    recipient_key,
)

log: logging.Logger = logging.getLogger(__name__)


_SETTLED_AFTER = timedelta(seconds=15)
_THOROUGH_REST, _THOROUGH_LATEST = 40, 60.0
"""Rows that nobody may vacuum away make it slow to read inboxes from their beginning: that is to
take a fortieth of a lane's time at most."""
_LONG_LINE, _MOST_LINES = 16, 8
_LET_BY_EVERY, _LET_BY_REST = 0.25, 10
"""A sweep that passes over a line looks at all of it: that is to take a tenth of a lane's time."""
_HANDLED = (InboxKind.REQUEST, InboxKind.ADMITTED)
"""What a handler takes in hand, whose failures are counted."""


class ShardWork(Protocol):
    """Work that belongs to shards.

    ``drop`` cancels all of a shard's work at once, since the shard is lost; ``drain`` lets running
    work end for a while, then cancels it, since the shard is being given away. Afterwards nothing
    of the shard is left.
    """

    def drop(self, shard: OwnedShard) -> None: ...
    async def drain(self, shard: OwnedShard, grace: timedelta) -> None: ...


class ShardFollower(ShardWork, Protocol):
    """Work that begins with the shard itself, not with a message."""

    def acquired(self, shard: OwnedShard) -> None: ...


class MessageHost(ShardWork, Protocol):
    """Handles the messages of one entity type, or of all executions.

    Its length is how many of them are in memory. ``deliver`` must not block.
    """

    def __len__(self) -> int: ...
    def deliver(self, shard: OwnedShard, row: InboxRow) -> None: ...
    def in_hand(self, shard: OwnedShard) -> InHand:
        """What runs of the shard now and ends by itself."""
        ...

    def keys(self, shard: OwnedShard) -> Collection[int]:
        """The entities of the shard that are in memory, by ``core.ids.entity_key``."""
        ...

    def stay(self, shard: OwnedShard) -> None:
        """It is not handed over after all: begin what was put off for that."""
        ...


class ExecutionsHost(MessageHost, Protocol):
    """The host of executions can also be told that a suspended one is due."""

    def wake(self, executions: Sequence[Snowflake]) -> None: ...
    def resident(self, shard: OwnedShard) -> Collection[Snowflake]:
        """Executions of the shard that are in memory although they have a ``wake_at``."""
        ...

    @property
    def loading(self) -> Collection[Snowflake]:
        """Executions that are being loaded, of whichever shard."""
        ...


class Delivery:
    """The shards this runner owns, over all its lanes.

    ``grace`` is how long running work of a shard may go on when it is given away. ``replied`` is
    told of every reply committed here, and says whether its stream's consumer is here; ``moved``
    when a lane came or went, so that shards may be acquired; ``acquired`` when some were, of which
    the owner before may have committed replies and told nobody. ``streams`` is the storage's.

    A request that was delivered in vain ``max_deliveries`` times is a dead letter, and so is one
    whose type nobody has registered here for ``unregistered_timeout``. ``residency`` is that of
    the entities. No statement of anybody's takes longer than ``settled_after``.
    """

    def __init__(
        self,
        *,
        runner: RunnerId,
        clock: Clock,
        doorbell: Doorbell,
        grace: timedelta,
        replied: Callable[[NewReply], bool],
        moved: Callable[[], None],
        acquired: Callable[[], None],
        streams: Callable[[Sequence[Snowflake]], Awaitable[Mapping[Snowflake, StreamPosition]]],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        residency: Residency,
        max_deliveries: int,
        unregistered_timeout: timedelta,
        settled_after: timedelta = _SETTLED_AFTER,
    ) -> None:
        self.lanes: list[Lane] = []
        self.grace = grace
        self.stopping = False
        self.shards: dict[ShardId, OwnedShard] = {}
        self._runner = runner
        self._clock = clock
        self._doorbell = doorbell
        self._replied = replied
        self._moved = moved
        self._acquired = acquired
        self._settled_after = settled_after
        self._running: dict[int, float] = {}
        self._thorough_from: dict[int, float] = {}
        self._let_by_from: dict[int, float] = {}
        self._passed: dict[int, frozenset[tuple[ShardId | None, int]]] = {}
        self._residency = residency
        residency.reopened.append(self._read_again)
        self._hosts: dict[str, MessageHost] = {}
        self._executions: ExecutionsHost | None = None
        self._followers: list[ShardFollower] = []
        self.max_deliveries = max_deliveries
        self.trials = Trials(
            max_deliveries=max_deliveries,
            clock=clock,
            soon=asyncio.get_running_loop().call_soon,
        )
        self._suspects = Suspects(trials=self.trials, hand=self._hand)
        self.unhandled = Unhandled(streams=streams, committed=self.committed, spawn=spawn)
        self._unregistered_timeout = unregistered_timeout
        self.parking = Parking(
            clock=clock, patience=unregistered_timeout, expired=self._never_registered
        )
        self._alarm: Alarm | None = None
        self._alarm_at: datetime | None = None

    # --- registration -------------------------------------------------------------------------

    def serve_executions(self, host: ExecutionsHost) -> None:
        self._executions = host

    def follow(self, follower: ShardFollower) -> None:
        """Tell ``follower`` of every shard that is acquired from now on."""
        self._followers.append(follower)

    def serve_entity(self, entity_type: str, host: MessageHost) -> None:
        """Route the type's messages to ``host``, those that waited for it too."""
        self._hosts[entity_type] = host
        self.unpark(entity_type)

    def unpark(self, name: str) -> None:
        """Read again what waited for an entity type or workflow that is served from now on."""
        parked = self.parking.unpark(name)
        for shard, row in parked:
            shard.give_back(row.seq, row.recipient)
        self.ring({shard.id for shard, _ in parked})

    @property
    def active(self) -> int:
        """How many entities and executions are in memory."""
        return sum(len(host) for host in self._all_hosts())

    # --- ownership (the ShardHost of cluster.ownership) ---------------------------------------

    def owned(self) -> frozenset[ShardId]:
        return frozenset(self.shards)

    async def acquire(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        """Lock, bump the epochs, then read the inboxes; gives those acquired."""
        by_lane: dict[Lane, list[ShardId]] = defaultdict(list)
        for shard in shards:
            if shard not in self.shards:
                by_lane[self.lanes[shard.number % len(self.lanes)]].append(shard)
        gotten = await asyncio.gather(*(self._acquire(lane, ids) for lane, ids in by_lane.items()))
        return frozenset(id for ids in gotten for id in ids)

    async def _acquire(self, lane: Lane, shards: Sequence[ShardId]) -> Collection[ShardId]:
        epochs = await lane.acquire(shards)
        taken = {id: epoch for id, epoch in epochs.items() if lane.shards.get(id) == epoch}
        for id, epoch in taken.items():
            owned = OwnedShard(
                id=id,
                epoch=epoch,
                lane=lane,
                runner=self._runner,
                settled_after=self._settled_after,
            )
            self.shards[id] = owned
            for follower in self._followers:
                follower.acquired(owned)
        if taken:
            # INVARIANT order: a sender may have come here with a shard, and what it sent from its
            # former runner may not have been read yet.
            for shard in self.shards.values():
                shard.fall_behind()
            for each in self.lanes:
                each.ring_all()
            self._acquired()
        return taken.keys()

    async def release(self, shards: Collection[ShardId]) -> None:
        """Let running work end while the shards are served; then stop intake, drain, flush, unlock.
        A runner that stops does not serve them meanwhile. Passes over those that are kept."""
        async with asyncio.TaskGroup() as group:
            drains = {group.create_task(self._drain(shard)) for shard in self._owned(shards)}
            while drains:
                done, drains = await asyncio.wait(drains, return_when=asyncio.FIRST_COMPLETED)
                await self._unlock([shard for each in done if (shard := each.result())])

    async def _drain(self, shard: OwnedShard) -> OwnedShard | None:
        """The shard, once nothing of it runs here; None if it is kept."""
        grace = self.grace
        if not self.stopping:
            hosts = self._all_hosts()

            def let_in() -> None:
                for each in hosts:
                    each.stay(shard)

            handover = Handover(
                lambda: [each.in_hand(shard) for each in hosts],
                let_in=let_in,
                limit=grace,
            )
            shard.leaving = handover
            if not await handover.wait():
                return None
            grace = handover.grace
        shard.accepting = False
        self._suspects.leave(shard)
        await asyncio.gather(*(work.drain(shard, grace) for work in self._all_work()))
        return shard

    def keep(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        """Give the release of these shards up, and serve them on; gives those that are past it."""
        late: set[ShardId] = set()
        for id in shards:
            shard = self.shards.get(id)
            if shard is None or shard.leaving is None or not shard.accepting:
                late.add(id)
                continue
            shard.leaving.keep()
            shard.leaving = None
            for host in self._all_hosts():
                host.stay(shard)
        return frozenset(late)

    def stop(self, grace: timedelta) -> None:
        """The runner stops: what runs has so long to end, and nothing else is served."""
        self.grace = grace
        self.stopping = True
        for shard in self.shards.values():
            if shard.leaving is not None:
                shard.leaving.hurry(grace)

    async def _unlock(self, shards: Collection[OwnedShard]) -> None:
        """Give up drained shards, those of one lane together, and tell who may take them."""
        by_lane: dict[Lane, list[ShardId]] = defaultdict(list)
        for shard in shards:
            if shard.alive:
                by_lane[shard.lane].append(shard.id)
        await asyncio.gather(*(lane.release(ids) for lane, ids in by_lane.items()))
        for shard in shards:
            self._forget(shard)
        self._doorbell.ring_topology()

    def drop_all(self) -> None:
        """This runner was declared dead: nothing of it may go on."""
        for lane in self.lanes:
            lane.terminate()
        for shard in list(self.shards.values()):
            self._drop(shard)

    # --- the lanes' sink ------------------------------------------------------------------------

    def in_flight(self, shards: Collection[ShardId]) -> Sequence[int]:
        return [seq for shard in self._owned(shards) for seq in shard.in_flight]

    def resident(self, shards: Collection[ShardId]) -> Sequence[Snowflake]:
        host = self._executions
        if host is None:
            return []
        resident = [id for shard in self._owned(shards) for id in host.resident(shard)]
        return [*resident, *host.loading]

    def held(self, shards: Collection[ShardId]) -> Sequence[Collection[int]]:
        owned = self._owned(shards)
        # all are of one lane
        thorough = bool(owned) and monotonic() > self._thorough_from.get(owned[0].lane.index, 0)
        for shard in owned:
            shard.begin_sweep(crowded=self._residency.closed, thorough=thorough)
        each = [self.shards.get(id) for id in shards]
        return [() if shard is None else [*shard.held] for shard in each]

    def admitted(self, shards: Collection[ShardId]) -> Sequence[int] | None:
        if not self._residency.closed:
            return None
        owned = self._owned(shards)
        return [key for host in self._hosts.values() for each in owned for key in host.keys(each)]

    def floors(self, shards: Collection[ShardId]) -> Sequence[int]:
        owned = [self.shards.get(id) for id in shards]
        return [0 if shard is None else shard.floor for shard in owned]

    def swept(self, shards: Collection[ShardId], sweep: Sweep) -> None:
        self.read_again(sweep.kept)
        # In their order, so the last of each.
        seen = {row.shard: row.seq for row in sweep.rows}
        read_to = {row.shard: row.seq for row in sweep.rows if not row.later} if sweep.more else {}
        owned = self._owned(shards)
        oldest = self._oldest(sweep, began=min((each.began for each in owned), default=0.0))
        for shard in owned:
            shard.end_sweep(
                sweep,
                last=sweep.last or seen.get(shard.id, 0),
                read_to=read_to.get(shard.id, 0),
                oldest=oldest,
            )
        whole = next((shard for shard in owned if shard.floor == 0), None)
        if whole is not None:
            now = monotonic()
            rest = min((now - whole.began) * _THOROUGH_REST, _THOROUGH_LATEST)
            self._thorough_from[whole.lane.index] = now + rest
        for row in sweep.rows:
            self.deliver(row)
        if owned:
            self._let_others_by(owned, sweep)
        if sweep.due and self._executions is not None:
            self._executions.wake(sweep.due)
        if sweep.next_due is not None:
            self.due_at(sweep.next_due)

    def _let_others_by(self, shards: Sequence[OwnedShard], sweep: Sweep) -> None:
        """A long line, of one entity or of starts, must not keep what came behind it from being
        read: while there is one, every now and then a sweep passes over it, and the next over what
        that finds to be another."""
        now, lane = monotonic(), shards[0].lane.index  # all are of one lane
        rested = next((each for each in shards if each.rested), None)
        passed = self._passed.pop(lane, frozenset())
        if rested is not None:
            pause = max(_LET_BY_EVERY, (now - rested.began) * _LET_BY_REST)
            self._let_by_from[lane] = now + pause
        elif not sweep.more:
            self._let_by_from.pop(lane, None)
        if not sweep.more:
            return
        if rested is None and now < self._let_by_from.setdefault(lane, now + _LET_BY_EVERY):
            return
        counted = Counter(line for row in sweep.rows if (line := _line_of(row)) is not None)
        lines = {line for line, length in counted.items() if length >= _LONG_LINE}
        if not lines or len(passed) >= _MOST_LINES:
            return
        self._passed[lane] = passed | lines
        for id, key in passed | lines:
            for shard in shards:
                if key == STARTS or shard.id == id:
                    shard.rest(key)

    def _oldest(self, sweep: Sweep, *, began: float) -> int:
        """The oldest transaction that may be a statement of anybody's of ours, and had not ended.
        Who goes on for longer than those may is somebody else, and writes no inbox."""
        now, settled_after = monotonic(), self._settled_after.total_seconds()
        self._running = {id: self._running.get(id, now) for id in sweep.running}
        # A sweep may have come back long after it looked: by then they are older than they were.
        ours = (id for id, since in self._running.items() if began - since < settled_after)
        return min(ours, default=sweep.newest)

    def lane_opened(self, lane: Lane) -> None:
        self._moved()

    def lane_lost(self, lane: Lane) -> None:
        lost = [s for s in self.shards.values() if s.lane is lane]
        for shard in lost:
            self._drop(shard)
        if lost:
            log.warning(
                "lost a lane; its shards' work stops here",
                extra={"lane": lane.index, "shards": len(lost), "runner": str(self._runner)},
            )
        self._moved()

    # --- rows in --------------------------------------------------------------------------------

    def deliver(self, row: InboxRow) -> None:
        """Hand a row to its host, unless it is in hand already or not for this runner now."""
        shard = self.shards.get(row.shard)
        if shard is None or row.seq in shard.in_flight:
            return
        passed_over = shard.passed_over
        if passed_over and row.kind is InboxKind.REQUEST and row.recipient in passed_over:
            shard.give_back(row.seq, row.recipient)
            return
        shard.in_flight.add(row.seq)
        if not shard.accepting:
            return  # it is the next owner's, and not to be read here again and again
        if row.execution is not None or row.kind not in _HANDLED:
            self._hand(shard, row)
        elif row.failures >= self.max_deliveries:
            self.unhandled.end(shard, row, delivered_in_vain(row.envelope, row.failures))
        elif self._suspects.takes(row) and row.envelope.address.entity_type in self._hosts:
            self._suspects.add(shard, row)
        else:
            self._hand(shard, row)

    def _hand(self, shard: OwnedShard, row: InboxRow) -> None:
        host = self._host_of(row)
        try:
            if host is not None:
                host.deliver(shard, row)
            elif row.kind is InboxKind.INTERRUPT and row.execution is None and not _taken_in(row):
                self.interrupt(shard, row)
            else:
                forever = row.execution is not None or row.kind not in _HANDLED
                self.parking.park(row.envelope.address.entity_type, shard, row, forever=forever)
        except Exception:  # one message must not cost the lane, and every message behind it
            log.exception(
                "a message cannot be handled here; it waits for the shard's next owner",
                extra={"request_id": row.envelope.request_id, "shard": str(shard.id)},
            )

    def interrupt(self, shard: OwnedShard, row: InboxRow) -> None:
        """Obey an interrupt of a request that no handler has in hand."""
        if self.unhandled.interrupt(shard, row) and row.target is not None:
            # INVARIANT interrupt-once: it is not delivered between this and its commit.
            shard.in_flight.add(row.target)
            self._suspects.settled([row.target])
            self.parking.settled([row.target])

    def _host_of(self, row: InboxRow) -> MessageHost | None:
        if row.execution is not None:
            return self._executions
        return self._hosts.get(row.envelope.address.entity_type)

    def _never_registered(self, shard: OwnedShard, row: InboxRow) -> None:
        name, patience = row.envelope.address.entity_type, self._unregistered_timeout
        details = ErrorDetails(
            "NotRegistered",
            f"the runner of shard {shard.id} has waited {patience} for {name} to be registered;"
            " register it with all runners of the group, then send this to it again with"
            f" 'outlast dead retry {row.envelope.request_id}'",
        )
        self.unhandled.end(shard, row, Defect(details))

    def waits(self, request: SaveRequest) -> bool:
        """Whether the request stays in an inbox here until its entity can take messages again,
        upon which the inbox is read anyway."""
        address = request.envelope.address
        shard = self.shards.get(address.shard)
        if shard is None or not shard.held or request.envelope.deliver_at is not None:
            return False
        return recipient_key(address) in shard.held

    def taker(self, request: SaveRequest) -> Callable[[Saved], bool] | None:
        """Who begins with an execution that is about to be stored, without reading its row; None
        if only a sweep can."""
        envelope, start = request.envelope, request.execution
        shard = self.shards.get(envelope.address.shard)
        if shard is None or start is None or envelope.deliver_at is not None:
            return None

        def take(saved: Saved) -> bool:
            # INVARIANT start-once: a sweep may have delivered the row by now, and its end be
            # stored. One that is under way finds it in flight.
            if not shard.accepting or saved.seq is None or saved.seq <= shard.highest:
                return False
            self._deliver_saved(
                shard, envelope, saved.seq, state=request.begun(start, self._clock.now())
            )
            return True

        return take

    def read_again(self, shards: Iterable[ShardId]) -> None:
        """Let the next sweep of these shards look at all they have."""
        for shard in self._owned(shards):
            shard.read_again()

    def _read_again(self) -> None:
        """Newcomers can be taken again, whose messages were passed over."""
        self.read_again(self.shards)
        for lane in self.lanes:
            lane.ring_all()

    def due_at(self, when: datetime) -> None:
        """Something of an owned shard is due then: sweep at that time."""
        if self._alarm_at is not None and self._alarm_at <= when:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._clock.call_at(when, self._due)

    def _due(self) -> None:
        self._alarm = self._alarm_at = None
        for lane in self.lanes:
            lane.ring_all()

    def ring(self, shards: Collection[ShardId]) -> Collection[ShardId]:
        """Sweep those of the shards that are served here; gives the others."""
        others: list[ShardId] = []
        for id in shards:
            shard = self.shards.get(id)
            if shard is None or not shard.accepting:
                others.append(id)
            else:
                shard.fall_behind()
                shard.lane.ring((id,))
        return others

    def ring_anywhere(self, shards: Collection[ShardId]) -> None:
        """Have whoever owns these shards sweep them."""
        if others := self.ring(shards):
            self._doorbell.ring_shards(others)

    # --- commits out ----------------------------------------------------------------------------

    def committed(self, shard: OwnedShard, commit: Commit, flushed: Flushed) -> None:
        """After a flush: forget what it settled, wake who waits, hand on what it sent."""
        if commit.settled:
            shard.in_flight.difference_update(commit.settled)
            if self._suspects:
                self._suspects.settled(commit.settled)
            self.parking.settled(commit.settled)
        if not (commit.replies or commit.requests):
            return
        awaited: set[Snowflake] = set()
        elsewhere: list[ShardId] = []
        for reply in commit.replies:
            here = self._replied(reply)
            if reply.kind is ReplyKind.CHUNK and here:
                continue
            awaited.add(reply.request_id)
            seq = flushed.replies.get(reply.request_id)
            if reply.reply_to is not None and seq is not None:
                elsewhere.extend(self.ring((reply.reply_to.shard,)))
            elsewhere.extend(self.ring(flushed.followed.get(reply.request_id, ())))
        if awaited:
            self._doorbell.ring_replies(awaited)
        for request in commit.requests:
            saved = flushed.requests[request.envelope.request_id]
            if saved.outcome is SaveOutcome.CREATED and saved.seq is not None:
                self._hand_on(shard, request, saved.seq, elsewhere)
        if elsewhere:
            self._doorbell.ring_shards(elsewhere)

    def _hand_on(
        self, sender: OwnedShard, request: SaveRequest, seq: int, elsewhere: list[ShardId]
    ) -> None:
        """Deliver from memory what the same lane wrote; another lane may have swept the row, and
        even settled it, before this commit was noticed here, so that one is asked to sweep."""
        target = self.shards.get(request.envelope.address.shard)
        plain = request.execution is None and request.target is None
        direct = target is not None and target.lane is sender.lane and not target.behind
        if target is not None and direct and plain:
            if request.envelope.deliver_at is None:
                self._deliver_saved(target, request.envelope, seq)
            else:
                self.due_at(request.envelope.deliver_at)
        elif not (plain and self.waits(request)):
            elsewhere.extend(self.ring((request.envelope.address.shard,)))

    def _deliver_saved(
        self,
        shard: OwnedShard,
        envelope: EnvelopeRequest,
        seq: int,
        *,
        state: StoredExecution | None = None,
    ) -> None:
        """Deliver from memory what was stored a moment ago."""
        shard.handed(seq)
        self.deliver(
            InboxRow(
                seq=seq,
                kind=InboxKind.REQUEST,
                shard=shard.id,
                envelope=envelope,
                execution=None if state is None else state.request_id,
                state=state,
            )
        )

    def _owned(self, shards: Iterable[ShardId]) -> list[OwnedShard]:
        """Those of the shards that are owned here."""
        return [shard for id in shards if (shard := self.shards.get(id)) is not None]

    def _all_work(self) -> list[ShardWork]:
        return [*self._all_hosts(), *self._followers]

    def _all_hosts(self) -> list[MessageHost]:
        hosts: list[MessageHost] = list(self._hosts.values())
        return hosts if self._executions is None else [*hosts, self._executions]

    def _drop(self, shard: OwnedShard) -> None:
        self._forget(shard)
        for work in self._all_work():
            work.drop(shard)

    def _forget(self, shard: OwnedShard) -> None:
        shard.alive = False
        shard.accepting = False
        if self.shards.get(shard.id) is shard:
            del self.shards[shard.id]
        self._suspects.forget(shard)
        self.parking.forget(shard)


def _line_of(row: InboxRow) -> tuple[ShardId | None, int] | None:
    """In which line a row stands, if others can be let by."""
    if row.kind is not InboxKind.REQUEST:
        return None
    if row.execution is None:
        return row.shard, recipient_key(row.recipient)
    return (None, STARTS) if row.execution == row.envelope.request_id else None


def _taken_in(row: InboxRow) -> bool:
    """Whether an interrupt's request has no exit and is not in this inbox: its queue has it."""
    return row.reply is None and row.target is None


def delivered_in_vain(
    envelope: EnvelopeRequest, failures: int, cause: ErrorDetails | None = None
) -> Exit:
    """The exit of a request that has failed as often as it may."""
    return Defect(
        ErrorDetails(
            "DeliveryFailed",
            f"the process or entity that had it in hand was lost {failures} times before an"
            f" answer; correct {envelope.address.entity_type}, then send this to it again with"
            f" 'outlast dead retry {envelope.request_id}'",
            cause=cause,
        )
    )
