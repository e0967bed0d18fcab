"""A change guarded by ``patched``: who was past it keeps the old way, who comes to it takes the
new one, and the answer stays."""

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import (
    Deferred,
    ExecutionFailed,
    GiveUp,
    JournalKind,
    NonDeterminism,
    PatchInfo,
    RequestFailed,
    RetryPolicy,
    Status,
    Workflow,
    activity,
    query,
)
from engine.testing import Fault, TestCluster, replay
from tests.workflow.code import New, NewOnly, Old, Retired, deployed, serving, waits
from tests.workflow.conftest import World

OLD_WAY = ["old 0", "old 1", "old 2", "old"]
NEW_WAY = ["new 0", "new 1", "new 2", "new"]


async def result(world: World, cluster: TestCluster, execution: Any) -> Any:
    for _ in range(3):
        await execution.signal(Old.tick)
    return await world.result(cluster, execution)


async def answers(execution: Any) -> list[object]:
    return [each.payload for each in await execution.history() if each.kind is JournalKind.PATCHED]


def source_line(why: str) -> str:
    """The line that the message points at."""
    found = re.search(r"\((/[^:]+):(\d+) in", why)
    assert found is not None
    return Path(found[1]).read_text(encoding="utf-8").splitlines()[int(found[2]) - 1]


async def test_who_was_past_a_change_keeps_the_old_way_and_others_take_the_new_one(
    world: World,
) -> None:
    async with serving(world, Old()) as before:
        old = await before.client.start(Old, "a", key="old")
        await waits(world, before, old)
        assert [each.name for each in await old.history()] == ["step"]
    async with deployed(world, before, New()) as during:
        old = during.client.execution(New, "old")
        new = await during.client.start(New, "c", key="new")
        await waits(world, during, new)
        assert await result(world, during, old) == OLD_WAY
        assert await answers(old) == [False]
        assert await result(world, during, new) == NEW_WAY
        assert await answers(new) == [True]
        assert await new.query(New.way) is True
        assert await old.query(New.way) is False
        for execution in (old, new):
            await replay(await execution.history(), New())


async def test_the_answer_stays_through_crashes_at_every_point(world: World) -> None:
    async with serving(world, New()) as cluster:
        new = await cluster.client.start(New, "c", key="new")
        for _ in range(3):
            await waits(world, cluster, new)
            await cluster.crash()
            await new.signal(Old.tick)
        assert await world.result(cluster, new) == NEW_WAY
        assert await answers(new) == [True]


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT])
async def test_a_lost_flush_does_not_change_the_answer(fault: Fault, after: int) -> None:
    world = World({})
    async with TestCluster(New()) as cluster:
        cluster.fail_next_flush(fault, after=after)
        new = await cluster.client.start(New, "c", key="new")
        assert await result(world, cluster, new) == NEW_WAY
        assert await answers(new) == [True]


