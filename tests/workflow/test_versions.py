"""Several versions of one workflow at a time: executions stay with the one that they began with."""

import asyncio
from datetime import timedelta

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    Runner,
    Settings,
    Status,
    Workflow,
    activity,
    signal,
)
from engine.testing import replay
from tests.workflow.code import Ship, ShipV2, Watch, WatchV2, deployed, serving, waits
from tests.workflow.conftest import World

OLD = ["packed a in 1", "sent a in 1"]
NEW = ["weighed a in 2", "sent a in 2"]


async def test_an_execution_ends_with_the_code_it_began_with_and_new_ones_take_the_highest(
    world: World,
) -> None:
    async with serving(world, Ship()) as before:
        old = await before.client.start(Ship, "a", key="old")
        await waits(world, before, old)
        assert (await old.describe()).version == 1

    async with deployed(world, before, ShipV2(), Ship()) as during:
        new = await during.client.start(ShipV2, "a", key="new")
        await waits(world, during, new)
        assert (await new.describe()).version == 2
        old = during.client.execution(Ship, "old")
        assert await old.query(Ship.number) == 1
        assert await new.query(ShipV2.number) == 2
        for execution in (old, new):
            assert await execution.resolve(Ship.go, True)
        assert await world.result(during, old) == OLD
        assert await world.result(during, new) == NEW


async def test_an_execution_whose_version_nobody_serves_waits_visibly_until_somebody_does(
    world: World,
) -> None:
    async with serving(world, Ship()) as before:
        old = await before.client.start(Ship, "a", key="old")
        await waits(world, before, old)

    async with deployed(world, before, ShipV2()) as during:
        old = during.client.execution(Ship, "old")
        assert await old.resolve(Ship.go, True)

        async def told() -> bool:
            return "does not serve version 1 of Ship" in (await old.describe()).why

        await world.until(during, told)
        one, two = await during.client.versions(Ship)
        assert (one.version, one.runners, one.executions, one.unserved) == (1, 0, 1, 1)
        assert (two.version, two.runners, two.executions, two.unserved) == (2, 1, 0, 0)
        with pytest.raises(Exception, match="has not the code of Ship, version 1"):
            await old.query(Ship.number)

        during.runner.register(Ship())
        assert await world.result(during, old) == OLD

        async def served() -> bool:
            found = await during.client.versions("Ship")
            return [(each.runners, each.executions) for each in found] == [(1, 0), (1, 0)]

        await world.until(during, served)


async def test_a_deploy_of_other_code_with_the_same_steps_strands_nothing(world: World) -> None:
    """What is compared is the steps of the journal, not the code."""

    def shout(text: str) -> str:
        return text.upper()

    class Rewritten(Ship):
        name = "Ship"
        later = Deferred(int)

        async def execute(self, request: str) -> list[str]:
            results: list[str] = []
            async with asyncio.timeout(None):
                for step in (self.pack, self.send):
                    results.append(shout(await step(request)))
                    if len(results) == 1:
                        await self.go.wait()
            return results

        @activity
        async def send(self, what: str) -> str:
            return f"sent {what} another way"

        @activity
        async def audit(self, what: str) -> None:
            """A new step that this does not use."""

        @signal
        def hurry(self) -> None:
            """A new handler."""

    async with serving(world, Ship()) as before:
        old = await before.client.start(Ship, "a", key="old")
        await waits(world, before, old)
    async with deployed(world, before, Rewritten(), Watch()) as during:
        old = during.client.execution(Ship, "old")
        assert await old.resolve(Ship.go, True)
        assert await world.result(during, old) == ["PACKED A IN 1", "SENT A ANOTHER WAY"]
        (ship, _) = await during.client.versions()
        assert (ship.executions, ship.unserved, ship.misfits) == (0, 0, 0)


