"""W1, W2, W4, W5: many workflows at once, many steps, many children."""

from time import perf_counter

from bench.driver import run_many
from bench.place import Place
from bench.results import percentile
from bench.workflows import Parent

MANY = 2000
LONGER, LONGER_STEPS = 500, 10
SEQUENTIAL = 500
CHILDREN = 200
PARENTS = 5


async def many_workflows(place: Place) -> None:
    """W1: all started at once, all awaited."""
    count = place.options.sized(MANY)
    async with place.metered() as meter:
        await run_many(place.client, place.keys, count)
    rate = count / meter.seconds
    place.add("W1", "throughput", rate, "workflows/s", n=count, **meter.per(count))


async def many_steps(place: Place) -> None:
    """W2: the same, of ten steps each."""
    count = place.options.sized(LONGER)
    async with place.metered() as meter:
        await run_many(place.client, place.keys, count, steps=LONGER_STEPS)
    steps = count * LONGER_STEPS
    more = meter.per(steps, "step")
    place.add("W2", "throughput", steps / meter.seconds, "steps/s", n=f"{count}x10", **more)


async def long_workflow(place: Place) -> None:
    """W4: one workflow, one step after the other."""
    steps = place.options.sized(SEQUENTIAL)
    async with place.metered() as meter:
        await run_many(place.client, place.keys, 1, steps=steps)
    more = meter.per(steps, "step")
    place.add("W4", "one step", meter.seconds / steps * 1000, "ms", n=steps, **more)


async def children(place: Place) -> None:
    """W5: a parent and its children, to the parent's result; one after the other."""
    count = place.options.sized(CHILDREN)
    taken: list[float] = []
    async with place.metered() as meter:
        for _ in range(PARENTS):
            began = perf_counter()
            if await place.client.execute(Parent, count, key=place.keys()) != count:
                raise AssertionError("a child is missing")
            taken.append(perf_counter() - began)
    more = meter.per(count * PARENTS, "child")
    place.add("W5", "parent's result", percentile(taken, 0.5), "s", n=count, **more)
