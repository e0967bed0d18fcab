"""Messages of types that nobody serves here: they wait for a registration or for the next owner.

Put here by ``cluster.delivery`` and ``workflow.host``; taken out when the type is registered, or is
not paused any more.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from engine.cluster.shard import OwnedShard
from engine.core.clock import Alarm, Clock
from engine.storage.protocol import InboxRow

log: logging.Logger = logging.getLogger(__name__)


class Parking:
    """Parked rows by the name of their type.

    ``expired`` is told of each that has been here for ``patience``; it is not parked any more then.
    """

    def __init__(
        self, *, clock: Clock, patience: timedelta, expired: Callable[[OwnedShard, InboxRow], None]
    ) -> None:
        self._clock = clock
        self._patience = patience
        self._expired = expired
        self._rows: dict[str, dict[int, _Parked]] = defaultdict(dict)
        self._alarm: Alarm | None = None

    def park(
        self,
        name: str,
        shard: OwnedShard,
        row: InboxRow,
        *,
        forever: bool = False,
        because: str = "is not registered here",
    ) -> None:
        """Keep a row until ``unpark`` or ``forget``, or ``forever`` or its time is over."""
        rows = self._rows[name]
        if not rows:
            log.warning(
                "messages wait for a type that %s: let all runners of its shard group serve it",
                because,
                extra={"entity_type": name, "runner": str(shard.runner)},
            )
        until = None if forever else self._clock.now() + self._patience
        rows[row.seq] = _Parked(shard=shard, row=row, until=until)
        if until is not None and self._alarm is None:
            self._alarm = self._clock.call_at(until, self._look)

    def unpark(self, name: str) -> Collection[tuple[OwnedShard, InboxRow]]:
        """Take out what waits for a type."""
        return [(each.shard, each.row) for each in self._rows.pop(name, {}).values()]

    def settled(self, seqs: Iterable[int]) -> None:
        """These rows are answered, or about to be."""
        for rows in self._rows.values():
            for seq in seqs:
                rows.pop(seq, None)

    def forget(self, shard: OwnedShard) -> None:
        """The shard is no longer owned here."""
        for rows in self._rows.values():
            for seq in [seq for seq, each in rows.items() if each.shard is shard]:
                del rows[seq]

    def _look(self) -> None:
        self._alarm = None
        now = self._clock.now()
        over: list[_Parked] = []
        for rows in self._rows.values():
            ripe = [each for each in rows.values() if each.until is not None and each.until <= now]
            for each in ripe:
                del rows[each.row.seq]
            over.extend(ripe)
        ends = (each.until for rows in self._rows.values() for each in rows.values() if each.until)
        if (end := min(ends, default=None)) is not None:
            self._alarm = self._clock.call_at(end, self._look)
        for each in over:
            self._expired(each.shard, each.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parked:
    """``until``: None if it waits as long as it takes."""

    shard: OwnedShard
    row: InboxRow
    until: datetime | None
