"""``crash_at_every_step``: the same end wherever the runner dies, and honest reports where not."""

import asyncio
import threading
from datetime import timedelta

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    Entity,
    Execution,
    ExecutionFailed,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.testing import TestCluster, crash_at_every_step, stub


class Stock(Entity):
    @rpc
    async def reserve(self, count: int) -> str:
        return f"hold {count}"

    @rpc
    async def release(self, hold: str) -> None:
        pass


class Part(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        await self.sleep(timedelta(hours=1))
        return request * 2


class Order(Workflow[int, str]):
    """Something of everything."""

    approved = Deferred(bool)

    def __init__(self) -> None:
        self.charged: list[str] = []

    async def execute(self, request: int) -> str:
        stock = self.entity(Stock, "sku")
        hold = await stock.reserve(request)
        self.compensate(stock.release, hold)
        approved = await self.approved.wait(timeout=timedelta(days=2))
        doubled = await self.run_child(Part, request)
        await asyncio.gather(self.charge(doubled), self.sleep(timedelta(days=30)))
        await self.record(doubled)
        if not approved:
            raise PermissionError("not approved")
        return hold

    @activity
    async def charge(self, cents: int) -> int:
        self.charged.append(self.idempotency_key)
        return cents

    @transaction
    async def record(self, tx: Transaction, cents: int) -> None:
        await tx.execute("insert into payments values ($1)", cents)


def recorded(cents: int) -> None:
    pass


async def approve(cluster: TestCluster, execution: Execution[str]) -> None:
    assert await execution.resolve(Order.approved, True)


async def refuse(cluster: TestCluster, execution: Execution[str]) -> None:
    assert await execution.resolve(Order.approved, False)


async def test_the_end_is_the_same_wherever_the_runner_dies() -> None:
    crashes: list[str | None] = []
    repeated = 0
    async for outcome in crash_at_every_step(
        Order(), 3, Stock(), Part(), drive=approve, stubs=[stub(Order.record).by(recorded)]
    ):
        crashes.append(outcome.crash)
        assert outcome.result == "hold 3", outcome
        assert len(set(outcome.workflow.charged)) == 1, outcome
        repeated += len(outcome.workflow.charged) > 1

    assert crashes[:3] == [None, "before write 1", "after write 1"]
    assert len(crashes) > 15
    assert repeated  # a crash did fall between the step and its row


async def test_a_failure_with_compensations_is_the_same_too() -> None:
    async for outcome in crash_at_every_step(
        Order(), 3, Stock(), Part(), drive=refuse, stubs=[stub(Order.record).by(recorded)]
    ):
        names = [event.name for event in outcome.history]
        assert "Stock.release" in names, outcome
        with pytest.raises(ExecutionFailed, match="not approved"):
            assert outcome.result


class Careless(Workflow[int, int]):
    """Whose effect is not idempotent."""

    def __init__(self) -> None:
        self.sent = list[int]()

    async def execute(self, request: int) -> int:
        return await self.send(request)

    @activity
    async def send(self, number: int) -> int:
        self.sent.append(number)
        return len(self.sent)


async def test_an_effect_that_happens_twice_shows() -> None:
    results = {outcome.result async for outcome in crash_at_every_step(Careless(), 1)}

    assert results == {1, 2}


class Locked(Careless):
    name = "Careless"

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


async def test_what_cannot_be_copied_is_made_by_a_function() -> None:
    with pytest.raises(ConfigurationError, match="give a function that makes it"):
        async for _ in crash_at_every_step(Locked(), 1):
            pass

    results = [each.result async for each in crash_at_every_step(Locked, 1)]
    assert set(results) == {1, 2}


async def test_more_places_than_the_limit_are_said() -> None:
    with pytest.raises(ConfigurationError, match="more than 1 places"):
        async for _ in crash_at_every_step(Careless(), 1, limit=1):
            pass


async def test_a_run_that_waits_for_somebody_says_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    class Waits(Workflow[int, int]):
        answer = Deferred(int)

        async def execute(self, request: int) -> int:
            return await self.answer.wait()

    monkeypatch.setattr("engine.testing.crashes._STILL", 0.05)
    with pytest.raises(BaseExceptionGroup) as raised:
        async for _ in crash_at_every_step(Waits(), 1):
            pass
    assert "waits for deferred answer" in str(raised.value.exceptions[0])
