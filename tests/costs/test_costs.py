"""What a workflow costs in statements, commits, rows, bytes of WAL and Python calls.

Little of it depends on how fast the machine is (a busy one writes smaller batches), so each has a
ceiling here, above what it was on a busy machine; the least of some tries counts.
Who goes beyond one has made the write path dearer: say why, or find out where.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import timedelta
from math import inf
from pathlib import Path
from types import FrameType

import asyncpg
import pytest

from engine import Client, Deferred, Execution, Runner, Settings, Workflow, activity
from engine.embedded import EmbeddedPostgres
from engine.storage.connect import Connector
from engine.storage.migrate import migrate
from tests.chaos.app import Statements
from tests.eventually import eventually

pytestmark = pytest.mark.timeout(300)

RARELY = dict.fromkeys(("heartbeat_interval", "poll_interval"), timedelta(minutes=1)) | {
    "time_to_live": timedelta(minutes=5)
}
"""Settings under which nothing is done that the work does not ask for."""
COUNTED = """
    select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as commits,
        pg_current_wal_insert_lsn() - '0/0' as wal,
        (select sum(n_tup_ins + n_tup_upd + n_tup_del) from pg_stat_user_tables) as rows
"""


class Steps(Workflow[int, int]):
    """So many steps, one after the other."""

    async def execute(self, request: int) -> int:
        return sum([await self.step(number) for number in range(request)])

    @activity
    async def step(self, number: int) -> int:
        return number


class Waits(Workflow[int, int]):
    go = Deferred(int)

    async def execute(self, request: int) -> int:
        return request + await self.go.wait()


@dataclass(frozen=True, slots=True)
class Costs:
    """``calls``: of Python functions, resumed coroutines among them, on the loop's thread."""

    statements: float
    commits: float
    rows: float
    wal: float
    calls: float

    def per(self, number: int, *, above: "Costs") -> "Costs":
        pairs = zip(astuple(self), astuple(above), strict=True)
        return Costs(*((mine - base) / number for mine, base in pairs))

    def within(self, most: "Costs") -> bool:
        pairs = zip(astuple(self), astuple(most), strict=True)
        return all(mine <= limit for mine, limit in pairs)


class Counter:
    """Python functions that are called."""

    def __init__(self) -> None:
        self.calls = 0

    def called(self, _: FrameType, event: str, __: object) -> None:
        self.calls += event == "call"


TRIES = 5
Work = Callable[[Client], Awaitable[object]]


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    """A server on which nobody else writes WAL."""
    prefix = "outlast-project-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        with EmbeddedPostgres(Path(path)) as server:
            asyncio.run(calm(server.dsn))
            yield server.dsn


async def calm(server: str) -> None:
    """Let the server write nothing by itself."""
    async with connected(server) as admin:
        for setting in ("autovacuum = off", "full_page_writes = off", "checkpoint_timeout = '1h'"):
            await admin.execute(f"alter system set {setting}")
        await admin.execute("select pg_reload_conf()")


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def costs(
    server: str, work: Work, monkeypatch: pytest.MonkeyPatch, *, embedded: bool = False
) -> Costs:
    """What a runner and a client spend on some work, from their start to their end.

    ``embedded``: it is the runner's own client that has the work done.

    Calls are counted in a run of their own, whose batches are smaller, since it is slower.
    """
    counter = Counter()
    async with database(server) as dsn:
        spent = await _costs(dsn, work, monkeypatch, embedded=embedded, profile=None)
    async with database(server) as dsn:
        await _costs(dsn, work, monkeypatch, embedded=embedded, profile=counter.called)
    return replace(spent, calls=counter.calls)


@asynccontextmanager
async def database(server: str) -> AsyncIterator[str]:
    async with connected(server) as admin:
        await admin.execute("create database costs")
        try:
            yield server.rsplit("/", 1)[0] + "/costs"
        finally:
            await admin.execute("drop database costs with (force)")


