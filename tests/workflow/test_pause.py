"""Pauses: of one execution and of a whole workflow; what runs ends, and nothing is started."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    Deferred,
    Entity,
    ExecutionTerminated,
    JournalKind,
    RequestFailed,
    Status,
    Workflow,
    activity,
    rpc,
    signal,
    update,
)
from engine.storage.memory import Fault
from engine.testing import TestCluster
from tests.workflow.conftest import World

PAUSES = (JournalKind.PAUSED, JournalKind.RESUMED)


class Gate:
    """What steps wait for, and what was done."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.begun = asyncio.Event()
        self.done: list[str] = []


class Steps(Workflow[str, str]):
    go = Deferred(str)

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.heard: list[str] = []

    async def execute(self, request: str) -> str:
        await self.note("one")
        if request == "waits":
            await self.sleep(timedelta(seconds=2))
            word = await self.go.wait()
            await self.wait_until(lambda: bool(self.heard))
            return f"{word} {self.heard[0]}"
        if request == "held":
            await self.hold()
        await self.note("two")
        return "done"

    @signal
    def say(self, word: str) -> None:
        self.heard.append(word)

    @update
    async def ask(self, word: str) -> str:
        return f"{word}!"

    @activity
    async def note(self, what: str) -> None:
        self.gate.done.append(what)

    @activity
    async def hold(self) -> None:
        self.gate.begun.set()
        await self.gate.open.wait()
        self.gate.done.append("held")


async def is_status(execution: Any, status: Status) -> bool:
    return (await execution.describe()).status is status


async def paused(world: World, cluster: Any, execution: Any) -> None:
    """Wait until it stands still, out of memory."""

    async def stands() -> bool:
        return await is_status(execution, Status.PAUSED) and cluster.runner.resident == 0

    await world.until(cluster, stands)


async def pass_time(world: World, cluster: Any, seconds: float) -> None:
    """Time in which something would happen if it could."""
    if world.virtual:
        await cluster.advance(timedelta(seconds=seconds))
    else:
        await asyncio.sleep(min(seconds, 0.3))


async def pauses_in(execution: Any) -> list[tuple[JournalKind, str, object]]:
    return [
        (event.kind, event.name, event.payload)
        for event in await execution.history()
        if event.kind in PAUSES
    ]


async def test_a_running_step_ends_and_nothing_is_started_until_it_is_resumed(
    world: World,
) -> None:
    gate = Gate()
    async with world.cluster(Steps(gate), author="ada") as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Steps, "held", key="o")
        await gate.begun.wait()
        await execution.pause("the bank is closed")
        await world.until(cluster, lambda: is_status(execution, Status.PAUSED))
        gate.open.set()
        await paused(world, cluster, execution)
        assert gate.done == ["one", "held"]

        await cluster.crash()
        await pass_time(world, cluster, 60)
        info = await execution.describe()
        listed = [each async for each in cluster.client.executions(status=Status.PAUSED)]
        assert gate.done == ["one", "held"]
        assert info.status is Status.PAUSED
        assert "it is paused since 20" in info.why
        assert "by ada: the bank is closed: 'outlast resume Steps/o' lets it go on" in info.why
        assert [each.id for each in listed] == ["o"]

        await execution.resume("it is open")
        assert await world.result(cluster, execution) == "done"
        history = await pauses_in(execution)
    assert gate.done == ["one", "held", "two"]
    assert history == [
        (JournalKind.PAUSED, "execution", {"reason": "the bank is closed", "by": "ada"}),
        (JournalKind.RESUMED, "execution", {"reason": "it is open", "by": "ada"}),
    ]


async def test_messages_and_timers_of_a_pause_have_their_effect_afterwards(world: World) -> None:
    gate = Gate()
    async with world.cluster(Steps(gate)) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Steps, "waits", key="o")
        join = asyncio.create_task(execution.join())
        await world.until(cluster, execution.history)
        await execution.pause()
        await paused(world, cluster, execution)
        await execution.signal(Steps.say, "world")
        assert await execution.resolve(Steps.go, "hello")
        asked = asyncio.create_task(execution.update(Steps.ask, "sure"))
        await execution.pause("once more")
        await pass_time(world, cluster, 3)
        await cluster.crash()
        await pass_time(world, cluster, 3)
        assert not any([join.done(), asked.done()])
        assert await is_status(execution, Status.PAUSED)

        await execution.resume()
        assert await world.result(cluster, execution) == "hello world"
        assert (await join, await asked) == ("hello world", "sure!")
        kinds = [each.kind for each in await execution.history()]
    assert [kind for kind in kinds if kind in PAUSES] == [*PAUSES]
    assert kinds.index(JournalKind.SIGNAL) > kinds.index(JournalKind.RESUMED)


