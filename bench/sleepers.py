"""W7: thousands of workflows that sleep: how late they end, and what they cost meanwhile."""

import asyncio
import os
from time import perf_counter

from bench.place import Place
from bench.process import within
from bench.usage import resident_mb
from bench.workflows import Sleeps
from engine import Execution

SLEEPERS = 5000
SECONDS = 5.0
DEADLINES = """
    select execution_id, extract(epoch from started_at)::float8 + $1 as due,
        extract(epoch from finished_at)::float8 as ended
    from engine.executions where workflow = 'Sleeps' and execution_id = any($2::text[])
"""


async def sleepers(place: Place) -> None:
    """Two lags: of the end as the runner notes it, and of the result as the client has it."""
    count = place.options.sized(SLEEPERS)
    pid = place.runners[0] if place.runners else os.getpid()
    keys = [place.keys() for _ in range(count)]
    results: dict[str, float] = {}

    async def join(execution: Execution[None]) -> None:
        await execution.join()
        results[execution.id] = perf_counter()

    async with place.database.connected() as connection:
        idle = resident_mb(pid)
        offset = (
            await connection.fetchval("select extract(epoch from clock_timestamp())::float8")
            - perf_counter()
        )
        async with place.metered() as meter, asyncio.TaskGroup() as group:
            began = perf_counter()
            starts = (place.client.start(Sleeps, SECONDS, key=key) for key in keys)
            executions = await within(60, asyncio.gather(*starts), what="all starts")
            started = perf_counter() - began
            joins = [group.create_task(join(each)) for each in executions]
            await asyncio.sleep(max(0.0, began + SECONDS - 0.2 - perf_counter()))
            asleep = resident_mb(pid)
            await within(120, asyncio.gather(*joins), what="the end of all sleepers")
        rows = await connection.fetch(DEADLINES, SECONDS, keys)
    ends = [row["ended"] - row["due"] for row in rows]
    seen = [results[row["execution_id"]] + offset - row["due"] for row in rows]
    place.results.add_durations(
        "W7",
        place.variant,
        "end behind its time",
        ends,
        memory_mb=round(asleep - idle, 1),
        started_s=round(started, 2),
        **meter.per(count),
    )
    place.results.add_durations("W7", place.variant, "result behind its time", seen)
