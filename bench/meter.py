"""What work costs: statements, commits, WAL, and processor time of each process that has part."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Self

from bench.server import Counted, Database
from bench.usage import cpu_seconds, family_seconds, idle_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Processor seconds so far."""

    driver: float
    runner: float
    postgres: float
    idle: float
    """Of all processors together, without work."""


class Meter:
    """Use it as ``async with``; afterwards it knows what was spent inside.

    ``drivers`` and ``runners`` are pids. Processor times are 0 where there is no /proc.
    """

    def __init__(
        self, database: Database, *, drivers: Sequence[int] = (), runners: Sequence[int] = ()
    ) -> None:
        self._database = database
        self._drivers = drivers or [os.getpid()]
        self._runners = runners
        self.seconds = 0.0

    async def __aenter__(self) -> Self:
        self._before, self._spent = await self._database.counted(), self._spent_now()
        self._began = perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.seconds = perf_counter() - self._began
        self._until = self._spent_now()
        self._after = await self._database.counted()

    def per(self, number: int, unit: str = "workflow") -> dict[str, object]:
        """What one of so many took, for ``Results.add``."""
        return {"per": unit, **self.each(number)}

    def each(self, number: int) -> dict[str, float]:
        """The same; processor times in milliseconds."""
        counted, cores = self._counted(), self.cores()
        each = {name: seconds * self.seconds / number * 1000 for name, seconds in cores.items()}
        return {
            "statements": round(counted.statements / number, 3),
            "commits": round(counted.commits / number, 3),
            "wal_bytes": round(counted.wal / number),
            **{f"{name}_ms": round(value, 3) for name, value in each.items()},
        }

    def cpu_ms(self, number: int) -> float:
        """The processor time of all together for one of so many, in milliseconds."""
        return sum(self.cores().values()) * self.seconds / number * 1000

    def cores(self) -> dict[str, float]:
        """How many processors driver, runners and PostgreSQL used."""
        return {
            name: round((getattr(self._until, name) - getattr(self._spent, name)) / self.seconds, 4)
            for name in ("driver", "runner", "postgres")
        }

    def idle(self) -> float:
        """How many processors of the machine had nothing to do."""
        return round((self._until.idle - self._spent.idle) / self.seconds, 2)

    def statements(self) -> int:
        return self._counted().statements

    def _counted(self) -> Counted:
        before, after = self._before, self._after
        return Counted(
            commits=after.commits - before.commits,
            wal=after.wal - before.wal,
            statements=after.statements - before.statements,
        )

    def _spent_now(self) -> Spent:
        return Spent(
            driver=sum(map(cpu_seconds, self._drivers)),
            runner=sum(map(cpu_seconds, self._runners)),
            postgres=family_seconds(self._database.server.postmaster),
            idle=idle_seconds(),
        )
