"""A lane session of the in-memory database: it holds shards' locks, and writes for their owner.

Opened by ``memory``; ``storage.lane`` queues in front of it. Between a call and its effect, and
between the effect and the answer, the event loop has a turn, in which the session may end.
"""

import asyncio
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from engine.core.errors import OwnershipLost, StorageUnavailable
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.storage.memory_database import Fault, Hearer, MemoryDatabase
from engine.storage.protocol import BadBatch, Commit, Flushed, SaveRequest, Sweep
from engine.storage.queues import Dispatched, QueueWrite

T = TypeVar("T")


class MemoryLane:
    """See ``LaneSession``. ``watch`` registers the process as a waiter; rings about the session's
    shards go to ``doorbell``."""

    def __init__(
        self,
        database: MemoryDatabase,
        *,
        runner: RunnerId,
        doorbell: Hearer,
        watch: Callable[[Sequence[SaveRequest], Mapping[Snowflake, Snowflake]], None],
    ) -> None:
        self.runner = runner
        self.doorbell = doorbell
        self._database = database
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._held: set[ShardId] = set()
        self._callbacks: list[Callable[[], None]] = []
        self._closed = False
        self._busy = False
        database.sessions[self] = None

    @property
    def closed(self) -> bool:
        return self._closed

    def on_close(self, callback: Callable[[], None]) -> None:
        if self._closed:
            self._loop.call_soon(callback)
        else:
            self._callbacks.append(callback)

    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        with self._call():
            await self._travel()
            with self._database.mutex:
                taken = {each: self._take(each) for each in shards if self._free(each)}
            await self._travel()
            return taken

    async def release(self, shards: Sequence[ShardId]) -> None:
        with self._call():
            await self._travel()
            with self._database.mutex:
                for held in self._held.intersection(shards):
                    shard = self._database.shards[held]
                    shard.runner = shard.taker = shard.acquired_at = shard.holder = None
                    self._held.discard(held)
            await self._travel()

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        return await self._writing([each.shard for each in commits], lambda: self._write(commits))

    async def dispatch(self, write: QueueWrite) -> Dispatched:
        return await self._writing([write.shard], lambda: self._database.rows.dispatch(write))

    async def _writing(self, shards: Sequence[ShardId], write: Callable[[], T]) -> T:
        with self._call():
            await self._travel()
            foreign = [each for each in shards if each not in self._held]
            if foreign:
                raise OwnershipLost(f"this session does not hold the lock of {foreign[0]}")
            fault = self._database.next_fault()
            if fault is Fault.BEFORE_COMMIT:
                self.terminate()
                raise StorageUnavailable("the session was ended before the commit")
            if fault is Fault.REFUSED or fault is Fault.LOCKED:
                raise BadBatch(
                    "the flush was refused by order of the test", transient=fault is Fault.LOCKED
                )
            written = write()
            if fault is Fault.AFTER_COMMIT:
                self.terminate()
            await self._travel()
            return written

    async def sweep(
        self,
        shards: Sequence[ShardId],
        *,
        in_flight: Sequence[int],
        resident: Sequence[Snowflake],
        held: Sequence[Collection[int]] = (),
        admitted: Sequence[int] | None = None,
        floors: Sequence[int] = (),
        limit: int,
        horizon: timedelta,
    ) -> Sweep:
        with self._call():
            await self._travel()
            swept = self._database.rows.sweep(
                shards,
                in_flight=frozenset(in_flight),
                resident=frozenset(resident),
                held=[frozenset(each) for each in held],
                admitted=None if admitted is None else frozenset(admitted),
                floors=floors,
                limit=limit,
                horizon=horizon,
            )
            await self._travel()
            return swept

    def terminate(self) -> None:
        with self._database.mutex:
            if self._closed:
                return
            self._closed = True
            self._database.sessions.pop(self, None)
            for held in self._held:
                self._database.shards[held].holder = None
            self._held.clear()
            callbacks, self._callbacks = self._callbacks, []
        if not self._loop.is_closed():
            for callback in callbacks:
                self._loop.call_soon_threadsafe(callback)

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.terminate()

    def _free(self, shard_id: ShardId) -> bool:
        """Whether it can be taken: by a runner that lives, unlocked, and without an open user
        transaction of its last owner."""
        shard = self._database.shards.get(shard_id)
        me = self._database.runners.get(self.runner)
        alive = me is not None and me.died_at is None
        return alive and shard is not None and shard.holder is None and not shard.fences

    def _take(self, shard_id: ShardId) -> int:
        shard = self._database.shards[shard_id]
        lost = shard.taker not in (None, self.runner)
        self._database.rows.change_owner(shard_id, lost=lost)
        shard.holder = self
        shard.runner = shard.taker = self.runner
        shard.acquired_at = self._database.clock.now()
        shard.epoch += 1
        self._held.add(shard_id)
        return shard.epoch

    def _write(self, commits: Sequence[Commit]) -> Flushed:
        flushed = self._database.rows.flush(commits)
        stored = {asked: saved.request_id for asked, saved in flushed.requests.items()}
        self._watch([request for commit in commits for request in commit.requests], stored)
        return flushed

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise StorageUnavailable("the session has ended")

    @contextmanager
    def _call(self) -> Generator[None]:
        if self._closed:
            raise StorageUnavailable("the session has ended")
        if self._busy:
            raise RuntimeError("a lane session takes one call at a time")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
