"""Failed deliveries in the in-memory database: whom to blame when an owner was lost.

``memory_rows`` asks, for ``Commit.failed`` and ``Commit.tried`` and when a shard has a new owner.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from itertools import islice

from engine.storage.memory_executions import MemoryExecutions
from engine.storage.memory_shard import MemoryShard
from engine.storage.protocol import SUSPECT, InboxKind

_BLAMED = 200


def count_lost(shard: MemoryShard, executions: MemoryExecutions, now: datetime) -> None:
    """Count what the lost owner of a shard may have had in hand; see ``LaneSession.acquire``."""
    tried = [row.seq for row in shard.rows() if row.trial]
    due = list(shard.ready(now))
    handled = (each for each in due if each.entity is not None or each.kind is InboxKind.ADMITTED)
    blamed = (row.seq for row in handled if row.failures < SUSPECT)
    fail(shard, {*tried, *islice(blamed, _BLAMED)})
    busy = {row.execution for row in due if row.execution is not None}
    woken = (id for _, id in shard.due(now))
    for execution in busy.union(woken, executions.on_trial(shard.id)):
        executions.count_failure(execution)


def fail(shard: MemoryShard, seqs: Iterable[int]) -> None:
    """Count a failed delivery of these rows, which ends their trial."""
    for seq in seqs:
        if (row := shard.row(seq)) is not None:
            shard.change(replace(row, failures=row.failures + 1, trial=False))


def begin_trial(shard: MemoryShard, seqs: Iterable[int]) -> None:
    for seq in seqs:
        if (row := shard.row(seq)) is not None:
            shard.change(replace(row, trial=True))


def end_trials(shard: MemoryShard, executions: MemoryExecutions) -> None:
    """Nobody has in hand what is on trial there, and nothing was lost."""
    executions.end_trials(shard.id)
    for row in [row for row in shard.rows() if row.trial]:
        shard.change(replace(row, trial=False))
