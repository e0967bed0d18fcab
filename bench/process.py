"""Processes that have part in a measurement: ``outlast run``, started and ended, and drivers."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from bench.results import ROOT
from bench.server import Connection, Database
from engine import Settings

T = TypeVar("T")
OWNERS = """
    select s.shard, r.pid from engine.shards s join engine.shard_groups g using (group_id)
    join engine.runners r on r.id = s.runner_id where g.name = 'default' and not r.draining
"""


@dataclass(frozen=True, slots=True)
class Process:
    """One that was started here."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> None:
        """Tell it to stop, if it has not."""
        if self.process.returncode is None:
            self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    async def ended(self) -> None:
        await self.process.wait()


class DriverProcess(Process):
    """One that starts workflows and awaits them: ``bench/driver.py``."""

    async def drive(self, count: int, *, at_once: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([count, at_once]).encode() + b"\n")
        await self.heard(b"DONE\n")

    async def heard(self, line: bytes) -> None:
        assert self.process.stdout is not None
        if await self.process.stdout.readline() != line:
            raise SystemExit(f"a driver ended instead of saying {line!r}")


@asynccontextmanager
async def runner_process(
    database: Database, *, env: Mapping[str, str] | None = None, options: tuple[str, ...] = ()
) -> AsyncGenerator[Process]:
    """``outlast run``, as users run it; it is told to stop in the end. It may not serve yet."""
    command = ["-m", "cli", "run", "bench.workflows:served", "--log-level", "warning", *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, env=_env(database, env), stdout=subprocess.DEVNULL
    )
    async with _ending(runner := Process(process)):
        yield runner


@asynccontextmanager
async def driver_process(
    database: Database, *, module: str = "bench.driver"
) -> AsyncGenerator[DriverProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, cwd=ROOT, env=_env(database, None),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    async with _ending(driver := DriverProcess(process)):
        await within(30, driver.heard(b"READY\n"), what="a driver that is connected")
        yield driver


async def settled(admin: Connection, runners: int) -> dict[int, int]:
    """Wait until so many runners own an even share of all shards: the pid of each shard's owner."""

    async def owners() -> dict[int, int]:
        while True:
            found = await shard_owners(admin)
            pids = set(found.values())
            shares = [list(found.values()).count(pid) for pid in pids]
            complete = len(found) == Settings().shards_per_group and len(pids) == runners
            if complete and max(shares) - min(shares) <= 1:
                return found
            await asyncio.sleep(0.05)

    return await within(60, owners(), what=f"{runners} runners with even shares")


async def shard_owners(admin: Connection) -> dict[int, int]:
    """The pid of the process that owns each shard."""
    return {row["shard"]: row["pid"] for row in await admin.fetch(OWNERS)}


async def within(seconds: float, work: Awaitable[T], *, what: str) -> T:
    """The result of some work, or the end of the benchmark."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise SystemExit(f"not within {seconds:g} s: {what}") from None


@asynccontextmanager
async def _ending(process: Process) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        process.terminate()
        await within(45, process.ended(), what="the end of a process that was told to stop")


def _env(database: Database, more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "OUTLAST_DSN": database.dsn, **(more or {})}
