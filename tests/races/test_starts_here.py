"""A start stored by its owner's process begins from memory, whatever sweeps read meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import TypeAlias

import pytest

from engine import Pending, Runner, Settings, Workflow, activity
from engine.storage.lane_session import PostgresLaneSession
from engine.storage.protocol import Sweep
from tests.eventually import eventually
from tests.gates import Gates, Held

RARELY = dict.fromkeys(("heartbeat_interval", "poll_interval"), timedelta(minutes=1)) | {
    "time_to_live": timedelta(minutes=5)
}
"""Settings under which nobody sweeps who is not asked to."""


class Greets(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.greet(request)

    @activity
    async def greet(self, name: str) -> str:
        self.greeted.append(name)
        return f"hello {name}"

    def __init__(self) -> None:
        self.greeted: list[str] = []


class Here:
    """A runner that owns everything, and a client in its process, whose start is stored but not
    answered while ``gates`` are closed."""

    def __init__(self, runner: Runner, greets: Greets) -> None:
        self.runner = runner
        self.greets = greets
        self.gates = Gates()
        self.execution = runner.client.execution(Greets, "ada")
        outbox = runner.client._node.outbox
        outbox._storage = Held(outbox._storage, self.gates, {"save": "save"})

    async def started(self, meanwhile: "Meanwhile") -> None:
        """Start, and let something happen between the commit and the answer."""
        await self.gates.close(["after save"])
        async with asyncio.TaskGroup() as group:
            group.create_task(self.runner.client.start(Greets, "ada", key="ada"))

            async def stored() -> bool:
                return await self.gates.held() == {"after save"}

            await eventually(stored)
            await meanwhile(self)
            await self.gates.open_all()

    async def ended(self) -> bool:
        return not isinstance(await self.execution.poll(), Pending)

    async def owned(self) -> bool:
        return len(self.runner.epochs) == self.runner.settings.shards_per_group


Meanwhile: TypeAlias = Callable[[Here], Awaitable[None]]


@pytest.fixture
async def here(dsn: str) -> AsyncIterator[Here]:
    greets = Greets()
    async with Runner(Settings(dsn=dsn, **RARELY)).register(greets) as runner:
        found = Here(runner, greets)
        await eventually(found.owned)
        await runner.sharding.poll_storage()
        yield found
        await found.gates.open_all()


async def nothing(_: Here) -> None:
    """It begins from memory."""


async def a_sweep(here: Here) -> None:
    await here.runner.sharding.poll_storage()


async def its_end(here: Here) -> None:
    await a_sweep(here)
    await eventually(here.ended)


async def another_epoch(here: Here) -> None:
    before = dict(here.runner.epochs)
    for lane in here.runner._incarnation.delivery.lanes:
        lane.terminate()

    async def again() -> bool:
        epochs = here.runner.epochs
        return await here.owned() and all(epochs[id] > before[id] for id in before)

    await eventually(again)
    await eventually(here.ended)


@pytest.mark.parametrize("meanwhile", [nothing, a_sweep, its_end, another_epoch])
async def test_it_runs_once_whatever_happens_before_its_answer(
    here: Here, meanwhile: Meanwhile
) -> None:
    await here.started(meanwhile)
    assert await here.execution.join() == "hello ada"
    await here.runner.sharding.poll_storage()
    assert here.greets.greeted == ["ada"]


async def test_it_needs_no_sweep(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = swept(monkeypatch)
    await here.started(nothing)
    assert await here.execution.join() == "hello ada"
    assert sweeps == []


async def test_a_sweep_that_began_before_it_finds_it_in_hand(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Gates()
    await found.close(["found"])
    sweeps = swept(monkeypatch, lambda: found("found"))
    polls: list[asyncio.Task[None]] = []

    async def a_sweep_begins(here: Here) -> None:
        loop = asyncio.get_running_loop()
        polls.append(loop.create_task(here.runner.sharding.poll_storage()))
        await eventually(lambda: any(sweep.rows for sweep in sweeps))

    await here.started(a_sweep_begins)
    # its lane can write nothing until the sweep is over, but the step is run
    await eventually(lambda: here.greets.greeted == ["ada"])
    await found.open_all()
    await asyncio.gather(*polls)
    assert await here.execution.join() == "hello ada"
    await here.runner.sharding.poll_storage()
    assert here.greets.greeted == ["ada"]


def swept(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]] | None = None
) -> list[Sweep]:
    """What sweeps find from now on, and what to await before their lane hears of it."""
    found: list[Sweep] = []
    sweep = PostgresLaneSession.sweep

    async def noted(self: PostgresLaneSession, *args: object, **kwargs: object) -> Sweep:
        found.append(answer := await sweep(self, *args, **kwargs))  # type: ignore[arg-type]
        if then is not None:
            await then()
        return answer

    monkeypatch.setattr(PostgresLaneSession, "sweep", noted)
    return found
