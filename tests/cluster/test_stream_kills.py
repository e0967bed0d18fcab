"""Streams whose producers and consumers are killed, in real processes on a real server."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from engine import Client, Settings
from tests.cluster.stream_process import Numbers
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
WINDOW = 64
TTL = timedelta(seconds=2)
SETTINGS = {
    "shards_per_group": 16,
    "heartbeat_interval": 0.3,
    "time_to_live": TTL.total_seconds(),
    "stream_window": WINDOW,
}

OWNER = """
    select r.pid from engine.envelopes e
    join engine.shards s using (group_id, shard)
    join engine.runners r on r.id = s.runner_id
    where e.tag = $1 and r.died_at is null
"""
CHUNKS = "select count(*) from engine.replies where kind = 0"
ENDED = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where application_name like 'outlast:%' and datname = current_database()
"""


@dataclass(slots=True)
class Process:
    """One process and the lines it has said."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list[str])

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Processes:
    """The processes of one test; none outlives it."""

    def __init__(self, dsn: str, group: asyncio.TaskGroup) -> None:
        self.all: list[Process] = []
        self._group = group
        values = {"dsn": dsn, **SETTINGS}
        variables = {f"OUTLAST_{name.upper()}": str(value) for name, value in values.items()}
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables

    async def start(self, *arguments: str) -> Process:
        process = Process(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tests.cluster.stream_process",
                *arguments,
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                env=self._environment,
            )
        )
        self.all.append(process)
        self._group.create_task(process.listen())
        return process

    async def runners(self, count: int) -> None:
        """Start some, and wait until they own shards."""
        started = [await self.start("runner") for _ in range(count)]
        await eventually(lambda: all("READY" in each.lines for each in started), timeout=30)

    async def end(self, pid: int) -> None:
        """Kill the one with this pid."""
        await next(each for each in self.all if each.process.pid == pid).kill()


@asynccontextmanager
async def processes(dsn: str) -> AsyncIterator[Processes]:
    async with asyncio.TaskGroup() as group:
        made = Processes(dsn, group)
        try:
            yield made
        finally:
            for each in made.all:
                await each.kill()


@dataclass(slots=True)
class Watch:
    """Looks at the table all the time."""

    most: int = 0
    looks: int = 0

    async def look(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        while True:
            self.most = max(self.most, await connection.fetchval(CHUNKS))
            self.looks += 1
            await asyncio.sleep(0.01)


@asynccontextmanager
async def watched(dsn: str) -> AsyncIterator[Watch]:
    connection = await asyncpg.connect(dsn)
    watch = Watch()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watch.look(connection))
        try:
            yield watch
        finally:
            task.cancel()
            await asyncio.wait([task])
            await connection.close()


def settings(dsn: str) -> Settings:
    return Settings(
        dsn=dsn,
        shards_per_group=16,
        heartbeat_interval=timedelta(seconds=0.3),
        time_to_live=TTL,
    )


@pytest.fixture
async def database(dsn: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("method", "count"), [("counted", 100_000), ("resumed", 20_000)])
async def test_a_long_stream_arrives_complete_and_in_order_though_its_runner_is_killed_three_times(
    dsn: str, database: "asyncpg.Connection[asyncpg.Record]", method: str, count: int
) -> None:
    kills = [count // 5, count // 2, count * 4 // 5]
    async with AsyncExitStack() as stack:
        runners = await stack.enter_async_context(processes(dsn))
        await runners.runners(2)
        client = await stack.enter_async_context(Client(settings(dsn)))
        watch = await stack.enter_async_context(watched(dsn))
        numbers = client.entity(Numbers, "n")
        expected, pids = 0, []
        async for number in getattr(numbers, method)(count):
            assert number == expected
            expected += 1
            if number in kills:
                pids.append(await database.fetchval(OWNER, method))
                await runners.end(pids[-1])
                await runners.start("runner")
        assert expected == count
        assert len(set(pids)) == 3
        assert watch.looks > 100
    assert 0 < watch.most <= WINDOW
    rows = await database.fetch("select sequence, kind from engine.replies")
    assert [tuple(row) for row in rows] == [(count, 1)]


@pytest.mark.timeout(120)
async def test_a_consumer_that_is_killed_is_followed_by_one_that_goes_on_where_it_was(
    dsn: str,
) -> None:
    count = 3000
    async with processes(dsn) as group:
        await group.runners(1)
        killed = await group.start("consumer", "k", str(count))
        await eventually(lambda: len(killed.lines) > count // 3, timeout=60)
        await killed.kill()
        follower = await group.start("consumer", "k", str(count))
        await eventually(lambda: str(count - 1) in follower.lines, timeout=60)
        first, second = ([int(line) for line in each.lines] for each in (killed, follower))
    assert first == list(range(len(first)))
    assert second == list(range(second[0], count))
    assert len(first) - WINDOW <= second[0] <= len(first)


@pytest.mark.timeout(120)
async def test_a_volatile_stream_whose_consumer_is_killed_ends_within_about_the_time_to_live(
    dsn: str,
) -> None:
    async with processes(dsn) as group, Client(settings(dsn)) as client:
        await group.runners(1)
        killed = await group.start("listener", str(10**9), "1000")
        await eventually(lambda: killed.lines, timeout=30)
        await killed.kill()
        async with asyncio.timeout(3 * TTL.total_seconds() + 5):
            assert [n async for n in client.entity(Numbers, "n").told(3)] == [0, 1, 2]


@pytest.mark.timeout(120)
async def test_a_volatile_stream_waits_for_a_consumer_that_blocks_its_event_loop(dsn: str) -> None:
    count = WINDOW * 3
    async with processes(dsn) as group:
        await group.runners(1)
        busy = await group.start("listener", str(count), str(3 * TTL.total_seconds()))
        await eventually(lambda: len(busy.lines) == count, timeout=60)
    assert busy.lines == [str(number) for number in range(count)]


@pytest.mark.timeout(120)
async def test_a_slow_consumer_loses_nothing_when_every_connection_is_ended(
    dsn: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    count = WINDOW * 10
    async with processes(dsn) as group:
        await group.runners(1)
        got: list[int] = []
        async with Client(settings(dsn)) as client:
            async for number in client.entity(Numbers, "n").counted(count):
                got.append(number)
                if number % 200 == 100:
                    assert await database.fetchval(ENDED) >= 4
                await asyncio.sleep(0.001)
    assert got == list(range(count))
