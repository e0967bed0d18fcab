"""Where a workload runs: its client, the runner and the database, and what notes its figures."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench.driver import Keys, run_many
from bench.meter import Meter
from bench.process import runner_process, settled
from bench.results import Results
from bench.server import Database, Server
from bench.workflows import served
from engine import Client, Runner, Settings

WARM_UP = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """``scale``: of all sizes. ``full``: also what takes long."""

    scale: float = 1.0
    full: bool = False

    def sized(self, number: int) -> int:
        return max(1, int(number * self.scale))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """``runners``: their pids, but for one that runs in this process."""

    client: Client
    database: Database
    results: Results
    options: Options
    variant: str
    runners: tuple[int, ...] = ()
    keys: Keys = field(default_factory=Keys)

    def metered(self) -> Meter:
        return Meter(self.database, runners=self.runners)

    def add(self, workload: str, metric: str, value: float, unit: str, **more: object) -> None:
        self.results.add(workload, self.variant, metric, value, unit, **more)


@asynccontextmanager
async def other_process(
    server: Server, results: Results, options: Options, *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Place]:
    """The runner is ``outlast run``, the client here; both have been used."""
    async with server.database() as database, runner_process(database, env=env) as process:
        await settled_in(database, runners=1)
        async with Client(settings_of(database)) as client:
            place = Place(
                client=client,
                database=database,
                results=results,
                options=options,
                variant="other process",
                runners=(process.pid,),
            )
            await run_many(client, place.keys, WARM_UP)
            yield place


@asynccontextmanager
async def same_process(server: Server, results: Results, options: Options) -> AsyncGenerator[Place]:
    """The runner is part of this process."""
    async with server.database() as database:
        runner = Runner(settings_of(database)).register(*served())
        async with runner:
            await settled_in(database, runners=1)
            place = Place(
                client=runner.client,
                database=database,
                results=results,
                options=options,
                variant="same process",
            )
            await run_many(place.client, place.keys, WARM_UP)
            yield place


async def settled_in(database: Database, *, runners: int) -> dict[int, int]:
    """See ``settled``."""
    async with database.connected() as connection:
        return await settled(connection, runners)


def settings_of(database: Database) -> Settings:
    """Those that a process has which is told of the database alone."""
    return Settings(dsn=database.dsn)
