"""One shard of the in-memory database: who owns it, what it has to deliver, who sleeps on it.

Changed by ``memory_database`` and locked by ``memory_lane``. Rows and sleepers are kept in the
order they are asked for, so that a sweep looks at what it returns and at nothing else.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.storage.protocol import STARTS, InboxKind

_LAST = Snowflake(1 << 63)
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """A row of the table ``inbox``. ``entity`` is the number of the entity that it is for, if it is
    a request and not an execution's."""

    shard: ShardId
    seq: int
    kind: InboxKind
    request_id: Snowflake
    execution: Snowflake | None
    due_at: datetime | None
    entity: int | None = None
    failures: int = 0
    trial: bool = False


class MemoryShard:
    """A row of ``shards`` with its part of ``inbox`` and of the index on ``executions.wake_at``.

    ``holder`` has the shard's lock. ``fences`` counts the user transactions that hold its row: as
    long as there are any, nobody else can take the shard. ``taker`` is the runner that took it last
    and has not released it; dead or alive.
    """

    __slots__ = (
        "_later",
        "_ready",
        "_requests",
        "_rows",
        "_wakes",
        "acquired_at",
        "epoch",
        "fences",
        "holder",
        "id",
        "runner",
        "taker",
    )

    def __init__(self, id: ShardId) -> None:
        self.id: ShardId = id
        self.epoch: int = 0
        self.runner: RunnerId | None = None
        self.taker: RunnerId | None = None
        self.acquired_at: datetime | None = None
        self.holder: object | None = None
        self.fences: int = 0
        self._rows: dict[int, MemoryRow] = {}
        self._ready: dict[int, MemoryRow] = {}
        self._requests: dict[Snowflake, int] = {}
        self._later: list[tuple[datetime, int]] = []
        self._wakes: list[tuple[datetime, Snowflake]] = []

    def add(self, row: MemoryRow) -> None:
        self._rows[row.seq] = row
        if row.kind in (InboxKind.REQUEST, InboxKind.ADMITTED):
            self._requests[row.request_id] = row.seq
        if row.due_at is None:
            self._ready[row.seq] = row
        else:
            insort(self._later, (row.due_at, row.seq))

    def change(self, row: MemoryRow) -> None:
        """Put a row in the place of its former self, which was due at the same time."""
        self._rows[row.seq] = row
        if row.seq in self._ready:
            self._ready[row.seq] = row

    def remove(self, seq: int) -> MemoryRow | None:
        """Delete a row; None when it is not there."""
        row = self._rows.pop(seq, None)
        if row is None:
            return None
        if self._requests.get(row.request_id) == seq:
            del self._requests[row.request_id]
        if self._ready.pop(seq, None) is None and row.due_at is not None:
            del self._later[bisect_left(self._later, (row.due_at, seq))]
        return row

    def row(self, seq: int) -> MemoryRow | None:
        return self._rows.get(seq)

    def rows(self) -> Collection[MemoryRow]:
        return self._rows.values()

    def messages(self) -> Iterator[MemoryRow]:
        """The requests to entities, those that are not due too."""
        return (row for row in self._rows.values() if row.entity is not None)

    def all(self) -> Collection[MemoryRow]:
        return self._rows.values()

    def seq_of(self, request_id: Snowflake) -> int | None:
        """The row of a request that is still to be answered."""
        return self._requests.get(request_id)

    def ready(
        self,
        now: datetime,
        in_flight: Collection[int] = (),
        held: Collection[int] = (),
        admitted: Collection[int] | None = None,
        floor: int = 0,
    ) -> Iterator[MemoryRow]:
        """The rows due by now that are not in flight, in order of ``seq``; no requests for those
        entities and executions that are ``held`` (see ``STARTS``), or for entities that are not
        ``admitted``, and of the rows up to ``floor`` only such as were to be delivered later."""
        self._promote(now)
        return (
            row
            for seq, row in self._ready.items()
            if seq not in in_flight
            and (seq > floor or row.due_at is not None)
            and not (held and _passed_over(row, held))
            and (admitted is None or row.entity is None or row.entity in admitted)
        )

    @property
    def last(self) -> int | None:
        return next(reversed(self._rows), None)

    def sleep(self, execution: Snowflake, wake_at: datetime) -> None:
        insort(self._wakes, (wake_at, execution))

    def wake(self, execution: Snowflake, wake_at: datetime) -> None:
        """Forget what ``sleep`` was told."""
        del self._wakes[bisect_left(self._wakes, (wake_at, execution))]

    def due(
        self, until: datetime, resident: Collection[Snowflake] = ()
    ) -> Iterator[tuple[datetime, Snowflake]]:
        """Who is to be woken by then and is not resident, the longest overdue first."""
        end = bisect_right(self._wakes, (until, _LAST))
        return (wake for wake in self._wakes[:end] if wake[1] not in resident)

    def next_due(self, until: datetime) -> datetime:
        """When the first row not due yet, or sleeper to be woken after ``until``, will be due."""
        row = self._later[0][0] if self._later else NEVER
        next_wake = bisect_right(self._wakes, (until, _LAST))
        return min(row, self._wakes[next_wake][0]) if next_wake < len(self._wakes) else row

    def _promote(self, now: datetime) -> None:
        """Move the rows that have become due among those that are ready."""
        end = bisect_right(self._later, (now, _LAST))
        if end:
            self._ready.update((seq, self._rows[seq]) for _, seq in self._later[:end])
            self._ready = dict(sorted(self._ready.items()))
            del self._later[:end]


def _passed_over(row: MemoryRow, held: Collection[int]) -> bool:
    if row.kind is not InboxKind.REQUEST:
        return False
    if row.execution is None:
        return row.entity in held
    return row.execution in held or (row.execution == row.request_id and STARTS in held)
