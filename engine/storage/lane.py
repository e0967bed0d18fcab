"""The pen of a runner's shards: a queue in front of one session that holds their locks.

From ``cluster.delivery`` and ``workflow.execution``, which hand in sources of commits; on to the
``LaneSession``. One statement is in flight at most and what arrives meanwhile is the next batch:
idle means immediate, load means large batches. Reading the inbox (the sweep) goes through the same
queue, so a row is never read before its finish and delivered after it.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, Protocol, Self, TypeVar

from engine.core.clock import monotonic
from engine.core.errors import OwnershipLost, StorageUnavailable
from engine.core.ids import ShardId, Snowflake
from engine.core.retry import again_in
from engine.storage.protocol import BadBatch, Commit, Flushed, LaneSession, Sweep
from engine.storage.queues import Dispatched, QueueWrite

log: logging.Logger = logging.getLogger(__name__)
R = TypeVar("R")

BATCH = 1000
BATCH_BYTES = 16 << 20
_SWEEP_LIMIT = 300
"""Rows that are delivered without a pause, and begin before the first of them is written."""
_ASIDE = (0.1, 5.0)
_SHORT_LIFE = 0.2
"""Seconds: a session that was lost so soon says that the next will be as well."""


class CommitSource(Protocol):
    """Something with rows to write. It is asked for them when the statement is about to be sent,
    so whatever gathers until then shares the flush."""

    def collect(self) -> Commit | None: ...
    def committed(self, flushed: Flushed) -> None:
        """Its commit is durable. Called before the lane's next statement is sent."""
        ...

    def refused(self, error: BadBatch) -> None:
        """Its commit alone was refused for good; nothing of it was written."""
        ...


class LaneSink(Protocol):
    """The delivery side of a lane. Called on the host loop, between two statements."""

    def in_flight(self, shards: Collection[ShardId]) -> Sequence[int]: ...
    def resident(self, shards: Collection[ShardId]) -> Sequence[Snowflake]: ...
    def held(self, shards: Collection[ShardId]) -> Sequence[Collection[int]]:
        """Asked first of these; a sweep is about to begin."""
        ...

    def admitted(self, shards: Collection[ShardId]) -> Sequence[int] | None: ...
    def floors(self, shards: Collection[ShardId]) -> Sequence[int]: ...
    def swept(self, shards: Collection[ShardId], sweep: Sweep) -> None: ...
    def lane_opened(self, lane: "Lane") -> None:
        """It has a session and can acquire shards."""
        ...

    def lane_lost(self, lane: "Lane") -> None:
        """The session has ended and every lock with it: cancel all work of its shards at once."""
        ...


