"""Steps that leave their end to somebody outside, who has their token."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pydantic
import pytest

from engine import (
    ExecutionFailed,
    GiveUp,
    InvalidPayload,
    JournalKind,
    NotFound,
    Outcome,
    RetryPolicy,
    Status,
    Transaction,
    Workflow,
    activity,
    transaction,
)
from engine.testing import TestCluster
from engine.workflow.token import StepToken
from tests.eventually import eventually
from tests.workflow.conftest import World

SOON = RetryPolicy(attempts=2, initial=timedelta(milliseconds=1), jitter=0)
NEVER = RetryPolicy(attempts=1)


class Receipt(pydantic.BaseModel):
    payment: str
    cents: int


@pydantic.dataclasses.dataclass
class Refused(Exception):
    reason: str


class Pay(Workflow[str, str]):
    """Hands its tokens to ``tokens``, in the order of the attempts."""

    raises = (Refused,)

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.threads: list[str] = []
        self.told = asyncio.Event()

    async def execute(self, request: str) -> str:
        match request:
            case "thread":
                receipt = await self.charge_in_thread(5)
            case "limited":
                receipt = await self.charge_in_time(5)
            case "early":
                receipt = await self.charge_slowly(5)
            case "cancel":
                try:
                    async with asyncio.timeout(60):
                        receipt = await self.charge(5)
                except TimeoutError:
                    return await self.note("nobody paid")
            case _:
                receipt = await self.charge(5)
        return await self.note(f"{receipt.payment}: {receipt.cents}")

    @activity(retry=SOON)
    async def charge(self, cents: int) -> Receipt:
        self.tokens.append(self.token)
        self.complete_later()

    @activity(retry=SOON)
    def charge_in_thread(self, cents: int) -> Receipt:
        self.tokens.append(self.token)
        self.complete_later()

    @activity(retry=SOON, timeout=timedelta(hours=1))
    async def charge_in_time(self, cents: int) -> Receipt:
        self.tokens.append(self.token)
        self.complete_later()

    @activity(retry=SOON)
    async def charge_slowly(self, cents: int) -> Receipt:
        self.tokens.append(self.token)
        await self.told.wait()
        self.complete_later()

    @activity
    async def note(self, text: str) -> str:
        return text


async def asked(world: World, cluster: TestCluster, pay: Pay, *, attempts: int = 1) -> str:
    """The token of that attempt, once it has been handed out."""

    async def handed() -> bool:
        return len(pay.tokens) >= attempts

    await world.until(cluster, handed)
    return pay.tokens[attempts - 1]


async def postponed(world: World, cluster: TestCluster, execution: Any) -> None:
    async def journaled() -> bool:
        return any(e.kind is JournalKind.POSTPONED for e in await execution.history())

    await world.until(cluster, journaled)


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


async def test_a_failure_from_outside_is_followed_by_another_attempt(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "fail")
        first = await asked(world, cluster, pay)
        assert await cluster.client.fail(first, "the terminal was off")
        second = await asked(world, cluster, pay, attempts=2)
        await cluster.crash()
        assert not await cluster.client.complete(first, {"payment": "late", "cents": 1})
        assert await cluster.client.fail(second, ConnectionError("no route"))
        with pytest.raises(ExecutionFailed, match="no route") as failed:
            await execution.join()
        history = await execution.history()
    assert first != second
    assert failed.value.error.cause is not None
    assert failed.value.error.cause.type == "ConnectionError"
    assert [(e.kind, e.attempt, e.outcome) for e in history] == [
        (JournalKind.POSTPONED, 1, Outcome.OK),
        (JournalKind.ATTEMPT, 1, Outcome.FAILED),
        (JournalKind.POSTPONED, 2, Outcome.OK),
        (JournalKind.STEP, 2, Outcome.FAILED),
    ]


async def test_a_final_failure_from_outside_ends_the_step(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "give up")
        await cluster.client.fail(await asked(world, cluster, pay), GiveUp("card blocked"))
        with pytest.raises(ExecutionFailed, match="card blocked"):
            await execution.join()
    assert len(pay.tokens) == 1


async def test_a_declared_error_from_outside_comes_as_itself(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "refuse")
        for attempt in (1, 2):
            token = await asked(world, cluster, pay, attempts=attempt)
            await cluster.client.fail(token, Refused(reason="too dear"))
        with pytest.raises(Refused) as refused:
            await execution.join()
    assert refused.value.reason == "too dear"


async def test_a_value_of_another_type_fails_the_attempt_and_wedges_nothing(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "bad")
        first = await asked(world, cluster, pay)
        with pytest.raises(InvalidPayload):
            await cluster.client.complete(first, object())
        assert await cluster.client.complete(first, {"payment": "p-1", "cents": "many"})
        second = await asked(world, cluster, pay, attempts=2)
        assert await cluster.client.complete(second, {"payment": "p-2", "cents": 2})
        assert await execution.join() == "p-2: 2"
        (attempt,) = [e for e in await execution.history() if e.kind is JournalKind.ATTEMPT]
    assert "cents" in str(attempt.payload)


async def test_what_was_never_a_token_and_what_has_no_execution_is_refused(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        for text in ("", "Pay/o-1", "e30", "W10", "é"):
            with pytest.raises(InvalidPayload, match="is no token"):
                await cluster.client.complete(text, 1)
        execution = await cluster.client.start(Pay, "wait")
        token = await asked(world, cluster, pay)
        await postponed(world, cluster, execution)
        mine = StepToken.parse(token)
        with pytest.raises(NotFound):
            await cluster.client.complete(str(replace(mine, id="other")), 1)
        for wrong in (replace(mine, name="note"), replace(mine, attempt=7), replace(mine, run=9)):
            await cluster.client.complete(str(wrong), 1)
        assert await cluster.client.complete(token, {"payment": "p-1", "cents": 1})
        assert await execution.join() == "p-1: 1"


async def test_a_retried_execution_asks_anew(world: World) -> None:
    pay = Pay()
    async with world.cluster(pay) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Pay, "retry")
        first = await asked(world, cluster, pay)
        await cluster.client.fail(first, GiveUp("the shop was closed"))
        with pytest.raises(ExecutionFailed):
            await execution.join()
        await execution.retry()
        second = await asked(world, cluster, pay, attempts=2)
        assert second != first
        assert not await cluster.client.complete(first, {"payment": "late", "cents": 1})
        assert await cluster.client.complete(second, {"payment": "p-2", "cents": 2})
        assert await execution.join() == "p-2: 2"


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
