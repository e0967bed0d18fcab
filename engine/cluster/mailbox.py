"""The waiting messages of one entity, in order, and which of them may run at once.

From ``cluster.instance``, which makes one per entity id; each message runs in a task there.
"""

from collections import deque
from collections.abc import Callable

from engine.cluster.message import Message


class Mailbox:
    """Starts messages in the order they were put in, while fewer than ``concurrency`` run.

    ``capacity`` is how many may wait. With ``exclusive``, messages that may write run one at a
    time. A reader counts neither way: it starts as soon as all before it have started. One that is
    put off holds up all behind it.

    INVARIANT order: a sender that awaits each send has its rows in order of seq, and a mailbox
    starts rows in the order they were delivered, which is that of seq for one shard's sweeps.
    """

    __slots__ = ("_limit", "_paused", "_queue", "_start", "_writing", "capacity", "running")

    def __init__(
        self,
        *,
        capacity: int,
        concurrency: int,
        exclusive: bool,
        start: Callable[[Message], None],
    ) -> None:
        self.capacity = capacity
        self.running: dict[Message, None] = {}
        self._limit = 1 if exclusive else concurrency
        self._start = start
        self._queue: deque[Message] = deque()
        self._writing = 0
        self._paused = True

    @property
    def full(self) -> bool:
        return len(self._queue) >= self.capacity

    @property
    def empty(self) -> bool:
        return not self._queue and not self.running

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, message: Message) -> None:
        self._queue.append(message)
        self._pump()

    def put_back(self, messages: list[Message]) -> None:
        """Before all others, in order: they are to be handled again."""
        self._queue.extendleft(reversed(messages))

    def take_out(self, message: Message) -> bool:
        """Remove one that has not been started; False when it is not here."""
        try:
            self._queue.remove(message)
        except ValueError:
            return False
        self._pump()
        return True

    def ended(self, message: Message) -> None:
        """A running message has ended for good."""
        if message in self.running:
            del self.running[message]
            self._writing -= not message.readonly
            self._pump()

    def pause(self) -> None:
        """Start nothing until ``resume``."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._pump()

    def clear(self) -> list[Message]:
        """Take out what has not been started."""
        messages = list(self._queue)
        self._queue.clear()
        return messages

    def look(self) -> None:
        """Start what may start by now."""
        self._pump()

    def _pump(self) -> None:
        while self._queue and not self._paused and self._may_start(self._queue[0]):
            message = self._queue.popleft()
            self.running[message] = None
            self._writing += not message.readonly
            self._start(message)

    def _may_start(self, message: Message) -> bool:
        if message.put_off:
            return False
        return message.readonly or self._limit == 0 or self._writing < self._limit
