"""Retention: what has ended is deleted in its time, in the background, and nothing else is."""

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    Entity,
    ExecutionFailed,
    NotFound,
    RetryPolicy,
    Runner,
    Settings,
    Status,
    Workflow,
    activity,
    rpc,
    signal,
)
from engine.storage.memory import Fault
from engine.testing import TestCluster
from tests.workflow.conftest import World

DAY = timedelta(days=1)


class Shelf(Entity):
    @rpc
    async def take(self, count: int) -> int:
        return count


class Brief(Workflow[str, str]):
    retention: ClassVar = {Status.SUCCEEDED: DAY, Status.FAILED: None}
    go = Deferred(str)

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def execute(self, request: str) -> str:
        await self.entity(Shelf, "s").take(1)
        await self.run_child(Part, request)
        if request == "fails":
            await self.fail()
        await self.wait_until(lambda: bool(self.heard))
        return await self.go.wait()

    @signal
    def say(self, word: str) -> None:
        self.heard.append(word)

    @activity(retry=RetryPolicy(attempts=1))
    async def fail(self) -> None:
        raise ValueError("no")


class Part(Workflow[str, str]):
    retention: ClassVar = {Status.SUCCEEDED: timedelta(hours=1)}

    async def execute(self, request: str) -> str:
        return request


class Subscription(Workflow[int, int]):
    """A run an hour, for ever."""

    retention: ClassVar = {Status.SUCCEEDED: DAY}

    async def execute(self, request: int) -> int:
        await self.entity(Shelf, "s").take(request)
        await self.sleep(timedelta(hours=1))
        await self.continue_as_new(request + 1)


def sizes(cluster: TestCluster) -> dict[str, int]:
    """How many rows each table of the in-memory database has."""
    assert cluster.database is not None
    rows: Any = cluster.database.rows
    executions = rows.executions
    return {
        "executions": len(executions.all()),
        "journal": sum(len(each) for each in executions._journal.values()),
        "envelopes": len(rows._envelopes),
        "dedup": len(rows._dedup),
        "replies": sum(len(each) for each in rows.replies._replies.values()),
    }


async def brief(cluster: TestCluster, key: str) -> None:
    execution = await cluster.client.start(Brief, "x", key=key)
    await execution.signal(Brief.say, "hi")
    await execution.resolve(Brief.go, "done")
    await execution.join()


async def test_tables_stay_flat_over_a_week_of_starts() -> None:
    prototypes = (Brief(), Part(), Shelf(), Subscription())
    async with TestCluster(*prototypes, retention=DAY) as cluster, asyncio.timeout(60):
        await cluster.client.start(Subscription, 0, key="subscription")
        after: list[dict[str, int]] = []
        for day in range(8):
            for hour in range(24):
                await brief(cluster, f"{day}-{hour}")
                await cluster.client.entity(Shelf, "s", key=f"{day}-{hour}").take(1)
                await cluster.advance(timedelta(hours=1))
            after.append(sizes(cluster))
    assert after[0]["executions"] >= 24
    for table, most in after[2].items():
        assert abs(after[7][table] - most) <= most * 0.15, (table, [each[table] for each in after])


async def test_each_end_is_kept_as_long_as_its_workflow_says() -> None:
    async with TestCluster(Brief(), Part(), Shelf()) as cluster, asyncio.timeout(30):
        client = cluster.client
        await brief(cluster, "good")
        failed = await client.start(Brief, "fails", key="bad")
        with pytest.raises(ExecutionFailed):
            await failed.join()
        waits = await client.start(Brief, "x", key="live")
        await cluster.advance(timedelta(hours=23))
        before = sorted([each.id async for each in client.executions(Brief)])
        children = [each.id async for each in client.executions(Part)]
        await cluster.advance(timedelta(days=400))
        left = sorted([each.id async for each in client.executions(Brief)])
        await waits.signal(Brief.say, "hi")
        await waits.resolve(Brief.go, "after all")
        assert await waits.join() == "after all"
        with pytest.raises(NotFound):
            await client.execution(Brief, "good").join()
        await brief(cluster, "good")
    assert (before, children, left) == (["bad", "good", "live"], [], ["bad", "live"])


def often(world: World) -> dict[str, Any]:
    interval = timedelta(seconds=1) if world.virtual else timedelta(milliseconds=50)
    return {"prune_interval": interval}


async def test_a_paused_parent_gets_the_answer_of_a_child_that_ended_long_ago(
    world: World,
) -> None:
    class Parent(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            child = await self.start_child(Slow, request)
            return await child.join()

    class Slow(Workflow[str, str]):
        retention: ClassVar = {Status.SUCCEEDED: timedelta(0)}
        go = Deferred(str)

        async def execute(self, request: str) -> str:
            return await self.go.wait()

    async with (
        world.cluster(Parent(), Slow(), **often(world)) as cluster,
        asyncio.timeout(40),
    ):
        client = cluster.client
        parent = await client.start(Parent, "x", key="p")

        async def children() -> list[str]:
            return [each.id async for each in client.executions(Slow)]

        await world.until(cluster, children)
        await parent.pause()
        await world.until(cluster, lambda: _paused(parent))
        (id,) = await children()
        await client.execution(Slow, id).resolve(Slow.go, "late")

        async def ended() -> bool:
            return (await client.execution(Slow, id).describe()).status.finished

        await world.until(cluster, ended)
        await cluster.crash()
        for _ in range(10):
            await (cluster.advance(timedelta(seconds=1)) if world.virtual else asyncio.sleep(0.02))
        assert await children() == [id]
        await parent.resume()
        assert await world.result(cluster, parent) == "late"

        async def pruned() -> bool:
            return not await children()

        await world.until(cluster, pruned)


async def _paused(execution: Any) -> bool:
    return (await execution.describe()).status is Status.PAUSED


async def test_what_is_pruned_at_once_was_done_whenever_the_runner_was_lost(world: World) -> None:
    done: list[int] = []

    class Gone(Workflow[int, int]):
        retention: ClassVar = {Status.SUCCEEDED: timedelta(0)}

        async def execute(self, request: int) -> int:
            await self.entity(Shelf, "s").take(request)
            return await self.note(request)

        @activity
        async def note(self, number: int) -> int:
            done.append(number)
            return number

    async with (
        world.cluster(Gone(), Shelf(), **often(world)) as cluster,
        asyncio.timeout(40),
    ):
        for number in range(6):
            if cluster.database is not None:
                cluster.fail_next_flush(Fault.AFTER_COMMIT, after=number)
            await cluster.client.start(Gone, number, key=f"{number}")
            await cluster.crash()

        async def none_left() -> bool:
            return not [each async for each in cluster.client.executions(Gone)]

        await world.until(cluster, none_left)
        with pytest.raises(NotFound):
            await cluster.client.execution(Gone, "0").describe()
        first = await cluster.client.start(Gone, 7, key="0")
        await world.until(cluster, none_left)
        with pytest.raises(NotFound, match="was pruned"):
            await first.join()
    assert set(done) == {0, 1, 2, 3, 4, 5, 7}


def test_a_retention_of_what_has_not_ended_is_refused() -> None:
    class Wrong(Workflow[int, int]):
        retention: ClassVar = {Status.RUNNING: DAY}

        async def execute(self, request: int) -> int:
            return request

    with pytest.raises(ConfigurationError, match="retention names running"):
        Runner(Settings(dsn="memory")).register(Wrong())
