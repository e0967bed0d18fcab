"""A process that starts workflows and awaits them, as often as it is told on its standard input.

It says READY when it is connected and DONE after each ``[count, at_once]``.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from secrets import token_hex

from bench.workflows import Steps
from engine import Client


class Keys:
    """Keys that nobody has used: one used before would find the result of then."""

    def __init__(self) -> None:
        self._series, self._numbers = token_hex(4), count()

    def __call__(self) -> str:
        return f"{self._series}-{next(self._numbers)}"


async def run_one(client: Client, key: str, *, steps: int) -> None:
    result = await client.execute(Steps, steps, key=key)
    if result != sum(range(steps)):
        raise AssertionError(f"{key} gave {result}")


async def run_many(
    client: Client, keys: Callable[[], str], number: int, *, steps: int = 1, at_once: int = 0
) -> None:
    """So many workflows, all awaited: all at once, or so many at a time."""
    async with asyncio.timeout(300):
        await repeated(
            lambda: run_one(client, keys(), steps=steps),
            number,
            at_once=min(at_once, number) or number,
        )


async def repeated(work: Callable[[], Awaitable[object]], number: int, *, at_once: int) -> None:
    """Do it so many times, so many at a time."""
    left = iter(range(number))

    async def some() -> None:
        for _ in left:
            await work()

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(some())


async def main() -> None:
    async with Client() as client:
        keys = Keys()
        print("READY", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            number, at_once = json.loads(line)
            await run_many(client, keys, number, at_once=at_once)
            print("DONE", flush=True)


if __name__ == "__main__":
    from cli.serve import calm_collector, fastest_loop

    calm_collector()
    with asyncio.Runner(loop_factory=fastest_loop()) as loop:
        loop.run(main())
