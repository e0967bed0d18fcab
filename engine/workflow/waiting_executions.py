"""Executions that wait for a place in memory; what else comes for them stays in the database.

Filled by ``workflow.host`` when its runner holds as many as it may.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

from engine.cluster.residency import Residency
from engine.cluster.shard import OwnedShard
from engine.core.ids import Snowflake
from engine.storage.protocol import InboxKind, InboxRow


class WaitingExecutions:
    """In the order they came. Its members are their ids."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._shards: dict[Snowflake, OwnedShard | None] = {}
        # rows that a sweep finds although their execution is held: they stay in hand
        self._kept: dict[Snowflake, list[int]] = defaultdict(list)

    def __contains__(self, id: object) -> bool:
        return id in self._shards

    def __iter__(self) -> Iterator[Snowflake]:
        return iter(self._shards)

    def add(self, id: Snowflake, shard: OwnedShard | None, begin: Callable[[], None]) -> None:
        """Call ``begin`` when there is a place. ``shard`` is None for one that is due to wake."""
        self._shards[id] = shard
        if shard is not None:
            shard.hold(id)

        def admit() -> None:
            self._release(id)
            begin()

        self._residency.wait(id, admit)

    def leave_stored(self, id: Snowflake, shard: OwnedShard, row: InboxRow) -> None:
        """A row for one that waits."""
        if self._shards[id] is None:
            self._shards[id] = shard
            shard.hold(id)
        if row.kind is InboxKind.REQUEST:
            shard.give_back(row.seq, id)
        else:  # given back, they would be read again and again, before all that came after them
            self._kept[id].append(row.seq)

    def forget(self, shard: OwnedShard) -> None:
        """The shard is another owner's now."""
        for id in [id for id, at in self._shards.items() if at is shard]:
            del self._shards[id]
            self._kept.pop(id, None)
            self._residency.forget(id)

    def _release(self, id: Snowflake) -> None:
        shard = self._shards.pop(id, None)
        if shard is not None:
            for seq in self._kept.pop(id, ()):
                shard.give_back(seq, id)
            shard.release(id)
