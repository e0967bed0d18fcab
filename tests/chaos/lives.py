"""What lives in a chaos run: executions, accounts, streams and items whose ends tell what they had.

Served and called by ``tests.chaos.lives_app``.
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from pydantic import BaseModel

from engine import (
    Deferred,
    Entity,
    Queue,
    RetryPolicy,
    State,
    Transaction,
    Workflow,
    activity,
    rpc,
    signal,
    transaction,
    update,
)
from tests.chaos.app import Outside


class Plan(BaseModel):
    id: str
    number: int
    pause: float


class Told(BaseModel):
    """What an execution has had: the result of a life."""

    heard: list[int]
    added: list[int]
    value: int
    drawn: str
    booked: int


class Account(Entity):
    """Keeps the names of all that it was sent, in order; a reply says how many that are."""

    book = State(list[str])

    @rpc
    async def add(self, name: str) -> int:
        self.book.append(name)
        return len(self.book)

    @rpc(persisted=False)
    async def poke(self, name: str) -> int:
        self.book.append(name)
        return len(self.book)

    @rpc(persisted=False, readonly=True)
    async def peek(self) -> list[str]:
        return self.book

    @rpc
    async def count(self, number: int) -> AsyncIterator[int]:
        for n in range(number):
            await asyncio.sleep(0.01)
            yield n


class Lots(Queue[str, str]):
    concurrency = 8

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    async def process(self, item: str) -> str:
        insert = "insert into touched values ($1, 'process', $2)"
        await self.outside.write(insert, item, self.idempotency_key)
        return item.upper()


class Life(Workflow[Plan, Told]):
    """One step of each kind, then messages until it is told to go."""

    go = Deferred(int)

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    @classmethod
    def key(cls, request: Plan) -> str:
        return request.id

    async def execute(self, request: Plan) -> Told:
        self.heard, self.added = list[int](), list[int]()
        drawn = f"{self.random().random()} {self.uuid()}"
        self.compensate(self.record, "undo")
        await self.touch(drawn)
        await self.record("first")
        due = self.now() + timedelta(seconds=request.pause)
        await self.sleep(timedelta(seconds=request.pause))
        await self.wake(due.isoformat())
        booked = await self.entity(Account, f"of {request.id}").add("life")
        value = await self.go.wait()
        await self.record("last")
        return Told(heard=self.heard, added=self.added, value=value, drawn=drawn, booked=booked)

    @signal
    def hear(self, number: int) -> None:
        self.heard.append(number)

    @update
    async def add(self, number: int) -> int:
        await self.record(f"add {number}")
        self.added.append(number)
        return sum(self.added)

    @activity
    async def touch(self, drawn: str) -> None:
        insert = "insert into touched values ($1, $2, $3)"
        await self.outside.write(insert, self.execution_id, drawn, self.idempotency_key)

    @activity
    async def wake(self, due: str) -> None:
        insert = "insert into woken (execution, due) values ($1, $2::text::timestamptz)"
        await self.outside.write(insert, self.execution_id, due)

    # Without end: what the database refuses to a step is the step's own affair, and a fault here.
    @transaction(retry=RetryPolicy(attempts=0, maximum=timedelta(seconds=2)))
    async def record(self, tx: Transaction, step: str) -> None:
        await tx.execute("insert into effects values ($1, $2)", self.execution_id, step)


class LifeV2(Life):
    """What a later deploy runs: the same life in another order, with a step more. Neither version
    can go on with the journal of the other."""

    name = "Life"
    version = 2

    async def execute(self, request: Plan) -> Told:
        self.heard, self.added = list[int](), list[int]()
        drawn = f"{self.random().random()} {self.uuid()}"
        self.compensate(self.record, "undo")
        booked = await self.entity(Account, f"of {request.id}").add("life")
        await self.record("first")
        due = self.now() + timedelta(seconds=request.pause)
        await self.sleep(timedelta(seconds=request.pause))
        await self.wake(due.isoformat())
        await self.look_back()
        value = await self.go.wait()
        await self.touch(drawn)
        await self.record("last")
        return Told(heard=self.heard, added=self.added, value=value, drawn=drawn, booked=booked)

    @activity
    async def look_back(self) -> int:
        return self.version
