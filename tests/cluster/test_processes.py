"""Real processes that are killed, frozen and told to leave, over a real server."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import asyncpg

from engine.core.clock import monotonic
from tests.cluster.peers import SHARDS
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]

LOCKS = """
    select count(*) from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and a.application_name like 'outlast:' || $1 || ':%'
      and l.database = (select oid from pg_database where datname = current_database())
"""

ENDED = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where application_name like 'outlast:%' and datname = current_database()
"""


@dataclass(slots=True)
class Reports:
    """What a process has said."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    @property
    def runner(self) -> str:
        return str(self.lines[-1]["runner"]) if self.lines else ""

    @property
    def owned(self) -> int:
        return int(str(self.lines[-1]["owned"])) if self.lines else 0

    @property
    def runners(self) -> list[str]:
        """Its ids, in the order it has had them."""
        return list(dict.fromkeys(str(line["runner"]) for line in self.lines))

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))


@asynccontextmanager
async def running(dsn: str) -> AsyncIterator[Reports]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.cluster.runner_process",
        dsn,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    reports = Reports(process)
    async with asyncio.TaskGroup() as group:
        group.create_task(reports.listen())
        try:
            yield reports
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def shared(*processes: Reports) -> None:
    """Between them they own every shard, and each has some."""
    await eventually(
        lambda: all(p.owned for p in processes) and sum(p.owned for p in processes) == SHARDS,
        timeout=30,
    )


async def test_shards_of_a_killed_process_go_to_its_peers_within_the_ttl(dsn: str) -> None:
    async with running(dsn) as stays, running(dsn) as killed:
        await shared(stays, killed)
        killed.send(signal.SIGKILL)
        killed_at = monotonic()
        await eventually(lambda: stays.owned == SHARDS, timeout=20)
        assert monotonic() - killed_at < 10


async def test_a_frozen_process_loses_its_shards_and_finds_itself_dead_when_it_wakes(
    dsn: str,
) -> None:
    async with running(dsn) as stays, running(dsn) as frozen:
        await shared(stays, frozen)
        before = frozen.runner
        frozen.send(signal.SIGSTOP)
        await eventually(lambda: stays.owned == SHARDS, timeout=20)
        observer = await asyncpg.connect(dsn)
        try:
            assert await observer.fetchval(LOCKS, before) == 0
            frozen.send(signal.SIGCONT)
            await eventually(lambda: len(frozen.runners) == 2)
            last = [line for line in frozen.lines if line["runner"] == before][-1]
            assert last == {"runner": before, "owned": 0, "lost": True}
            await shared(stays, frozen)
            assert await observer.fetchval(LOCKS, before) == 0
            assert await observer.fetchval(LOCKS, frozen.runner) == frozen.owned
        finally:
            await observer.close()


async def test_a_process_that_is_told_to_leave_hands_over_at_once(dsn: str) -> None:
    async with running(dsn) as stays, running(dsn) as leaves:
        await shared(stays, leaves)
        leaves.send(signal.SIGTERM)
        assert await asyncio.wait_for(leaves.process.wait(), 10) == 0
        await eventually(lambda: stays.owned == SHARDS, timeout=2)


async def test_a_runner_whose_every_session_was_ended_goes_on_as_itself(dsn: str) -> None:
    async with running(dsn) as first, running(dsn) as second:
        await shared(first, second)
        observer = await asyncpg.connect(dsn)
        try:
            ended = await observer.fetchval(ENDED)
        finally:
            await observer.close()
        assert ended >= 6
        for process in (first, second):
            await eventually(partial(has_lost_all_and_come_back, process), timeout=20)
        await shared(first, second)
        assert len(first.runners) == len(second.runners) == 1


def has_lost_all_and_come_back(process: Reports) -> bool:
    """It owned shards, then none, and now some again."""
    owned = ["some" if line["owned"] else "none" for line in process.lines]
    return [each for each, _ in groupby(owned)][-3:] == ["some", "none", "some"]
