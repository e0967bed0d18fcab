"""H1: how long the entities of a runner are silent when it is told to stop.

A client calls entities over and over, each a little after its last answer. Then one of the runners
gets SIGTERM. An entity's silence is the longest time between two of its answers from then until
the runner has ended, less the usual time between two.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter

import asyncpg

from bench.process import RunnerProcess, runner_process, within
from bench.results import Results, milliseconds
from bench.server import Server
from bench.workflows import Counter
from engine import Client, Settings
from engine.core.ids import shard_of

ENTITIES = 50
PAUSE = 0.025
WARM_UP = 1.5
ROUNDS = 6
OWNERS = """
    select s.shard, r.pid from engine.shards s join engine.shard_groups g using (group_id)
    join engine.runners r on r.id = s.runner_id where g.name = 'default' and not r.draining
"""


@dataclass(slots=True)
class Caller:
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


async def measure_handovers(
    server: Server, results: Results, *, runners: int, rounds: int = ROUNDS
) -> None:
    moved: list[float] = []
    stayed: list[float] = []
    settings = Settings(dsn=server.dsn, schema="engine")
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(settings))
        admin = await asyncpg.connect(server.dsn)
        stack.push_async_callback(admin.close)
        serving: list[RunnerProcess] = []
        for nth in range(rounds):
            while len(serving) < runners:
                serving.append(await stack.enter_async_context(runner_process(server)))
            await within(60, _settled(admin, serving), what="an even share for each runner")
            leaves = serving.pop(0)
            async with _called(client, settings, series=f"{runners}-{nth}") as callers:
                owners = await _owners(admin)
                since = perf_counter()
                leaves.terminate()
                await within(30, leaves.ended(), what="the end of the runner")
                await asyncio.sleep(PAUSE * 4)
            for each in callers:
                silences = moved if owners[each.shard] == leaves.pid else stayed
                silences.append(each.silence(since))
    for what, silences in (("moved", moved), ("stayed", stayed)):
        figures = milliseconds(silences)
        results.add(
            "H1",
            f"{runners} runners",
            f"silence of what {what}, p50",
            figures.pop("p50"),
            "ms",
            n=len(silences),
            **figures,
        )


@asynccontextmanager
async def _called(
    client: Client, settings: Settings, *, series: str
) -> AsyncGenerator[list[Caller]]:
    """Entities that are being called, and have been for a while."""
    shards = settings.shards_per_group
    callers = [
        Caller(id, shard_of("default", shards, Counter.name, id).number)
        for id in (f"{series}-{nth}" for nth in range(ENTITIES))
    ]
    async with asyncio.TaskGroup() as group:
        calling = [group.create_task(each.call(client)) for each in callers]
        try:
            await asyncio.sleep(WARM_UP)
            yield callers
        finally:
            for task in calling:
                task.cancel()


async def _settled(
    admin: "asyncpg.Connection[asyncpg.Record]", serving: list[RunnerProcess]
) -> None:
    """Wait until each runner owns its share of all shards."""
    while True:
        owners = list((await _owners(admin)).values())
        shares = [owners.count(each.pid) for each in serving]
        if sum(shares) == Settings().shards_per_group and max(shares) - min(shares) <= 1:
            return
        await asyncio.sleep(0.1)


async def _owners(admin: "asyncpg.Connection[asyncpg.Record]") -> dict[int, int]:
    """The pid of the process that owns each shard."""
    return {row["shard"]: row["pid"] for row in await admin.fetch(OWNERS)}
