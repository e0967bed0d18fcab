"""One consumer of one stream: what has come, in order, and what of it was taken.

Made by ``cluster.replies``, which feeds it: with chunks pushed from commits of this process, and
with what it reads for it from the storage. Taken by ``engine.consumer`` and ``cluster.sharding``.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from engine.core.errors import InvalidPayload, StreamTaken
from engine.core.ids import Snowflake
from engine.core.reply import Exit, ReplyChunk, ReplyKind, ReplyWithExit, decode_exit
from engine.storage.protocol import NewReply, StoredReply

_LIMIT = 1000
_TURN = 32


class Acknowledge(Protocol):
    """Says, without waiting, that the chunks up to and with this one were taken; with ``more`` this
    process is registered for what follows, which is then read."""

    def __call__(self, sequence: int, *, more: bool) -> None: ...


class StreamReader:
    """Gives each chunk once, from ``first`` on, then the exit; without ``first``, from the first
    chunk on that is not acknowledged.

    Asking for the next chunk acknowledges the one before, if there is an ``acknowledge``. ``watch``
    has this process registered for the request's replies, and then read what is there.
    ``registered``: it is so already, and there was nothing before. It ``lags`` when less than has
    come is stored as acknowledged.
    """

    __slots__ = (
        "_acknowledge",
        "_acknowledged",
        "_behind",
        "_buffer",
        "_exit",
        "_failure",
        "_found",
        "_fresh",
        "_next",
        "_taken",
        "_wake",
        "_watch",
        "lags",
        "reminder",
        "request_id",
    )

    def __init__(
        self,
        *,
        request_id: Snowflake,
        first: int | None,
        watch: Callable[[Snowflake], None],
        acknowledge: Acknowledge | None,
        registered: bool,
    ) -> None:
        self.request_id: Snowflake = request_id
        self._next = first or 0
        self._found = first is not None
        self._watch = watch
        self._acknowledge = acknowledge
        self._acknowledged = False
        self._fresh = registered
        self._behind = False
        self._buffer: deque[bytes] = deque()
        self._taken: int | None = None
        self._exit: Exit | None = None
        self._failure: Exception | None = None
        self._wake: asyncio.Future[None] | None = None
        self.reminder: Callable[[], None] | None = None
        self.lags: bool = False

    @property
    def after(self) -> int:
        """The sequence of the last chunk that has come."""
        return self._next + len(self._buffer) - 1

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._exit is not None or self._failure is not None

    @property
    def consumes(self) -> bool:
        """Whether it takes the stream's chunks, so that nobody else needs to hear of them. One that
        has not acknowledged any yet may be looking on while somebody else does."""
        return self._acknowledged and not self.ended

    async def take(self) -> ReplyChunk | ReplyWithExit:
        """The next chunk, or the exit after the last. ``StreamTaken`` when somebody else has
        acknowledged a chunk that this one has not seen."""
        fed = self._acknowledge_taken() or self._fresh
        self._fresh = False
        if self._next % _TURN == 0:
            await asyncio.sleep(0)  # a full buffer is no reason to keep acknowledgements waiting
        while not self._buffer:
            if self._exit is not None:
                return ReplyWithExit(request_id=self.request_id, exit=self._exit)
            if self._failure is not None:
                raise self._failure
            if not fed or self._behind:
                self._behind = False
                self._watch(self.request_id)
            fed = False
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        self._taken = self._next
        self._next += 1
        return ReplyChunk(
            request_id=self.request_id, sequence=self._taken, value=self._buffer.popleft()
        )

    def replied(self, reply: StoredReply | NewReply, *, pushed: bool) -> None:
        """A reply that was ``pushed`` from its commit in this process, or read: then all between
        ``after`` and it that are still stored have come before it."""
        if not self._found and not pushed:
            self._found = True
            self._next = reply.sequence
        expected = self.after + 1 if self._found else -1
        chunk = reply.kind is ReplyKind.CHUNK
        if self.ended:
            return
        if chunk and reply.sequence < expected:  # it has come before
            if pushed:
                self.remind()
            return
        if reply.sequence > expected and not pushed and not self._behind:
            self.fail(_taken_elsewhere(self.request_id, expected))
        elif reply.sequence > expected or (chunk and len(self._buffer) >= _LIMIT):
            self._behind = True  # it is read when there is room for it
        elif chunk:
            self._buffer.append(reply.payload)
        else:
            try:
                self._exit = decode_exit(reply.kind, reply.payload)
            except InvalidPayload as error:  # as in ``replies``
                self._failure = error
        self._resume()

    def remind(self) -> None:
        """If it waits, acknowledge again what it took last: a fail-over may have lost that, and
        then the producer waits for it, behind what has come here."""
        if self._wake is None or self._wake.done():
            return
        if self._acknowledged and self._acknowledge is not None:
            self._acknowledge(self._next - 1, more=True)
        elif self.reminder is not None:
            self.reminder()

    def fail(self, error: Exception) -> None:
        """Nothing more will come; what has come is still given."""
        self._failure = error
        self._resume()

    def _acknowledge_taken(self) -> bool:
        """Acknowledge the last chunk that was taken; whether what follows is read for that."""
        if self._taken is None or self._acknowledge is None:
            return False
        more = self._exit is None and not self._buffer
        self._acknowledge(self._taken, more=more)
        self._acknowledged = True
        self._taken = None
        return more

    def _resume(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def _taken_elsewhere(request_id: Snowflake, expected: int) -> StreamTaken:
    return StreamTaken(
        f"chunk {expected} of request {request_id} was taken by another consumer: one at a time"
        " may iterate over a stream; call it with another key to get a stream of your own"
    )