async def _costs(
    dsn: str,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    *,
    embedded: bool,
    profile: Callable[[FrameType, str, object], None] | None,
) -> Costs:
    await migrate(dsn)
    settings = Settings(dsn=dsn, **RARELY)
    async with connected(dsn) as sql:
        await sql.execute("checkpoint")
        before = await sql.fetchrow(COUNTED)
        with monkeypatch.context() as patch:
            patch.setattr(Connector, "open", Connector.open)  # and taken back in the end
            statements = Statements()
            runner = Runner(settings).register(Steps(), Waits())
            async with runner, Client(settings) as client:
                await eventually(lambda: len(runner.epochs) == settings.shards_per_group)
                sys.setprofile(profile)
                await work(runner.client if embedded else client)
                sys.setprofile(None)
        after = await sql.fetchrow(COUNTED)
    assert before is not None
    assert after is not None
    return Costs(
        statements=statements.sent,
        commits=after["commits"] - before["commits"],
        rows=float(after["rows"] - before["rows"]),
        wal=float(after["wal"] - before["wal"]),
        calls=0,
    )


async def nothing(client: Client) -> None:
    """What is spent by runner and client themselves."""


async def started(client: Client, steps: int, *, number: int) -> list[Execution[int]]:
    starts = [client.start(Steps, steps, key=f"{n}") for n in range(number)]
    return await asyncio.gather(*starts)


def many(number: int, *, steps: int) -> Work:
    """So many at once, all of whose results are awaited."""

    async def work(client: Client) -> None:
        executions = await started(client, steps, number=number)
        await asyncio.gather(*(each.join() for each in executions))

    return work


async def one_after_the_other(client: Client) -> None:
    for number in range(40):
        await client.execute(Steps, 1, key=f"{number}")


async def one_long(client: Client) -> None:
    await client.execute(Steps, 200, key="long")


async def resolved(client: Client) -> None:
    """Forty that wait for a deferred, resolved one after the other until each has ended."""
    waiting = [await client.start(Waits, 1, key=f"{number}") for number in range(40)]
    for each in waiting:
        await each.resolve(Waits.go, 1)
        await each.join()


EMBEDDED = "a one-step workflow alone in its runner's process"
WORK: dict[str, tuple[Work, int]] = {
    "a one-step workflow of many": (many(400, steps=1), 400),
    "a step of many workflows": (many(100, steps=10), 1000),
    "a one-step workflow alone": (one_after_the_other, 40),
    "a step of one long workflow": (one_long, 200),
    "a workflow that is resolved alone": (resolved, 40),
    EMBEDDED: (one_after_the_other, 40),
}
MOST = {
    "a one-step workflow of many": Costs(
        statements=0.15, commits=0.12, rows=10.2, wal=2400, calls=800
    ),
    "a step of many workflows": Costs(statements=0.07, commits=0.06, rows=2.1, wal=520, calls=250),
    "a one-step workflow alone": Costs(
        statements=6.6, commits=5.6, rows=10.5, wal=2800, calls=1600
    ),
    # One each for every step, and twelve for the start, the end and the result of all 200.
    "a step of one long workflow": Costs(
        statements=1.06, commits=1.06, rows=1.2, wal=400, calls=360
    ),
    "a workflow that is resolved alone": Costs(
        statements=12, commits=9.8, rows=15.5, wal=3900, calls=2650
    ),
    EMBEDDED: Costs(statements=3.3, commits=3.3, rows=10.5, wal=2900, calls=1060),
}


async def test_nothing_costs_more_than_it_did(
    own_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = least([await costs(own_server, nothing, monkeypatch) for _ in range(3)])
    dearer: dict[str, list[Costs]] = {}
    for name, (work, number) in WORK.items():
        spent: list[Costs] = []
        while len(spent) < TRIES and not least(spent).within(MOST[name]):
            measured = await costs(own_server, work, monkeypatch, embedded=name == EMBEDDED)
            spent.append(measured.per(number, above=base))
        if not least(spent).within(MOST[name]):
            dearer[name] = spent
    assert not dearer, (dearer, MOST)


def least(spent: Sequence[Costs]) -> Costs:
    """What else happens on the machine adds to what something costs, and never takes from it."""
    columns = zip(*map(astuple, spent), strict=True)
    return Costs(*map(min, columns)) if spent else Costs(*[inf] * len(fields(Costs)))
