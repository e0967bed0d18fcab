"""Requests on their way out of a process, batched as they come.

From clients and from ``sharding``; on to ``Storage.save`` and, after the commit, the doorbell. One
save is in flight at most; what is asked meanwhile is the next batch. What meets somebody's open
transaction goes through ``blocked`` and holds up nothing else.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Self, TypeAlias

from engine.cluster.blocked import BlockedRequests, Pending
from engine.core.errors import ConfigurationError, InvalidPayload, StorageUnavailable
from engine.core.ids import Snowflake, SnowflakeGenerator
from engine.core.payload import PayloadLimit
from engine.storage.lane import BATCH_BYTES
from engine.storage.protocol import Saved, SaveOutcome, SaveRequest, Storage

log: logging.Logger = logging.getLogger(__name__)

_BATCH = 400

Taker: TypeAlias = Callable[[Saved], bool]
"""Begins with a request at once, now that it is stored, or says that it cannot."""


class Outbox:
    """Saves requests in their senders' order.

    ``stored`` is told of each request after its commit, and whether one that was saved alone was
    taken: ``taker`` says before the commit who may take it then.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        ids: SnowflakeGenerator,
        limit: PayloadLimit,
        stored: Callable[[SaveRequest, bool], None],
        taker: Callable[[SaveRequest], Taker | None],
    ) -> None:
        self._storage = storage
        self._ids = ids
        self._limit = limit
        self._stored = stored
        self._taker = taker
        self.lender: SnowflakeGenerator | None = None
        self._queue: deque[Pending] = deque()
        self._crowd: deque[asyncio.Future[None]] = deque()
        self._wake = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._sender: asyncio.Task[None] | None = None
        self._left: dict[Snowflake, asyncio.Future[Saved]] = {}
        self._blocked = BlockedRequests(partial(self._save, apart=True), left=self._was_left)
        self._leasing = asyncio.Lock()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        await self._blocked.__aenter__()
        self._sender = self._group.create_task(self._run(), name="outbox")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closing = True
        self._wake.set()
        self._admit(len(self._crowd))
        if self._sender is not None:
            await asyncio.wait([self._sender])
        await self._blocked.__aexit__(None, None, None)
        await self._group.__aexit__(None, None, None)
        if self._ids.lease is not None:
            try:
                await self._storage.release_machine(self._ids.lease)
            except (StorageUnavailable, TimeoutError, OSError):
                return  # the lease runs out by itself

    async def next_id(self) -> Snowflake:
        """A request id, leasing a machine id when there is none or little is left of it.

        From the ``lender`` if there is one: its lease is looked after."""
        if self.lender is not None:
            try:
                return self.lender.next()
            except StorageUnavailable:
                log.debug("the runner's machine id cannot be used; one is leased apart")
        try:
            return self._ids.next()
        except StorageUnavailable:
            async with self._leasing:
                try:
                    return self._ids.next()  # somebody has leased it meanwhile
                except StorageUnavailable:
                    self._ids.renew(await self._storage.lease_machine(self._ids.lease))
            return self._ids.next()

    async def save(self, request: SaveRequest) -> Saved:
        """Store one request; returns after its commit. A caller that is cancelled meanwhile does
        not know whether it was stored; see ``settled``."""
        envelope = request.envelope
        self._limit.check(
            envelope.payload, "the payload of", envelope.address.entity_type, envelope.tag
        )
        if self._closing:
            raise StorageUnavailable("this client is closed; open a new one")
        answer: asyncio.Future[Saved] = asyncio.get_running_loop().create_future()
        self._queue.append((request, answer))
        self._wake.set()
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            request_id = request.envelope.request_id
            self._left[request_id] = answer
            answer.add_done_callback(lambda _: self._left.pop(request_id, None))
            raise

    async def room(self) -> None:
        """Wait in line until another batch can gather, if many are to be sent: before a request is
        prepared. So the first of them are on their way before the last have been encoded, and
        these wait without taking memory."""
        if not self._closing and (self._crowd or len(self._queue) >= _BATCH):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._crowd.append(turn)
            await turn

    def _admit(self, number: int) -> None:
        while number > 0 and self._crowd:
            turn = self._crowd.popleft()
            if not turn.done():  # it was not cancelled
                turn.set_result(None)
                number -= 1

    def settled(self, request_id: Snowflake, then: Callable[[], None]) -> None:
        """Call ``then`` when the request is stored, or never will be: at once, unless its caller
        was cancelled while it was being stored."""
        left = self._left.get(request_id)
        if left is None:
            then()
        else:
            left.add_done_callback(lambda _: then())

    async def _run(self) -> None:
        while True:
            batch = self._next_batch()
            if len(self._queue) < _BATCH:
                self._admit(_BATCH)
            if batch:
                await self._save(batch)
            elif self._crowd:
                await asyncio.sleep(0)  # until those who were admitted have come, or have not
            elif self._closing:
                return
            else:
                self._wake.clear()
                await self._wake.wait()

    def _was_left(self, request: SaveRequest, answer: asyncio.Future[Saved]) -> bool:
        """Whether nobody waits for it any more; then it is not sent."""
        return self._left.get(request.envelope.request_id) is answer and answer.cancel()

    def _next_batch(self) -> list[Pending]:
        """A statement's worth. One request that is larger than that by itself goes alone."""
        batch: list[Pending] = []
        size = 0
        while self._queue and len(batch) < _BATCH:
            pending = self._queue.popleft()
            if self._was_left(*pending):
                continue
            size += len(pending[0].envelope.payload)
            if size > BATCH_BYTES and batch:
                self._queue.appendleft(pending)
                break
            if self._blocked.holds(pending[0]):
                self._blocked.hold(pending)
            else:
                batch.append(pending)
        return batch

    async def _save(self, batch: list[Pending], *, apart: bool = False) -> None:
        taker = self._taker(batch[0][0]) if len(batch) == 1 else None
        try:
            saved = await self._storage.save([request for request, _ in batch], apart=apart)
        except Exception as error:  # noqa: BLE001 -- the callers get it, the loop goes on
            if len(batch) > 1 and isinstance(error, InvalidPayload | ConfigurationError):
                for each in batch:  # one bad request spoils nobody else's
                    await self._save([each], apart=apart)
                return
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        blocked: list[Pending] = []
        for pending, outcome in zip(batch, saved, strict=True):
            if outcome.outcome is not SaveOutcome.BLOCKED:
                self._answer(*pending, outcome, taker)
            elif apart:
                self._blocked.hold(pending)
            else:
                blocked.append(pending)
        if blocked:
            self._blocked.put(blocked)

    def _answer(
        self,
        request: SaveRequest,
        answer: asyncio.Future[Saved],
        saved: Saved,
        taker: Taker | None,
    ) -> None:
        if saved.outcome is SaveOutcome.CREATED:
            self._stored(request, taker is not None and taker(saved))
        if not answer.done():
            answer.set_result(saved)
