"""W13 and H1: how long executions and entities are silent when one of several runners is lost.

Executions take step after step, entities are called over and over. Then one of the runners gets
SIGKILL or SIGTERM. A silence is the longest time between two steps, or two answers, from then on.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from statistics import median
from time import perf_counter

from bench.place import Options, settings_of
from bench.process import Process, runner_process, settled, within
from bench.results import Results
from bench.server import Connection, Database, Server
from bench.workflows import Beats, Counter
from engine import Client
from engine.core.ids import shard_of

ENTITIES = 50
EXECUTIONS = 100
STEP_MS = 25
PAUSE = 0.025
WARM_UP = 1.5
ROUNDS, FULL_ROUNDS = 3, 10
CALLED_ROUNDS = 6
UNTIL_ALL_GO_ON = 60.0
RUNNERS = 2
WENT_ON = """
    select count(distinct j.execution) from engine.journal j join engine.executions x
    on x.request_id = j.execution
    where j.at > $1 and x.shard = any($2) and x.execution_id like $3 || '%'
"""
SILENCES = """
    select extract(epoch from max(gap))::float8 as silence
    from (
        select
            j.execution, j.at,
            j.at - lag(j.at) over (partition by j.execution order by j.position) as gap
        from engine.journal j join engine.executions x on x.request_id = j.execution
        where x.shard = any($2) and x.execution_id like $3 || '%'
    ) s
    where at > $1 group by execution
"""


async def failover(server: Server, results: Results, options: Options) -> None:
    """W13: executions of a runner that is killed, and of one that is told to stop."""
    rounds = FULL_ROUNDS if options.full else ROUNDS
    async with _ready(server) as ready:
        for how in ("killed", "told to stop"):
            silences: list[float] = []
            async for leaves, nth in _rounds(ready, runners=RUNNERS, rounds=rounds):
                silences += await _lost(ready, leaves, series=f"{how}-{nth}-")
            variant = f"one of {RUNNERS} runners is {how}"
            results.add_durations("W13", variant, "silence of its executions", silences)


async def _lost(ready: "_Ready", leaves: Process, *, series: str) -> list[float]:
    """The silence of each execution that the runner had."""
    client, admin = ready.client, ready.admin
    for nth in range(EXECUTIONS):
        await client.start(Beats, STEP_MS, key=f"{series}{nth}")
    await asyncio.sleep(WARM_UP)
    owners = await settled(admin, RUNNERS)
    shards = [shard for shard, pid in owners.items() if pid == leaves.pid]
    moving = await admin.fetchval(WENT_ON, datetime.fromtimestamp(0).astimezone(), shards, series)
    since: datetime = await admin.fetchval("select clock_timestamp()")
    if series.startswith("killed"):
        leaves.kill()
    else:
        leaves.terminate()
    await within(45, leaves.ended(), what="the end of the runner")

    async def all_go_on() -> None:
        gone_at = await admin.fetchval("select clock_timestamp()")
        went_on = 0
        while went_on < moving:
            await asyncio.sleep(0.25)
            went_on = await admin.fetchval(WENT_ON, gone_at, shards, series)

    await within(UNTIL_ALL_GO_ON, all_go_on(), what="the executions of a lost runner")
    rows = await admin.fetch(SILENCES, since, shards, series)
    async for _ in client.bulk("terminate", Beats):
        pass
    return [row["silence"] for row in rows]


async def handover(server: Server, results: Results, _: Options) -> None:
    """H1: entities of a runner that is told to stop, as those see it who call them."""
    for runners in (2, 3):
        moved: list[float] = []
        stayed: list[float] = []
        async with _ready(server) as ready:
            async for leaves, nth in _rounds(ready, runners=runners, rounds=CALLED_ROUNDS):
                async with _called(ready, series=f"{nth}") as callers:
                    owners = await settled(ready.admin, runners)
                    since = perf_counter()
                    leaves.terminate()
                    await within(30, leaves.ended(), what="the end of the runner")
                    await asyncio.sleep(PAUSE * 4)
                for each in callers:
                    silences = moved if owners[each.shard] == leaves.pid else stayed
                    silences.append(each.silence(since))
        variant = f"one of {runners} runners is told to stop"
        for what, silences in (("moved", moved), ("stayed", stayed)):
            results.add_durations("H1", variant, f"silence of entities that {what}", silences)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A database, somebody who looks into it, and somebody who uses the engine."""

    database: Database
    admin: Connection
    client: Client


@asynccontextmanager
async def _ready(server: Server) -> AsyncGenerator[_Ready]:
    async with (
        server.database() as database,
        database.connected() as admin,
        Client(settings_of(database)) as client,
    ):
        yield _Ready(database, admin, client)


async def _rounds(
    ready: _Ready, *, runners: int, rounds: int
) -> AsyncIterator[tuple[Process, int]]:
    """Which of the runners is to leave in each round; another takes its place for the next."""
    async with AsyncExitStack() as stack:
        serving: list[Process] = []
        for nth in range(rounds):
            while len(serving) < runners:
                serving.append(await stack.enter_async_context(runner_process(ready.database)))
            await settled(ready.admin, runners)
            yield serving.pop(0), nth


@dataclass(slots=True)
class _Caller:
    """One entity's calls: its number of the shard, and when each answer came."""

    id: str
    shard: int
    answers: list[float] = field(default_factory=list[float])

    async def call(self, client: Client) -> None:
        last: int | None = None
        while True:
            count = await client.entity(Counter, self.id).add()
            if last is not None and count != last + 1:
                raise AssertionError(f"{self.id} counted {count} after {last}")
            last = count
            self.answers.append(perf_counter())
            await asyncio.sleep(PAUSE)

    def silence(self, since: float) -> float:
        """The longest time between two answers since then, less what was usual before."""
        gaps = [(end, end - start) for start, end in pairwise(self.answers)]
        usual = median(gap for end, gap in gaps if end < since)
        return max(gap for end, gap in gaps if end >= since) - usual


@asynccontextmanager
async def _called(ready: _Ready, *, series: str) -> AsyncGenerator[list[_Caller]]:
    """Entities that are being called, and have been for a while."""
    shards = settings_of(ready.database).shards_per_group
    callers = [
        _Caller(id, shard_of("default", shards, Counter.name, id).number)
        for id in (f"{series}-{nth}" for nth in range(ENTITIES))
    ]
    async with asyncio.TaskGroup() as group:
        calling = [group.create_task(each.call(ready.client)) for each in callers]
        try:
            await asyncio.sleep(WARM_UP)
            yield callers
        finally:
            for task in calling:
                task.cancel()
