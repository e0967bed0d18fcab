"""One round of chaos: a database, processes over it, and clients that call while harm is done.

From ``tests.chaos.test_chaos`` and ``tests.chaos.test_failover``, which bring the harm.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import asyncpg

from engine import Client, Settings
from engine.core.clock import monotonic
from engine.storage.migrate import migrate
from tests.chaos import audit, tables
from tests.chaos.caller import LIMIT, Caller
from tests.chaos.checker import check, of_key
from tests.chaos.cluster import Cluster, Process, cluster
from tests.chaos.faults import DEPLOYED
from tests.chaos.history import Call, read
from tests.chaos.promises import Violation
from tests.chaos.proxy import Proxy, proxy
from tests.chaos.strangers import install_mishaps
from tests.eventually import eventually

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
"""Violations of each promise."""


class Harm(Protocol):
    """What is done: how often each, and to which processes so that they end."""

    done: Counter[str]
    ended: set[Process]

    async def go_on(self, until: asyncio.Event) -> None: ...


@dataclass(slots=True, kw_only=True)
class Run:
    """One round: a database, a cluster, what is done to it and what was said. ``dsn`` is how the
    test itself reaches the database, ``limit`` how many seconds clients wait for an answer."""

    chaos: Cluster
    network: Proxy
    dsn: str
    client: Client
    group: asyncio.TaskGroup
    files: Path
    seed: int
    limit: float = LIMIT.total_seconds()
    faults: Harm = field(init=False)
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
            limit=self.limit,
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
            and (
                call.ended - call.invoked > SETTLES_WITHIN
                or (call.client == "settling" and not call.known)
            )
        ]
        return stuck + check(self.calls, await tables.read(self.chaos.database))


@asynccontextmanager
async def a_round(
    server: str, logs: Path, seed: int, harm: Callable[[Run], Harm], *, moves: bool = False
) -> AsyncIterator[Run]:
    """A database of its own on the server, behind a proxy for all but this process; for this
    process too if the server ``moves``."""
    parts = urlsplit(server)
    name = f"chaos_{seed}_{monotonic():.0f}"
    await _execute(server, f"create database {name}")
    direct = parts._replace(path=f"/{name}").geturl()
    await migrate(direct)
    assert parts.port is not None
    quick = {name: timedelta(seconds=value) for name, value in QUICK.items()}
    variables = {DEPLOYED: "old"}
    async with proxy(parts.port) as (network, port):
        through = f"postgresql://postgres@127.0.0.1:{port}/{name}"
        dsn = through if moves else direct
        app, small = "tests.chaos.lives_app", {**QUICK, **SMALL}
        async with (
            cluster(through, logs, app=app, direct=dsn, variables=variables, **small) as chaos,
            Client(Settings(dsn=dsn, **quick, **SMALL)) as client,  # type: ignore[arg-type]
            asyncio.TaskGroup() as group,
        ):
            await audit.install(chaos.database)
            await install_mishaps(chaos.database)
            run = Run(
                chaos=chaos,
                network=network,
                dsn=dsn,
                client=client,
                group=group,
                files=logs,
                seed=seed,
            )
            run.faults = harm(run)
            yield run
    if not moves:
        await _execute(server, f"drop database {name} with (force)")


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def told(run: Run, violations: list[Violation]) -> str:
    """What is wrong, and the history of the keys it is about."""
    lines = [f"SEED={run.seed}; faults {dict(run.faults.done)}; broken: {counted(violations)}"]
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
