"""Processes that produce and take a stream, for tests that kill them.

``stream_process runner`` serves until it is told to leave, and says READY when it owns shards.
``stream_process consumer KEY COUNT`` prints each number that it takes, ``listener COUNT PAUSE``
those of a volatile stream, and blocks so many seconds at the first. Settings come from
``OUTLAST_…`` variables.
"""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator

from engine import Client, Entity, Runner, Settings, rpc


class Numbers(Entity):
    """Counts; ``resumed`` goes on from where it was, ``counted`` starts again."""

    @rpc
    async def counted(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @rpc(persisted=False)
    async def told(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    @rpc(resumable=True)
    async def resumed(self, count: int) -> AsyncIterator[int]:
        for number in range(self.next_sequence, count):
            yield number


async def serve() -> None:
    runner = Runner(Settings()).register(Numbers())
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(runner.run())
        while not runner.epochs:  # noqa: ASYNC110 it tells nobody
            await asyncio.sleep(0.02)
        print("READY", flush=True)  # noqa: T201 the test reads it
        await serving


async def consume(key: str, count: int) -> None:
    async with Client(Settings()) as client:
        async for number in client.entity(Numbers, "n", key=key).counted(count):
            print(number, flush=True)  # noqa: T201 the test reads it


async def listen(count: int, pause: float) -> None:
    async with Client(Settings()) as client:
        async for number in client.entity(Numbers, "n").told(count):
            print(number, flush=True)  # noqa: T201 the test reads it
            if number == 0:
                time.sleep(pause)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    match sys.argv[1:]:
        case ["runner"]:
            asyncio.run(serve())
        case ["consumer", key, count]:
            asyncio.run(consume(key, int(count)))
        case ["listener", count, pause]:
            asyncio.run(listen(int(count), float(pause)))
        case other:
            sys.exit(f"what is {other}?")
