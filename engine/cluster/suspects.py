"""Messages that may have killed their process, on their way to the mailbox by way of a trial.

From ``cluster.delivery``, which asks ``takes`` of each request to an entity; back to it through
``hand`` when ``cluster.trials`` has room and it is stored that the message is on trial.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

from engine.cluster.shard import OwnedShard
from engine.cluster.trials import Trials
from engine.core.errors import OwnershipLost
from engine.core.ids import EntityAddress
from engine.storage.protocol import SUSPECT, BadBatch, Commit, Flushed, InboxRow, recipient_key

log: logging.Logger = logging.getLogger(__name__)


class Suspects:
    """Suspects that wait or are on trial, and what waits behind them.

    INVARIANT order: nothing overtakes a suspect of its entity on the way to the mailbox.
    """

    def __init__(self, *, trials: Trials, hand: Callable[[OwnedShard, InboxRow], None]) -> None:
        self._trials = trials
        self._hand = hand
        self._lines: dict[EntityAddress, _Line] = {}
        self._waiting: dict[int, EntityAddress] = {}
        self._tried: dict[int, _Tried] = {}

    def __bool__(self) -> bool:
        return bool(self._lines or self._tried)

    def takes(self, row: InboxRow) -> bool:
        """Whether the request has to go this way: it is suspect, or behind one that is."""
        return row.failures >= SUSPECT or row.envelope.address in self._lines

    def add(self, shard: OwnedShard, row: InboxRow) -> None:
        address = row.envelope.address
        line = self._lines.setdefault(address, _Line(shard))
        line.rows.append(row)
        self._waiting[row.seq] = address
        if line.first is None:
            self._advance(address)

    def settled(self, seqs: Iterable[int]) -> None:
        """These rows need no delivery any more, or are back in the inbox: their trials are over."""
        gone: set[EntityAddress] = set()
        for seq in seqs:
            if (address := self._waiting.pop(seq, None)) is not None:
                gone.add(address)
            if (tried := self._tried.pop(seq, None)) is not None:
                self._trials.done(tried)
        for address in gone & self._lines.keys():
            self._thin_out(address)

    def leave(self, shard: OwnedShard) -> None:
        """The shard is being given away: what waits here is for the next owner."""
        for address in [each for each, line in self._lines.items() if line.shard is shard]:
            rows = self._lines.pop(address).rows
            self.settled([row.seq for row in rows])

    def forget(self, shard: OwnedShard) -> None:
        """The shard is no longer owned here: its trials are over."""
        self.leave(shard)
        self.settled([seq for seq, tried in self._tried.items() if tried.shard is shard])

    def _advance(self, address: EntityAddress) -> None:
        """Hand on what stands before the line's next suspect, and have that one tried."""
        line = self._lines[address]
        line.first = None
        while line.rows and line.rows[0].failures < SUSPECT:
            if not self._give(address):
                return
        if not line.rows:
            del self._lines[address]
            return
        line.first = first = _Tried(line.shard, line.rows[0], handed=self._handed)
        self._tried[first.row.seq] = first
        self._trials.ask(first, first.row.failures, partial(self._try, first))

    def _try(self, tried: "_Tried") -> None:
        if tried.shard.takes(recipient_key(tried.row.recipient)):
            tried.begin()
        else:
            self._give_back(tried.row.envelope.address)

    def _handed(self, tried: "_Tried") -> None:
        """It is stored that this one is on trial."""
        address = tried.row.envelope.address
        line = self._lines.get(address)
        if line is not None and line.first is tried and self._give(address):
            self._advance(address)

    def _give(self, address: EntityAddress) -> bool:
        """Hand on the first of a line; False if its mailbox did not take it."""
        line = self._lines[address]
        row = line.rows.popleft()
        del self._waiting[row.seq]
        self._hand(line.shard, row)
        if row.seq in line.shard.in_flight:
            return True
        self.settled([row.seq])
        self._give_back(address)
        return False

    def _give_back(self, address: EntityAddress) -> None:
        """Leave a line in the inbox, as its entity takes nothing now: all of it is read again."""
        line = self._lines.pop(address)
        for row in line.rows:
            line.shard.give_back(row.seq, address)
        self.settled([row.seq for row in line.rows])

    def _thin_out(self, address: EntityAddress) -> None:
        """Take out of a line what does not wait any more."""
        line = self._lines[address]
        line.rows = deque(row for row in line.rows if row.seq in self._waiting)
        if line.first is not None and line.first.row.seq not in self._waiting:
            self._advance(address)


class _Line:
    """The messages of one entity that wait here, in order. ``first`` is the first of them, a
    suspect, from when it asks for its trial until it is handed on."""

    __slots__ = ("first", "rows", "shard")

    def __init__(self, shard: OwnedShard) -> None:
        self.shard: OwnedShard = shard
        self.rows: deque[InboxRow] = deque()
        self.first: _Tried | None = None


class _Tried:
    """A suspect, and the note that it is on trial, as a commit."""

    __slots__ = ("_handed", "row", "shard")

    def __init__(
        self, shard: OwnedShard, row: InboxRow, *, handed: Callable[["_Tried"], None]
    ) -> None:
        self.shard: OwnedShard = shard
        self.row: InboxRow = row
        self._handed = handed

    def begin(self) -> None:
        log.info(
            "a message is delivered on trial: processes that had it in hand were lost",
            extra={"request_id": self.row.envelope.request_id, "failures": self.row.failures},
        )
        try:
            self.shard.submit(self)
        except OwnershipLost:
            return  # it is about to be forgotten

    def collect(self) -> Commit:
        # INVARIANT tried-first: that it is on trial is stored before it can do any harm.
        return Commit(shard=self.shard.id, tried=[self.row.seq])

    def committed(self, flushed: Flushed) -> None:
        self._handed(self)

    def refused(self, error: BadBatch) -> None:
        log.error(
            "a message cannot be delivered on trial; it waits for its shard's next owner",
            extra={"request_id": self.row.envelope.request_id, "error": str(error)},
        )
