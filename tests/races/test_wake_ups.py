"""What comes for an execution while it is suspended, or while it ends: G3, G4, G9."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from engine import (
    Deferred,
    Execution,
    Interrupted,
    JournalKind,
    Runner,
    Status,
    Succeeded,
    Workflow,
    activity,
    signal,
)
from engine.core.clock import Clock
from engine.core.envelope import Interrupt, ReplyTo
from engine.core.ids import RunnerId, Snowflake
from engine.storage.memory import MemoryStorage
from engine.storage.protocol import Commit, ExecutionUpdate, Flushed, LaneSession, SaveOutcome
from engine.testing import TestCluster
from tests.gates import Gates, ServerGates, Side, every_order
from tests.storage.world import (
    NOW,
    ONE,
    TWO,
    World,
    event,
    message,
    next_id,
    save_one,
    start,
    success,
    sweep_of,
)

LATER = timedelta(seconds=10)
IDLE = timedelta(seconds=1)


class Child(Workflow[str, str]):
    go = Deferred(str)

    async def execute(self, request: str) -> str:
        return await self.go.wait()


class Waits(Workflow[str, str]):
    """For what its request names."""

    go = Deferred(str)

    def __init__(self) -> None:
        self.said: list[str] = []

    async def execute(self, request: str) -> str:
        match request:
            case "timer":
                await self.sleep(LATER)
            case "child":
                return await self.run_child(Child, request, key="child")
            case "signal":
                await self.wait_until(lambda: bool(self.said))
            case _:
                return await self.go.wait()
        return request

    @signal
    async def say(self, what: str) -> None:
        self.said.append(what)


class Pen:
    """A lane that holds the flush of a suspension, or of an exit, before it is sent and before the
    runner hears of it."""

    def __init__(self, session: LaneSession, gates: Gates) -> None:
        self._session = session
        self._gates = gates

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        statuses = {each.execution.status for each in commits if each.execution is not None}
        if statuses <= {Status.RUNNING}:
            return await self._session.flush(commits)
        await self._gates("is sent")
        flushed = await self._session.flush(commits)
        await self._gates("is heard")
        return flushed


class Pens(MemoryStorage):
    gates: Gates

    async def open_lane(self, runner: RunnerId, index: int) -> LaneSession:
        pen: Any = Pen(await super().open_lane(runner, index), self.gates)
        return pen


def cluster_with(gates: Gates, *workflows: Workflow[Any, Any]) -> TestCluster:
    """One whose lanes are such pens."""
    cluster = TestCluster(*workflows, suspend_after=IDLE)
    assert cluster.database is not None
    database = cluster.database

    def open_storage(identity: UUID | None, clock: Clock) -> Pens:
        storage = Pens(database, identity=identity, shards_per_group=8)
        storage.gates = gates
        return storage

    cluster.runner = Runner(cluster.settings, clock=cluster.clock, open_storage=open_storage)
    return cluster


Act = Callable[[], Awaitable[object]]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("kind", ["signal", "resolve", "interrupt", "child", "timer"])
async def test_a_wake_up_against_a_suspension_in_memory(kind: str, place: int) -> None:
    """G3, G9: the execution goes on, wherever it comes."""
    gates = Gates()
    async with cluster_with(gates, Waits(), Child()) as cluster:
        execution = await cluster.client.start(Waits, kind, key=kind)
        await cluster.settle()
        acts: list[Act] = [
            partial(cluster.advance, IDLE * 2),
            partial(gates.open, "is sent"),
            partial(gates.open, "is heard"),
        ]
        acts.insert(place, waker(cluster, execution, kind))
        await gates.close(["is sent", "is heard"])
        held = await all_of(cluster, acts, gates)
        assert held[:place] == ["is sent", "is heard", None][:place]
        await cluster.advance(LATER)
        ended = Interrupted("enough") if kind == "interrupt" else Succeeded(kind)
        assert await execution.poll() == ended
        assert cluster.runner.resident == 0
        assert await waiting_rows(cluster, execution) == 0


@pytest.mark.parametrize("place", range(4))
async def test_an_interrupt_against_a_finish_in_memory(place: int) -> None:
    """G4, G9: one exit, which is the interrupt's if it came before the body had ended."""
    gates = Gates()
    async with cluster_with(gates, Works(gates)) as cluster:
        await gates.close(["returns", "is sent", "is heard"])
        execution = await cluster.client.start(Works, "done")
        await cluster.settle()
        acts: list[Act] = [
            partial(gates.open, "returns"),
            partial(gates.open, "is sent"),
            partial(gates.open, "is heard"),
        ]
        acts.insert(place, partial(execution.interrupt, "enough"))
        held = await all_of(cluster, acts, gates)
        assert held[:place] == ["is sent", "is heard", None][:place]
        await cluster.advance(LATER)
        assert await execution.poll() == (Succeeded("done") if place else Interrupted("enough"))
        interrupts = [row for row in await execution.history() if row.kind is JournalKind.INTERRUPT]
        assert len(interrupts) == (place == 0)
        assert await waiting_rows(cluster, execution) == 0


class Works(Workflow[str, str]):
    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    async def execute(self, request: str) -> str:
        return await self.work(request)

    @activity
    async def work(self, request: str) -> str:
        await self.gates("returns")
        return request


async def all_of(cluster: TestCluster, acts: Sequence[Act], gates: Gates) -> list[str | None]:
    """One after the other, each as far as it goes; where something is held after each."""
    found: list[str | None] = []
    for act in acts:
        await act()
        await cluster.settle()
        found.append(next(iter(await gates.held()), None))
    return found


