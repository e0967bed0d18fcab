"""Queues from the command line: listed, shown, paused, resumed, limited."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from engine import Client, Queue, Rate, Runner
from tests.cli.terminal import Ended, do, outlast, settings
from tests.eventually import eventually


class Parcels(Queue[str, str]):
    concurrency = 1
    rate = Rate(100, timedelta(minutes=1), burst=100)

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def process(self, item: str) -> str:
        await self.gate.wait()
        return item


@asynccontextmanager
async def kept(dsn: str, queue: Queue[Any, Any]) -> AsyncGenerator[Client]:
    """A runner in this process that keeps the queue."""
    async with Runner(settings(dsn)).register(queue) as runner:
        await eventually(runner.client.queues)
        yield runner.client


async def done(dsn: str, *arguments: str) -> Ended:
    ended = await do("queues", *arguments, dsn=dsn)
    assert (ended.code, ended.err) == (0, ""), ended
    return ended


async def only(dsn: str) -> dict[str, Any]:
    (line,) = (await done(dsn)).lines
    return line


async def test_queues_are_listed_with_what_waits_and_runs(dsn: str) -> None:
    async with kept(dsn, queue := Parcels()) as client:
        assert (await only(dsn))["state"] == "idle"
        items = [await client.submit(Parcels, f"p{n}") for n in range(3)]
        await client.submit(Parcels, "later", delay=timedelta(days=1))

        async def began() -> bool:
            return bool((await only(dsn))["running"])

        await eventually(began)
        line = await only(dsn)
        assert (line["name"], line["state"]) == ("Parcels", "busy")
        assert (line["waiting"], line["delayed"], line["running"]) == (2, 1, 1)
        assert line["oldest"] is not None
        assert line["limits"] == {
            "concurrency": 1,
            "per_key": 0,
            "per_runner": 0,
            "rate": {"limit": 100, "per": 60, "burst": 100},
        }
        shown = await done(dsn, "show", "Parcels")
        assert shown.lines == [line]
        queue.gate.set()
        assert [await item.join() for item in items] == ["p0", "p1", "p2"]


async def test_why_says_where_an_item_stands(dsn: str) -> None:
    async with kept(dsn, queue := Parcels()) as client:
        items = [await client.submit(Parcels, f"p{n}") for n in range(2)]

        async def taken() -> bool:
            line = await only(dsn)
            return bool((line["waiting"], line["running"]) == (1, 1))

        await eventually(taken)
        id = str(items[1].request_id)
        (said,) = (await do("why", id, dsn=dsn)).lines
        table = await do("why", id, "--table", dsn=dsn)
        queue.gate.set()
        await items[1].join()
        ended = await do("why", id, dsn=dsn)
    assert said == {
        "id": id,
        "why": f"item {id} of queue Parcels waits for a place: 1 item may run at once, and do",
    }
    assert "at once, and do" in " ".join(table.out.split())
    assert ended.code == 3


async def test_a_queue_is_paused_and_resumed(dsn: str) -> None:
    async with kept(dsn, queue := Parcels()) as client:
        queue.gate.set()
        (said,) = (await done(dsn, "pause", "Parcels", "--reason", "a sale")).lines
        assert said == {"name": "Parcels", "paused": True}
        item = await client.submit(Parcels, "p1")
        line = await only(dsn)
        assert (line["state"], line["reason"]) == ("paused", "a sale")

        await done(dsn, "resume", "Parcels")

        assert await item.join(timedelta(seconds=20)) == "p1"
        assert (await only(dsn))["state"] == "idle"


async def test_limits_are_set_and_taken_back(dsn: str) -> None:
    async with kept(dsn, queue := Parcels()) as client:
        for n in range(4):
            await client.submit(Parcels, f"p{n}")
        await done(dsn, "limit", "Parcels", "--concurrency", "3", "--rate", "none")

        async def running() -> bool:
            return (await only(dsn))["running"] == 3

        await eventually(running)
        line = await only(dsn)
        assert (line["limits"]["rate"], line["changed"]) == (None, ["concurrency", "rate"])
        assert line["declared"]["concurrency"] == 1

        await done(dsn, "limit", "Parcels", "-c", "default", "--rate", "5/2s+4", "--per-key", "7")

        limits = (await only(dsn))["limits"]
        assert limits["rate"] == {"limit": 5, "per": 2, "burst": 4}
        assert (limits["concurrency"], limits["per_key"]) == (1, 7)
        queue.gate.set()


async def test_people_read_a_table(dsn: str) -> None:
    async with kept(dsn, Parcels()):
        await done(dsn, "limit", "Parcels", "--per-key", "2", "--rate", "10/s")
        table = await do("queues", "--table", dsn=dsn)
        shown = await do("queues", "show", "Parcels", "--table", dsn=dsn)
    assert "1 at once, 2 per key*, 10 per 1.0s*" in " ".join(table.out.split())
    assert "'default' takes it back" in " ".join(shown.out.split())


async def test_what_cannot_be_is_refused_with_what_to_write(dsn: str) -> None:
    async with kept(dsn, Parcels()):
        for arguments, code, hint in (
            (["limit", "Parcels"], 2, "say which limit"),
            (["limit", "Parcels", "--rate", "fast"], 2, "write 10/s"),
            (["limit", "Parcels", "--rate", "0/s"], 2, "1 or more"),
            (["limit", "Parcels", "-c", "-1"], 2, "whole number"),
            (["limit", "Parcels", "-c", "9999999999"], 2, "concurrency"),
            (["show", "Nobody"], 3, "outlast queues"),
            (["pause", "Nobody"], 3, "outlast queues"),
        ):
            ended = await do("queues", *arguments, dsn=dsn)
            assert (ended.code, hint in ended.err) == (code, True), ended


async def test_what_is_asked_while_nobody_keeps_the_queue_is_done_later(dsn: str) -> None:
    async with kept(dsn, Parcels()):
        pass
    ended = await do("queues", "pause", "Parcels", "--timeout", "100ms", dsn=dsn)
    assert (ended.code, "it is stored" in ended.err) == (4, True)
    assert (await only(dsn))["state"] == "unowned"
    async with kept(dsn, Parcels()) as client:

        async def paused() -> bool:
            return (await client.queue(Parcels).describe()).paused

        await eventually(paused)


class Letters(Parcels):
    """Of another program, on the same shards."""


async def test_a_queue_whose_owner_does_not_serve_it_is_shown_so(dsn: str) -> None:
    async with kept(dsn, Parcels()):
        pass
    async with kept(dsn, Letters()) as client:

        async def owned() -> bool:
            return (await client.queue(Parcels).describe()).runner is not None

        await eventually(owned)
        states = {line["name"]: line["state"] for line in (await done(dsn)).lines}
        assert states["Parcels"] == "unserved"
        await done(dsn, "show", "Parcels")


def test_the_group_explains_itself() -> None:
    assert "limit" in outlast("queues", "--help").out


class Moved(Parcels):
    name = "Parcels"
    shard_group = "other"


moved = [Moved()]


def test_a_queue_with_items_is_not_run_in_another_group(dsn: str) -> None:
    async def fill() -> None:
        async with kept(dsn, Parcels()) as client:
            await client.submit(Parcels, "tomorrow", delay=timedelta(days=1))

    asyncio.run(fill())

    ended = outlast("run", f"{__name__}:moved", "--groups", "default,other", dsn=dsn)

    assert (ended.code, ended.out) == (2, "")
    assert "queue Parcels has 1 item in shard group default and cannot move" in ended.err
