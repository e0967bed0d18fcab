"""A runner that has more to do than it can: who asks for little is not behind who asks for much."""

import asyncio
from typing import Any

import pytest

from engine import Execution, ExecutionInterrupted, Pending, Workflow, activity, query
from engine.testing import TestCluster

pytestmark = pytest.mark.timeout(120)


class Steps(Workflow[int, int]):
    """So many steps, one after the other."""

    async def execute(self, request: int) -> int:
        return sum([await self.step(number) for number in range(request)])

    @activity
    async def step(self, number: int) -> int:
        return 1


class Waits(Workflow[str, str]):
    def __init__(self) -> None:
        self.begun = False

    async def execute(self, request: str) -> str:
        self.begun = True
        await self.wait_until(lambda: False)
        return "not reached"

    @query
    def has_begun(self) -> bool:
        return self.begun


async def started(cluster: TestCluster, *, steps: int, number: int) -> list[Execution[int]]:
    starts = [cluster.client.start(Steps, steps, key=f"{steps}/{n}") for n in range(number)]
    return await asyncio.gather(*starts)


async def still_going(executions: list[Execution[int]]) -> bool:
    outcomes = [await each.poll() for each in executions]
    return any(isinstance(outcome, Pending) for outcome in outcomes)


async def test_many_steps_end_while_small_executions_never_cease(where: dict[str, Any]) -> None:
    async with TestCluster(Steps(), **where) as cluster:
        ended = asyncio.Event()

        async def small(worker: int) -> int:
            count = 0
            while not ended.is_set():
                await cluster.client.execute(Steps, 1, key=f"small/{worker}/{count}")
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(small(worker)) for worker in range(100)]
            assert await cluster.client.execute(Steps, 100, key="large") == 100
            ended.set()
    assert all(worker.result() for worker in workers)


async def test_a_small_execution_ends_while_large_ones_are_under_way(where: dict[str, Any]) -> None:
    async with TestCluster(Steps(), **where) as cluster:
        large = await started(cluster, steps=300, number=50)
        assert await cluster.client.execute(Steps, 1, key="small") == 1
        assert await still_going(large)
        assert await asyncio.gather(*(each.join() for each in large)) == [300] * 50


async def test_a_runner_that_is_behind_answers_queries_and_obeys_interrupts(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Steps(), Waits(), **where) as cluster:
        waiting = await cluster.client.start(Waits, "for nothing")
        large = await started(cluster, steps=300, number=50)
        assert await waiting.query(Waits.has_begun)
        assert cluster.runner.health().ready
        await waiting.interrupt("no longer")
        with pytest.raises(ExecutionInterrupted, match="no longer"):
            await waiting.join()
        assert await still_going(large)
        assert await asyncio.gather(*(each.join() for each in large)) == [300] * 50
