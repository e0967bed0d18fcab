"""Steps that leave their end to somebody outside, who has their token."""

import asyncio
from datetime import timedelta

import pytest

from engine import (
    ExecutionFailed,
    JournalKind,
    Outcome,
    RetryPolicy,
    Status,
    Transaction,
    Workflow,
    activity,
    transaction,
)
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World
from tests.workflow.pay import Pay, Receipt, asked

NEVER = RetryPolicy(attempts=1)


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_a_step_is_completed_from_outside_by_its_token(world: World, how: str) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, how)
        token = await asked(world, cluster, pay)
        assert await cluster.client.complete(token, Receipt(payment="p-1", cents=5))
        assert await execution.join() == "p-1: 5"
        assert not await cluster.client.complete(token, {"payment": "p-2", "cents": 5})
        kinds = [event.kind for event in await execution.history()]
    assert kinds == [JournalKind.POSTPONED, JournalKind.STEP, JournalKind.STEP]
    assert token.replace("-", "").replace("_", "").isalnum()


async def test_of_many_completions_the_first_wins(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "race")
        token = await asked(world, cluster, pay)
        given = [{"payment": f"p-{n}", "cents": n} for n in range(5)]
        first = await asyncio.gather(*(cluster.client.complete(token, each) for each in given))
        assert first.count(True) == 1
        assert await execution.join() == f"p-{first.index(True)}: {first.index(True)}"


async def test_a_step_that_waits_is_suspended_and_not_run_again_by_crashes(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "wait")
        token = await asked(world, cluster, pay)
        for _ in range(3):

            async def suspended() -> bool:
                return (await execution.describe()).status is Status.SUSPENDED

            await world.until(cluster, suspended)
            assert cluster.runner.resident == 0
            await cluster.crash()
        assert "the completion of step charge#1" in (await execution.describe()).why
        assert await cluster.client.complete(token, {"payment": "p-1", "cents": 1})
        assert await execution.join() == "p-1: 1"
    assert pay.tokens == [token]


async def test_a_completion_that_comes_first_waits_for_its_attempt(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "early")
        token = await asked(world, cluster, pay)
        assert await cluster.client.complete(token, {"payment": "p-1", "cents": 1})
        await cluster.crash()
        again = await asked(world, cluster, pay, attempts=2)
        pay.told.set()
        assert await execution.join() == "p-1: 1"
    assert again == token, "the same attempt, since nothing of it had been durable"


async def test_its_time_out_is_a_durable_timer() -> None:
    pay = Pay()
    async with TestCluster(pay) as cluster:
        execution = await cluster.client.start(Pay, "limited")
        await cluster.advance(timedelta(minutes=50))
        await cluster.crash()
        await cluster.advance(timedelta(minutes=9))
        assert len(pay.tokens) == 1
        await cluster.crash()
        await cluster.advance(timedelta(minutes=2))
        assert len(pay.tokens) == 2, "the next attempt"
        assert await cluster.client.complete(pay.tokens[0], {"payment": "late", "cents": 1})
        await cluster.advance(timedelta(minutes=50))
        assert await cluster.client.complete(pay.tokens[1], {"payment": "p-2", "cents": 2})
        assert await execution.join(timedelta(seconds=1)) == "p-2: 2"
        outcomes = [e.outcome for e in await execution.history() if e.kind is JournalKind.ATTEMPT]
    assert outcomes == [Outcome.TIMED_OUT]


async def test_when_nobody_completes_any_attempt_the_step_has_timed_out() -> None:
    pay = Pay()
    async with TestCluster(pay) as cluster:
        execution = await cluster.client.start(Pay, "limited")
        await cluster.advance(timedelta(hours=2, minutes=1))
        with pytest.raises(ExecutionFailed, match="no completion within 3600 s"):
            await execution.join(timedelta(seconds=1))


async def test_a_body_that_waits_no_longer_drops_a_late_completion() -> None:
    pay = Pay()
    async with TestCluster(pay) as cluster:
        execution = await cluster.client.start(Pay, "cancel")
        await cluster.advance(timedelta(seconds=30))
        await cluster.crash()
        await cluster.advance(timedelta(seconds=31))
        assert await execution.join(timedelta(seconds=1)) == "nobody paid"
        assert not await cluster.client.complete(pay.tokens[0], {"payment": "p-1", "cents": 1})


class Many(Workflow[int, int]):
    """As many charges at once as it is asked for."""

    def __init__(self) -> None:
        self.tokens: dict[int, str] = {}

    async def execute(self, request: int) -> int:
        return sum(await asyncio.gather(*(self.charge(n) for n in range(request))))

    @activity(timeout=timedelta(days=3))
    def charge(self, cents: int) -> int:
        self.tokens[cents] = self.token
        self.complete_later()


async def test_a_hundred_steps_that_wait_take_no_thread_and_outlive_crashes(world: World) -> None:
    many = Many()
    async with world.cluster(many) as cluster, asyncio.timeout(50):
        execution = await cluster.client.start(Many, 100)

        async def all_wait() -> bool:
            return (await execution.describe()).status is Status.SUSPENDED

        await world.until(cluster, all_wait)
        assert len(many.tokens) == 100
        for half in (range(50), range(50, 100)):
            await asyncio.gather(*(cluster.client.complete(many.tokens[n], n) for n in half))
            await cluster.crash()
        assert await execution.join() == sum(range(100))


class Book(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        await self.write()
        return "written"

    @transaction(retry=NEVER)
    async def write(self, tx: Transaction) -> None:
        self.complete_later()


async def test_a_transaction_cannot_be_completed_from_outside() -> None:
    async with TestCluster(Book()) as cluster:
        with pytest.raises(ExecutionFailed, match=r"complete_later\(\) is for activities"):
            await cluster.client.execute(Book, "b-1")


async def test_a_runner_that_stops_leaves_the_wait_to_the_next(dsn: str) -> None:
    pay = Pay()
    async with TestCluster(pay, dsn=dsn) as first:
        execution = await first.client.start(Pay, "wait", key="w-1")
        await eventually(lambda: pay.tokens)
    async with TestCluster(pay, dsn=dsn) as second, asyncio.timeout(40):
        await second.client.complete(pay.tokens[0], {"payment": "p-1", "cents": 1})
        assert await second.client.execution(Pay, execution.id).join() == "p-1: 1"
    assert len(pay.tokens) == 1
