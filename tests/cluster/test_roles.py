"""A runner that logs in as a worker and a client that logs in as one do their whole job."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import asyncpg
import pytest

from engine import (
    Client,
    Cron,
    Deferred,
    Entity,
    NotGranted,
    Queue,
    Runner,
    Settings,
    State,
    Transaction,
    Workflow,
    activity,
    query,
    rpc,
    signal,
    transaction,
)
from engine.storage.rights import Kind
from tests.eventually import eventually
from tests.roles import role

ALSO = """
create table payments (cents int);
grant insert on payments to public;
"""


class Stock(Entity):
    held = State(int)

    @rpc
    async def reserve(self, count: int) -> int:
        self.held += count
        return self.held

    @rpc
    async def count(self) -> AsyncIterator[int]:
        for number in range(3):
            yield number

    @rpc(persisted=False)
    async def peek(self) -> str:
        return "volatile"


class Parcels(Queue[str, str]):
    async def process(self, item: str) -> str:
        return item.upper()


class Child(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request * 2


class Job(Workflow[int, list[object]]):
    approved = Deferred(bool)

    def __init__(self) -> None:
        self.told: list[str] = []

    @signal
    def tell(self, what: str) -> None:
        self.told = [*self.told, what]

    @query
    def hears(self) -> list[str]:
        return self.told

    async def execute(self, request: int) -> list[object]:
        first = await self.step(request)
        await self.sleep(timedelta(milliseconds=30))
        await self.wait_until(lambda: bool(self.told))
        child = await self.run_child(Child, request)
        parcel = await self.submit(Parcels, "a")
        stock = await self.entity(Stock, "blue").reserve(1)
        await self.pay(request)
        return [first, self.told, child, parcel, stock, await self.approved.wait()]

    @activity
    async def step(self, number: int) -> int:
        return number + 1

    @transaction
    async def pay(self, tx: Transaction, cents: int) -> None:
        await tx.execute("insert into payments values ($1)", cents)


class Often(Cron):
    schedule = "* * * * * *"
    ran = 0

    async def run(self, at: datetime) -> None:
        type(self).ran += 1


def settings(dsn: str) -> Settings:
    return Settings(dsn=dsn, suspend_after=timedelta(milliseconds=20), shards_per_group=4)


async def test_a_worker_and_a_client_do_their_whole_job(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(ALSO)
    await connection.close()
    Often.ran = 0
    with role(dsn, Kind.WORKER) as worker, role(dsn, Kind.CLIENT) as caller:
        async with Client(settings(caller)) as client:  # before there is any shard
            job = await client.start(Job, 7, key="j-1")
            await job.signal(Job.tell, "go")
            serves = Job(), Child(), Stock(), Parcels(), Often()
            async with Runner(settings(worker)).register(*serves):
                assert await job.query(Job.hears) == ["go"]
                assert await job.resolve(Job.approved, True)
                assert await job.join() == [8, ["go"], 14, "A", 1, True]
                blue = client.entity(Stock, "blue")
                assert await blue.reserve(1) == 2
                assert [each async for each in blue.count()] == [0, 1, 2]
                assert await blue.peek() == "volatile"
                parcel = await client.submit(Parcels, "b")
                assert await parcel.join() == "B"
                held = await client.start(Job, 1, key="j-2")
                await held.pause()
                await held.resume()
                await held.interrupt()
                await eventually(lambda: Often.ran)
                await _look(client)

                with pytest.raises(NotGranted, match="--as worker"):
                    await client.pause(Job)
                with pytest.raises(NotGranted, match="--as worker"):
                    await job.fork("step", key="j-3")


async def _look(client: Client) -> None:
    execution = client.execution(Job, "j-1")
    assert (await execution.describe()).why == "it succeeded"
    assert len(await execution.history()) > 5
    assert {each.id async for each in client.executions(workflow=Job)} == {"j-1", "j-2"}


async def test_a_client_does_not_become_a_runner(dsn: str) -> None:
    with role(dsn, Kind.CLIENT) as caller:
        runner = Runner(settings(caller)).register(Child())
        with pytest.raises(NotGranted, match="--as worker"):
            async with runner:
                pytest.fail("it became one")