async def test_an_execution_that_is_resumed_before_it_stands_still_just_goes_on(
    world: World,
) -> None:
    gate = Gate()
    async with world.cluster(Steps(gate)) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Steps, "held", key="o")
        await gate.begun.wait()
        await execution.pause()
        await execution.signal(Steps.say, "hi")
        await execution.resume()
        await execution.resume("for nothing")
        gate.open.set()
        assert await world.result(cluster, execution) == "done"
        assert [kind for kind, _, _ in await pauses_in(execution)] == [*PAUSES]
    assert gate.done == ["one", "held", "two"]


async def test_a_paused_one_is_terminated_at_once_and_interrupted_when_it_goes_on(
    world: World,
) -> None:
    gate = Gate()
    async with world.cluster(Steps(gate)) as cluster, asyncio.timeout(40):
        first = await cluster.client.start(Steps, "waits", key="first")
        second = await cluster.client.start(Steps, "waits", key="second")
        for each in (first, second):
            await world.until(cluster, each.history)
            await each.pause()
        await paused(world, cluster, first)
        await paused(world, cluster, second)
        asked = asyncio.create_task(first.update(Steps.ask, "sure"))
        await first.signal(Steps.say, "hi")
        await second.interrupt("enough")
        await pass_time(world, cluster, 1)
        assert not asked.done()
        await first.terminate("for good")
        with pytest.raises(ExecutionTerminated, match="for good"):
            await world.result(cluster, first)
        with pytest.raises(RequestFailed):
            await asked
        assert await is_status(second, Status.PAUSED)
        await second.resume()
        await world.until(cluster, lambda: is_status(second, Status.INTERRUPTED))


