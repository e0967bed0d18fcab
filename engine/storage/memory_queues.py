"""The tables ``queues`` and ``queue_items`` of the in-memory database.

Changed by ``memory_rows`` on behalf of owners; read by ``memory``.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from engine.core.envelope import EnvelopeRequest
from engine.core.ids import ShardId, Snowflake
from engine.storage.memory_shard import MemoryShard
from engine.storage.queues import (
    PROCESS,
    Line,
    QueueContents,
    QueueCounts,
    QueueItem,
    QueueRow,
    QueueWrite,
    queue_type,
)


class MemoryQueues:
    """Queues by name, and the items of each by their requests, those that wait in lines too."""

    def __init__(self, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._shards = shards
        self._rows: dict[str, QueueRow] = {}
        self._items: defaultdict[str, dict[Snowflake, QueueItem]] = defaultdict(dict)
        self._lines: defaultdict[tuple[str, int, str], dict[int, Snowflake]] = defaultdict(dict)

    def write(self, write: QueueWrite) -> list[QueueItem]:
        """Gives the items that it has chosen of the lines."""
        chosen = self._choose(write)
        for item in (*chosen, *write.arrived):
            self._put(write.queue, item)
        for request_id in write.ripe:
            self._put(write.queue, replace(self._items[write.queue][request_id], due_at=None))
        for request_id in write.freed:
            self._take(write.queue, request_id)
        if write.row is not None:
            self._rows[write.queue] = write.row
        return chosen

    def holds(self, request_id: Snowflake) -> bool:
        """Whether a request is an item that has not ended."""
        return any(request_id in items for items in self._items.values())

    def rows(self, names: Sequence[str] | None) -> list[QueueRow]:
        """By name, each with the runner that owns its shard now."""
        wanted = self._rows.keys() if names is None else self._rows.keys() & set(names)
        rows = [self._rows[name] for name in sorted(wanted)]
        return [replace(row, runner=self._shards[row.shard].runner) for row in rows]

    def contents(self, name: str) -> QueueContents:
        waiting = Counter((i.priority, i.key) for i in self._items[name].values() if _waits(i))
        return QueueContents(
            row=next(iter(self.rows([name])), None),
            waiting=[Line(priority=p, key=k, count=count) for (p, k), count in waiting.items()],
            held=[item for item in self._items[name].values() if not _waits(item)],
        )

    def place(self, request_id: Snowflake) -> tuple[QueueItem, int, list[QueueItem]] | None:
        """An item and, unless it is admitted, how many of its line go before it, and those of its
        key that run, the oldest first."""
        for items in self._items.values():
            if (item := items.get(request_id)) is None:
                continue
            if item.shard is not None:
                return item, 0, []
            alike = [each for each in items.values() if each.key == item.key]
            ahead = [
                each
                for each in alike
                if _waits(each) and each.priority == item.priority and each.seq < item.seq
            ]
            running = [each for each in alike if each.shard is not None]
            return item, len(ahead), sorted(running, key=lambda each: each.seq)
        return None

    def counts(
        self,
        names: Sequence[str] | None,
        envelopes: Mapping[Snowflake, EnvelopeRequest],
        now: datetime,
    ) -> list[QueueCounts]:
        return [self._counts(row, envelopes, now) for row in self.rows(names)]

    def _counts(
        self, row: QueueRow, envelopes: Mapping[Snowflake, EnvelopeRequest], now: datetime
    ) -> QueueCounts:
        items = self._items[row.name].values()
        arriving = [
            each
            for each in self._shards[row.shard].messages()
            if envelopes[each.request_id].address.entity_type == queue_type(row.name)
            and envelopes[each.request_id].tag == PROCESS
        ]
        due = [each for each in arriving if each.due_at is None or each.due_at <= now]
        waiting = [item.request_id for item in items if _waits(item)]
        waiting.extend(each.request_id for each in due)
        return QueueCounts(
            row=row,
            waiting=len(waiting),
            delayed=sum(item.due_at is not None for item in items) + len(arriving) - len(due),
            running=sum(item.shard is not None for item in items),
            oldest=min(waiting, default=None),
        )

    def _choose(self, write: QueueWrite) -> list[QueueItem]:
        chosen: list[QueueItem] = []
        for line in write.lines:
            waiting = self._lines[write.queue, line.priority, line.key]
            left = sorted(seq for seq, id in waiting.items() if id not in write.freed)
            for seq in left[: line.count]:
                item = self._items[write.queue][waiting[seq]]
                chosen.append(replace(item, shard=write.targets[len(chosen)]))
        return chosen

    def _put(self, queue: str, item: QueueItem) -> None:
        self._take(queue, item.request_id)
        self._items[queue][item.request_id] = item
        if _waits(item):
            self._lines[queue, item.priority, item.key][item.seq] = item.request_id

    def _take(self, queue: str, request_id: Snowflake) -> None:
        item = self._items[queue].pop(request_id, None)
        if item is not None and _waits(item):
            del self._lines[queue, item.priority, item.key][item.seq]


def _waits(item: QueueItem) -> bool:
    return item.shard is None and item.due_at is None
