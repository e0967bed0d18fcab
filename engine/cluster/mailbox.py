"""The waiting messages of one entity, in order, and how many of them run at once.

From ``cluster.entity``, which makes one per entity id; each message runs in a task there.
"""

from collections import deque
from collections.abc import Callable

from engine.storage.protocol import InboxRow


class Mailbox:
    """Starts messages in the order of ``seq`` while fewer than ``concurrency`` run.

    INVARIANT order: a sender that awaits each send has its rows in order of seq, and a mailbox
    starts rows in the order they were delivered, which is that of seq for one shard's sweeps.
    """

    __slots__ = ("_concurrency", "_queue", "_start", "running")

    def __init__(self, *, concurrency: int, start: Callable[[InboxRow], None]) -> None:
        self._concurrency = concurrency
        self._start = start
        self._queue: deque[InboxRow] = deque()
        self.running: int = 0

    def put(self, row: InboxRow) -> None:
        self._queue.append(row)
        self._pump()

    def ended(self) -> None:
        """One of the running messages has ended for good."""
        self.running -= 1
        self._pump()

    def clear(self) -> list[InboxRow]:
        """Take out what has not been started."""
        rows = list(self._queue)
        self._queue.clear()
        return rows

    @property
    def empty(self) -> bool:
        return not self._queue and not self.running

    def __len__(self) -> int:
        return len(self._queue)

    def _pump(self) -> None:
        while self._queue and (self._concurrency == 0 or self.running < self._concurrency):
            self.running += 1
            self._start(self._queue.popleft())