class Lane:
    """Serves sessions one after the other; a *generation* is the life of one of them.

    ``poll`` gives the time to the next sweep nobody asked for (which doubles as the ping).
    """

    def __init__(
        self,
        *,
        index: int,
        open_session: Callable[[], Awaitable[LaneSession]],
        sink: LaneSink,
        poll: Callable[[], timedelta],
        horizon: timedelta,
    ) -> None:
        self.index = index
        self.generation: int = 0
        self.shards: dict[ShardId, int] = {}
        self._open = open_session
        self._sink = sink
        self._poll = poll
        self._horizon = horizon
        self._session: LaneSession | None = None
        self._wake = asyncio.Event()
        self._sources: dict[CommitSource, None] = {}
        self._orders: deque[_Order[Any]] = deque()
        self._rung: set[ShardId] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._group: asyncio.TaskGroup | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._group = await asyncio.TaskGroup().__aenter__()
        self._task = self._group.create_task(self._serve_sessions(), name=f"lane-{self.index}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the session in good order after what is queued has been written."""
        self._closing = True
        self._wake.set()
        assert self._group is not None
        await self._group.__aexit__(None, None, None)

    @property
    def connected(self) -> bool:
        return self._session is not None and not self._session.closed

    def submit(self, source: CommitSource, generation: int) -> None:
        """Ask for ``source`` to be collected into the next flush. Asking again changes nothing.

        ``OwnershipLost`` when the generation is over: such a write must never reach another
        session.
        """
        if generation != self.generation or self._session is None:
            raise OwnershipLost("the session that owned this shard has ended; the write is dropped")
        self._sources[source] = None
        self._wake.set()

    def ring(self, shards: Collection[ShardId]) -> None:
        """Sweep these shards soon, as far as the lane holds them."""
        if shards:
            self._rung.update(shards)
            self._wake.set()

    def ring_all(self) -> None:
        self.ring(self.shards)

    async def acquire(self, shards: Collection[ShardId]) -> Mapping[ShardId, int]:
        """Lock what is free and bump the epochs; {} while the lane has no session."""

        async def take(session: LaneSession) -> Mapping[ShardId, int]:
            gotten = await session.acquire([s for s in shards if s not in self.shards])
            # INVARIANT pen-is-the-lock: its locks may have ended with it since it has answered.
            if session.closed:
                return {}
            self.shards.update(gotten)
            return gotten

        return await self._order(take, {})

    async def release(self, shards: Collection[ShardId]) -> None:
        """Flush what is queued, then unlock. Stop the shards' work before."""

        async def give(session: LaneSession) -> None:
            queued = len(self._sources)  # what comes meanwhile is of others
            while queued > 0 and self._sources and not session.closed:
                queued -= await self._flush(session)
            held = [s for s in shards if s in self.shards]
            await session.release(held)
            for shard in held:
                self.shards.pop(shard, None)  # all have gone if the session has ended meanwhile
            self._rung.difference_update(held)

        await self._order(give, None)

    async def sweep(self) -> None:
        """Read the inboxes of all shards now; returns when the rows have been handed on."""

        async def read(session: LaneSession) -> None:
            self.ring_all()
            while self._rung and not session.closed:
                await self._sweep(session)

        await self._order(read, None)

    async def dispatch(self, write: QueueWrite, generation: int) -> Dispatched:
        """Write for a queue. ``OwnershipLost`` when the session that owned
        its shard has ended, ``BadBatch`` when nothing was written and it can be tried again."""

        async def send(session: LaneSession) -> Dispatched | BadBatch | None:
            if generation != self.generation or write.shard not in self.shards:
                return None
            try:
                return await session.dispatch(write)
            except BadBatch as error:
                return error

        answer = await self._order(send, None)
        if answer is None:
            raise OwnershipLost(f"shard {write.shard} is no longer owned here")
        if isinstance(answer, BadBatch):
            raise answer
        return answer

    def terminate(self) -> None:
        """End the session at once, with whatever it is doing."""
        if self._session is not None:
            self._session.terminate()

    # --- the loop -----------------------------------------------------------------------------

    async def _serve_sessions(self) -> None:
        failures = short_lives = 0
        while not self._closing:
            try:
                session = await self._open()
            except (StorageUnavailable, TimeoutError, OSError) as error:
                failures += 1
                if failures == 1:
                    log.warning(
                        "lane cannot connect, trying again",
                        extra={"lane": self.index, "error": str(error)},
                    )
                self._refuse_orders()
                await self._pause(again_in(failures, first=0.1))
                continue
            failures, since = 0, monotonic()
            self.generation += 1
            self._session = session
            session.on_close(self._closed)
            self._sink.lane_opened(self)
            try:
                await self._serve(session)
            except (StorageUnavailable, TimeoutError) as error:
                log.warning(
                    "lane lost its session",
                    extra={"lane": self.index, "generation": self.generation, "error": str(error)},
                )
                session.terminate()
            except BaseException:
                session.terminate()
                self._closed()
                raise
            if not session.closed:
                await session.close()
            self._closed()
            if not self._closing:  # it was lost, or ended from outside
                short_lives = short_lives + 1 if monotonic() - since < _SHORT_LIFE else 1
                await self._pause(again_in(short_lives, first=0.02, longest=1))
        self._refuse_orders()

    async def _pause(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._closing and (left := deadline - asyncio.get_running_loop().time()) > 0:
            self._wake.clear()
            self._refuse_orders()
            try:
                async with asyncio.timeout(left):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _serve(self, session: LaneSession) -> None:
        self._arm()
        try:
            while not session.closed:
                if not (self._orders or self._sources or self._rung):
                    if self._closing:
                        return
                    self._wake.clear()
                    await self._wake.wait()
                while self._orders and not session.closed:
                    await self._orders.popleft().run(session)
                if self._sources and not session.closed:
                    await self._flush(session)
                if self._rung and not session.closed:
                    await self._sweep(session)
        finally:
            if self._alarm is not None:
                self._alarm.cancel()

    def _arm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        delay = self._poll().total_seconds() * random.uniform(0.9, 1.3)
        self._alarm = asyncio.get_running_loop().call_later(delay, self._poll_now)

    def _poll_now(self) -> None:
        self.ring_all()
        self._arm()

    async def _sweep(self, session: LaneSession) -> None:
        shards = [s for s in self._rung if s in self.shards]
        full = len(shards) == len(self.shards)
        self._rung.clear()
        if not shards:
            return
        try:
            sweep = await session.sweep(
                shards,
                held=self._sink.held(shards),
                admitted=self._sink.admitted(shards),
                floors=self._sink.floors(shards),
                in_flight=self._sink.in_flight(shards),
                resident=self._sink.resident(shards),
                limit=_SWEEP_LIMIT,
                horizon=self._horizon,
            )
        except BadBatch as error:
            log.warning("a sweep met a lock", extra={"lane": self.index, "error": str(error)})
            asyncio.get_running_loop().call_later(_ASIDE[0], self.ring, shards)
            return
        if self._session is not session:
            return
        if sweep.more:
            self.ring(shards)
        if full:
            self._arm()
        self._sink.swept(shards, sweep)

    async def _flush(self, session: LaneSession) -> int:
        """Write what is queued, up to a statement's worth; how many sources that were. A commit
        that is larger by itself goes alone: the server takes no message of a gigabyte."""
        batch: list[tuple[CommitSource, Commit]] = []
        size = asked = 0
        while self._sources and len(batch) < BATCH and size < BATCH_BYTES:
            source = next(iter(self._sources))
            del self._sources[source]
            asked += 1
            try:
                commit = source.collect()
            except Exception:
                log.exception("a commit's source failed before it", extra={"lane": self.index})
                continue
            # INVARIANT pen-holds: what is not locked here is not written here, whoever still asks.
            if commit is not None and commit.shard in self.shards:
                batch.append((source, commit))
                size += commit.size
        if size > BATCH_BYTES and len(batch) > 1:
            *batch, last = batch
            await self._write(session, batch)
            batch = [last]
        if batch:
            await self._write(session, batch)
        return asked

    async def _write(self, session: LaneSession, batch: list[tuple[CommitSource, Commit]]) -> None:
        """Write the batch; when it is refused, find the one to blame by halving."""
        try:
            flushed = await session.flush([commit for _, commit in batch])
        except BadBatch as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write(session, batch[:middle])
                await self._write(session, batch[middle:])
            elif error.transient:
                self._set_aside(*batch[0])
            else:
                self._refuse(batch[0][0], error)
            return
        if self._session is not session:
            return
        for source, _ in batch:
            try:
                source.committed(flushed)
            except Exception:
                log.exception("a commit's source failed after it", extra={"lane": self.index})

    def _refuse(self, source: CommitSource, error: BadBatch) -> None:
        try:
            source.refused(error)
        except Exception:
            log.exception("a refused commit's source failed", extra={"lane": self.index})

    def _set_aside(self, source: CommitSource, commit: Commit) -> None:
        """Try a commit that met a lock again later; the others go on without it."""
        again = source if isinstance(source, _Again) else _Again(self, source, commit)
        again.submit_later()

    def _closed(self) -> None:
        if self._session is None:
            return
        self._session = None
        self._sources.clear()
        self._rung.clear()
        self._sink.lane_lost(self)
        self.shards.clear()
        self._refuse_orders()
        self._wake.set()

    # --- orders: what has an answer -------------------------------------------------------------

    async def _order(self, run: Callable[[LaneSession], Awaitable[R]], without: R) -> R:
        if self._session is None:
            return without
        order = _Order(run, without)
        self._orders.append(order)
        self._wake.set()
        return await order.answer

    def _refuse_orders(self) -> None:
        while self._orders:
            self._orders.popleft().refuse()


class _Order(Generic[R]):
    """A request to the lane that is answered: an acquisition or a release."""

    __slots__ = ("_run", "_without", "answer")

    def __init__(self, run: Callable[[LaneSession], Awaitable[R]], without: R) -> None:
        self._run = run
        self._without = without
        self.answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()

    async def run(self, session: LaneSession) -> None:
        try:
            answer = await self._run(session)
        except BaseException:
            self.refuse()
            raise
        if not self.answer.done():
            self.answer.set_result(answer)

    def refuse(self) -> None:
        if not self.answer.done():
            self.answer.set_result(self._without)


class _Again:
    """A commit that was set aside, as a source of its own."""

    __slots__ = ("_commit", "_delay", "_epoch", "_generation", "_lane", "_source")

    def __init__(self, lane: Lane, source: CommitSource, commit: Commit) -> None:
        self._lane = lane
        self._source = source
        self._commit = commit
        self._generation = lane.generation
        self._epoch = lane.shards.get(commit.shard)
        self._delay = _ASIDE[0]

    def submit_later(self) -> None:
        asyncio.get_running_loop().call_later(self._delay, self._submit)
        self._delay = min(self._delay * 2, _ASIDE[1])

    def _submit(self) -> None:
        try:
            self._lane.submit(self, self._generation)
        except OwnershipLost:
            log.debug("a commit set aside outlived its session", extra={"lane": self._lane.index})

    def collect(self) -> Commit | None:
        # The shard may have been given away meanwhile, and have come back in another epoch.
        same = self._lane.shards.get(self._commit.shard) == self._epoch
        return self._commit if same else None

    def committed(self, flushed: Flushed) -> None:
        self._source.committed(flushed)

    def refused(self, error: BadBatch) -> None:
        self._source.refused(error)
