"""The streams that are produced on this runner: how far they have come, and their acknowledgements.

An acknowledgement is a row, written by whichever process takes the chunks. It comes here directly
when that is this process, else the doorbell says whose to read; a poll underneath needs neither.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from engine.cluster.message import Message
from engine.cluster.rpc import RpcDefinition
from engine.cluster.shard import OwnedShard
from engine.cluster.stream import StreamProducer
from engine.core.clock import Clock
from engine.core.ids import Snowflake
from engine.core.payload import PayloadLimit
from engine.core.retry import again_in
from engine.storage.protocol import Storage, StreamPosition

log: logging.Logger = logging.getLogger(__name__)
_READ = 1000
VOLATILE = 1000
"""The widest window of a volatile stream: all of it is in its consumer's memory."""

_Asked = tuple[Snowflake, asyncio.Future[StreamPosition]]


class Streams:
    """Producers by request id (a ``ShardFollower``, so that a stream does not delay a hand-over).

    ``window`` and ``abandoned_after`` are those of its producers. ``poll`` gives the time between
    two reads of all that can only go on when something is acknowledged. ``left`` is told of each
    stream that is no longer produced here.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        clock: Clock,
        window: int,
        abandoned_after: timedelta,
        poll: Callable[[], timedelta],
        left: Callable[[Snowflake], None],
        limit: PayloadLimit,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._window = window
        self._abandoned_after = abandoned_after
        self._poll = poll
        self._left = left
        self._limit = limit
        self._running: dict[Snowflake, _Running] = {}
        self._asked: list[_Asked] = []
        self._unread: set[Snowflake] = set()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="streams")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closing = True
        self._wake.set()
        if self._alarm is not None:
            self._alarm.cancel()
        await self._group.__aexit__(None, None, None)

    # --- producers --------------------------------------------------------------------------------

    async def position(self, message: Message) -> StreamPosition:
        """How far the stream that the message asks for has come, as its owner sees it: nobody else
        adds to it."""
        if message.row is None:
            return StreamPosition()
        answer: asyncio.Future[StreamPosition] = asyncio.get_running_loop().create_future()
        self._asked.append((message.id, answer))
        self._wake.set()
        return await answer

    @contextmanager
    def producing(
        self,
        message: Message,
        rpc: RpcDefinition,
        generator: AsyncGenerator[Any, Any],
        position: StreamPosition,
    ) -> Generator[StreamProducer, None, None]:
        """A producer for the handler's generator, with its acknowledgements."""
        codec = rpc.signature.result
        producer = StreamProducer(
            generator=generator,
            encode=lambda value: self._limit.check(codec.encode(value), codec.what),
            sink=message.answers,
            position=position,
            resumable=rpc.resumable,
            window=self._window if message.row is not None else min(self._window, VOLATILE),
            abandoned_after=self._abandoned_after,
            clock=self._clock,
        )
        running = self._running[message.id] = _Running(message=message, producer=producer)
        if producer.unacknowledged:
            self.rung([message.id])  # for what came between the read and this
        self._arm()
        try:
            yield producer
        finally:
            if self._running.get(message.id) is running:
                del self._running[message.id]
            self._left(message.id)

    def __contains__(self, request_id: Snowflake) -> bool:
        """Whether the stream is produced here now."""
        return request_id in self._running

    def acquired(self, shard: OwnedShard) -> None:
        """Streams begin with their message."""

    def drop(self, shard: OwnedShard) -> None:
        """Their tasks are the host's, which cancels them; they need not wait for the lane."""
        for running in self._running.values():
            if running.message.shard is shard:
                running.producer.lose()

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        """Have the next owner go on with them, rather than to wait for those who take chunks."""
        for running in self._running.values():
            message = running.message
            if message.shard is shard and message.row is not None and not message.stays:
                running.producer.leave()

    # --- acknowledgements -------------------------------------------------------------------------

    def acknowledged(self, request_id: Snowflake, sequence: int) -> bool:
        """These chunks were taken, which is durable; False when they are not produced here."""
        running = self._running.get(request_id)
        if running is None:
            return False
        running.producer.acknowledged(sequence)
        return True

    def rung(self, requests: Iterable[Snowflake]) -> None:
        """The doorbell says that chunks of these were taken."""
        mine = [id for id in requests if (r := self._running.get(id)) and r.message.row is not None]
        if mine:
            self._unread.update(mine)
            self._wake.set()

    def restored(self) -> None:
        """The doorbell was out: read everything again."""
        self.rung(tuple(self._running))

    def _arm(self) -> None:
        if self._alarm is None and self._running and not self._closing:
            delay = self._poll().total_seconds() * random.uniform(0.8, 1.2)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._poll_now)

    def _poll_now(self) -> None:
        self._alarm = None
        self.rung([id for id, running in self._running.items() if running.producer.stalled])
        self._arm()

    async def _run(self) -> None:
        failures = 0
        while not self._closing:
            unread, self._unread = self._unread & self._running.keys(), set()
            asked, self._asked = self._asked, []
            if not (unread or asked):
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._read(sorted(unread | {request_id for request_id, _ in asked}), asked)
                failures = 0
            except Exception as error:  # whatever it was, producers go on waiting
                failures += 1
                if failures == 1:
                    log.warning("cannot read acknowledgements, trying again", exc_info=error)
                self._unread |= unread
                self._asked[:0] = asked
                await asyncio.sleep(again_in(failures))
        for _, answer in self._asked:
            answer.cancel()

    async def _read(self, requests: list[Snowflake], asked: list[_Asked]) -> None:
        found: dict[Snowflake, StreamPosition] = {}
        for start in range(0, len(requests), _READ):
            found |= await self._storage.streams(requests[start : start + _READ])
        for request_id, position in found.items():
            self.acknowledged(request_id, position.acked)
        for request_id, answer in asked:
            if not answer.done():
                answer.set_result(found[request_id])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A stream that is produced here."""

    message: Message
    producer: StreamProducer
