"""Anything at any time: random calls while faults are done to processes, sessions, server, network.

``make chaos SEED=7 MINUTES=60`` runs it in rounds of two minutes; round n of seed s is that of seed
s + n. See ``docs/reliability.md``.
"""

import asyncio
import logging
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from engine import Client, Settings
from engine.core.clock import monotonic
from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate
from tests.chaos import audit, tables
from tests.chaos.caller import Caller
from tests.chaos.checker import check, of_key
from tests.chaos.cluster import Cluster, Process, cluster
from tests.chaos.faults import Faults
from tests.chaos.history import Call, read
from tests.chaos.promises import Violation
from tests.chaos.proxy import proxy
from tests.chaos.test_backends import postmaster
from tests.eventually import eventually

log = logging.getLogger(__name__)

ROUND = 120.0
RUNNERS, CLIENTS = 3, 2
QUICK: dict[str, float] = {
    "heartbeat_interval": 0.5,
    "time_to_live": 3,
    "grace_period": 5,
    "statement_timeout": 5,
    "connect_timeout": 5,
}
SMALL: dict[str, int] = {"shards_per_group": 24, "stream_window": 16}
SETTLES_WITHIN = 90.0
SHOWN = 3
"""Of each promise."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seconds" in metafunc.fixturenames:
        seconds = metafunc.config.getoption("--chaos-seconds")
        limit = pytest.mark.timeout(240 + 3 * seconds)
        metafunc.parametrize("seconds", [pytest.param(seconds, id="chaos", marks=limit)])


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--chaos-seed")
    return random.randrange(1 << 31) if given is None else given


@pytest.fixture
def project() -> Iterator[Path]:
    """Where the server may live that is this test's own."""
    prefix = "outlast-project-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


async def test_every_promise_is_kept_whatever_is_done_to_processes_server_and_network(
    project: Path, tmp_path: Path, seconds: float, seed: int
) -> None:
    total: Counter[str] = Counter()
    async with AsyncExitStack() as servers:
        server = await servers.enter_async_context(EmbeddedPostgres(project))
        until = monotonic() + seconds
        for nth in count():
            length = min(ROUND, until - monotonic())
            if length <= 0:
                break
            logs = tmp_path / str(nth)
            logs.mkdir()
            async with a_round(server, servers, project, logs, seed + nth) as run:
                await run.live(length)
                violations = await run.judge()
            log.info("seed %d: %.0f s: %s", seed + nth, length, dict(run.counted()))
            total += run.counted()
            if violations:
                pytest.fail(told(seed + nth, run, violations))
    assert all(total[f"{op} ok"] for op in ("join", "add", "stream", "result")), total
    log.info("seed %d, %.0f s, %d rounds: %s", seed, seconds, nth, dict(sorted(total.items())))


def told(seed: int, run: "Run", violations: list[Violation]) -> str:
    """What is wrong, and the history of the keys it is about."""
    lines = [f"SEED={seed}; faults {dict(run.faults.done)}; broken: {counted(violations)}"]
    seen: Counter[str] = Counter()
    for violation in violations:
        seen[violation.promise] += 1
        if seen[violation.promise] > SHOWN:
            continue
        lines += ["", str(violation)]
        lines += [f"    {call}" for call in of_key(run.calls, violation.key)]
    return "\n".join(lines)


def counted(violations: list[Violation]) -> dict[str, int]:
    return dict(Counter(violation.promise for violation in violations))


