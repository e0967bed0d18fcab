"""A queue whose class names another shard group moves once nothing is left in the former one."""

import asyncio
import logging
from datetime import timedelta

import pytest

from engine import ConfigurationError, Entity, Queue
from engine.storage.memory_database import MemoryDatabase
from engine.testing import TestCluster, VirtualClock
from tests.eventually import eventually
from tests.workflow.conftest import World

BOTH = ("default", "other")
BRIEF = timedelta(milliseconds=50)


class Jobs(Queue[str, str]):
    concurrency = 1

    def __init__(self) -> None:
        self.began: list[str] = []
        self.open = asyncio.Event()

    async def process(self, item: str) -> str:
        self.began.append(item)
        await self.open.wait()
        return item


class Moved(Jobs):
    name = "Jobs"
    shard_group = "other"


class Beside(Entity):
    """What a runner serves that is to get the queue later."""


def cluster_of(queue: Jobs | Beside, database: MemoryDatabase) -> TestCluster:
    return TestCluster(queue, database=database, groups=BOTH, grace_period=BRIEF)


async def test_a_queue_with_items_is_not_served_in_another_group(world: World) -> None:
    former, new = Jobs(), Moved()
    if world.virtual:
        world.options["database"] = MemoryDatabase(VirtualClock())
    async with world.cluster(former, groups=BOTH, grace_period=BRIEF) as cluster:
        await cluster.client.submit(Jobs, "runs")
        await cluster.client.submit(Jobs, "waits")
        await cluster.client.submit(Jobs, "tomorrow", delay=timedelta(days=1))
        await eventually(lambda: former.began == ["runs"])

    with pytest.raises(ConfigurationError, match="queue Jobs has 3 items in shard group default"):
        async with world.cluster(new, groups=BOTH):
            raise AssertionError
    assert new.began == []


async def test_a_queue_without_items_moves_to_another_group() -> None:
    database = MemoryDatabase(VirtualClock())
    former, new = Jobs(), Moved()
    former.open.set()
    async with cluster_of(former, database) as cluster:
        item = await cluster.client.submit(Jobs, "before")
        await item.join()
        await cluster.settle()
    async with cluster_of(new, database) as cluster:
        await cluster.client.submit(Moved, "after")
        await eventually(lambda: new.began == ["after"])
        info = await cluster.client.queue("Jobs").describe()
        assert (info.shard.group, info.running) == ("other", 1)

    with pytest.raises(ConfigurationError, match="1 item in shard group other"):
        async with cluster_of(former, database):
            raise AssertionError


async def test_nothing_is_admitted_in_a_group_while_another_still_has_the_queue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """During a deployment, and when the queue is registered with a runner that runs."""
    caplog.set_level(logging.WARNING)
    database = MemoryDatabase(VirtualClock())
    former, new = Jobs(), Moved()
    async with TestCluster(former, database=database) as old:
        await old.settle()
        async with TestCluster(Beside(), database=database, groups=("other",)) as late:
            late.runner.register(new)
            item = await late.client.submit(Moved, "new")
            await eventually(lambda: _said(caplog, "which serves it in group default"))
            await old.client.submit(Jobs, "old")
            await eventually(lambda: former.began == ["old"])
            assert new.began == []
            former.open.set()
            await old.settle()
            await old.__aexit__(None, None, None)
            await late.advance(timedelta(seconds=10))
            await eventually(lambda: new.began == ["new"])
            new.open.set()
            assert await item.join() == "new"


def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(words in str(vars(each).get("error")) for each in caplog.records)
