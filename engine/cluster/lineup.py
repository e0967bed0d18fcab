"""The items of a queue that wait, in lines of one priority and key each, and who is next.

Held by the ``cluster.dispatcher`` of the queue; knows nothing of storage and time. Its size is that
of the keys that wait, not of the items: those that are stored are only counted.
"""

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.storage.queues import Line, QueueItem


@dataclass(slots=True)
class _Waiting:
    """One line: how many of it are stored, and behind them those that are in memory only."""

    stored: int = 0
    arrived: deque[QueueItem] = field(default_factory=deque[QueueItem])

    def __len__(self) -> int:
        return self.stored + len(self.arrived)


class Lineup:
    """Higher priorities go first. Within one, keys take turns, one item each; a key of which
    ``per_key`` items are running (0: any number) is passed over until one of them has ended."""

    def __init__(self, per_key: int = 0) -> None:
        self._per_key = per_key
        self._lines: defaultdict[int, dict[str, _Waiting]] = defaultdict(dict)
        self._turns: defaultdict[int, OrderedDict[str, None]] = defaultdict(OrderedDict)
        self._running: Counter[str] = Counter()

    @property
    def ready(self) -> bool:
        """Whether there is an item whose key has room."""
        return any(self._has_room(key) for turns in self._turns.values() for key in turns)

    def limit(self, per_key: int) -> None:
        """Another limit from now on."""
        self._per_key = per_key
        for key in {key for lines in self._lines.values() for key in lines}:
            self._line_up(key)

    def arrive(self, item: QueueItem) -> None:
        """An item that is not stored yet."""
        self._line(item.priority, item.key).arrived.append(item)

    def add_stored(self, line: Line) -> None:
        """So many items that are stored already."""
        self._line(line.priority, line.key).stored += line.count

    def began(self, key: str) -> None:
        """An item was admitted, here or by a former owner."""
        self._running[key] += 1

    def ended(self, key: str) -> None:
        """An item that was admitted has ended."""
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        self._line_up(key)

    def leave(self, priority: int, key: str) -> bool:
        """One that is stored does not wait any more; False when none of its line is."""
        line = self._lines.get(priority, {}).get(key)
        if line is None or not line.stored:
            return False
        line.stored -= 1
        self._forget_empty(priority, key)
        return True

    def choose(self, room: int) -> tuple[list[QueueItem], list[Line]]:
        """Take out the next items, at most so many: those that have only arrived, and of each line
        how many of its oldest that are stored. They count as running."""
        arrived: list[QueueItem] = []
        stored: Counter[tuple[int, str]] = Counter()
        for priority in sorted(self._lines, reverse=True):
            turns = self._turns[priority]
            while turns and room:
                key = next(iter(turns))
                if not self._has_room(key):
                    del turns[key]  # until one of its items has ended
                    continue
                line = self._lines[priority][key]
                if line.stored:
                    line.stored -= 1
                    stored[priority, key] += 1
                else:
                    arrived.append(line.arrived.popleft())
                self._running[key] += 1
                room -= 1
                turns.move_to_end(key)
                self._forget_empty(priority, key)
        lines = [Line(priority=p, key=k, count=count) for (p, k), count in stored.items()]
        return arrived, lines

    def store(self, items: Iterable[QueueItem]) -> Sequence[QueueItem]:
        """Those of these that have arrived and were not chosen, in order; they are stored now."""
        kept: list[QueueItem] = []
        for item in items:
            line = self._lines.get(item.priority, {}).get(item.key)
            if line is not None and line.arrived and line.arrived[0] is item:
                line.arrived.popleft()
                line.stored += 1
                kept.append(item)
        return kept

    def _line(self, priority: int, key: str) -> _Waiting:
        line = self._lines[priority].get(key)
        if line is None:
            line = self._lines[priority][key] = _Waiting()
            self._turns[priority][key] = None
        return line

    def _line_up(self, key: str) -> None:
        """Let a key that was passed over have its turn again, behind the others."""
        for priority, lines in self._lines.items():
            if key in lines:
                self._turns[priority].setdefault(key)

    def _has_room(self, key: str) -> bool:
        return not self._per_key or self._running[key] < self._per_key

    def _forget_empty(self, priority: int, key: str) -> None:
        if not self._lines[priority][key]:
            del self._lines[priority][key]
            self._turns[priority].pop(key, None)
        if not self._lines[priority]:
            del self._lines[priority], self._turns[priority]
