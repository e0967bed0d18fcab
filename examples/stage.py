"""What the larger examples stand on: a database, and runners in processes, of their own.

The database is made on an embedded PostgreSQL (or on the server of ``OUTLAST_DSN``) and dropped at
the end. Runners are started with ``outlast run``; killing one is ``RunnerProcess.kill``.
"""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from engine import Client, EngineError, Queue, Runner, Settings, Workflow
from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate

ROOT = Path(__file__).resolve().parents[1]

# A quick fail-over, so that nobody has to wait for it: with the defaults (a heartbeat every 2 s, a
# time to live of 10 s) a killed runner is noticed as fast, but a frozen one after ten seconds.
QUICK = {"OUTLAST_HEARTBEAT_INTERVAL": "0.5", "OUTLAST_TIME_TO_LIVE": "2"}


@asynccontextmanager
async def database(name: str) -> AsyncGenerator[str]:
    """The DSN of a new, migrated database; it is dropped when the block ends."""
    with server() as dsn:
        database = f"outlast_{name}_{secrets.token_hex(3)}"
        admin = await asyncpg.connect(dsn)
        try:
            await admin.execute(f"create database {database}")
            try:
                own = urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))
                await migrate(own)
                yield own
            finally:
                await admin.execute(f"drop database {database} with (force)")
        finally:
            await admin.close()


@asynccontextmanager
async def serving(
    name: str, *prototypes: Workflow[Any, Any] | Queue[Any, Any]
) -> AsyncGenerator[Client]:
    """A client beside a runner of these in this process, over a database of their own."""
    async with (
        database(name) as dsn,
        Runner(Settings(dsn=dsn, schema="engine")).register(*prototypes) as runner,
    ):
        yield runner.client


@contextmanager
def server() -> Generator[str]:
    """The DSN of ``OUTLAST_DSN``, else of an embedded server that runs within the block."""
    if dsn := os.environ.get("OUTLAST_DSN"):
        yield dsn
    else:
        with EmbeddedPostgres(ROOT) as embedded:
            yield embedded.dsn


def run_script(main: Callable[[], Coroutine[None, None, int]]) -> int:
    """Run an example to its end; SIGTERM and Ctrl-C end it early, and what it started with it."""

    async def run() -> int:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main()

    code = 1
    try:
        code = asyncio.run(run())
    except* TimeoutError as errors:
        print(f"It did not end in time: {_first(errors)}", file=sys.stderr)
    except* (EngineError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as errors:
        print(f"It cannot go on: {_first(errors)}", file=sys.stderr)
    except* (asyncio.CancelledError, KeyboardInterrupt):
        code = 130
    return code


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    """The message of the first error inside."""
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else str(error)  # pyright: ignore[reportUnknownArgumentType]
    return str(errors)


class RunnerProcess:
    """``outlast run APP`` as a child process; its log goes to ``log``."""

    def __init__(self, app: str, *, dsn: str, log: Path, **env: str) -> None:
        self.log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli", "run", app],
                cwd=ROOT,
                env=environment(dsn, **env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: it cannot clean up, finish or say goodbye."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM: it drains and leaves. Gives its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def check(self) -> None:
        """Raise if it has ended, with the last lines of its log."""
        if self._process.poll() is not None:
            last = "\n".join(self.log.read_text().splitlines()[-10:])
            raise RuntimeError(f"runner {self.pid} ended by itself:\n{last}")


@contextmanager
def runners(
    count: int, app: str, *, dsn: str, folder: Path, **env: str
) -> Generator[list[RunnerProcess]]:
    """That many runner processes, stopped when the block ends."""
    processes: list[RunnerProcess] = []
    try:
        for number in range(1, count + 1):
            log = folder / f"runner-{number}.log"
            processes.append(RunnerProcess(app, dsn=dsn, log=log, **env))
        yield processes
    finally:
        for process in processes:
            process.stop()


async def shared_out(dsn: str, processes: list[RunnerProcess], *, seconds: float = 20) -> None:
    """Wait until each of the runners owns shards, and all shards have an owner."""
    connection = await asyncpg.connect(dsn)
    owners = """
        select count(distinct runner_id) = $1 and count(*) filter (where runner_id is null) = 0
        from engine.shards
    """
    try:
        async with asyncio.timeout(seconds):
            while not await connection.fetchval(owners, len(processes)):
                for process in processes:
                    process.check()
                await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def outlast(dsn: str, *arguments: str) -> None:
    """Run ``outlast`` with these arguments, as anybody would in a shell."""
    if not sys.stdout.isatty():
        arguments = (*arguments, "--table")  # into a file or pipe it would write JSON
    print(f"\n$ outlast {' '.join(arguments)}", flush=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cli", *arguments, cwd=ROOT, env=environment(dsn)
    )
    if await process.wait() != 0:
        raise RuntimeError(f"outlast ended with exit code {process.returncode}")


def environment(dsn: str, **more: str) -> dict[str, str]:
    """This process's variables, its settings of the engine replaced."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTLAST_")}
    return {"COLUMNS": "100"} | kept | QUICK | more | {"OUTLAST_DSN": dsn}


async def until(condition: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Look every few milliseconds; ``TimeoutError`` says what did not happen."""
    deadline = monotonic() + seconds
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(0.01)
