"""W9: how throughput grows with runner processes, and what limits it."""

import asyncio
import os
from contextlib import AsyncExitStack

from bench.meter import Meter
from bench.place import Options, settled_in
from bench.process import driver_process, runner_process, within
from bench.results import Results
from bench.server import Database, Server
from bench.workflows import COMPUTES

RUNNERS = (1, 2, 4)
DRIVERS = (1, 2)
WORKFLOWS, AT_ONCE = 20_000, 2000
COMPUTING = 4000
"""Workflows whose step computes for a millisecond, which leaves PostgreSQL little to do."""
BUSY = 0.9
"""Of one processor: what uses more of it than this is at its limit."""


async def scale(server: Server, results: Results, options: Options) -> None:
    for runners in RUNNERS:
        several = ("--processes", f"{runners}")
        async with server.database() as database, runner_process(database, options=several):
            pids = set((await settled_in(database, runners=runners)).values())
            for drivers in DRIVERS:
                total = options.sized(WORKFLOWS)
                await _measure(database, results, total, runners=[*pids], drivers=drivers)
    for runners in RUNNERS[:2]:
        several, env = ("--processes", f"{runners}"), {COMPUTES: "0.001"}
        async with (
            server.database() as database,
            runner_process(database, options=several, env=env),
        ):
            pids = set((await settled_in(database, runners=runners)).values())
            total = options.sized(COMPUTING)
            await _measure(database, results, total, runners=[*pids], drivers=1, what=", computing")


async def _measure(
    database: Database,
    results: Results,
    total: int,
    *,
    runners: list[int],
    drivers: int,
    what: str = "",
) -> None:
    """One-step workflows from several processes, so many at a time in all."""
    each, at_once = total // drivers, AT_ONCE // drivers
    async with AsyncExitStack() as stack:
        driving = [
            await stack.enter_async_context(driver_process(database)) for _ in range(drivers)
        ]

        async def drive(count: int) -> None:
            work = asyncio.gather(*(driver.drive(count, at_once=at_once) for driver in driving))
            await within(300, work, what="all workflows")

        await drive(max(1, each // 10))
        meter = Meter(database, runners=runners, drivers=[driver.pid for driver in driving])
        async with meter:
            await drive(each)
    cores = meter.cores()
    total = each * drivers
    results.add(
        "W9",
        f"{_counted(len(runners), 'runner')}, {_counted(drivers, 'driver')}{what}",
        "throughput",
        total / meter.seconds,
        "workflows/s",
        n=total,
        cores={name: round(value, 2) for name, value in cores.items()},
        idle_cores=meter.idle(),
        limit=_limit(cores, meter.idle(), runners=len(runners), drivers=drivers),
        **meter.per(total),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _limit(cores: dict[str, float], idle: float, *, runners: int, drivers: int) -> str:
    """Who has no processor time left; others have it when ours use little of it."""
    machine = os.cpu_count() or 1
    if cores["driver"] > BUSY * drivers:
        return "the driver"
    if cores["runner"] > BUSY * runners:
        return "the runner"
    if idle > (1 - BUSY) * machine:
        return "waiting"
    return "the processors" if sum(cores.values()) > BUSY * machine else "other programs"
