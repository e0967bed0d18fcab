"""A runner with a handler that nothing ends: ``stubborn_process DSN``; prints when it began."""

import asyncio
import sys
from contextlib import suppress
from datetime import timedelta

from engine import Entity, Runner, Settings, Singleton, SingletonContext, rpc


class Stubborn(Entity):
    @rpc
    async def work(self) -> None:
        print("begun", flush=True)  # noqa: T201 the test reads it
        while True:
            with suppress(BaseException):
                await asyncio.sleep(0.05)


class Starts(Singleton):
    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    async def run(self, context: SingletonContext) -> None:
        client = self.runner.client
        await client.tell(client.entity(Stubborn, "a").work)


async def serve(dsn: str) -> None:
    runner = Runner(Settings(dsn=dsn, shards_per_group=4, grace_period=timedelta(minutes=1)))
    await runner.register(Stubborn(), Starts(runner)).run()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
