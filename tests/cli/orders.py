"""A small app for the tests of the command line: it is registered, copied and run as it stands."""

import asyncio
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel

from engine import Deferred, Entity, RetryPolicy, Workflow, activity, rpc


class Order(BaseModel):
    id: str
    cents: int = 100


class Stock(Entity):
    @rpc
    async def reserve(self, count: int) -> str:
        return f"hold-{count}"


class Fulfil(Workflow[Order, str]):
    """Waits for an approval, then charges, which works at the second try."""

    approved = Deferred(bool)

    async def execute(self, request: Order) -> str:
        hold = await self.entity(Stock, "blue").reserve(1)
        if not await self.approved.wait(timeout=timedelta(days=2)):
            raise PermissionError(request.id)
        return f"{hold}, {await self.charge(request.cents)}"

    @activity(retry=RetryPolicy(initial=timedelta(milliseconds=10)))
    async def charge(self, cents: int) -> str:
        if self.attempt == 1:
            raise ConnectionError("the gateway is away")
        return f"paid {cents}"


class Broken(Workflow[str, str]):
    """Fails."""

    async def execute(self, request: str) -> str:
        return await self.explode(request)

    @activity(retry=RetryPolicy(attempts=1))
    async def explode(self, what: str) -> str:
        raise ValueError(f"cannot {what}")


class Slow(Workflow[float, str]):
    """Has a step that takes so many seconds."""

    async def execute(self, request: float) -> str:
        return await self.work(request)

    @activity
    async def work(self, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"


class Held(Workflow[str, str]):
    """Has a step that says with one file that it runs, and ends when there is another."""

    async def execute(self, request: str) -> str:
        return await self.hold(request)

    @activity
    async def hold(self, folder: str) -> str:
        Path(folder, "begun").touch()
        while not Path(folder, "end").exists():  # noqa: ASYNC110 another process makes it
            await asyncio.sleep(0.01)
        return "done"


app = [Fulfil(), Stock(), Broken(), Slow(), Held()]
