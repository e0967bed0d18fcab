"""A shard on its way to another runner: served on until what it has in hand has ended.

Begun by ``cluster.delivery`` for each shard it is to release, before it stops intake and drains.
"""

import asyncio
from collections.abc import Callable, Iterable
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
    would have to be waited for is put off while ``closed``. Since what is waited for may itself
    wait for one that was put off, those are let in now and then, ever more rarely: ``let_in``
    begins them.
    """

    def __init__(
        self,
        in_hand: Callable[[], Iterable[InHand]],
        *,
        let_in: Callable[[], object],
        limit: timedelta,
    ) -> None:
        self.closed: bool = True
        self._loop = asyncio.get_running_loop()
        self._in_hand = in_hand
        self._let_in = let_in
        self._limit = limit
        self._began = self._loop.time()
        self._decided: asyncio.Future[bool] = self._loop.create_future()

    async def wait(self) -> bool:
        """Until its work has ended, or the limit has been reached and what stays has ended. False:
        the shard is to be kept."""
        within = self._limit.total_seconds()
        await self._ended([task for each in self._in_hand() for task in each.running], within)
        within = max(within, _LAST.total_seconds())
        while not await self._ended(
            [task for each in self._in_hand() for task in each.staying], within
        ):
            within *= 2
            self.closed = False
            self._let_in()
            self.closed = True
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

    async def _ended(self, tasks: Iterable[Task], within: float) -> bool:
        """False when time is up: neither have they ended nor is anything decided."""
        late = [task for task in tasks if not task.done()]
        if not late or self._decided.done():
            return True
        # A gathering that is not waited for any more cancels nothing.
        ended = asyncio.gather(*late, return_exceptions=True)
        either: set[asyncio.Future[Any]] = {ended, self._decided}
        done, _ = await asyncio.wait(either, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
