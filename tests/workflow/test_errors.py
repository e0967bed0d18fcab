"""Errors of steps and executions: final ones, ones that say when, and ones that keep their type."""

import asyncio
import logging
from datetime import timedelta

import pydantic
import pytest

from engine import (
    ConfigurationError,
    ExecutionFailed,
    GiveUp,
    JournalKind,
    RetryLater,
    RetryPolicy,
    Workflow,
    activity,
)
from engine.testing import TestCluster
from tests.workflow.conftest import World

HOUR = timedelta(hours=1)


@pydantic.dataclasses.dataclass
class OutOfStock(Exception):
    sku: str
    left: int


class Buy(Workflow[str, str]):
    raises = (OutOfStock,)

    async def execute(self, request: str) -> str:
        try:
            return await self.take("tea")
        except OutOfStock as error:
            if "catch" in request:
                return f"{type(error.__cause__).__name__}: {error.left} {error.sku}"
            raise

    @activity(retry=RetryPolicy(give_up_on=(OutOfStock,)))
    async def take(self, sku: str) -> str:
        raise OutOfStock(sku=sku, left=2)


class Shop(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        try:
            return await self.run_child(Buy, request)
        except OutOfStock as error:
            return f"told of {error.left} {error.sku}"


async def test_a_declared_error_comes_from_its_step_as_itself(world: World) -> None:
    async with world.cluster(Buy()) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Buy, "catch") == "StepFailed: 2 tea"


async def test_a_declared_error_comes_to_the_joiner_and_the_parent_as_itself(world: World) -> None:
    async with world.cluster(Buy(), Shop()) as cluster, asyncio.timeout(40):
        with pytest.raises(OutOfStock) as caught:
            await cluster.client.execute(Buy, "raise")
        assert (caught.value.sku, caught.value.left) == ("tea", 2)
        assert isinstance(caught.value.__cause__, ExecutionFailed)
        assert "take" in caught.value.__cause__.error.traceback
        assert await cluster.client.execute(Shop, "raise") == "told of 2 tea"


def test_an_error_without_fields_is_refused_where_it_is_registered() -> None:
    class Wrong(Workflow[str, str]):
        raises = (KeyError,)

    with pytest.raises(ConfigurationError, match=r"Wrong.raises names KeyError.*dataclass"):
        TestCluster(Wrong()).runner.register(Wrong())


class Tries(Workflow[str, int]):
    def __init__(self) -> None:
        self.attempts = 0

    async def execute(self, request: str) -> int:
        return await self.step(request)

    @activity(retry=RetryPolicy(attempts=3, initial=timedelta(milliseconds=1)))
    async def step(self, what: str) -> int:
        if what == "give up":
            raise GiveUp("the card is blocked") from PermissionError("no")
        if self.attempt < 3:
            raise RetryLater(after=HOUR)
        return self.attempt


async def test_a_step_that_gives_up_is_not_tried_again(world: World) -> None:
    async with world.cluster(Tries()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Tries, "give up")
        with pytest.raises(ExecutionFailed, match="the card is blocked"):
            await execution.join()
        kinds = [event.kind for event in await execution.history()]
    assert kinds == [JournalKind.STEP]


async def test_an_error_says_when_the_next_attempt_may_come() -> None:
    async with TestCluster(Tries()) as cluster:
        execution = await cluster.client.start(Tries, "later")
        await cluster.advance(HOUR * 2 - timedelta(seconds=1))
        with pytest.raises(TimeoutError):
            await execution.join(timedelta(0))
        await cluster.crash()
        await cluster.advance(timedelta(seconds=1))
        assert await execution.join(timedelta(seconds=1)) == 3


class Flaky(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.call(request)

    @activity(retry=RetryPolicy(attempts=2))
    async def call(self, secret: str) -> str:
        raise ValueError(secret)


async def test_the_log_tells_of_failures_but_not_what_they_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "engine.workflow")
    async with TestCluster(Flaky()) as cluster:
        execution = await cluster.client.start(Flaky, "4111", key="f")
        await cluster.advance(HOUR)
        with pytest.raises(ExecutionFailed):
            await execution.join()

    told = [each for each in caplog.records if hasattr(each, "error")]
    assert [each.getMessage() for each in told] == [
        "a step failed, another attempt follows",
        "a step failed",
        "an execution fails: 'outlast show' says why",
    ]
    assert {each.__dict__["execution"] for each in told} == {"Flaky/f"}
    assert [each.__dict__.get("attempt") for each in told] == [1, 2, None]
    assert {each.__dict__["error"] for each in told} == {"ValueError"}
    assert not any("4111" in str(vars(each)) for each in caplog.records)


async def test_a_join_that_is_too_short_names_the_execution_and_goes_on() -> None:
    async with TestCluster(Flaky()) as cluster:
        execution = await cluster.client.start(Flaky, "x", key="f")
        with pytest.raises(TimeoutError, match=r"Flaky/f goes on, .*'outlast why Flaky/f'"):
            await execution.join(timeout=timedelta(milliseconds=1))
        await cluster.advance(HOUR)
        with pytest.raises(ExecutionFailed):
            await execution.join()
