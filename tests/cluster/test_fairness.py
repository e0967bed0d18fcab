"""A runner that has more to do than it can: who asks for little is not behind who asks for much."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from engine import (
    Deferred,
    Entity,
    Execution,
    ExecutionInterrupted,
    Pending,
    Workflow,
    activity,
    query,
    rpc,
)
from engine.cluster import delivery
from engine.cluster.delivery import Delivery
from engine.storage.lane import Lane
from engine.storage.protocol import Sweep
from engine.testing import TestCluster

pytestmark = pytest.mark.timeout(120)


class Steps(Workflow[int, int]):
    """So many steps, one after the other."""

    async def execute(self, request: int) -> int:
        return sum([await self.step(number) for number in range(request)])

    @activity
    async def step(self, number: int) -> int:
        return 1


class Waits(Workflow[str, str]):
    def __init__(self) -> None:
        self.begun = False

    async def execute(self, request: str) -> str:
        self.begun = True
        await self.wait_until(lambda: False)
        return "not reached"

    @query
    def has_begun(self) -> bool:
        return self.begun


async def started(cluster: TestCluster, *, steps: int, number: int) -> list[Execution[int]]:
    starts = [cluster.client.start(Steps, steps, key=f"{steps}/{n}") for n in range(number)]
    return await asyncio.gather(*starts)


async def still_going(executions: list[Execution[int]]) -> bool:
    outcomes = [await each.poll() for each in executions]
    return any(isinstance(outcome, Pending) for outcome in outcomes)


async def test_many_steps_end_while_small_executions_never_cease(where: dict[str, Any]) -> None:
    async with TestCluster(Steps(), **where) as cluster:
        ended = asyncio.Event()

        async def small(worker: int) -> int:
            count = 0
            while not ended.is_set():
                await cluster.client.execute(Steps, 1, key=f"small/{worker}/{count}")
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(small(worker)) for worker in range(100)]
            assert await cluster.client.execute(Steps, 100, key="large") == 100
            ended.set()
    assert all(worker.result() for worker in workers)


async def test_a_small_execution_ends_while_large_ones_are_under_way(where: dict[str, Any]) -> None:
    async with TestCluster(Steps(), **where) as cluster:
        large = await started(cluster, steps=300, number=50)
        assert await cluster.client.execute(Steps, 1, key="small") == 1
        assert await still_going(large)
        assert await asyncio.gather(*(each.join() for each in large)) == [300] * 50


async def test_a_runner_that_is_behind_answers_queries_and_obeys_interrupts(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Steps(), Waits(), **where) as cluster:
        waiting = await cluster.client.start(Waits, "for nothing")
        large = await started(cluster, steps=300, number=50)
        assert await waiting.query(Waits.has_begun)
        assert cluster.runner.health().ready
        await waiting.interrupt("no longer")
        with pytest.raises(ExecutionInterrupted, match="no longer"):
            await waiting.join()
        assert await still_going(large)
        assert await asyncio.gather(*(each.join() for each in large)) == [300] * 50


# --- long lines -----------------------------------------------------------------------------------

LINE = 1500


class Said(Entity):
    mailbox_capacity = LINE + 10
    order: list[str]

    @rpc
    async def say(self) -> None:
        self.order.append(self.entity_id)


class Noted(Workflow[str, None]):
    """Notes that it is at work; one that waits does so when it is told to."""

    go = Deferred(str)
    order: list[str]

    async def execute(self, request: str) -> None:
        await self.note(await self.go.wait() if request.startswith("waits") else request)

    @activity
    async def note(self, what: str) -> None:
        self.order.append(what)


@asynccontextmanager
async def gated(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nothing is read from the inboxes meanwhile."""
    opened, sweep = asyncio.Event(), Lane._sweep

    async def wait(self: Lane, session: Any) -> None:
        await opened.wait()
        await sweep(self, session)

    monkeypatch.setattr(Lane, "_sweep", wait)
    yield
    opened.set()


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was at work, one after the other."""
    monkeypatch.setattr(delivery, "_LET_BY_EVERY", 0.0)
    order: list[str] = []
    for each in (Said, Noted):
        monkeypatch.setattr(each, "order", order, raising=False)
    return order


async def test_two_long_lines_of_entities_let_others_by(
    where: dict[str, Any], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[set[str]] = []
    swept = Delivery.swept

    def note(self: Delivery, shards: Any, sweep: Sweep) -> None:
        read.append({row.envelope.address.entity_id for row in sweep.rows})
        swept(self, shards, sweep)

    async with TestCluster(Said(), Noted(), shards_per_group=1, **where) as cluster:
        client = cluster.client
        async with gated(monkeypatch):
            say = client.entity(Said, "long").say
            await asyncio.gather(*(client.tell(say) for _ in range(LINE)))
            other = client.entity(Said, "other").say
            await asyncio.gather(*(client.tell(other) for _ in range(LINE)))
            await client.tell(client.entity(Said, "short").say)
            told = asyncio.ensure_future(client.entity(Said, "long").say())
            monkeypatch.setattr(Delivery, "swept", note)
        await told
        await client.entity(Said, "other").say()
    assert (order.count("long"), order.count("other")) == (LINE + 1, LINE + 1)
    (short,) = (number for number, ids in enumerate(read) if "short" in ids)
    assert any("long" in ids for ids in read[:short])
    for line in ("long", "other"):
        assert sum(line in ids for ids in read[short:]) > 1


async def test_a_long_line_of_starts_lets_messages_to_who_has_begun_by(
    where: dict[str, Any], order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TestCluster(Said(), Noted(), shards_per_group=1, **where) as cluster:
        client = cluster.client
        waiting = await client.start(Noted, "waits here", key="here")
        stopped = await client.start(Noted, "waits in vain", key="in vain")
        await cluster.settle()
        async with gated(monkeypatch):
            starts = [client.start(Noted, f"start {n}", key=f"{n}") for n in range(LINE)]
            starts += [client.start(Noted, f"waits {n}", key=f"w{n}") for n in range(40)]
            line = await asyncio.gather(*starts)
            for each in line[-40:]:
                await each.resolve(Noted.go, "told in line")
            await waiting.resolve(Noted.go, "told")
            await stopped.interrupt("no more")
            await client.tell(client.entity(Said, "short").say)
        await asyncio.gather(waiting.join(), *(each.join() for each in line))
        with pytest.raises(ExecutionInterrupted):
            await stopped.join()
    assert len([what for what in order if what.startswith("start")]) == LINE
    assert order.count("told in line") == 40
    assert order.index("told in line") > LINE * 2 / 3  # each behind its start
    assert order.index("told") < LINE * 2 / 3
    assert order.index("short") < LINE * 2 / 3
