"""Mistakes that the type checkers must find, each on a line that is marked, and on no other."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from pydantic import BaseModel

from engine import (
    Client,
    Cron,
    Deferred,
    Entity,
    Execution,
    Queue,
    RetryPolicy,
    Runner,
    Transaction,
    Workflow,
    WorkflowCron,
    activity,
    query,
    rpc,
    signal,
    transaction,
    update,
)
from engine.testing import TestCluster, crash_at_every_step, stub


class Order(BaseModel):
    id: str
    cents: int


class Stock(Entity):
    @rpc
    async def reserve(self, count: int, *, note: str = "") -> str:
        return note

    @rpc(name="drop")
    async def release(self, hold: str) -> None:
        return None

    @rpc  # expect-error
    def free(self) -> int:
        return 0

    @rpc
    async def counts(self, last: int) -> AsyncIterator[int]:
        yield last

    @rpc(resumable="yes")  # expect-error
    async def late(self) -> AsyncIterator[int]:
        yield 0


class Pay(Workflow[Order, int]):
    approved = Deferred(bool)
    limit = Deferred[int | None]()
    either = Deferred(int | None)  # expect-error

    @activity
    async def charge(self, cents: int) -> str:
        return str(cents)

    @activity(retry=RetryPolicy(attempts=2))
    def tally(self, words: list[str]) -> int:
        return len(words)

    @transaction
    async def record(self, tx: Transaction, payment: str) -> None:
        await tx.execute("select $1", payment)

    @activity(heartbeat_timeout=30)  # expect-error
    async def crawl(self, pages: int) -> int:
        self.heartbeat(pages, pages)  # expect-error
        return self.heartbeat_details  # expect-error

    @transaction  # expect-error
    async def forget(self, payment: str) -> None:
        return None

    @transaction  # expect-error
    def late(self, tx: Transaction) -> None:
        return None

    @activity(retry=5)  # expect-error
    async def again(self) -> None:
        return None

    @activity(timeout=5)  # expect-error
    async def timed(self) -> None:
        return None

    async def execute(self, request: Order) -> int:
        await self.charge("5")  # expect-error
        await self.charge()  # expect-error
        await self.charge(5, 6)  # expect-error
        await self.charge(amount=5)  # expect-error
        number: int = await self.charge(5)  # expect-error
        text: str = await self.tally(["a"])  # expect-error
        length: int = self.tally(["a"])  # expect-error
        await self.tally("a")  # expect-error
        await self.record(Transaction(), "p")  # expect-error
        await self.record(1)  # expect-error
        both = await asyncio.gather(self.charge(1), self.tally(["a"]))
        swapped: tuple[int, str] = both  # expect-error
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.tally(["a"]))
        word: str = task.result()  # expect-error
        print(number, text, length, swapped, word)
        return await self.from_outside()

    async def from_outside(self) -> int:
        stock = self.entity(Stock, "sku")
        await stock.reserve("1")  # expect-error
        await stock.reserve(1, "note")  # expect-error
        count: int = await stock.reserve(1)  # expect-error
        self.entity(Stock, 1)  # expect-error
        self.entity(Pay, "1")  # expect-error
        self.compensate(stock.release)  # expect-error
        self.compensate(stock.release, 1)  # expect-error
        self.compensate(stock.reserve, 1, notes="a")  # expect-error
        self.compensate(print, "a")  # expect-error
        await self.sleep(5)  # expect-error
        await self.approved.wait(timeout=5)  # expect-error
        approved: int | None = await self.limit.wait()
        limit: str = await self.limit.wait()  # expect-error
        self.attempt = 3  # expect-error
        print(count, approved, limit)
        return await self.approved.wait() + await self.limit.wait()  # expect-error


class Wrong(Workflow[Order, int]):
    async def execute(self, request: str) -> int:  # expect-error
        return 0


class Renamed(Workflow[Order, int]):
    async def execute(self, request: Order) -> str:  # expect-error
        return ""


class Nightly(Cron):
    schedule = 5  # expect-error
    overlap = "skip"  # expect-error
    catch_up = 60  # expect-error

    async def run(self, at: str) -> None:  # expect-error
        return None


class Reports(WorkflowCron[Order, int]):
    schedule = "0 6 * * *"
    workflow = Pay

    def request(self, at: datetime) -> str:  # expect-error
        return ""


class Mixed(WorkflowCron[str, int]):
    schedule = "0 6 * * *"
    workflow = Pay  # expect-error


async def schedules(client: Client) -> None:
    client.schedule(Pay)  # expect-error
    client.schedule(Nightly())  # expect-error
    await client.schedule(Nightly).trigger("once")  # expect-error
    await client.schedule(Nightly).backfill("yesterday", "today")  # expect-error
    Runner().register(Nightly)  # expect-error


async def clients(client: Client, order: Order) -> None:
    execution = await client.start(Pay, order)
    await client.start(Pay, "order")  # expect-error
    await client.start(Pay)  # expect-error
    await client.start(Pay, order, on_conflict="replace")  # expect-error
    await client.start(Pay, order, delay=5)  # expect-error
    await client.start(Stock, order)  # expect-error
    await client.start(Pay(), order)  # expect-error
    await client.execute(Pay, 1)  # expect-error
    result: str = await client.execute(Pay, order)  # expect-error
    other: Execution[str] = execution  # expect-error
    text: str = await execution.join()  # expect-error
    await execution.join(timeout=5)  # expect-error
    await execution.join(timedelta(seconds=5))
    await execution.resolve(Pay.approved, "yes")  # expect-error
    await execution.resolve(Pay.limit, "none")  # expect-error
    await execution.resolve(Pay.approved)  # expect-error
    await execution.resolve("approved", True)  # expect-error
    await execution.resolve(Pay.charge, True)  # expect-error
    await execution.reject(Pay.approved, ValueError("no"))  # expect-error
    print(result, other, text)


async def handles(client: Client) -> None:
    stock = client.entity(Stock, "sku")
    await stock.reserve("1")  # expect-error
    await stock.missing()  # expect-error
    count: int = await stock.reserve(1)  # expect-error
    await client.tell(stock.reserve)  # expect-error
    await client.tell(stock.reserve, "1")  # expect-error
    await client.tell(stock.reserve, 1, note=2)  # expect-error
    await client.tell(stock.release("h"))  # expect-error
    await client.tell(stock, "h")  # expect-error
    await stock.counts(1)  # expect-error
    await client.tell(stock.counts, 1)  # expect-error
    for _ in stock.counts(1):  # expect-error
        pass
    async for _ in stock.counts("1"):  # expect-error
        pass
    async for text in stock.counts(1):
        length: str = text  # expect-error
        print(length)
    client.entity(Stock, "sku", key=1)  # expect-error
    client.entity(Stock(), "sku")  # expect-error
    Runner().register(Pay)  # expect-error
    Runner().register("pay")  # expect-error
    print(count)


class Chat(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        await self.run_child(Pay, "not an order")  # expect-error
        number: int = await self.run_child(Chat, "x")  # expect-error
        await self.start_child(Chat, "x", on_parent_close="forget")  # expect-error
        await self.wait_until("open")  # expect-error
        if number:
            await self.continue_as_new(1)  # expect-error
        return str(number)

    @signal
    async def say(self, text: str) -> None: ...

    @query
    def last(self, number: int) -> str:
        return str(number)

    @update
    async def add(self, text: str) -> int:
        return len(text)


async def open_chat(client: Client) -> None:
    client.with_start(Chat, 1)  # expect-error
    await client.with_start(Chat, "room").signal(Chat.say)  # expect-error
    text: str = await client.with_start(Chat, "room").update(Chat.add, "x")  # expect-error
    print(text)


async def talk(chat: Execution[str]) -> None:
    await chat.signal(Chat.say)  # expect-error
    await chat.signal(Chat.say, 1)  # expect-error
    await chat.signal("say", "hi")  # expect-error
    text: str = await chat.update(Chat.add, "x")  # expect-error
    await chat.query(Chat.last, "2")  # expect-error
    print(text)


class Bill(Workflow[int, str]):
    async def execute(self, request: int) -> str:
        return await self.charge(request)

    @activity
    async def charge(self, cents: int) -> str:
        return str(cents)


async def charged(cents: str) -> str:
    return cents


async def counted(cents: int) -> int:
    return cents


async def bill() -> None:
    stub(Bill.charge).by(charged)  # expect-error
    stub(Bill.charge).by(counted)  # expect-error
    stub(Bill.charge).by(str.upper)  # expect-error
    TestCluster(Bill)  # expect-error
    crash_at_every_step(Bill(), "1")  # expect-error
    async for outcome in crash_at_every_step(Bill(), 1):
        number: int = outcome.result  # expect-error
        print(number)


class Letters(Queue[str, int]):
    concurrency = "many"  # expect-error

    async def process(self, item: str) -> int:
        return len(item)


async def queues(client: Client) -> str:
    await client.submit(Letters, 1)  # expect-error
    await client.submit(Letters, "a", priority="high")  # expect-error
    await client.queue(Letters).limit(concurrent=3)  # expect-error
    await client.queue(Letters).reset("speed")  # expect-error
    item = await client.submit(Letters, "a")
    return await item.join()  # expect-error
