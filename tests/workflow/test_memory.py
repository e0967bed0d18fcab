"""What has left memory is gone at once, not when the garbage collector comes."""

import asyncio
import gc
from collections.abc import Iterator
from datetime import timedelta

import pytest

from engine import Deferred, Workflow, activity
from engine.testing import TestCluster
from engine.workflow.body import Body
from tests.eventually import eventually


class Plain(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        await asyncio.sleep(3600)
        return await self.work(request)

    @activity
    async def work(self, number: int) -> int:
        return number


class Asks(Workflow[int, int]):
    answer = Deferred(int)

    async def execute(self, request: int) -> int:
        return await self.work(request) + await self.answer.wait(timeout=timedelta(days=1))

    @activity
    async def work(self, number: int) -> int:
        return number


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def in_memory() -> int:
    return sum(type(each) is Body for each in gc.get_objects())


@pytest.mark.usefixtures("without_collector")
async def test_executions_that_have_ended_or_sleep_are_not_left_to_the_collector() -> None:
    before = in_memory()
    async with TestCluster(Plain(), Asks()) as cluster:
        for number in range(20):
            await cluster.client.start(Plain, number)
            await cluster.client.start(Asks, number)
        await cluster.advance(timedelta(minutes=1))
        await eventually(lambda: in_memory() == before)
        await cluster.advance(timedelta(hours=2))
        assert await cluster.client.execution(Plain, Plain.key(3)).join() == 3
        await eventually(lambda: in_memory() == before)