@dataclass(slots=True, kw_only=True)
class Run:
    """One round: a database, a cluster, what is done to it and what was said."""

    chaos: Cluster
    client: Client
    group: asyncio.TaskGroup
    files: Path
    seed: int
    faults: Faults = field(init=False)
    calls: list[Call] = field(default_factory=list[Call])
    _callers: dict[Process, "asyncio.Task[Any]"] = field(
        default_factory=dict[Process, "asyncio.Task[Any]"]
    )
    _numbers: "count[int]" = field(default_factory=count)
    _names: dict[Process, str] = field(default_factory=dict[Process, str])
    _stuck: set[str] = field(default_factory=set[str])
    """Clients of which a call does not end."""

    def counted(self) -> Counter[str]:
        calls = Counter(f"{call.op} {call.outcome}" for call in self.calls)
        return calls + Counter({f"fault: {name}": n for name, n in self.faults.done.items()})

    async def live(self, seconds: float) -> None:
        """Let clients call while faults are done, then let all heal and end."""
        await self.chaos.start_runners(RUNNERS)
        for _ in range(CLIENTS):
            await self.start("client")
        await eventually(lambda: all(client.lines for client in self._callers), timeout=30)
        over = asyncio.Event()
        supervising = self.group.create_task(self.supervise())
        harming = self.group.create_task(self.faults.go_on(over))
        await asyncio.wait([harming], timeout=seconds)
        over.set()
        await harming
        supervising.cancel()
        await self.settle()

    async def start(self, kind: str) -> None:
        process = await self.chaos.start(kind)
        if kind == "client":
            self._callers[process] = self.group.create_task(self._call(process))

    async def _call(self, client: Process) -> None:
        """Have it make calls, as soon as it has said that it is there."""
        await eventually(lambda: client.lines, timeout=1e9)
        number = next(self._numbers)
        name = self._names[client] = f"c{number}"
        await client.ask(
            "begin",
            name=name,
            seed=self.seed * 1000 + number,
            file=str(self.files / f"{name}.jsonl"),
            within=1e9,
        )

    async def replace(self, victim: Process) -> None:
        """Start a successor of one that was ended."""
        if victim in self._callers:
            self._callers.pop(victim).cancel()
        await self.start(victim.name.partition("-")[0])

    async def supervise(self) -> None:
        """Start those again that did not reach the server as they began. No other may end."""
        while True:
            for each in list(self.chaos.processes):
                began = any(line.get("runner") or line.get("ready") for line in each.lines)
                if not each.running and each not in self.faults.ended:
                    said = each.log.read_text()
                    assert not began, f"{each.name} ended by itself: {said[-3000:]}"
                    assert "StorageUnavailable" in said, said[-3000:]
                    self.chaos.processes.remove(each)
                    await self.replace(each)
            await asyncio.sleep(0.2)

    async def settle(self) -> None:
        """Nothing is wrong any more: whatever was begun ends."""
        for client, calling in list(self._callers.items()):
            await eventually(lambda c=client: c.lines, timeout=30)
            await client.ask("stop")
            await asyncio.wait([calling], timeout=SETTLES_WITHIN)
            if not calling.done():
                self._stuck.add(self._names[client])
                calling.cancel()
        path = self.files / "settling.jsonl"
        settling = Caller(self.client, name="settling", seed=self.seed, file=path)
        ended = {row["key"] for row in await self.chaos.database.fetch(tables.KEYS) if row["exits"]}
        calls = read(self.files.glob("*.jsonl"))
        try:
            async with asyncio.timeout(SETTLES_WITHIN), asyncio.TaskGroup() as group:
                for kind, _, id in {call.key.partition("/") for call in calls}:
                    if f"{kind}/{id}" in ended:
                        continue
                    if kind == "Life":
                        group.create_task(settling.end(id))
                    elif kind == "Stream":
                        number = next(c.argument for c in calls if c.key == f"{kind}/{id}")
                        group.create_task(settling.consume(id, number))
        except TimeoutError:
            self._stuck.add(settling.name)
        settling.notes.close()

        async def nothing_left() -> bool:
            return not await tables.left(self.chaos.database)

        with suppress(AssertionError):  # the checker says what is left
            await eventually(nothing_left, timeout=SETTLES_WITHIN, every=0.2)

    async def judge(self) -> list[Violation]:
        self.calls = read(self.files.glob("*.jsonl"))
        stuck = [
            Violation(promise="ended", key=call.key, what=str(call))
            for call in self.calls
            if call.client in self._stuck
            and (call.ended == float("inf") or (call.client == "settling" and not call.known))
        ]
        return stuck + check(self.calls, await tables.read(self.chaos.database))


@asynccontextmanager
async def a_round(
    server: EmbeddedPostgres, servers: AsyncExitStack, project: Path, logs: Path, seed: int
) -> AsyncIterator[Run]:
    """A database of its own, behind a proxy for all but this process."""
    parts = urlsplit(server.dsn)
    name = f"chaos_{seed}_{monotonic():.0f}"
    maintenance = await asyncpg.connect(server.dsn)
    await maintenance.execute(f"create database {name}")
    await maintenance.close()
    direct = parts._replace(path=f"/{name}").geturl()
    await migrate(direct)
    assert parts.port is not None
    quick = {name: timedelta(seconds=value) for name, value in QUICK.items()}
    async with proxy(parts.port) as (network, port):
        through = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        app, small = "tests.chaos.lives_app", {**QUICK, **SMALL}
        async with (
            cluster(through, logs, app=app, direct=direct, **small) as chaos,
            Client(Settings(dsn=direct, **quick, **SMALL)) as client,  # type: ignore[arg-type]
            asyncio.TaskGroup() as group,
        ):
            await audit.install(chaos.database)
            run = Run(chaos=chaos, client=client, group=group, files=logs, seed=seed)
            run.faults = Faults(
                chaos,
                network,
                seed=seed,
                time_to_live=QUICK["time_to_live"],
                server=lambda: postmaster(server),
                restart=lambda: servers.enter_async_context(EmbeddedPostgres(project)),
                replace=run.replace,
            )
            yield run