async def waiting_rows(cluster: TestCluster, execution: Execution[str]) -> int:
    return await cluster.client._node.storage.waiting_rows(execution.request_id)


def waker(cluster: TestCluster, execution: Execution[str], kind: str) -> Act:
    match kind:
        case "signal":
            return partial(execution.signal, Waits.say, kind)
        case "resolve":
            return partial(execution.resolve, Waits.go, kind)
        case "interrupt":
            return partial(execution.interrupt, "enough")
        case "child":
            return partial(cluster.client.execution(Child, "child").resolve, Child.go, kind)
        case _:
            return partial(cluster.advance, LATER)


async def test_a_wake_up_against_a_suspension(postgres: World, gates: ServerGates) -> None:
    """G3, G9: what is acknowledged is in the inbox once, whatever is deleted from it meanwhile."""
    owner, lane = await postgres.runner_with_lane()
    other = await postgres.process()
    other_lane = await other.lane(1)
    assert len([*await lane.acquire([ONE]), *await other_lane.acquire([TWO])]) == 2
    await gates.hold("suspends", "inbox", of=f"outlast:{owner.runner}:%")
    await gates.hold("has suspended", "inbox", of=f"outlast:{owner.runner}:%", commit=True)
    await gates.hold("wakes", "inbox", of=f"outlast:{other.runner}:%")
    await gates.hold("has woken", "inbox", of=f"outlast:{other.runner}:%", commit=True)

    @asynccontextmanager
    async def race(kind: str) -> AsyncIterator[Mapping[str, Side]]:
        name = f"o-{next_id()}"
        id = (await save_one(owner, start(name))).envelope.request_id
        (row,) = (await sweep_of(lane)).rows
        told = event(name, key=name if kind == "resolve" else None)
        call = message(shard=TWO, reply_to=ReplyTo(execution=id, shard=ONE))
        await save_one(owner, call)
        woken: list[Snowflake] = []

        async def suspend() -> None:
            sleeps = ExecutionUpdate(request_id=id, run=1, status=Status.SUSPENDED, started_at=NOW)
            await lane.flush([Commit(shard=ONE, settled=[row.seq], execution=sleeps)])

        async def wake() -> None:
            await gates("is asked")
            if kind == "interrupt":
                of = Interrupt(request_id=id, address=row.envelope.address)
                assert await other.storage.interrupt([of]) == [True]
                woken.append(id)
            elif kind == "child":
                exit = success(call, reply_to=call.envelope.reply_to)
                await other_lane.flush([Commit(shard=TWO, replies=[exit])])
                woken.append(call.envelope.request_id)
            else:
                await save_one(other, told)
                woken.append(told.envelope.request_id)

        yield {"suspension": suspend, "wake-up": wake}

        swept = (await sweep_of(lane)).rows
        assert [each.envelope.request_id for each in swept] == woken
        assert [each.execution for each in swept] == [id]
        await lane.flush([Commit(shard=ONE, settled=[each.seq for each in swept])])

    sides = {
        "suspension": ("suspends", "has suspended"),
        "wake-up": ("is asked", "wakes", "has woken"),
    }
    for kind in ("signal", "resolve", "interrupt", "child"):
        assert len(await every_order(gates, sides, partial(race, kind))) == 10
    await other_lane.close()
    await lane.close()


async def test_an_interrupt_against_a_finish(postgres: World, gates: ServerGates) -> None:
    """G4, G9: one exit, and what is stored until it has committed is delivered all the same."""
    owner, lane = await postgres.runner_with_lane()
    other = await postgres.process(register=False)
    assert await lane.acquire([ONE])
    await gates.hold("finishes", "replies", of=f"outlast:{owner.runner}:%")
    await gates.hold("has finished", "replies", of=f"outlast:{owner.runner}:%", commit=True)
    await gates.hold("interrupts", "inbox", of=f"outlast:{other.runner}:%")
    await gates.hold("has interrupted", "inbox", of=f"outlast:{other.runner}:%", commit=True)
    late: list[bool] = []

    @asynccontextmanager
    async def race(kind: str) -> AsyncIterator[Mapping[str, Side]]:
        name = f"o-{next_id()}"
        id = (await save_one(owner, start(name))).envelope.request_id
        (row,) = (await sweep_of(lane)).rows
        told = event(name)
        stored: list[bool] = []

        async def finish() -> None:
            ends = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED, finished_at=NOW)
            exit = Commit(shard=ONE, replies=[success(id)], settled=[row.seq], execution=ends)
            await lane.flush([exit])

        async def interrupt() -> None:
            await gates("is asked")
            if kind == "request":
                of = Interrupt(request_id=id, address=row.envelope.address)
                stored.extend(await other.storage.interrupt([of]))
            else:
                (saved,) = await other.storage.save([told])
                assert saved.outcome in {SaveOutcome.CREATED, SaveOutcome.TARGET_FINISHED}
                stored.append(saved.outcome is SaveOutcome.CREATED)

        yield {"finish": finish, "interrupt": interrupt}

        assert [each.payload for each in await owner.storage.replies([id])] == [b"1"]
        swept = (await sweep_of(lane)).rows
        assert [each.execution for each in swept] == [id] * stored[0]
        assert all(each.state is not None and each.state.status.finished for each in swept)
        await lane.flush([Commit(shard=ONE, settled=[each.seq for each in swept])])
        late.append(not stored[0])

    sides = {
        "finish": ("finishes", "has finished"),
        "interrupt": ("is asked", "interrupts", "has interrupted"),
    }
    for kind in ("request", "execution"):
        late.clear()
        orders = await every_order(gates, sides, partial(race, kind))
        assert late == [order.index("has finished") < order.index("is asked") for order in orders]
    await lane.close()
