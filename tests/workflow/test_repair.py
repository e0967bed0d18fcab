"""Repair: executions that failed, were ended or are blocked go on, and fork from a step."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from engine import (
    AlreadyStarted,
    ConfigurationError,
    Deferred,
    Entity,
    ExecutionFailed,
    JournalKind,
    NotFound,
    PayloadConflict,
    RetryPolicy,
    Status,
    Workflow,
    activity,
    rpc,
)
from engine.testing import TestCluster
from tests.workflow.conftest import World

ONCE = RetryPolicy(attempts=1)


class Outside:
    """The world: what was done, and what is out of order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.keys: list[str] = []
        self.broken = {"charge"}


class Shelf(Entity):
    @rpc
    async def take(self, count: int) -> str:
        return f"hold-{count}"


class Pack(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return f"packed {request}"


class Fulfil(Workflow[str, str]):
    go = Deferred(str)

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    async def execute(self, request: str) -> str:
        lucky = self.random().randrange(10**9)
        hold = await self.entity(Shelf, "s").take(1)
        parcel = await self.run_child(Pack, f"{request} {lucky}")
        first = await self.note(request)
        if "undo" in request:
            self.compensate(self.undo, first)
        paid = await self.charge(request)
        return f"{hold}, {parcel}, {paid}, {self.random().randrange(10**9)}"

    @activity(retry=ONCE)
    async def note(self, what: str) -> str:
        self.outside.done.append(what)
        return what

    @activity(retry=ONCE)
    async def charge(self, what: str) -> str:
        self.outside.keys.append(self.idempotency_key)
        if "charge" in self.outside.broken:
            raise ConnectionError("the bank is closed")
        return f"paid {what}"

    @activity(retry=ONCE)
    async def undo(self, what: str) -> str:
        if "undo" in self.outside.broken:
            raise ConnectionError("cannot undo")
        self.outside.done.append(f"not {what}")
        return what


async def test_a_failed_execution_goes_on_from_its_last_good_step(world: World) -> None:
    outside = Outside()
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Fulfil, "tea", key="o")
        with pytest.raises(ExecutionFailed, match="the bank is closed"):
            await execution.join()
        await execution.retry()
        with pytest.raises(ExecutionFailed, match="the bank is closed"):
            await cluster.client.execution(Fulfil, "o").join()
        outside.broken.clear()
        await execution.retry()
        await cluster.crash()
        result = await execution.join()
        info = await execution.describe()
        again = await cluster.client.execute(Fulfil, "tea", key="o")
    assert result.startswith("hold-1, packed tea ")
    assert "paid tea" in result
    assert again == result
    assert (outside.done, len(set(outside.keys)), len(outside.keys)) == (["tea"], 1, 3)
    assert (info.status, info.run) == (Status.SUCCEEDED, 3)


async def test_one_that_failed_begins_again_when_it_is_started_so(world: World) -> None:
    outside = Outside()
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        client = cluster.client
        execution = await client.start(Fulfil, "tea undo", key="o", on_conflict="restart-failed")
        with pytest.raises(ExecutionFailed, match="the bank is closed"):
            await execution.join()
        await client.start(Fulfil, "tea undo", key="o")
        assert (await execution.describe()).status is Status.FAILED
        outside.broken.clear()
        with pytest.raises(PayloadConflict):
            await client.start(Fulfil, "coffee", key="o", on_conflict="restart-failed")
        both = await asyncio.gather(
            *(
                client.start(Fulfil, "tea undo", key="o", on_conflict="restart-failed")
                for _ in range(2)
            )
        )
        await cluster.crash()
        results = await asyncio.gather(*(each.join() for each in both))
        await client.start(Fulfil, "tea undo", key="o", on_conflict="restart-failed")
        info = await execution.describe()
        history = await execution.history()
    assert results[0] == results[1]
    assert "paid tea" in results[0]
    assert (info.status, info.run) == (Status.SUCCEEDED, 2)
    assert len(set(outside.keys)) == 2  # the second run is a new one for the bank as well
    assert [event.name for event in history if event.kind is JournalKind.REPAIRED] == ["restart"]


async def test_what_ran_out_of_time_has_as_much_again_when_it_is_retried(world: World) -> None:
    class Waits(Workflow[str, str]):
        go = Deferred(str)

        async def execute(self, request: str) -> str:
            return await self.go.wait()

    async with world.cluster(Waits()) as cluster, asyncio.timeout(40):
        limit = timedelta(seconds=0.5)
        execution = await cluster.client.start(Waits, "a", key="a", timeout=limit)
        for again in ("retry", "restart"):
            with pytest.raises(ExecutionFailed, match="time"):
                await world.result(cluster, execution)
            if again == "retry":
                await execution.retry()
            else:
                await cluster.client.start(
                    Waits, "a", key="a", timeout=timedelta(hours=1), on_conflict="restart-failed"
                )
        await execution.resolve(Waits.go, "in time")
        assert await execution.join() == "in time"


