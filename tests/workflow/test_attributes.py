"""Attributes that a running body sets, and executions that are found by them and by their error."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import Deferred, ExecutionFailed, InvalidPayload, RetryPolicy, Workflow, activity
from tests.workflow.conftest import World


class Ship(Workflow[str, str]):
    go = Deferred(str)

    async def execute(self, request: str) -> str:
        self.set_attributes({"stage": "packing", "carrier": "pigeon", "box": None})
        await self.weigh()
        await self.go.wait()
        self.set_attributes({"stage": "sent", "carrier": None, "size": {"cm": [1, 2]}})
        if request == "again":
            await self.continue_as_new("last")
        return request

    @activity
    async def weigh(self) -> int:
        return 1


class Breaks(Workflow[str, None]):
    async def execute(self, request: str) -> None:
        if request == "body":
            raise KeyError(request)
        await self.step()

    @activity(retry=RetryPolicy(attempts=1))
    async def step(self) -> None:
        raise ConnectionError("away")


async def found(cluster: Any, **filter: Any) -> list[str]:
    return sorted([each.id async for each in cluster.client.executions(**filter)])


async def test_a_body_changes_what_it_is_found_by_and_a_replay_changes_nothing(
    world: World,
) -> None:
    async with world.cluster(Ship()) as cluster, asyncio.timeout(40):
        given = {"box": "blue", "stage": "new", "order": 7}
        execution = await cluster.client.start(Ship, "x", key="o", attributes=given)

        async def packing() -> bool:
            return await found(cluster, attributes={"stage": "packing"}) == ["o"]

        await world.until(cluster, packing)
        assert await found(cluster, attributes={"box": "blue"}) == []
        await cluster.crash()
        await execution.resolve(Ship.go, "now")
        await world.result(cluster, execution)
        info = await execution.describe()
        by_size = await found(cluster, attributes={"size": {"cm": [2]}}, workflow=Ship)
    assert info.attributes == {"order": 7, "stage": "sent", "size": {"cm": [1, 2]}}
    assert by_size == ["o"]


async def test_attributes_stay_when_it_continues_as_new_and_when_it_sleeps(world: World) -> None:
    async with world.cluster(Ship()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Ship, "again", key="o")
        await execution.resolve(Ship.go, "now")
        assert await world.result(cluster, execution) == "last"
        info = await execution.describe()
    assert info.attributes == {"stage": "sent", "size": {"cm": [1, 2]}}
    assert info.run == 2


async def test_what_is_no_json_is_refused_where_it_is_set(world: World) -> None:
    class Wrong(Workflow[str, None]):
        async def execute(self, request: str) -> None:
            value: object = {"set": {1}, "nul": "a\0b"}[request]
            self.set_attributes({"x": value})

    async with world.cluster(Wrong()) as cluster, asyncio.timeout(40):
        for request in ("set", "nul"):
            execution = await cluster.client.start(Wrong, request, key=request)
            with pytest.raises(ExecutionFailed, match=InvalidPayload.__name__):
                await execution.join()


async def test_failed_ones_are_found_by_what_failed_them(world: World) -> None:
    async with world.cluster(Breaks(), Ship()) as cluster, asyncio.timeout(40):
        for request in ("body", "step"):
            execution = await cluster.client.start(Breaks, request, key=request)
            with pytest.raises(ExecutionFailed):
                await execution.join()
            await world.until(cluster, execution.describe)  # time goes on
        info = await execution.describe()
        assert await found(cluster, error="KeyError") == ["body"]
        assert await found(cluster, error="ConnectionError", workflow=Breaks) == ["step"]
        assert await found(cluster, error="ConnectionError", workflow=Ship) == []
        after = info.created_at - timedelta(microseconds=1)
        assert await found(cluster, started_after=after) == ["step"]
        assert "step" not in await found(cluster, started_before=info.created_at)