async def test_one_that_sleeps_goes_on_when_its_version_is_registered(world: World) -> None:
    class Sleeps(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            await self.sleep(timedelta(seconds=1))
            return f"{request} {self.version}"

    class SleepsV2(Sleeps):
        name = "Sleeps"
        version = 2

    async with serving(world, Sleeps()) as before:
        execution = await before.client.start(Sleeps, "a", key="s")
        await waits(world, before, execution)
    async with deployed(world, before, SleepsV2()) as during:
        execution = during.client.execution(Sleeps, "s")

        async def due() -> bool:
            wake_at = (await execution.describe()).wake_at
            return wake_at is not None and wake_at < during.clock.now()

        await world.until(during, due)
        assert (await execution.describe()).status is Status.SUSPENDED
        during.runner.register(Sleeps())
        assert await world.result(during, execution) == "a 1"


async def test_one_whose_version_nobody_serves_can_be_terminated(world: World) -> None:
    async with serving(world, Ship()) as before:
        old = await before.client.start(Ship, "a", key="old")
        await waits(world, before, old)
    async with deployed(world, before, ShipV2()) as during:
        old = during.client.execution(Ship, "old")
        await old.terminate("it is not needed")

        async def ended() -> bool:
            return (await old.describe()).status is Status.TERMINATED

        await world.until(during, ended)


async def test_a_run_that_continues_is_of_the_newest_version_and_pinned_before_its_transaction(
    world: World,
) -> None:
    seen: list[tuple[int, int | None]] = []

    async def look(id: str) -> None:
        info = await during.client.execution(Watch, id).describe()
        seen.append((info.run, info.version))

    async with serving(world, Watch()) as before:
        execution = await before.client.start(Watch, 1, key="w")
        await waits(world, before, execution)
    async with deployed(world, before, Watch(), WatchV2(look)) as during:
        execution = during.client.execution(Watch, "w")
        assert await execution.resolve(Watch.go, True)
        await waits(world, during, execution)
        assert (await execution.describe()).version == 1
        assert await execution.resolve(Watch.on, True)
        assert await world.result(during, execution) == [2, 0]
        history = await execution.history()
    assert seen == [(2, 2)]
    await replay(history, Watch(), WatchV2())
    with pytest.raises(ConfigurationError, match="run 1 of the history is of Watch, version 1"):
        await replay(history, WatchV2())


async def test_what_nothing_is_stored_of_begins_anew_with_the_code_of_who_takes_it_up(
    world: World,
) -> None:
    began = asyncio.Event()

    class Hangs(Ship):
        name = "Ship"
        version = 2

        @activity
        async def pack(self, what: str) -> str:
            began.set()
            await asyncio.Event().wait()
            return what

    async with serving(world, Hangs(), Ship(), grace_period=timedelta(0)) as before:
        execution = await before.client.start(Ship, "a", key="a")
        await asyncio.wait_for(began.wait(), 10)
        assert (await execution.describe()).version is None
        (one, two, undecided) = sorted(
            await before.client.versions(), key=lambda each: each.version or 9
        )
        assert (one.executions, two.executions, undecided.executions) == (0, 0, 1)
    async with deployed(world, before, Ship()) as during:
        execution = during.client.execution(Ship, "a")
        assert await execution.resolve(Ship.go, True)
        assert await world.result(during, execution) == OLD
        assert (await execution.describe()).version == 1


def test_what_cannot_be_served_together_is_refused() -> None:
    class Elsewhere(Ship):
        name = "Ship"
        version = 3
        shard_group = "far"

    runner = Runner(Settings(dsn="postgresql://localhost/not-asked")).register(Ship())
    with pytest.raises(ConfigurationError, match="as version 1 of 'Ship'"):
        runner.register(Ship())
    with pytest.raises(ConfigurationError, match="different shard groups"):
        runner.register(Elsewhere())
    with pytest.raises(ConfigurationError, match="number versions from 1 on"):
        type("Zero", (Ship,), {"version": 0})
