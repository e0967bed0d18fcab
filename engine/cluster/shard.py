"""A shard while this runner owns it: its epoch, its pen, and what is in hand of it.

Made by ``cluster.delivery`` when a lane has acquired the shard; held by every piece of work of the
shard, which stops as soon as ``alive`` is false.
"""

from datetime import timedelta

from engine.cluster.handover import Handover
from engine.core.clock import monotonic
from engine.core.errors import OwnershipLost
from engine.core.ids import RunnerId, ShardId
from engine.storage.lane import CommitSource, Lane
from engine.storage.protocol import STARTS, Fence, Recipient, Sweep, recipient_key

_READ_ALL_EVERY, _READ_ALL_LATEST = 5.0, 60.0
_RIPE_AFTER = 0.5
"""A row has its number a moment before its transaction has one: by then it has both."""
_ANYBODY = -1
"""No entity's key and no execution's."""


class OwnedShard:
    """One epoch of one shard in this process.

    ``in_flight`` are the inbox rows handed out here; a row leaves only after the flush that
    deleted it, or when it is given back. ``held`` are entities and executions whose requests are
    to stay in the inbox for now, each with a seq behind which all of those are. ``leaving`` is set
    while the shard is being handed over, and ``accepting`` is false from when it is served no more.

    ``rested``: the last sweep that began has passed over somebody's line, ``without_starts``: over
    all starts.

    INVARIANT order: ``passed_over`` are those of whom a row was given back since the last sweep
    began. What that sweep reads of them came later, so it is left for the next one as well.

    ``floor``: the next sweep looks only at the rows behind this one, so that two things are not
    walked over time and again: the long backlog of an entity that is held, and rows that are long
    deleted but cannot be vacuumed while somebody's transaction is open. It is where ``_safe`` is,
    or before that, behind the first of what was passed over and can be delivered now (``_open``).

    ``highest``: no row behind this one was delivered by a sweep, but for what was to come later.

    ``behind``: there may be rows in the inbox that were not read yet and are older than what is
    sent now, so nothing may be delivered from memory. It ends with a sweep that has read all, from
    ``begin_sweep`` on.
    """

    __slots__ = (
        "_handed",
        "_missed",
        "_open",
        "_read_all_due",
        "_reading",
        "_resting",
        "_ripening",
        "_safe",
        "_settled_after",
        "accepting",
        "alive",
        "began",
        "behind",
        "epoch",
        "floor",
        "generation",
        "held",
        "highest",
        "id",
        "in_flight",
        "lane",
        "leaving",
        "passed_over",
        "rested",
        "runner",
        "without_starts",
    )

    def __init__(
        self, *, id: ShardId, epoch: int, lane: Lane, runner: RunnerId, settled_after: timedelta
    ) -> None:
        self.id: ShardId = id
        self.epoch: int = epoch
        self.lane: Lane = lane
        self.runner: RunnerId = runner
        self.generation: int = lane.generation
        self.in_flight: set[int] = set()
        self.held: dict[int, int] = {}
        self._resting: set[int] = set()
        self.rested: bool = False
        self.without_starts: bool = False
        self.passed_over: set[Recipient] = set()
        self.behind: bool = True
        self._missed: bool = True
        self.floor: int = 0
        self._safe: int = 0
        self._open: dict[int, int] = {}  # by key, as held
        self._reading: dict[int, int] = {}  # what the sweep under way has of them
        self.highest: int = 0
        self._handed: int = 0
        self._ripening: tuple[int, float, int | None] | None = None
        self.began: float = monotonic()
        self._read_all_due: float = 0.0
        self._settled_after: float = settled_after.total_seconds()
        self.alive: bool = True
        self.accepting: bool = True
        self.leaving: Handover | None = None

    def submit(self, source: CommitSource) -> None:
        """Queue a write of this epoch; ``OwnershipLost`` once the epoch is over."""
        if not self.alive:
            raise OwnershipLost(f"shard {self.id} is no longer owned here; the write is dropped")
        self.lane.submit(source, self.generation)

    def hold(self, key: int) -> None:
        """Leave this entity's or execution's requests in the inbox until ``release``."""
        self._resting.discard(key)
        self._pass_over(key)

    def rest(self, key: int) -> None:
        """Pass over its requests in the next sweep, so that it reads what is behind them."""
        if key not in self.held:
            self._resting.add(key)
            self._pass_over(key)

    def takes(self, key: int) -> bool:
        """Whether what it has in hand can go on: it is not held, or only rests."""
        return key not in self.held or key in self._resting

    def _pass_over(self, key: int) -> None:
        after = min(self.held.get(key, self._safe), self.held.get(STARTS, self._safe))
        for each in (self._open, self._reading):
            if key == STARTS:  # some of these may be of starts
                after = min([after, *each.values()])
            else:
                others = [each[other] for other in (_ANYBODY, STARTS) if other in each]
                after = min([after, each.pop(key, after), *others])
        self.held[key] = after
        self.fall_behind()

    def release(self, key: int) -> None:
        """Its requests may be read again."""
        self._resting.discard(key)
        self._reopen(key, self.held.pop(key, self._safe))
        if self.alive:
            self.lane.ring((self.id,))

    def give_back(self, seq: int, recipient: Recipient) -> None:
        """A row that cannot be taken now: it stays in the inbox and is read again later, and so is
        what came for the same recipient after it."""
        self.in_flight.discard(seq)
        self.passed_over.add(recipient)
        key = recipient_key(recipient)
        if key in self.held:
            self.held[key] = min(self.held[key], seq - 1)
            self.fall_behind()
        else:
            self._reopen(key, seq - 1)

    def read_again(self) -> None:
        """Rows up to the floor, of whomever, can be delivered now, or soon."""
        self.held = dict.fromkeys(self.held, 0)
        self._reopen(_ANYBODY, 0)

    def _reopen(self, key: int, after: int) -> None:
        self._open[key] = min(after, self._open.get(key, after))
        if STARTS in self.held:  # it may be of a start
            self.held[STARTS] = min(after, self.held[STARTS])
        self.fall_behind()

    def fall_behind(self) -> None:
        """There may be rows that the sweep under way, if any, does not read."""
        self.behind = self._missed = True

    def handed(self, seq: int) -> None:
        """This row was delivered from memory, as its commit has been answered."""
        self._handed = max(self._handed, seq)

    def begin_sweep(self, *, crowded: bool, thorough: bool) -> None:
        """``crowded``: rows of entities that are not in memory are passed over. ``thorough``: there
        is time to read the inbox from its beginning, if that has not been done for a while."""
        for key, after in self._reading.items():  # of one that came to nothing
            self._reopen(key, after)
        self._reading, self._open = self._open, {}
        self.highest = max(self.highest, self._handed)
        self.passed_over.clear()
        self._missed = bool(self.held) or crowded
        self.rested = bool(self._resting)
        self.without_starts = STARTS in self.held
        self.began = monotonic()
        self.floor = min(self._safe, *self._reading.values()) if self._reading else self._safe
        if self.began - self._read_all_due > (0 if thorough else _READ_ALL_LATEST):
            self.floor = 0

    def end_sweep(self, sweep: Sweep, *, last: int, read_to: int, oldest: int) -> None:
        """Its rows are about to be delivered. ``last`` is the highest seq that it has seen here,
        ``read_to``, of one that left rows behind, that of a row which was to be delivered at once;
        0: none. ``oldest`` is the oldest transaction that may have written here and had not
        ended."""
        self.behind = sweep.more or self._missed
        if self.floor == 0:
            self._read_all_due = self.began + _READ_ALL_EVERY
        self.highest = max(self.highest, last)
        self._ripen(max(read_to, self._safe) if sweep.more else self.highest, sweep, oldest)
        read, self._reading = self._reading, {}
        if sweep.more:  # what came later than the floor is read anyway
            for key, after in read.items():
                if (left := max(after, read_to)) < self._safe:
                    self._reopen(key, left)
        for key in list(self._resting):
            self.release(key)

    def _ripen(self, seen: int, sweep: Sweep, oldest: int) -> None:
        """All up to ``seen`` has been seen by this sweep or one before."""
        # INVARIANT floor: up to ``_safe`` all has been seen by a sweep that began when every
        # statement that can have drawn such a seq was over: since its transaction had ended, or
        # none of ours takes that long. What was seen is in flight, or is of one who is held and
        # behind what ``held`` says of him, or is behind what ``_open`` says of one who can take it
        # now. One that leaves rows behind has seen all up to the last that it read, as each inbox
        # is read in its order, but for what was to be delivered later, which no floor hides. (A
        # start on a user's own connection may commit later than that: its ring says so, and all is
        # read now and then.)
        if self._ripening is not None:
            highest, since, newest = self._ripening
            ripe = self.began - since
            if newest is None:
                if ripe >= _RIPE_AFTER:
                    self._ripening = highest, since, sweep.newest
                return
            if seen < highest or (oldest < newest and ripe <= self._settled_after):
                return
            self._safe = highest
        self._ripening = seen, monotonic(), None

    @property
    def fence(self) -> Fence:
        return Fence(shard=self.id, epoch=self.epoch, runner=self.runner)
