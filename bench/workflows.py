"""What is measured: steps, timers, streams and calls that do nothing but make the engine work, or
compute if they are told to."""

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from time import process_time

from bench.spans import note_if_told
from engine import Deferred, Entity, Queue, State, Workflow, activity, rpc

COMPUTES = "BENCH_STEPS_COMPUTE"
"""In a runner's environment: for how many seconds of processor time each of these steps does."""
COMPUTED = float(os.environ.get(COMPUTES, "0"))


class Steps(Workflow[int, int]):
    """That many steps, one after the other."""

    async def execute(self, request: int) -> int:
        total = 0
        for number in range(request):
            total += await self.step(number)
        return total

    @activity
    async def step(self, number: int) -> int:
        if COMPUTED:
            until = process_time() + COMPUTED
            while process_time() < until:
                continue
        return number


class Parent(Workflow[int, int]):
    """That many children of one step, all at once."""

    async def execute(self, request: int) -> int:
        key = self.execution_id
        children = (self.run_child(Steps, 1, key=f"{key}-{n}") for n in range(request))
        return len(await asyncio.gather(*children))


class Waits(Workflow[int, int]):
    """Until it is told a number."""

    go = Deferred(int)

    async def execute(self, request: int) -> int:
        return request + await self.go.wait()


class Sleeps(Workflow[float, None]):
    """For that many seconds."""

    async def execute(self, request: float) -> None:
        await self.sleep(timedelta(seconds=request))


class Beats(Workflow[int, None]):
    """A step after the other, each of so many milliseconds, until it is terminated."""

    async def execute(self, request: int) -> None:
        while True:
            await self.beat(request)

    @activity
    async def beat(self, milliseconds: int) -> None:
        await asyncio.sleep(milliseconds / 1000)


class Feed(Entity):
    """Streams of numbers."""

    @rpc
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @rpc(persisted=False)
    async def passing(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


class Counter(Entity):
    """Counts its calls, durably; says what it is told."""

    state = State(int)

    @rpc
    async def add(self) -> int:
        self.state += 1
        return self.state

    @rpc
    async def say(self, number: int) -> int:
        return number

    @rpc(persisted=False)
    async def whisper(self, number: int) -> int:
        return number


class Free(Queue[int, int]):
    """Items without a limit."""

    async def process(self, item: int) -> int:
        return item


class Limited(Free):
    """Items of twenty keys, within limits in all and per key."""

    concurrency = 200
    per_key = 20

    @classmethod
    def key(cls, item: int) -> str:
        return str(item % 20)


def served() -> list[
    Workflow[int, int] | Workflow[int, None] | Workflow[float, None] | Entity | Free
]:
    """All of it, for a runner."""
    note_if_told()
    return [
        Steps(), Parent(), Waits(), Sleeps(), Beats(), Feed(), Counter(), Free(), Limited()
    ]  # fmt: skip
