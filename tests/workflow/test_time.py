"""What time it is in a body: it never steps back, and a timer counts from when it was started."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, ClassVar

from engine import (
    Deferred,
    RetryPolicy,
    Status,
    Transaction,
    Workflow,
    activity,
    transaction,
)
from engine.testing import replay
from tests.workflow.conftest import World

NAP = timedelta(seconds=0.3)


class Rounds(Workflow[int, list[datetime]]):
    """Two runs, of which the second counts from its own beginning."""

    approved = Deferred(bool)

    async def execute(self, request: int) -> list[datetime]:
        await self.approved.wait()
        if request == 0:
            await self.sleep(NAP)
            await self.continue_as_new(1)
        began = self.now()
        await self.sleep(NAP)
        return [began, self.now()]


async def test_what_was_resolved_in_an_earlier_run_does_not_turn_the_clock_back(
    world: World,
) -> None:
    async with world.cluster(Rounds()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Rounds, 0)
        await execution.resolve(Rounds.approved, True)
        await world.result(cluster, execution)
        info = await execution.describe()
    assert info.started_at is not None
    assert info.finished_at is not None
    assert info.finished_at - info.started_at >= 2 * NAP


class Slow(Workflow[None, None]):
    """A step that takes its time, and nothing else: start and end are stored together."""

    async def execute(self, request: None) -> None:
        await self.work()

    @activity
    async def work(self) -> None:
        await asyncio.sleep(NAP.total_seconds())


async def test_an_execution_began_before_its_only_step(world: World) -> None:
    async with world.cluster(Slow()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Slow, None, key="only")
        await world.result(cluster, execution)
        info = await execution.describe()
        [step] = [event for event in await execution.history() if event.name == "work"]
    assert info.started_at is not None
    assert step.started_at is not None
    assert info.created_at <= info.started_at <= step.started_at


class Mended(Workflow[bool, list[datetime]]):
    """Fails, behind a good step or at its very beginning, until somebody has mended it."""

    broken: ClassVar[bool] = True

    async def execute(self, request: bool) -> list[datetime]:
        if request:
            await self.sleep(NAP)
            await self.good()
        if Mended.broken:
            raise LookupError("not yet")
        began = self.now()
        await self.sleep(NAP)
        await self.good()
        return [began, self.now()]

    @activity
    async def good(self) -> None: ...


async def test_what_is_repaired_goes_on_at_the_time_of_its_repair(world: World) -> None:
    async with world.cluster(Mended()) as cluster, asyncio.timeout(40):
        Mended.broken = True
        behind, begin, anew = [
            await cluster.client.start(Mended, late, key=key)
            for key, late in (("behind", True), ("begin", False), ("anew", True))
        ]
        for each in (behind, begin, anew):
            await world.until(cluster, _has(each, Status.FAILED))
        if world.virtual:
            await cluster.advance(timedelta(hours=1))
        asked = cluster.clock.now()
        Mended.broken = False
        await behind.retry()
        await begin.retry()
        await cluster.client.start(Mended, True, key="anew", on_conflict="restart-failed")
        fork = await behind.fork("good", key="fork")
        await cluster.crash()
        for each in (behind, begin, anew, fork):
            await world.until(cluster, _has(each, Status.SUCCEEDED))
            began, ended = await each.join()
            assert began >= asked
            assert ended - began >= NAP
            await replay(await each.history(), Mended())


def _has(execution: Any, status: Status) -> Any:
    async def has() -> bool:
        return (await execution.describe()).status is status

    return has


class Watches(Workflow[str, str]):
    """Goes on when time has moved on, beside a step that moves it."""

    async def execute(self, request: str) -> str:
        began, order = self.now(), list[str]()

        async def step() -> None:
            await (self.flaky() if request == "attempt" else self.entered())
            order.append("the step")

        async with asyncio.TaskGroup() as group:
            group.create_task(step())
            await self.wait_until(lambda: self.now() > began)
            order.append("the time")
            await self.mark(order[0])
        return "ended"

    @activity(retry=RetryPolicy(attempts=2, initial=timedelta(seconds=0.5), jitter=0))
    async def flaky(self) -> None:
        await asyncio.sleep(0.02)
        if self.attempt == 1:
            raise ConnectionError("once more")

    @transaction
    async def entered(self, tx: Transaction) -> None:
        await asyncio.sleep(0.02)

    @activity
    async def mark(self, first: str) -> None: ...


async def test_a_condition_on_the_time_comes_true_at_the_same_place_in_a_replay(
    world: World,
) -> None:
    async with world.cluster(Watches()) as cluster, asyncio.timeout(40):
        for request in ("attempt", "transaction"):
            execution = await cluster.client.start(Watches, request)

            async def marked(execution: Any = execution) -> bool:
                return any(event.name == "mark" for event in await execution.history())

            await world.until(cluster, marked)
            await cluster.crash()
            assert await world.result(cluster, execution) == "ended"
            await replay(await execution.history(), Watches())
