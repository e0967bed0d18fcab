"""A shard on its way to another runner: served on until what it has in hand has ended.

Begun by ``cluster.delivery`` for each shard it is to release, before it stops intake and drains.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

Task = asyncio.Task[Any]

_LAST = timedelta(milliseconds=250)


@dataclass(frozen=True, slots=True, kw_only=True)
class InHand:
    """Work of a shard that runs now. ``staying`` is that of it which a hand-over has to wait for,
    however long it takes."""

    running: Iterable[Task] = ()
    staying: Iterable[Task] = field(default=())


class Handover:
    """Waits for the work that a shard has in hand; the shard is served meanwhile.

    What begins later is not waited for, so that a busy shard is handed over in the end; and what
    would have to be waited for does not begin (``OwnedShard.leaving``).
    """

    def __init__(self, in_hand: Iterable[InHand], *, limit: timedelta) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = tuple(in_hand)
        self._limit = limit
        self._began = self._loop.time()
        self._decided: asyncio.Future[bool] = self._loop.create_future()

    async def wait(self) -> bool:
        """Until its work has ended, or the limit has been reached and what stays has ended. False:
        the shard is to be kept."""
        limit = self._limit.total_seconds()
        await self._ended((task for each in self._work for task in each.running), within=limit)
        await self._ended((task for each in self._work for task in each.staying), within=None)
        return not self._decided.done() or self._decided.result()

    @property
    def grace(self) -> timedelta:
        """How long what has begun meanwhile may go on; nothing is served in that time."""
        if self._decided.done():
            return self._limit
        return max(
            self._limit - timedelta(seconds=self._loop.time() - self._began),
            min(self._limit, _LAST),
        )

    def keep(self) -> None:
        """Give the hand-over up."""
        self._decide(False)

    def hurry(self, grace: timedelta) -> None:
        """Wait no longer: the runner stops, and what runs has ``grace`` to end."""
        self._limit = grace
        self._decide(True)

    def _decide(self, go_on: bool) -> None:
        if not self._decided.done():
            self._decided.set_result(go_on)

    async def _ended(self, tasks: Iterable[Task], *, within: float | None) -> None:
        late = [task for task in tasks if not task.done()]
        if late and not self._decided.done():
            # A gathering that is not waited for any more cancels nothing.
            ended = asyncio.gather(*late, return_exceptions=True)
            either: set[asyncio.Future[Any]] = {ended, self._decided}
            await asyncio.wait(either, timeout=within, return_when=asyncio.FIRST_COMPLETED)
