"""Processes of an application over one database: started, killed, frozen and told to leave.

The application is ``tests.chaos.app`` or one that speaks as it does. It signals only what it
started, waits by polling, and leaves nothing behind.
"""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from tests.chaos.app import TABLES
from tests.chaos.forks import LONGEST, Forked, Forks, forks
from tests.chaos.strangers import unhurried
from tests.eventually import eventually

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
SHARDS = 300
UNFINISHED = """
    select x.workflow, x.execution_id, x.status, x.waiting, x.wake_at, x.started_at, x.shard,
           s.epoch, s.runner_id, r.pid as owner, r.died_at, clock_timestamp() as now,
           (select array_agg(j.position || ':' || j.kind || ' ' || j.name || '#' || j.ordinal || ' '
                             || j.outcome || ' ' || j.at order by j.position)
            from engine.journal j where j.execution = x.request_id) as journal,
           (select array_agg(i.seq || ' ' || i.kind order by i.seq)
            from engine.inbox i where i.execution = x.request_id) as inbox
    from engine.executions x
    join engine.shards s using (group_id, shard)
    left join engine.runners r on r.id = s.runner_id
    where x.status < 5 limit 5
"""


@dataclass(slots=True, eq=False)
class Process:
    """One process of the application and what it has said so far."""

    name: str
    process: asyncio.subprocess.Process | Forked
    log: Path
    variables: Mapping[str, str]
    """Those of its application."""
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    answers: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    _ids: "count[int]" = field(default_factory=count)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    @property
    def owned(self) -> int:
        return int(self.lines[-1]["owned"]) if self.lines else 0

    @property
    def resident(self) -> int:
        return int(self.lines[-1]["resident"]) if self.lines else 0

    @property
    def runner(self) -> str:
        """Its id now, or the last it had."""
        return next((line["runner"] for line in reversed(self.lines) if line["runner"]), "")

    async def statements(self) -> int:
        """How many statements it has sent to the database so far."""
        said = len(self.lines)
        self.send(signal.SIGUSR1)
        await eventually(lambda: len(self.lines) > said)
        return int(self.lines[-1]["statements"])

    @property
    def rss(self) -> int:
        """Its memory in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(found.split()[1]) * 1024

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    async def kill(self) -> None:
        if self.running:
            self.process.kill()
        await self.process.wait()

    async def ask(self, do: str, *, within: float = 70, **command: Any) -> Any:
        """A command to a client; its result, or ``AssertionError`` with the error it had."""
        id = next(self._ids)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "id": id, **command}).encode() + b"\n")
        await self.process.stdin.drain()
        answer = await eventually(lambda: self.answers.pop(id, None), timeout=within)
        assert "result" in answer, answer
        return answer["result"]

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            said = json.loads(line)
            if "id" in said:
                self.answers[said["id"]] = said
            else:
                self.lines.append(said)


class Cluster:
    """The processes of one test. ``settings`` are the ``OUTLAST_…`` variables they get,
    ``variables`` those that their application reads itself; those may change for the next."""

    def __init__(
        self,
        dsn: str,
        *,
        logs: Path,
        group: asyncio.TaskGroup,
        settings: Mapping[str, object],
        database: "asyncpg.Pool[Any]",
        app: str,
        variables: Mapping[str, str],
        forks: Forks | None,
    ) -> None:
        self.dsn = dsn
        self.database = database
        self.shards = int(str(settings.get("shards_per_group", SHARDS)))
        self.processes: list[Process] = []
        self._logs = logs
        self._group = group
        self._settings = settings
        self._app = app
        self._forks = forks
        self.variables = dict(variables)
        self._names = count(1)

    @property
    def runners(self) -> list[Process]:
        return [each for each in self.processes if each.running and each.name.startswith("runner")]

    async def start_runner(self, **settings: object) -> Process:
        """A runner; it may not own anything yet."""
        return await self.start("runner", **settings)

    async def start_client(self, **settings: object) -> Process:
        """A process with a client and no runner, ready for commands."""
        client = await self.start("client", **settings)
        await eventually(lambda: client.lines, timeout=30)
        return client

    async def start_runners(self, number: int, **settings: object) -> list[Process]:
        runners = [await self.start_runner(**settings) for _ in range(number)]
        await self.shared(runners)
        return runners

    async def shared(self, runners: Iterable[Process], *, within: float = 90) -> None:
        """All serve, and between them they own every shard, in even shares."""
        runners = list(runners)

        def owned() -> bool:
            if crashes := self.crashes():
                raise RuntimeError("\n".join(crashes))
            owned = [runner.owned for runner in runners]
            serving = all(runner.runner for runner in runners)
            even = max(owned) - min(owned) <= 1
            return serving and even and sum(owned) == self.shards

        await eventually(owned, timeout=within)

    async def start(self, kind: str, **settings: object) -> Process:
        """A process of either kind, about which nothing is known yet."""
        name = f"{kind}-{next(self._names)}"
        chosen = {"dsn": self.dsn, **self._settings, **settings}
        named = {f"OUTLAST_{key.upper()}": str(value) for key, value in chosen.items()}
        variables = {"PYTHONPATH": str(ROOT), **self.variables, **named}
        log = self._logs / f"{name}.log"
        with log.open("wb") as errors:
            if self._forks is not None:
                process = await self._forks.fork(kind, variables=variables, stderr=errors)
            else:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", self._app, kind),
                    cwd=ROOT,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=errors,
                    limit=LONGEST,
                    env=os.environ | variables,
                )
        started = Process(name, process, log, dict(self.variables))
        self.processes.append(started)
        self._group.create_task(started.listen())
        return started

    async def end(self) -> None:
        """End what is left, frozen or not."""
        for each in self.processes:
            await each.kill()
            if each.process.stdin is not None:
                each.process.stdin.close()

    async def report(self) -> None:
        """Say what is unfinished and where it stands, for whoever reads the failure."""
        for each in self.runners:
            said = each.lines[-1] if each.lines else None
            log.error("%s: pid %d, said %s", each.name, each.pid, said)
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            for row in await self.database.fetch(UNFINISHED):
                log.error("unfinished: %s", dict(row))

    def crashes(self) -> list[str]:
        """Logs of processes that ended in a traceback nobody killed them for."""
        return [
            f"{each.name} ({each.process.returncode}):\n{each.log.read_text()[-3000:]}"
            for each in self.processes
            if each.process.returncode not in {None, 0, -signal.SIGKILL, -signal.SIGTERM}
        ]


@asynccontextmanager
async def cluster(
    dsn: str,
    logs: Path,
    *,
    app: str = "tests.chaos.app",
    tables: str = TABLES,
    variables: Mapping[str, str] | None = None,
    direct: str | None = None,
    forked: bool = False,
    **settings: object,
) -> AsyncIterator[Cluster]:
    """A cluster without processes yet, over the application's tables. ``direct`` is how the test
    itself reaches the database, if not as the processes do; ``forked`` ones are there sooner."""
    ours = await unhurried(direct or dsn)
    database = await asyncpg.create_pool(
        direct or dsn, min_size=0, max_size=4, server_settings=ours
    )
    try:
        await database.execute(tables)
        async with AsyncExitStack() as stack:
            forking = (
                await stack.enter_async_context(forks(app, logs / "forks.log")) if forked else None
            )
            group = await stack.enter_async_context(asyncio.TaskGroup())
            made = Cluster(
                dsn,
                logs=logs,
                group=group,
                settings=settings,
                database=database,
                app=app,
                variables=variables or {},
                forks=forking,
            )
            try:
                yield made
                assert not made.crashes()
            except BaseException:
                await made.report()
                raise
            finally:
                await made.end()
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(database.close(), 5)
