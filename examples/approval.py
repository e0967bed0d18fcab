"""Human approval: an expense waits for people, who are reminded every day.

``python examples/approval.py`` lets two managers approve one, and somebody try who is none.
"""

import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from engine import UpdateRejected, Workflow, activity, query, update

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import run_script, serving

LARGE = 50_000
DAYS = 5


class Expense(BaseModel):
    id: str
    by: str
    cents: int
    managers: list[str]


class State(BaseModel):
    approved: list[str]
    missing: int


class Approve(Workflow[Expense, str]):
    """Small expenses need one manager, large ones two. Nobody who answers in five days is a no."""

    def __init__(self, mail: Callable[[str, str], Awaitable[None]]) -> None:
        self.mail = mail

    @classmethod
    def key(cls, request: Expense) -> str:
        return request.id

    async def execute(self, request: Expense) -> str:
        self.expense, self.approved, self.refused = request, list[str](), list[str]()
        self.needed = 2 if request.cents >= LARGE else 1
        for day in range(DAYS):
            for manager in request.managers:
                if manager not in self.approved:
                    await self.ask(manager, f"{request.by}: {request.cents / 100:.2f}, day {day}")
            if await self.wait_until(self.decided, timeout=timedelta(days=1)):
                break
        if self.refused:
            return f"refused by {self.refused[0]}"
        return "approved" if self.decided() else "expired"

    def decided(self) -> bool:
        return bool(self.refused) or len(self.approved) >= self.needed

    @update
    def decide(self, manager: str, yes: bool) -> State:
        """Recorded once it is answered, also if this process dies in between."""
        (self.approved if yes else self.refused).append(manager)
        return self.state()

    @decide.validator
    def may_decide(self, manager: str, yes: bool) -> None:
        """What it raises goes to who asked, as ``UpdateRejected``, and leaves no trace."""
        if manager not in self.expense.managers:
            raise PermissionError(f"{manager} may not decide on this")
        if manager in self.approved:
            raise ValueError(f"{manager} has approved it already")
        if self.decided():
            raise ValueError("it is decided")

    @query
    def state(self) -> State:
        missing = 0 if self.decided() else self.needed - len(self.approved)
        return State(approved=self.approved, missing=missing)

    @activity
    async def ask(self, manager: str, question: str) -> None:
        await self.mail(manager, question)


async def by_print(to: str, text: str) -> None:
    print(f"to {to}: {text}")


async def main() -> int:
    expense = Expense(id="e-1", by="cleo", cents=120_000, managers=["ada", "bob"])
    async with serving("approval", Approve(by_print)) as client:
        execution = await client.start(Approve, expense)
        for manager in ("cleo", "ada", "bob"):
            try:
                print(manager, await execution.update(Approve.decide, manager, True))
            except UpdateRejected as error:
                print(f"refused: {error}")
        print(await execution.join(), await execution.query(Approve.state))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
