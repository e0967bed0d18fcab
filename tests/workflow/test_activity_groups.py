"""Activities that several workflows have in common."""

import asyncio
from typing import Any

import pytest

from engine import ActivityGroup, ConfigurationError, RetryPolicy, Workflow, activity, signal
from engine.testing import TestCluster
from tests.workflow.conftest import World

NEVER = RetryPolicy(attempts=1)


class Payments(ActivityGroup):
    def __init__(self, currency: str) -> None:
        self.currency = currency

    @activity(retry=NEVER)
    async def charge(self, cents: int) -> str:
        return f"{cents} {self.currency} of {self.execution_id}, attempt {self.attempt}"


class Letters:
    """A group that asks nothing about its steps."""

    @activity
    def send(self, text: str) -> str:
        return f"sent: {text}"


class Fulfil(Payments, Letters, Workflow[int, str]):
    async def execute(self, request: int) -> str:
        return await self.send(await self.charge(request))


class Refund(Payments, Workflow[int, str]):
    async def execute(self, request: int) -> str:
        return await self.charge(-request)


async def test_workflows_share_the_activities_of_a_group(world: World) -> None:
    async with (
        world.cluster(Fulfil("CHF"), Refund("EUR")) as cluster,
        asyncio.timeout(40),
    ):
        execution = await cluster.client.start(Fulfil, 5, key="o-1")
        assert await execution.join() == "sent: 5 CHF of o-1, attempt 1"
        await cluster.client.start(Refund, 5, key="r-1")
        assert await cluster.client.execution(Refund, "r-1").join() == "-5 EUR of r-1, attempt 1"
        assert [e.name for e in await execution.history()] == ["charge", "send"]


def refused(*workflows: Workflow[Any, Any]) -> str:
    with pytest.raises(ConfigurationError) as error:
        TestCluster(*workflows).runner.register(*workflows)
    return str(error.value)


class Cards(ActivityGroup):
    @activity
    async def charge(self, cents: int) -> str:
        return "by card"


class Told:
    @signal
    def charge(self, cents: int) -> None: ...


class Naps:
    @activity
    async def sleep(self, seconds: int) -> None: ...


def test_two_groups_with_one_activity_are_refused_with_both_their_names() -> None:
    class Both(Cards, Payments, Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return await self.charge(request)

    why = refused(Both("CHF"))
    assert "gets 'charge' from Cards and from Payments, and one would hide the other's step" in why


async def test_a_workflow_may_say_which_of_two_it_means() -> None:
    class Either(Cards, Payments, Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return await self.charge(request)

        @activity
        async def charge(self, cents: int) -> str:
            return await (Cards if cents < 10 else Payments).charge(self, cents)

    async with TestCluster(Either("CHF")) as cluster:
        assert await cluster.client.execute(Either, 5) == "by card"
        assert (await cluster.client.execute(Either, 50)).startswith("50 CHF")


def test_a_group_and_a_method_of_another_kind_are_refused() -> None:
    class Mixed(Told, Cards, Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return ""

    class Plain(Cards, Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return await self.charge(request)

        async def charge(self, cents: int) -> str:  # type: ignore[override]
            return "not a step"

    assert "gets 'charge' from Told and from Cards" in refused(Mixed())
    assert "Plain.charge replaces a step of Cards and is none itself" in refused(Plain())


def test_two_names_in_the_journal_that_are_one_are_refused() -> None:
    class Same(Cards, Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return ""

        @activity(name="charge")
        async def pay(self, cents: int) -> str:
            return ""

    assert "has two steps named 'charge'" in refused(Same())


def test_a_group_behind_the_workflow_whose_activity_it_hides_is_refused() -> None:
    class Behind(Workflow[int, str], Naps):  # type: ignore[misc]
        async def execute(self, request: int) -> str:
            return ""

    assert "gets 'sleep' from Workflow and from Naps" in refused(Behind())
