"""One run of a handler that is an async generator: its chunks in order, a window ahead at most.

Made by ``cluster.handling`` for each run. Chunks leave through a ``ChunkSink`` while the generator
goes on; acknowledgements come from ``cluster.streams``, or by whatever way the sink's chunks go.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

from engine.core.clock import Clock
from engine.core.reply import Exit, Interrupted, Success
from engine.storage.protocol import StreamPosition

Chunk = tuple[int, bytes]
"""A sequence and an encoded element."""

_TURN = 64
_BATCH = 1 << 20
_END = Success(b"null")


class ChunkSink(Protocol):
    """Where the chunks of one stream go: one call at a time, sequences without gaps."""

    async def put(self, chunks: Sequence[Chunk], /) -> None:
        """Returns when they are durable or, if they are volatile, on their way."""
        ...


class Moved(BaseException):
    """A handler has ended here without an answer; the next owner of its shard handles it again."""


class StreamProducer:
    """Draws chunks from a generator while fewer than ``window`` of them wait to be acknowledged.

    ``position`` is how far earlier runs have come: a ``resumable`` generator goes on from there by
    itself, of another that many chunks are skipped. What is drawn while a ``put`` is under way is
    the next one's batch. After ``abandoned_after`` at the window without an acknowledgement the
    stream ends.
    """

    def __init__(
        self,
        *,
        generator: AsyncGenerator[Any, Any],
        encode: Callable[[Any], bytes],
        sink: ChunkSink,
        position: StreamPosition,
        resumable: bool,
        window: int,
        abandoned_after: timedelta,
        clock: Clock,
    ) -> None:
        self._generator = generator
        self._encode = encode
        self._sink = sink
        self._window = window
        self._abandoned_after = abandoned_after
        self._clock = clock
        self._first = position.next_sequence
        self._drawn = position.next_sequence if resumable else 0
        self._stored = position.next_sequence
        self._acked = position.acked
        self._pending: list[Chunk] = []
        self._more = asyncio.Event()
        self._ending = False
        self._refused: Exception | None = None
        self._resumable = resumable
        self._leaving = False
        self._stalled: asyncio.Future[bool] | None = None
        self._putting: asyncio.Task[None] | None = None

    @property
    def unacknowledged(self) -> int:
        """How many of the chunks, stored or about to be, are not acknowledged."""
        # INVARIANT window: the generator is not resumed at so many, and an acknowledgement counts
        # here only after the commit that deleted its chunks; so no more are ever in the table.
        return max(self._drawn, self._first) - 1 - self._acked

    @property
    def stalled(self) -> bool:
        """Whether nothing but an acknowledgement lets it go on."""
        return self._stalled is not None

    @property
    def rest(self) -> Sequence[Chunk]:
        """After the run: the last chunks, if they are to be stored together with the exit."""
        return self._pending

    @property
    def end(self) -> int:
        """After the run: how many chunks there are with the rest, which is the exit's sequence."""
        return self._stored + len(self._pending)

    def acknowledged(self, sequence: int) -> None:
        """The chunks up to and with this one were taken, and that is durable."""
        self._acked = max(self._acked, min(sequence, max(self._drawn, self._first) - 1))
        if self.unacknowledged < self._window:
            self._resume(True)

    def leave(self) -> None:
        """Another runner is to go on: ``run`` raises ``Moved`` as soon as it has nothing to do, and
        if the generator is resumable, after the chunk it is at."""
        self._leaving = True
        self._resume(True)

    def lose(self) -> None:
        """What is under way to the sink will never arrive: do not wait for it."""
        if self._putting is not None:
            self._putting.cancel()

    async def run(self) -> Exit:
        """Draw until the generator ends: ``Success``, or ``Interrupted`` when nobody takes chunks.

        Raises what the generator raised, ``CancelledError`` if that is what ended it. Either way it
        is closed, and ``rest`` and ``end`` are ready for an exit. ``Moved``: there is no exit.
        """
        exit: Exit = _END
        failure: BaseException | None = None
        async with asyncio.TaskGroup() as group:
            self._putting = group.create_task(self._put())
            try:
                exit = await self._draw()
            except BaseException as error:  # noqa: BLE001 -- raised below, out of the group
                failure = error
            # INVARIANT exit-last: a put that is under way ends before the run does, as one that is
            # set aside for a lock would otherwise be overtaken by the exit.
            self._ending = True
            self._more.set()
        if self._refused is not None:
            self._pending = []  # a chunk before them is missing
            failure = failure or self._refused
        if failure is not None:
            raise failure
        return exit

    async def _draw(self) -> Exit:
        task = asyncio.current_task()
        try:
            while await self._has_room():
                try:
                    value = await anext(self._generator)
                except StopAsyncIteration:
                    return _END
                if self._drawn >= self._first:
                    self._pending.append((self._drawn, self._encode(value)))
                    self._more.set()
                self._drawn += 1
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError  # which the generator has swallowed
                if self._drawn % _TURN == 0:
                    await asyncio.sleep(0)
            return Interrupted(f"nobody took a chunk of this stream for {self._abandoned_after}")
        finally:
            await self._generator.aclose()

    async def _has_room(self) -> bool:
        """Wait until fewer chunks than the window are ahead; False when it was abandoned."""
        while self._refused is None and self.unacknowledged >= self._window:
            if self._leaving:
                raise Moved
            self._stalled = asyncio.get_running_loop().create_future()
            patience = self._clock.now() + self._abandoned_after
            alarm = self._clock.call_at(patience, partial(self._resume, False))
            try:
                if not await self._stalled:
                    return False
            finally:
                alarm.cancel()
                self._stalled = None
        if self._refused is not None:
            raise self._refused
        if self._leaving and self._resumable:
            raise Moved
        return True

    def _resume(self, room: bool) -> None:
        if self._stalled is not None and not self._stalled.done():
            self._stalled.set_result(room)

    async def _put(self) -> None:
        """Hand on what was drawn, batch by batch; what is left at the end is the rest."""
        while True:
            if not (self._pending or self._ending):
                self._more.clear()
                await self._more.wait()
            batch = self._pending[: _fitting(self._pending)]
            if self._ending and len(batch) == len(self._pending):
                return
            del self._pending[: len(batch)]
            try:
                await self._sink.put(batch)
            except Exception as error:  # noqa: BLE001 -- it ends the stream, in its own task
                self._refused = error
                self._resume(True)
                return
            self._stored += len(batch)


def _fitting(chunks: Sequence[Chunk]) -> int:
    """How many of them go into one statement."""
    size = 0
    for number, (_, payload) in enumerate(chunks):
        size += len(payload)
        if size > _BATCH:
            return max(1, number)
    return len(chunks)
