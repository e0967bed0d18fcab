"""Replies to an execution that waits for a place must not keep others from what came after them."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import Deferred, Workflow, activity
from engine.testing import TestCluster
from tests.eventually import eventually

CHILDREN = 360


class Child(Workflow[int, int]):
    gate: asyncio.Event

    async def execute(self, request: int) -> int:
        return await self.wait(request)

    @activity
    async def wait(self, number: int) -> int:
        await self.gate.wait()
        return number


class Parent(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        await asyncio.gather(*(self.run_child(Child, n, key=f"c{n}") for n in range(request)))
        return request


class Hog(Workflow[int, int]):
    go = Deferred(int)
    told: list[int]

    async def execute(self, request: int) -> int:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.hear())
            group.create_task(self.long())
        return request

    async def hear(self) -> None:
        self.told.append(await self.go.wait())

    @activity
    async def long(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"dsn": request.getfixturevalue("dsn")} if request.param == "postgres" else {}


async def test_others_hear(where: dict[str, Any]) -> None:
    child, hog = Child(), Hog()
    child.gate, hog.told = asyncio.Event(), []
    options: dict[str, Any] = {
        **where,
        "max_resident_executions": CHILDREN + 10,
        "suspend_after": timedelta(seconds=0.3),
        "grace_period": timedelta(seconds=1),
    }
    async with TestCluster(Parent(), child, hog, **options) as cluster:

        async def until(condition: Any) -> None:
            async def looked() -> object:
                if not where:
                    await cluster.advance(timedelta(milliseconds=200))
                return await condition()

            await eventually(looked, timeout=20)

        parent = await cluster.client.start(Parent, CHILDREN, key="p")

        async def suspended() -> bool:
            asleep = (await parent.describe()).status.name == "SUSPENDED"
            return asleep and cluster.runner.resident == CHILDREN

        await until(suspended)
        hogs = [await cluster.client.start(Hog, n, key=f"h{n}") for n in range(10)]

        async def full() -> bool:
            return cluster.runner.resident == CHILDREN + 10

        await until(full)
        await asyncio.gather(
            *(cluster.client.start(Hog, n, key=f"q{n}") for n in range(CHILDREN + 20))
        )
        if not where:
            await cluster.advance(timedelta(seconds=1))
        await asyncio.sleep(1)
        child.gate.set()
        await asyncio.sleep(3)
        await hogs[1].resolve(Hog.go, 2)
        await eventually(lambda: 2 in hog.told, timeout=8)
