"""Results of several MiB, and errors with all they have to say, on their way through."""

import asyncio
import hashlib

import pytest

from engine import (
    ErrorDetails,
    ExecutionFailed,
    RetryPolicy,
    StepFailed,
    Workflow,
    activity,
    signal,
)
from tests.workflow.conftest import World

MIB = 1 << 20
NEVER = RetryPolicy(attempts=1)


def text(megabytes: int, seed: str = "a") -> str:
    """A text that does not compress well."""
    block = "".join(hashlib.sha256(f"{seed}{n}".encode()).hexdigest() for n in range(MIB // 64))
    return block * megabytes


def digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


class Part(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request + await self.more()

    @activity
    async def more(self) -> str:
        return text(2, "more")


class Whole(Workflow[int, str]):
    def __init__(self) -> None:
        self.told: list[str] = []

    async def execute(self, request: int) -> str:
        self.told = []
        first = await self.make(request)
        parts = await asyncio.gather(*(self.run_child(Part, first) for _ in range(2)))
        await self.wait_until(lambda: len(self.told) == 2)
        return "".join([first, *parts, *self.told])

    @activity
    def make(self, megabytes: int) -> str:
        return text(megabytes)

    @signal
    def tell(self, what: str) -> None:
        self.told.append(what)


async def test_large_values_go_through_steps_children_and_signals(world: World) -> None:
    async with world.cluster(Whole(), Part()) as cluster, asyncio.timeout(55):
        execution = await cluster.client.start(Whole, 3)
        told = [text(2, "one"), text(2, "two")]
        await execution.signal(Whole.tell, told[0])
        await cluster.crash()
        await execution.signal(Whole.tell, told[1])
        part = text(3) + text(2, "more")
        assert digest(await execution.join()) == digest("".join([text(3), part, part, *told]))


class Declined(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"declined with {code}")
        self.details = {"code": code, "again": [1, 2]}


class Charge(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        try:
            return await self.charge()
        except StepFailed as error:
            if request == "catch":
                return _told(error.error)
            raise

    @activity(retry=NEVER)
    def charge(self) -> str:
        try:
            raise ConnectionError("the bank hung up")
        except ConnectionError as error:
            raise Declined(51) from error


class Shop(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.run_child(Charge, request)


def _told(error: ErrorDetails | None) -> str:
    assert error is not None
    assert error.cause is not None
    assert "in charge" in error.traceback
    return f"{error.type}: {error.message} {error.details} < {error.cause}"


DECLINED = (
    "Declined: declined with 51 {'code': 51, 'again': [1, 2]} < ConnectionError: the bank hung up"
)


async def test_an_error_keeps_all_it_says_on_its_way_to_the_body(world: World) -> None:
    async with world.cluster(Charge()) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Charge, "catch") == DECLINED


async def test_an_error_keeps_all_it_says_through_a_child_a_parent_and_a_crash(
    world: World,
) -> None:
    async with world.cluster(Charge(), Shop()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Shop, "raise")
        with pytest.raises(ExecutionFailed):
            await execution.join()
        await cluster.crash()
        with pytest.raises(ExecutionFailed) as failed:
            await execution.join()
    found: ErrorDetails | None = failed.value.error
    while found is not None and found.type != "Declined":
        found = found.cause
    assert _told(found) == DECLINED
