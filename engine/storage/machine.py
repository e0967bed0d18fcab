"""Machine ids for request ids, leased by the database's clock.

From ``postgres``, for runners and clients alike.
"""

from datetime import timedelta
from uuid import UUID

import asyncpg

from engine.core.clock import SystemClock, monotonic
from engine.core.errors import StorageUnavailable
from engine.core.ids import MACHINE_IDS, MachineLease
from engine.storage.pool import Pool

_DRAWS = 20
_MARGIN = 20


class MachineIds:
    """Leases machine ids for one process. A lease ends a little earlier here than there, by the
    time its answer took and a twentieth, so that no two holders overlap."""

    def __init__(
        self, *, pool: Pool, holder: UUID, duration: timedelta, clock: SystemClock
    ) -> None:
        self._pool = pool
        self._holder = holder
        self._duration = duration
        self._clock = clock

    async def lease(self, held: MachineLease | None) -> MachineLease:
        """Prolong the lease that is held, or take a machine id that nobody holds."""
        if held is not None:
            prolonged = await self._ask(
                "prolong_machine", held.machine, self._holder, self._duration
            )
            if prolonged is not None:
                return prolonged
        for _ in range(_DRAWS):
            drawn = await self._ask("lease_machine", self._holder, self._duration, MACHINE_IDS)
            if drawn is not None:
                return drawn
            free = await self._pool.fetch("free_machines", MACHINE_IDS)
            if int(free[0]["free"]) <= 0:
                break
        raise StorageUnavailable(
            f"all {MACHINE_IDS} machine ids are leased: let fewer processes use this schema,"
            " or wait until the leases of those that have ended run out"
        )

    async def release(self, lease: MachineLease) -> None:
        await self._pool.fetch("release_machine", lease.machine, self._holder)

    async def _ask(self, name: str, *args: object) -> MachineLease | None:
        sent = monotonic()
        rows = await self._pool.fetch(name, *args)
        received = monotonic()
        return self._lease(rows[0], sent, received) if rows else None

    def _lease(self, row: asyncpg.Record, sent: float, received: float) -> MachineLease:
        self._clock.align(database=row["now"], sent=sent, received=received)
        margin = timedelta(seconds=received - sent) + self._duration / _MARGIN
        return MachineLease(machine=row["machine"], until=row["expires_at"] - margin)
