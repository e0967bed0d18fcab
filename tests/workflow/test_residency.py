"""A runner that may keep two executions in memory gets all of them through."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import Deferred, Workflow, activity
from engine.testing import TestCluster


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "memory" else {"dsn": request.getfixturevalue("dsn")}


class Watched(Workflow[int, int]):
    go = Deferred(bool)

    def __init__(self) -> None:
        self.most: list[int] = [0]
        self.running: list[int] = [0]

    @classmethod
    def key(cls, request: int) -> str:
        return f"w-{request}"

    async def execute(self, request: int) -> int:
        first = await self.work(request)
        await self.sleep(timedelta(milliseconds=50))
        assert await self.go.wait()
        return first + await self.work(request)

    @activity
    async def work(self, n: int) -> int:
        self.running[0] += 1
        self.most[0] = max(self.most[0], self.running[0])
        await asyncio.sleep(0.001)
        self.running[0] -= 1
        return n


@pytest.mark.parametrize("suspend_after", [timedelta(0), timedelta(seconds=30)])
async def test_fifty_executions_get_through_two_places(
    where: dict[str, Any], suspend_after: timedelta
) -> None:
    watched = Watched()
    options = {**where, "max_resident_executions": 2, "suspend_after": suspend_after}
    async with TestCluster(watched, **options) as cluster:
        executions = [await cluster.client.start(Watched, n) for n in range(50)]
        await asyncio.gather(*(each.resolve(Watched.go, True) for each in executions))
        joins = asyncio.gather(*(each.join() for each in executions))
        for _ in range(5000):
            if joins.done() or "dsn" in where:
                break
            await cluster.settle()
            await cluster.advance(timedelta(milliseconds=50))
        async with asyncio.timeout(40):
            assert await joins == [2 * n for n in range(50)]
        assert cluster.runner.resident <= 2
    assert watched.most[0] <= 2