async def test_a_pause_outlives_continue_as_new_and_ends_with_a_retry(world: World) -> None:
    gate = Gate()

    class Again(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            if request:
                await self.hold()
                await self.continue_as_new(request - 1)
            await self.note("last run")
            return "done"

        @activity
        async def hold(self) -> None:
            gate.begun.set()
            await gate.open.wait()

        @activity
        async def note(self, what: str) -> None:
            gate.done.append(what)

    async with world.cluster(Again()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Again, 1, key="o")
        await gate.begun.wait()
        await execution.pause()
        await world.until(cluster, lambda: is_status(execution, Status.PAUSED))
        gate.open.set()

        async def second_run() -> bool:
            info = await execution.describe()
            return info.run == 2 and info.status is Status.PAUSED and not cluster.runner.resident

        await world.until(cluster, second_run)
        assert gate.done == []
        await execution.terminate()
        await world.until(cluster, lambda: is_status(execution, Status.TERMINATED))
        await execution.retry()
        assert await world.result(cluster, execution) == "done"
    assert gate.done == ["last run"]


async def test_the_answer_of_a_method_named_like_an_order_is_an_answer(world: World) -> None:
    class Player(Entity):
        @rpc
        async def pause(self) -> str:
            return "paused"

        @rpc
        async def resume(self) -> str:
            return "playing"

        @rpc
        async def retry(self) -> str:
            return "again"

        @rpc
        async def terminate(self) -> str:
            return "off"

    class Plays(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            player = self.entity(Player, request)
            words = [await player.pause(), await player.resume(), await player.retry()]
            return ", ".join([*words, await player.terminate()])

    async with world.cluster(Plays(), Player()) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Plays, "p")
        assert await world.result(cluster, execution) == "paused, playing, again, off"


async def test_a_child_of_a_paused_parent_goes_on(world: World) -> None:
    gate = Gate()

    class Parent(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            return await self.run_child(Steps, request, key="child")

    async with world.cluster(Parent(), Steps(gate)) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Parent, "held", key="p")
        await gate.begun.wait()
        await parent.pause()
        await world.until(cluster, lambda: is_status(parent, Status.PAUSED))
        gate.open.set()
        assert await world.result(cluster, cluster.client.execution(Steps, "child")) == "done"
        await pass_time(world, cluster, 1)
        assert await is_status(parent, Status.PAUSED)
        await parent.resume()
        assert await world.result(cluster, parent) == "done"


async def test_a_paused_workflow_starts_nothing_new_or_old_until_it_is_resumed(
    world: World,
) -> None:
    gate = Gate()

    class Other(Workflow[str, str]):
        async def execute(self, request: str) -> str:
            return request

    async with world.cluster(Steps(gate), Other(), author="ada") as cluster, asyncio.timeout(40):
        client = cluster.client
        held = await client.start(Steps, "held", key="held")
        waits = await client.start(Steps, "waits", key="waits")
        await gate.begun.wait()
        await world.until(cluster, waits.history)
        await client.pause(Steps, "deploy")
        await world.until(cluster, lambda: is_status(held, Status.PAUSED))
        gate.open.set()
        await paused(world, cluster, held)
        new = await client.start(Steps, "quick", key="new")
        await waits.resolve(Steps.go, "hello")
        await waits.signal(Steps.say, "world")
        await cluster.crash()
        await pass_time(world, cluster, 60)
        assert sorted(gate.done) == ["held", "one", "one"]
        assert await client.execute(Other, "goes on") == "goes on"
        for each in (held, waits, new):
            why = (await each.describe()).why
            assert "its workflow is paused since 20" in why
            assert "by ada: deploy: 'outlast resume Steps' lets it go on" in why
        listed = [each.why async for each in client.executions(Steps)]
        assert all("its workflow is paused" in why for why in listed)

        await new.terminate("not needed")
        with pytest.raises(ExecutionTerminated, match="not needed"):
            await world.result(cluster, new)
        await client.resume("Steps")
        assert await world.result(cluster, held) == "done"
        assert await world.result(cluster, waits) == "hello world"
        assert [kind for kind, name, _ in await pauses_in(held) if name == "workflow"] == [*PAUSES]
        ends = [each.payload for each in await new.history()]
    assert sorted(gate.done) == ["held", "one", "one", "two"]
    assert ends == [{"reason": "not needed", "by": "ada"}]


async def test_one_that_is_paused_itself_outlasts_a_pause_of_its_workflow(world: World) -> None:
    gate = Gate()
    async with world.cluster(Steps(gate)) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Steps, "held", key="o")
        await gate.begun.wait()
        await cluster.client.pause(Steps)
        await world.until(cluster, lambda: is_status(execution, Status.PAUSED))
        await execution.pause("me too")
        gate.open.set()
        await paused(world, cluster, execution)
        await cluster.client.resume(Steps)
        await pass_time(world, cluster, 1)

        async def by_itself() -> bool:
            return "it is paused" in (await execution.describe()).why

        await world.until(cluster, by_itself)
        assert gate.done == ["one", "held"]
        await execution.resume()
        assert await world.result(cluster, execution) == "done"


@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT])
@pytest.mark.parametrize("whole", [False, True], ids=["the execution", "the workflow"])
async def test_a_pause_holds_wherever_the_runner_is_lost(fault: Fault, whole: bool) -> None:
    for writes in range(7):
        gate = Gate()
        gate.open.set()
        async with TestCluster(Steps(gate)) as cluster, asyncio.timeout(20):
            execution = await cluster.client.start(Steps, "waits", key="o")
            await cluster.settle()
            cluster.fail_next_flush(fault, after=writes)
            await (cluster.client.pause(Steps) if whole else execution.pause())
            world = World({})
            if not whole:
                await paused(world, cluster, execution)
            await world.until(cluster, lambda cluster=cluster: not_in_memory(cluster))
            await execution.signal(Steps.say, "world")
            await execution.resolve(Steps.go, "hello")
            await cluster.advance(timedelta(seconds=5))
            await cluster.crash()
            await cluster.advance(timedelta(seconds=5))
            kinds = {each.kind for each in await execution.history()}
            assert not kinds & {JournalKind.TIMER, JournalKind.SIGNAL, JournalKind.RESOLVED}
            await (cluster.client.resume(Steps) if whole else execution.resume())
            assert await world.result(cluster, execution) == "hello world"
            told = [kind for kind, _, _ in await pauses_in(execution)]
        assert told in ([*PAUSES], [] if whole else [*PAUSES])


async def not_in_memory(cluster: TestCluster) -> bool:
    return cluster.runner.resident == 0
