"""What is said of messages and items that wait: for which key, and who has it. What a poll says."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Debounce,
    Entity,
    Execution,
    Failed,
    Interrupted,
    NotFound,
    Pending,
    Queue,
    Status,
    StepFailed,
    Succeeded,
    Workflow,
    rpc,
)
from engine.core.ids import Snowflake
from engine.place import standing
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World

MINUTE = timedelta(minutes=1)


class Desk(Entity):
    """Handles one message at a time, when the test lets it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @rpc
    async def sign(self, paper: str) -> str:
        await self.gate.wait()
        return paper


class Jobs(Queue[str, str]):
    per_key = 1
    concurrency = 2

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.began: list[str] = []

    @classmethod
    def key(cls, item: str) -> str:
        return item[0]

    async def process(self, item: str) -> str:
        self.began.append(item)
        await self.gate.wait()
        if item == "bad":
            raise ValueError(item)
        return item.upper()


class Asks(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.entity(Desk, "d-1").sign(request)


class Submits(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.submit(Jobs, request)


class Pays(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        await self.sleep(MINUTE)
        return request


class HasPaid(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        await self.start_child(Pays, request, key=f"abandoned {request}", on_parent_close="abandon")
        return await self.run_child(Pays, request, key=request)


async def told(world: World, cluster: TestCluster, execution: Execution[Any], *words: str) -> str:
    """Its ``why``, once all of the words are in it."""

    async def said() -> str | None:
        why = (await execution.describe()).why
        return why if all(word in why for word in words) else None

    return str(await world.until(cluster, said))


async def test_why_says_that_a_message_waits_for_its_entity_and_who_has_it(world: World) -> None:
    desk = Desk()
    async with world.cluster(desk, Asks()) as cluster:
        client = cluster.client
        await client.tell(client.entity(Desk, "d-1").sign, "first")
        execution = await client.start(Asks, "second", key="second")

        await told(
            world,
            cluster,
            execution,
            "message sign to Desk/d-1 waits for that key, behind 1 message: d-1 (sign, request ",
            ") on runner ",
        )
        desk.gate.set()
        assert await world.result(cluster, execution) == "second"


async def test_why_says_that_a_message_is_to_an_entity_that_nobody_serves(world: World) -> None:
    async with world.cluster(Asks()) as cluster:
        execution = await cluster.client.start(Asks, "42", key="unserved")
        await told(
            world, cluster, execution, "message sign to Desk/d-1 waits: runner ", "not serve Desk: "
        )


async def test_why_says_why_a_child_does_not_go_on(world: World) -> None:
    async with world.cluster(HasPaid()) as cluster:
        execution = await cluster.client.start(HasPaid, "42", key="unserved")
        why = await told(world, cluster, execution, "; Pays/42: runner ", " does not serve Pays: ")
        assert "; Pays/abandoned" not in why
    async with world.cluster(HasPaid(), Pays()) as cluster:
        execution = await cluster.client.start(HasPaid, "43", key="served")
        await told(world, cluster, execution, "; Pays/43: it waits for the timer due ")


async def test_why_says_that_an_item_waits_for_its_key_and_who_has_it(world: World) -> None:
    jobs = Jobs()
    async with world.cluster(jobs, Submits()) as cluster:
        client = cluster.client
        first = await client.submit(Jobs, "a1", id="one")
        await eventually(lambda: jobs.began == ["a1"])
        waiting = await client.submit(Jobs, "a2")
        execution = await client.start(Submits, "a3", key="a3")

        await told(
            world,
            cluster,
            execution,
            "waits, behind 1 other of its key, for key 'a', of which 1 may run at once: one"
            f" (process, request {first.request_id}) on runner ",
        )
        storage = client._node.storage
        assert await standing(storage, first.request_id) == (
            f"item one of queue Jobs runs on {_runner(await storage.runners())}"
        )
        other = await client.submit(Jobs, "b1")
        await eventually(lambda: jobs.began == ["a1", "b1"])
        last = await client.submit(Jobs, "c1")
        later = await client.submit(Jobs, "d1", delay=timedelta(days=1))

        async def says(request: Snowflake, words: str) -> bool:
            return words in (await standing(storage, request) or "")

        await eventually(
            lambda: says(last.request_id, "for a place: 2 items may run at once, and do")
        )
        await eventually(lambda: says(later.request_id, "is delayed until "))
        await client.queue(Jobs).pause("a sale")
        assert await says(last.request_id, "until the queue is resumed (a sale): 'outlast queues")
        await client.queue(Jobs).resume()
        jobs.gate.set()
        assert await world.result(cluster, execution) == "A3"
        for item in (first, waiting, other, last):
            await item.join()
        assert await standing(storage, first.request_id) is None


def _runner(rows: Any) -> str:
    (row,) = rows
    return f"runner {row.host}:{row.pid}"


async def test_an_item_is_polled_as_an_execution_is(world: World) -> None:
    jobs = Jobs()
    async with world.cluster(jobs) as cluster:
        items = [await cluster.client.submit(Jobs, each) for each in ("a1", "a2", "bad")]
        await eventually(lambda: sorted(jobs.began) == ["a1", "bad"])
        assert await items[0].poll() == Pending(Status.RUNNING)
        await eventually(lambda: is_pending(items[1], Status.SCHEDULED))
        assert await items[1].cancel()

        async def cancelled() -> bool:
            return await items[1].poll() == Interrupted("")

        await eventually(cancelled)
        jobs.gate.set()
        for item in (items[0], items[2]):
            await cluster.client._node.replies.wait(item.request_id)

        assert await items[0].poll() == Succeeded("A1")
        failed = await items[2].poll()
        assert isinstance(failed, Failed)
        assert str(failed.error) == "ValueError: bad"


async def is_pending(item: Any, status: Status) -> bool:
    return await item.poll() == Pending(status)


async def test_an_item_that_is_gone_is_not_found() -> None:
    jobs = Jobs()
    jobs.gate.set()
    async with TestCluster(jobs) as cluster:
        item = await cluster.client.submit(Jobs, "a1")
        await item.join()
        await cluster.settle()
        assert cluster.database is not None
        cluster.database.rows.forget([item.request_id])
        with pytest.raises(NotFound, match="pruned"):
            await item.poll()


class Delays(Workflow[str, list[str]]):
    """Submits one item later, and two under one debounce."""

    async def execute(self, request: str) -> list[str]:
        return list(
            await asyncio.gather(
                self.submit(Jobs, "later", delay=10 * MINUTE),
                self.submit(Jobs, "at", at=self.now() + 20 * MINUTE),
                self.debounced("x"),
                self.debounced("y"),
            )
        )

    async def debounced(self, item: str) -> str:
        try:
            return await self.submit(Jobs, item, debounce=Debounce("d", MINUTE))
        except StepFailed as error:
            return str(error).partition(" failed: ")[2]


async def test_a_workflow_delays_and_debounces_items() -> None:
    jobs = Jobs()
    jobs.gate.set()
    async with TestCluster(jobs, Delays()) as cluster:
        execution = await cluster.client.start(Delays, "", key="d")
        await cluster.settle()
        await cluster.crash()
        for minutes, began in ((0.9, []), (0.2, ["y"]), (8, ["y"]), (1, ["y", "later"])):
            await cluster.advance(minutes * MINUTE)
            assert jobs.began == began
        await cluster.advance(10 * MINUTE)

        later, at, x, y = await execution.join()
    assert (later, at, y) == ("LATER", "AT", "Y")
    assert x.startswith("Interrupted: item ")
    assert x.endswith("has taken its place")


class Wrong(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        try:
            await self.submit(Jobs, "a", id="x", debounce=Debounce("d", MINUTE))
        except ConfigurationError as error:
            return str(error)
        return ""


async def test_what_cannot_be_is_refused_in_a_body_as_well() -> None:
    async with TestCluster(Jobs(), Wrong()) as cluster:
        execution = await cluster.client.start(Wrong, "", key="w")
        assert "debounced" in await execution.join(timedelta(seconds=5))
