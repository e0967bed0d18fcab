"""What comes for a step from outside and is no result: errors, other types, wrong tokens."""

import asyncio
from dataclasses import replace

import pytest

from engine import ExecutionFailed, GiveUp, InvalidPayload, JournalKind, NotFound, Outcome
from engine.workflow.token import StepToken
from tests.workflow.conftest import World
from tests.workflow.pay import Pay, Refused, asked, postponed


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
