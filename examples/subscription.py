"""A subscription: charged every month for years, changed and ended by signals.

``python examples/subscription.py`` lives through some very short months.
"""

import asyncio
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel

from engine import RetryPolicy, StepFailed, Workflow, activity, query, signal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import run_script, serving

Plan = Literal["basic", "plus"]
PRICES: dict[Plan, int] = {"basic": 900, "plus": 1900}


class Subscriber(BaseModel):
    """All that one month hands to the next."""

    customer: str
    plan: Plan = "basic"
    month: int = 1
    begins: datetime | None = None


class Bank(Protocol):
    """Charges a reference once at most."""

    async def charge(self, customer: str, cents: int, *, reference: str) -> None: ...


class Subscription(Workflow[Subscriber, str]):
    def __init__(self, bank: Bank, month: timedelta = timedelta(days=30)) -> None:
        self.bank = bank
        self.length = month

    @classmethod
    def key(cls, request: Subscriber) -> str:
        return request.customer

    async def execute(self, request: Subscriber) -> str:
        self.subscriber, self.ended = request, False
        begins = request.begins or self.now()
        try:
            await self.charge(request.customer, PRICES[request.plan], request.month)
        except StepFailed:
            return f"ended in month {request.month}: not paid"
        ends = begins + self.length  # counted from its begin, so that no month drifts
        if await self.wait_until(lambda: self.ended, timeout=ends - self.now()):
            return f"cancelled in month {request.month}"
        following = {"month": request.month + 1, "begins": ends}
        return await self.continue_as_new(self.subscriber.model_copy(update=following))

    @signal
    def change(self, plan: Plan) -> None:
        """From the next month on."""
        self.subscriber = self.subscriber.model_copy(update={"plan": plan})

    @signal
    def cancel(self) -> None:
        self.ended = True

    @query
    def current(self) -> Subscriber:
        return self.subscriber

    @activity(retry=RetryPolicy(attempts=4, initial=timedelta(days=1), maximum=timedelta(days=1)))
    async def charge(self, customer: str, cents: int, month: int) -> None:
        await self.bank.charge(customer, cents, reference=f"{customer}/{month}")


class Accounts:
    """A bank in this process."""

    def __init__(self, **cents: int) -> None:
        self.cents = cents
        self.charged: dict[str, int] = {}

    async def charge(self, customer: str, cents: int, *, reference: str) -> None:
        if reference in self.charged:
            return
        if self.cents[customer] < cents:
            raise ValueError(f"{customer} has less than {cents}")
        self.cents[customer] -= cents
        self.charged[reference] = cents


async def main() -> int:
    bank = Accounts(ada=10_000)
    async with serving("subscription", Subscription(bank, timedelta(seconds=0.5))) as client:
        execution = await client.start(Subscription, Subscriber(customer="ada"))
        await execution.signal(Subscription.change, "plus")
        await asyncio.sleep(1.2)
        print(await execution.query(Subscription.current))
        await execution.signal(Subscription.cancel)
        print(await execution.join())
    print(bank.charged)
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
