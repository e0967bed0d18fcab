"""A workflow whose steps leave their end to somebody outside, for the tests of that."""

import asyncio
from datetime import timedelta
from typing import Any

import pydantic

from engine import JournalKind, RetryPolicy, Workflow, activity
from engine.testing import TestCluster
from tests.workflow.conftest import World

SOON = RetryPolicy(attempts=2, initial=timedelta(milliseconds=1), jitter=0)


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
