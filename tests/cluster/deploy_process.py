"""A runner process with the code of some versions, which leaves on SIGTERM: ``DSN 1 2``."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

from engine import Deferred, Runner, Settings, Workflow, activity


class Ship(Workflow[str, list[str]]):
    go = Deferred(bool)

    async def execute(self, request: str) -> list[str]:
        packed = await self.pack(request)
        await self.go.wait()
        return [packed, await self.send(request)]

    @activity
    async def pack(self, what: str) -> str:
        return f"pack {self.version}"

    @activity
    async def send(self, what: str) -> str:
        return f"send {self.version}"


class ShipV2(Ship):
    name = "Ship"
    version = 2

    async def execute(self, request: str) -> list[str]:
        weighed = await self.weigh(request)
        await self.go.wait()
        return [weighed, await self.send(request)]

    @activity
    async def weigh(self, what: str) -> str:
        return f"weigh {self.version}"


RESULTS = {1: ["pack 1", "send 1"], 2: ["weigh 2", "send 2"]}


def settings(dsn: str) -> Settings:
    return Settings(
        dsn=dsn,
        shards_per_group=12,
        suspend_after=timedelta(milliseconds=50),
        heartbeat_interval=timedelta(milliseconds=200),
        time_to_live=timedelta(seconds=5),
    )


async def serve(dsn: str, versions: Sequence[str]) -> None:
    codes = {"1": Ship(), "2": ShipV2()}
    await Runner(settings(dsn)).register(*(codes[each] for each in versions)).run()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2:]))
