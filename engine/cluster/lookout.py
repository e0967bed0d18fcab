"""Finds out whether those who owe this process an answer to a volatile request are still there.

Looks at the shards now and then, while such requests are under way; tells ``cluster.volatile``
which are lost, and their owners that this process is still there. It fetches the post as well, so
that nothing depends on the doorbell.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Self
from uuid import UUID

from engine.cluster.postman import Postman
from engine.cluster.volatile import SentRequest, Volatile
from engine.core.ids import ShardId, Snowflake
from engine.storage.protocol import RunnerRow, Storage

log: logging.Logger = logging.getLogger(__name__)
_AGAIN = 1.0

Owner = tuple[UUID | None, int | None]
"""A runner and the epoch of a shard it has."""


class Lookout:
    """``poll`` gives the time between two looks. ``ttl`` is how long the heartbeat of a live runner
    may be missing."""

    def __init__(
        self,
        *,
        storage: Storage,
        volatile: Volatile,
        postman: Postman,
        poll: Callable[[], timedelta],
        ttl: timedelta,
    ) -> None:
        self._storage = storage
        self._volatile = volatile
        self._postman = postman
        self._poll = poll
        self._ttl = ttl.total_seconds()
        self._pulse = _Pulse()
        self._suspects: dict[Snowflake, Owner] = {}
        self._looked = 0.0
        self._begin = asyncio.Event()
        self._hurry = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._run(), name="lookout")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._group.__aexit__(None, None, None)

    def begin(self) -> None:
        """A request is under way."""
        self._begin.set()

    def topology_rung(self) -> None:
        """Runners came or went, or shards were released: look soon."""
        if self._begin.is_set():
            self._hurry.set()

    async def _run(self) -> None:
        failing = False
        while True:
            await self._begin.wait()
            await self._pause()
            try:
                await self._postman.fetch()
                await self._look_after()
                failing = False
            except Exception as error:  # whoever waits goes on waiting
                if not failing:
                    log.warning("cannot look after volatile requests", exc_info=error)
                failing, self._pulse = True, _Pulse()

    async def _look_after(self) -> None:
        under_way = self._volatile.under_way
        if not under_way:
            self._begin.clear()
            self._suspects, self._pulse = {}, _Pulse()
        elif asyncio.get_running_loop().time() - self._looked >= _AGAIN:
            await self._look(under_way.values())

    async def _pause(self) -> None:
        seconds = self._poll().total_seconds() * random.uniform(0.8, 1.2)
        try:
            async with asyncio.timeout(min(seconds, _AGAIN) if self._suspects else seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
        finally:
            self._hurry.clear()

    async def _look(self, under_way: Iterable[SentRequest]) -> None:
        """Who answers and goes does so in this order. So what is under way to an owner that is gone
        already, and not answered at the next look either, never will be."""
        now = self._looked = asyncio.get_running_loop().time()
        sent = {each.id: (each, (each.runner, each.epoch)) for each in under_way if each.runner}
        self._volatile.sign({each.runner for each, _ in sent.values() if each.runner})
        owners: dict[ShardId, Owner] = {
            row.shard: (row.runner, row.epoch) for row in await self._storage.shards()
        }
        gone: Collection[UUID] = ()
        if any(now - each.since > self._ttl for each, _ in sent.values()):
            gone = self._pulse.gone(await self._storage.runners(), now=now, ttl=self._ttl)
        await self._postman.fetch()
        before, self._suspects = self._suspects, {}
        for id, (each, owner) in sent.items():
            if self._volatile.under_way.get(id) is not each or (each.runner, each.epoch) != owner:
                continue
            if owner[0] in gone:
                self._volatile.lost(each, _NO_SIGN)
            elif owners.get(each.envelope.address.shard) != owner:
                if before.get(id) == owner:
                    self._volatile.lost(each, _MOVED)
                else:
                    self._suspects[id] = owner


class _Pulse:
    """The heartbeats of runners as this process has seen them change."""

    def __init__(self) -> None:
        self._seen: dict[UUID, tuple[datetime, float]] = {}

    def gone(self, runners: Iterable[RunnerRow], *, now: float, ttl: float) -> Collection[UUID]:
        """Those that have died, or whose heartbeat stood still for so long while it was watched."""
        gone: set[UUID] = set()
        for row in runners:
            if row.died_at is not None:
                gone.add(row.id)
            elif row.beat_at is not None:
                beat, since = self._seen.get(row.id, (None, now))
                if beat != row.beat_at:
                    self._seen[row.id] = row.beat_at, now
                elif now - since > ttl:
                    gone.add(row.id)
        return gone


_MOVED = (
    "the runner that had it in hand was lost, or lost its shard; nobody knows how far it came, so"
    " it is not handled again"
)
_NO_SIGN = (
    "the runner that had it in hand gives no sign of life; nobody knows how far it came, so it is"
    " not handled again"
)