async def test_a_step_under_way_when_the_code_changes_is_not_replaced(world: World) -> None:
    """Its attempt left no trace yet: the new way would be a second one beside it."""
    began = asyncio.Event()
    ran: list[str] = []

    class Pays(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            await self.check()
            return await self.charge()

        @activity
        async def check(self) -> None:
            """Ends."""

        @activity
        async def charge(self) -> str:
            ran.append("charge")
            began.set()
            if len(ran) == 1:
                await asyncio.Event().wait()
            return "charged"

    class PaysOtherwise(Pays):
        name = "Pays"

        async def execute(self, request: str) -> str:
            await self.check()
            if self.patched("pay"):
                return await self.pay()
            return await self.charge()

        @activity
        async def pay(self) -> str:
            ran.append("pay")
            return "paid"

    async with serving(world, Pays(), grace_period=timedelta(0)) as before:
        execution = await before.client.start(Pays, "a", key="p")
        await asyncio.wait_for(began.wait(), 10)
    async with deployed(world, before, PaysOtherwise()) as during:
        execution = during.client.execution(Pays, "p")
        assert await world.result(during, execution) == "charged"
    assert ran == ["charge", "charge"]


async def test_patches_are_listed_until_the_old_way_can_go(world: World) -> None:
    async with serving(world, Old()) as before:
        for key in ("one", "two"):
            await waits(world, before, await before.client.start(Old, "a", key=key))
    async with deployed(world, before, New()) as during:
        await waits(world, during, await during.client.start(New, "c", key="new"))
        one, two = (during.client.execution(New, key) for key in ("one", "two"))
        (patch,) = await during.client.patches()
        assert patch == PatchInfo(workflow="Tick", change="better", new=1, old=0, unasked=2)
        await one.signal(Old.tick)

        async def asked() -> bool:
            (patch,) = await during.client.patches()
            return (patch.new, patch.old, patch.unasked) == (1, 1, 1)

        await world.until(during, asked)
        for execution in (one, two):
            assert await result(world, during, execution) == OLD_WAY
        (patch,) = await during.client.patches(New)
        assert (patch.new, patch.old, patch.unasked) == (1, 0, 0)
    async with deployed(world, during, Retired()) as after:
        assert await result(world, after, after.client.execution(New, "new")) == NEW_WAY
        assert await after.client.patches() == []


async def test_who_needs_the_old_way_is_blocked_where_it_is_gone_and_goes_on_where_it_is_not(
    world: World,
) -> None:
    async with serving(world, Old()) as before:
        await waits(world, before, await before.client.start(Old, "a", key="old"))
    async with deployed(world, before, New()) as during:
        old, new = during.client.execution(Old, "old"), await during.client.start(New, "c", key="n")
        await old.signal(Old.tick)

        async def asked() -> bool:
            return [*await answers(old), *await answers(new)] == [False, True]

        await world.until(during, asked)
    async with deployed(world, during, NewOnly()) as after:
        old, new = (after.client.execution(Old, key) for key in ("old", "n"))
        late = await after.client.start(NewOnly, "d", key="late")
        await old.signal(Old.tick)

        async def blocked() -> bool:
            return (await old.describe()).status is Status.BLOCKED

        await world.until(after, blocked)
        why = (await old.describe()).why
        assert "the way from before the change 'better'" in why
        assert "deprecate_patch" in source_line(why)
        with pytest.raises(NonDeterminism):
            await replay(await old.history(), NewOnly())
        await waits(world, after, late)
        assert await answers(late) == [True]
        (version,) = await after.client.versions()
        assert (version.executions, version.misfits) == (3, 1)
        assert await result(world, after, new) == NEW_WAY
    async with deployed(world, after, New()) as again:
        old, late = (again.client.execution(Old, key) for key in ("old", "late"))
        assert await result(world, again, late) == NEW_WAY
        await old.signal(Old.tick)
        assert await world.result(again, old) == OLD_WAY


async def test_a_run_that_continues_or_is_retried_from_before_a_change_takes_the_new_way(
    world: World,
) -> None:
    class Loop(Workflow[int, str]):
        go = Deferred(bool)
        on = Deferred(bool)

        async def execute(self, request: int) -> str:
            await self.go.wait()
            if request:
                await self.continue_as_new(0)
            raise GiveUp(await self.fail())

        @activity(retry=RetryPolicy(attempts=1))
        async def fail(self) -> str:
            raise ConnectionError

    class Better(Loop):
        name = "Loop"

        async def execute(self, request: int) -> str:
            way = "new" if self.patched("first") else "old"
            await self.go.wait()
            if request:
                await self.continue_as_new(0)
            if self.patched("second"):
                return way
            return await self.fail()

    async with serving(world, Loop()) as before:
        failed = await before.client.start(Loop, 0, key="failed")
        await waits(world, before, await before.client.start(Loop, 1, key="goes on"))
        await failed.resolve(Loop.go, True)
        with pytest.raises(ExecutionFailed):
            await world.result(before, failed)
    async with deployed(world, before, Better()) as during:
        failed, goes_on = (during.client.execution(Loop, each) for each in ("failed", "goes on"))
        await failed.retry()
        assert await world.result(during, failed) == "old"
        await goes_on.resolve(Loop.go, True)
        assert await world.result(during, goes_on) == "new"


async def test_a_query_does_not_ask_first_and_a_change_has_a_name() -> None:
    class Asks(Workflow[str, str]):
        go = Deferred(bool)

        async def execute(self, request: str) -> str:
            await self.go.wait()
            return str(self.patched(request))

        @query
        def asked(self) -> bool:
            return self.patched("x")

    async with TestCluster(Asks()) as cluster:
        execution = await cluster.client.start(Asks, "", key="a")
        await cluster.settle()
        with pytest.raises(RequestFailed, match="may only look"):
            await execution.query(Asks.asked)
        await execution.resolve(Asks.go, True)
        with pytest.raises(ExecutionFailed, match="a change needs a name"):
            await execution.join()
