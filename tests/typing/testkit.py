"""What the type checkers see of the test kit."""

from datetime import timedelta
from typing import assert_type

from engine import Execution, Transaction, Workflow, activity, transaction
from engine.testing import CrashOutcome, TestCluster, crash_at_every_step, replay, stub


class Pay(Workflow[int, str]):
    async def execute(self, request: int) -> str:
        await self.record("x")
        return await self.charge(request, currency="EUR") + await self.read(request)

    @activity
    async def charge(self, cents: int, currency: str = "USD") -> str:
        return f"{cents} {currency}"

    @activity(timeout=timedelta(seconds=1))
    def read(self, cents: int) -> str:
        return str(cents)

    @transaction
    async def record(self, tx: Transaction, payment: str) -> int:
        return len(payment)


async def paid(cents: int, currency: str = "USD") -> str:
    return f"{cents} {currency}"


def read(cents: int) -> str:
    return str(cents)


def recorded(payment: str) -> int:
    return 1


async def approve(cluster: TestCluster, execution: Execution[str]) -> None:
    await cluster.advance(timedelta(days=1))
    await execution.interrupt()


async def run() -> None:
    stubs = [
        stub(Pay.charge).by(paid),
        stub(Pay.record).by(lambda payment: 1),
        stub(Pay.read).by(read),
        stub(Pay.record).by(recorded),
    ]
    async with TestCluster(Pay(), stubs=stubs, suspend_after=timedelta(0)) as cluster:
        execution = await cluster.client.start(Pay, 1)
        await replay(await execution.history(), Pay())
    async for outcome in crash_at_every_step(Pay(), 1, drive=approve, stubs=stubs):
        assert_type(outcome, CrashOutcome[str])
        assert_type(outcome.result, str)
    async for outcome in crash_at_every_step(Pay, 1):
        assert_type(outcome.result, str)
