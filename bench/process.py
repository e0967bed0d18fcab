"""A runner in a process of its own, started and told to stop."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench.results import ROOT
from bench.server import Server


@dataclass(frozen=True, slots=True)
class RunnerProcess:
    """One that serves."""

    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        return self.process.pid

    def terminate(self) -> None:
        """Tell it to stop, if it has not."""
        if self.process.returncode is None:
            self.process.terminate()

    async def ended(self) -> None:
        await self.process.wait()


@asynccontextmanager
async def runner_process(server: Server) -> AsyncGenerator[RunnerProcess]:
    """One that owns shards; it is told to stop in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.runner", server.dsn, cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    runner = RunnerProcess(process)
    try:
        await within(30, process.stdout.readuntil(b"READY\n"), what="a runner that serves")
        yield runner
    finally:
        runner.terminate()
        await within(30, runner.ended(), what="the end of the runner")


async def within(seconds: float, work: Awaitable[object], *, what: str) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        raise SystemExit(f"not within {seconds:g} s: {what}") from None
