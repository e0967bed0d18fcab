"""Keep the lease of a process's machine id, so that its request ids stay its own.

The lease is one of ``storage``; the generator it renews is the process's. ``membership`` looks
after it with each heartbeat of a runner.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from engine.core.clock import Clock
from engine.core.ids import MachineLease, SnowflakeGenerator


class MachineTenant:
    """Prolongs the generator's lease when less than half of it is left.

    ``lease`` is ``Storage.lease_machine``; it may answer with another machine id when the one held
    had run out meanwhile.
    """

    __slots__ = ("_clock", "_generator", "_lease", "_term", "_turn")

    def __init__(
        self,
        *,
        generator: SnowflakeGenerator,
        clock: Clock,
        lease: Callable[[MachineLease | None], Awaitable[MachineLease]],
    ) -> None:
        self._generator = generator
        self._clock = clock
        self._lease = lease
        self._term = self._left()
        self._turn = asyncio.Lock()

    async def renew(self) -> None:
        """Prolong the lease if it is time to; ``StorageUnavailable`` when that cannot be done.
        Calls at the same time share one statement."""
        async with self._turn:
            if self._left() * 2 >= self._term > timedelta(0):
                return
            lease = await self._lease(self._generator.lease)
            self._generator.renew(lease)
            self._term = self._left()

    def _left(self) -> timedelta:
        lease = self._generator.lease
        return timedelta(0) if lease is None else lease.until - self._clock.now()
