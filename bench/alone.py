"""W3, W6, W8: a workflow alone, an event alone, and nothing at all."""

import asyncio
from time import perf_counter

from bench.driver import run_one
from bench.place import Place
from bench.usage import resident_mb
from bench.workflows import Waits

STARTED = 200
RESOLVED = 100
UNTIL_IT_WAITS = 0.05
UNTIL_IDLE = 5.0
IDLE = 30.0


async def start_to_result(place: Place) -> None:
    """W3: one after the other, from the call of start to the result."""
    count = place.options.sized(STARTED)
    taken: list[float] = []
    async with place.metered() as meter:
        for _ in range(count):
            began = perf_counter()
            await run_one(place.client, place.keys(), steps=1)
            taken.append(perf_counter() - began)
    place.results.add_durations("W3", place.variant, "start to result", taken, **meter.per(count))


async def resolve_to_result(place: Place) -> None:
    """W6: a workflow that waits is told what it waits for, until its result."""
    count = place.options.sized(RESOLVED)
    taken: list[float] = []
    async with place.metered() as meter:
        for number in range(count):
            execution = await place.client.start(Waits, 1, key=place.keys())
            await asyncio.sleep(UNTIL_IT_WAITS)
            began = perf_counter()
            await execution.resolve(Waits.go, number)
            if await execution.join() != number + 1:
                raise AssertionError(f"{execution.id} was told something else")
            taken.append(perf_counter() - began)
    place.results.add_durations("W6", place.variant, "resolve to result", taken, **meter.per(count))


async def idle(place: Place) -> None:
    """W8: what a runner costs that has nothing to do."""
    if not place.runners:
        return  # what the client costs would be in it
    await asyncio.sleep(UNTIL_IDLE)
    async with place.metered() as meter:
        await asyncio.sleep(IDLE * min(1.0, place.options.scale))
    [runner] = place.runners
    place.add(
        "W8",
        "statements",
        meter.statements() / meter.seconds,
        "a second",
        seconds=round(meter.seconds, 1),
        cpu_runner_s=round(meter.cores()["runner"] * meter.seconds, 3),
        cpu_postgres_s=round(meter.cores()["postgres"] * meter.seconds, 3),
        memory_mb=round(resident_mb(runner), 1),
    )
