"""W11 and Q1, Q2: elements of streams, calls of entities, and items of queues."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter

from bench.place import Place
from bench.process import within
from bench.workflows import Counter, Feed, Free, Limited
from engine import Queue

CHUNKS = 50_000
CALLS, ENTITIES, AT_ONCE = 10_000, 200, 1000
ALONE = 300
ITEMS = 5000


async def streams_and_calls(place: Place) -> None:
    """W11: stored and volatile."""
    feed, counters = place.client.entity(Feed, place.keys()), _Counters(place)
    await _stream(place, "stored", feed.numbers)
    await _stream(place, "volatile", feed.passing)
    await _calls(place, "stored", counters.say)
    await _calls(place, "volatile", counters.whisper)


class _Counters:
    """Calls of many entities, one after the other."""

    def __init__(self, place: Place) -> None:
        series = place.keys()
        self._entities = [place.client.entity(Counter, f"{series}-{n}") for n in range(ENTITIES)]

    async def say(self, number: int) -> int:
        return await self._entities[number % ENTITIES].say(number)

    async def whisper(self, number: int) -> int:
        return await self._entities[number % ENTITIES].whisper(number)


async def _stream(place: Place, sort: str, numbers: Callable[[int], AsyncIterator[int]]) -> None:
    """One stream, taken as fast as it comes."""
    count, taken = place.options.sized(CHUNKS), 0
    async with place.metered() as meter, asyncio.timeout(300):
        async for number in numbers(count):
            if number != taken:
                raise AssertionError(f"chunk {taken} is {number}")
            taken += 1
    if taken != count:
        raise AssertionError(f"{taken} chunks of {count}")
    rate = count / meter.seconds
    place.add("W11", f"{sort} stream", rate, "chunks/s", n=count, **meter.per(count, "chunk"))


async def _calls(place: Place, sort: str, call: Callable[[int], Awaitable[int]]) -> None:
    """Many calls at a time, then one."""
    count = place.options.sized(CALLS)
    left = iter(range(count))

    async def some() -> None:
        for number in left:
            if await call(number) != number:
                raise AssertionError(f"call {number} has the answer of another")

    async with place.metered() as meter, asyncio.timeout(300), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(some())
    rate, more = count / meter.seconds, meter.per(count, "call")
    place.add("W11", f"{sort} calls", rate, "calls/s", n=count, **more)
    taken: list[float] = []
    for number in range(place.options.sized(ALONE)):
        began = perf_counter()
        await call(number)
        taken.append(perf_counter() - began)
    place.results.add_durations("W11", place.variant, f"{sort} call alone", taken)


async def free_items(place: Place) -> None:
    """Q1: items of a queue, all submitted at once and all awaited."""
    await _items(place, "Q1", Free)


async def limited_items(place: Place) -> None:
    """Q2: the same within limits."""
    await _items(place, "Q2", Limited)


async def _items(place: Place, workload: str, queue: type[Queue[int, int]]) -> None:
    count = place.options.sized(ITEMS)

    async def submitted() -> list[int]:
        items = await asyncio.gather(*(place.client.submit(queue, n) for n in range(count)))
        return await asyncio.gather(*(item.join() for item in items))

    async with place.metered() as meter:
        answers = await within(300, submitted(), what="all items")
    if answers != list(range(count)):
        raise AssertionError("an item has the answer of another")
    rate = count / meter.seconds
    place.add(workload, "throughput", rate, "items/s", n=count, **meter.per(count, "item"))
