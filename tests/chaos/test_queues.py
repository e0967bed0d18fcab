"""A queue's limits while its runners are killed, frozen for longer than their time to live, and
while its shards move. What counts is what the items' own runs have left behind."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from engine import Client, Settings
from tests.chaos.cluster import Cluster, cluster
from tests.chaos.queue_app import TABLES, Limited
from tests.eventually import eventually

SHARDS = 24
ITEMS = 300
QUICK = {"heartbeat_interval": 0.3, "time_to_live": 2, "shards_per_group": SHARDS}
RUNS = """
    select item, key, pid, began, ended, lead(began) over (partition by item order by began) as next
    from runs order by began
"""
"""A run that was cut off counts until the item is begun again: so long its place was taken."""
ALL_RUN = "select count(distinct pid) = 3 from runs"
ADMITTED = "select count(*) from engine.queue_items where shard is not null"
ZOMBIES = """
    delete from runs r
    where r.pid = $1 and r.began > $2 and exists (
        select from runs other where other.item = r.item and other.pid <> $1 and other.began > $2
            and other.began < r.began
    )
"""
"""What a frozen process still begins as it wakes, before it has noticed what it lost."""


def most_at_once(runs: Iterable[asyncpg.Record]) -> int:
    events: list[tuple[datetime, int]] = []
    for run in runs:
        over = min(end for end in (run["ended"], run["next"]) if end is not None)
        events += [(run["began"], 1), (over, -1)]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    return most


async def admitted(chaos: Cluster, seen: list[int]) -> None:
    """Look at what is admitted, again and again."""
    while True:
        seen.append(await chaos.database.fetchval(ADMITTED))
        await asyncio.sleep(0.01)


def groups(runs: Sequence[asyncpg.Record], column: str) -> list[list[asyncpg.Record]]:
    return [[run for run in runs if run[column] == each] for each in {run[column] for run in runs}]


@pytest.mark.timeout(120)
async def test_limits_hold_while_runners_are_killed_and_frozen(dsn: str, tmp_path: Path) -> None:
    names = [f"{'abcde'[n % 5]}/{n}" for n in range(ITEMS)]
    async with (
        cluster(
            dsn, tmp_path, forked=True, app="tests.chaos.queue_app", tables=TABLES, **QUICK
        ) as chaos,
        Client(Settings(dsn=dsn, shards_per_group=SHARDS)) as client,
        asyncio.TaskGroup() as group,
    ):
        killed, frozen, stays = await chaos.start_runners(3)
        seen: list[int] = []
        looking = group.create_task(admitted(chaos, seen))
        submitted = await chaos.database.fetchval("select clock_timestamp()")
        items = await asyncio.gather(*(client.submit(Limited, name) for name in names))

        await eventually(lambda: chaos.database.fetchval(ALL_RUN), timeout=20)
        await killed.kill()
        lost, when = frozen.runner, await chaos.database.fetchval("select clock_timestamp()")
        frozen.freeze()
        await eventually(lambda: stays.owned == SHARDS, timeout=30)
        frozen.thaw()
        await eventually(lambda: frozen.runner not in ("", lost) and frozen.owned > 0, timeout=30)
        answers = await asyncio.gather(*(item.join(timedelta(seconds=60)) for item in items))
        looking.cancel()

        assert answers == [name.upper() for name in names]
        await chaos.database.execute(ZOMBIES, frozen.pid, when)
        runs = await chaos.database.fetch(RUNS)
        assert {run["item"] for run in runs} == set(names)
        assert most_at_once(runs) == max(seen) == Limited.concurrency
        # Six at once of five keys are two of one.
        assert max(most_at_once(each) for each in groups(runs, "key")) == Limited.per_key
        assert max(most_at_once(each) for each in groups(runs, "pid")) <= Limited.per_runner
        assert len({run["pid"] for run in runs}) == 3
        assert Limited.rate is not None
        least = (ITEMS - Limited.rate.burst) * Limited.rate.per / Limited.rate.limit
        assert runs[-1]["began"] - submitted > least
        await eventually_empty(chaos)


async def eventually_empty(chaos: Cluster) -> None:
    async def empty() -> bool:
        left = await chaos.database.fetchval("select count(*) from engine.queue_items")
        return not left and not await chaos.database.fetchval("select count(*) from engine.inbox")

    await eventually(empty, timeout=10)
