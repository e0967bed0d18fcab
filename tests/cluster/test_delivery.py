"""Rows that come for a shard that is being given away."""

import asyncio
from datetime import timedelta

import pytest

from engine import Entity, rpc
from engine.storage.memory_lane import MemoryLane
from engine.testing import TestCluster


class Slow(Entity):
    concurrency = 0

    def __init__(self, go: asyncio.Event) -> None:
        self.go = go

    @rpc
    async def wait(self, number: int) -> int:
        await self.go.wait()
        return number


async def test_they_are_read_once_and_left_to_the_next_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sweeps = 0
    sweep = MemoryLane.sweep

    async def counted(self: MemoryLane, *args: object, **options: object) -> object:
        nonlocal sweeps
        sweeps += 1
        return await sweep(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryLane, "sweep", counted)
    go = asyncio.Event()
    limit = timedelta(minutes=1)
    async with TestCluster(Slow(go), shards_per_group=1, lanes=1, handover_limit=limit) as cluster:
        incarnation = cluster.runner._incarnation
        assert incarnation is not None
        entity = cluster.client.entity(Slow, "s")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(entity.wait(0))
            await cluster.settle()
            released = group.create_task(incarnation.delivery.release(cluster.runner.epochs))
            await cluster.settle()
            others = [group.create_task(entity.wait(n)) for n in range(1, 2500)]
            for _ in range(1000):
                await asyncio.sleep(0)
            before = sweeps
            for _ in range(1000):
                await asyncio.sleep(0)
            assert sweeps - before < 10
            go.set()
            await released
            await cluster.settle()
        assert [task.result() for task in (first, *others)] == list(range(2500))
