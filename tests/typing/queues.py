"""Queues as the type checkers see them: what is submitted, and what comes back."""

from datetime import timedelta
from typing import assert_type

from engine import (
    Client,
    Debounce,
    ErrorDetails,
    Failed,
    Interrupted,
    Item,
    Pending,
    Queue,
    QueueInfo,
    Rate,
    Runner,
    Settings,
    Status,
    Succeeded,
    Terminated,
    Workflow,
)


class Parcels(Queue[str, int]):
    concurrency = 10
    per_key = 1
    per_runner = 4
    rate = Rate(100, timedelta(minutes=1), burst=10)
    priority = 1

    @classmethod
    def key(cls, item: str) -> str:
        return item[:1]

    async def process(self, item: str) -> int:
        assert_type(self.item_id, str)
        assert_type(self.idempotency_key, str)
        return len(item)


class Ship(Workflow[list[str], int]):
    async def execute(self, request: list[str]) -> int:
        weight = await self.submit(Parcels, request[0], id="first", key="k", priority=2)
        assert_type(weight, int)
        await self.submit(Parcels, request[0], delay=timedelta(minutes=1))
        await self.submit(Parcels, request[0], debounce=Debounce("d", timedelta(minutes=1)))
        return weight


async def submit(client: Client) -> None:
    item = await client.submit(Parcels, "p", id="p-1", delay=timedelta(seconds=5))
    assert_type(item, Item[int])
    assert_type(await item.join(timeout=timedelta(minutes=1)), int)
    assert_type(await item.cancel(), bool)
    match await item.poll():
        case Succeeded(value):
            assert_type(value, int)
        case Failed(error):
            assert_type(error, ErrorDetails)
        case Interrupted(reason) | Terminated(reason):
            assert_type(reason, str)
        case Pending(status):
            assert_type(status, Status)
    print(await (await client.submit(Parcels, "p", debounce=Debounce("d", timedelta(1)))).join())


async def operate(client: Client) -> None:
    queue = client.queue(Parcels)
    await queue.limit(concurrency=3, rate=None)
    await queue.reset("concurrency", "rate")
    await queue.pause("a sale")
    await client.queue("Parcels").resume()
    assert_type(await queue.describe(), QueueInfo)


async def serve(settings: Settings) -> None:
    await Runner(settings).register(Parcels(), Ship()).run()