async def test_a_restart_is_no_part_of_a_transaction(dsn: str) -> None:
    async with TestCluster(Pack(), dsn=dsn) as cluster:
        connection = await asyncpg.connect(dsn)
        try:
            with pytest.raises(ConfigurationError, match="restart-failed"):
                await cluster.client.start(
                    Pack, "a", key="a", on_conflict="restart-failed", connection=connection
                )
        finally:
            await connection.close()


async def test_what_was_interrupted_or_terminated_goes_on_too(world: World) -> None:
    class Waits(Workflow[str, str]):
        go = Deferred(str)

        async def execute(self, request: str) -> str:
            await self.step()
            return await self.go.wait()

        @activity
        async def step(self) -> None: ...

    async with world.cluster(Waits()) as cluster, asyncio.timeout(40):
        for end in ("interrupt", "terminate"):
            execution = await cluster.client.start(Waits, end, key=end)

            async def stepped(execution: Any = execution) -> bool:
                return bool(await execution.history())

            await world.until(cluster, stepped)
            await getattr(execution, end)("by mistake")
            with pytest.raises(Exception, match="by mistake"):
                await execution.join()
            await execution.retry()
            await execution.resolve(Waits.go, "after all")
            assert await execution.join() == "after all"


async def test_one_whose_compensations_have_run_is_not_retried(world: World) -> None:
    outside = Outside()
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Fulfil, "undo tea", key="o")
        with pytest.raises(ExecutionFailed):
            await execution.join()
        with pytest.raises(ConfigurationError, match="its compensations have run"):
            await execution.retry()
    assert outside.done == ["undo tea", "not undo tea"]


async def test_a_compensation_that_failed_is_named_and_tried_again(world: World) -> None:
    outside = Outside()
    outside.broken.add("undo")
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Fulfil, "undo tea", key="o")

        async def blocked() -> bool:
            info = await execution.describe()
            return info.status is Status.BLOCKED and "cannot undo" in info.why

        await world.until(cluster, blocked)
        await execution.retry()

        async def blocked_again() -> bool:
            return (await execution.describe()).run == 2 and await blocked()

        await world.until(cluster, blocked_again)
        await cluster.crash()
        await world.until(cluster, blocked)
        outside.broken.discard("undo")
        await execution.retry()
        with pytest.raises(ExecutionFailed, match="the bank is closed"):
            await execution.join()
    assert outside.done == ["undo tea", "not undo tea"]


async def test_what_succeeded_or_goes_on_needs_no_retry(world: World) -> None:
    async with world.cluster(Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pack, "x")
        await execution.join()
        with pytest.raises(NotFound, match="has ended well"):
            await execution.retry()


async def test_a_fork_repeats_nothing_before_its_step_whatever_its_request(
    world: World,
) -> None:
    outside = Outside()
    outside.broken.clear()
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Fulfil, "tea", key="o")
        result = await execution.join()
        fork = await execution.fork("charge", key="o-2")
        await cluster.crash()
        assert await fork.join() == result
        assert await execution.join() == result
        second = await fork.fork("charge", key="o-3", request="coffee")
        assert "packed tea" in await second.join()
        assert "paid coffee" in await second.join()
        with pytest.raises(AlreadyStarted):
            await execution.fork("charge", key="o-2")
        with pytest.raises(NotFound, match=r"no step 'chrge'; it has Shelf\.take, Pack, note, "):
            await execution.fork("chrge", key="o-4")
        history = await fork.history()
    assert outside.done == ["tea"]
    assert len(set(outside.keys)) == 3
    assert history[0].kind is JournalKind.REPAIRED


async def test_a_fork_from_the_beginning_takes_another_request(world: World) -> None:
    outside = Outside()
    outside.broken.clear()
    async with world.cluster(Fulfil(outside), Shelf(), Pack()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Fulfil, "tea", key="o")
        await execution.join()
        fork = await execution.fork(0, key="o-2", request="coffee")
        assert "paid coffee" in await fork.join()
    assert outside.done == ["tea", "coffee"]


async def test_children_of_a_retried_run_are_its_own_again(world: World) -> None:
    outside = Outside()

    class Parent(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            one = await self.run_child(Pack, "one")
            return one + ", " + await self.run_child(Fulfil, request)

    async with (
        world.cluster(Parent(), Fulfil(outside), Shelf(), Pack()) as cluster,
        asyncio.timeout(40),
    ):
        parent = await cluster.client.start(Parent, "tea", key="p")
        with pytest.raises(ExecutionFailed, match="Fulfil/Parent/p/1 failed"):
            await parent.join()
        outside.broken.clear()
        await parent.retry()
        await cluster.crash()
        assert "packed one, hold-1" in await parent.join()
        children = [each async for each in cluster.client.executions(parent=parent.request_id)]
    assert sorted(f"{each.workflow}/{each.id}" for each in children) == [
        "Fulfil/Parent/p/1",
        "Fulfil/Parent/p/2.1",
        "Pack/Parent/p/1",
    ]
