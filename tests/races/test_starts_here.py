"""A start stored by its owner's process begins from memory, whatever sweeps read meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeAlias

import pytest

from engine import Entity, Pending, Runner, Settings, Workflow, activity, rpc
from engine.cluster.delivery import Delivery
from engine.core.ids import shard_of
from engine.storage.lane_session import PostgresLaneSession
from engine.storage.pool import Pool
from engine.storage.protocol import InboxRow, Sweep
from tests.eventually import eventually
from tests.gates import Gates, Held

RARELY = dict.fromkeys(("heartbeat_interval", "poll_interval"), timedelta(minutes=1)) | {
    "time_to_live": timedelta(minutes=5)
}
"""Settings under which nobody sweeps who is not asked to."""


class Cart(Entity):
    def __init__(self) -> None:
        self.items: list[str] = []

    @rpc
    async def put(self, item: str) -> None:
        self.items.append(item)

    @rpc
    async def content(self) -> list[str]:
        return list(self.items)


class Checkout(Workflow[str, list[str]]):
    async def execute(self, request: str) -> list[str]:
        return await self.entity(Cart, request).content()


class Greets(Workflow[str, str]):
    def __init__(self) -> None:
        self.greeted: list[str] = []
        self.go = asyncio.Event()
        self.go.set()

    async def execute(self, request: str) -> str:
        return await self.greet(request)

    @activity
    async def greet(self, name: str) -> str:
        self.greeted.append(name)
        if name == "ada":
            await self.go.wait()
        return f"hello {name}"


class Here:
    """A runner that owns everything, and its client, whose starts are stored but not answered while
    ``gates`` are closed."""

    def __init__(self, runner: Runner, greets: Greets) -> None:
        self.runner = runner
        self.client = runner.client
        self.greets = greets
        self.gates = Gates()
        self.execution = self.client.execution(Greets, "ada")
        outbox: Any = self.client._node.outbox
        outbox._storage = Held(outbox._storage, self.gates, {"save": "save"})

    @property
    def delivery(self) -> Delivery:
        assert self.runner._incarnation is not None
        return self.runner._incarnation.delivery

    async def started(self, meanwhile: "Meanwhile") -> None:
        """Start, and let something happen between the commit and the answer."""
        await self.gates.close(["after save"])
        async with asyncio.TaskGroup() as group:
            group.create_task(self.client.start(Greets, "ada", key="ada"))

            async def stored() -> bool:
                return await self.gates.held() == {"after save"}

            await eventually(stored)
            await meanwhile(self)
            await self.gates.open_all()

    async def read(self) -> None:
        await self.runner.sharding.poll_storage()

    async def ended(self) -> bool:
        return not isinstance(await self.execution.poll(), Pending)

    async def owned(self) -> bool:
        return len(self.runner.epochs) == self.runner.settings.shards_per_group


Meanwhile: TypeAlias = Callable[[Here], Awaitable[None]]


@asynccontextmanager
async def a_runner(dsn: str) -> AsyncIterator[Here]:
    greets = Greets()
    settings = Settings(dsn=dsn, lanes=1, shards_per_group=2, **RARELY)
    async with Runner(settings).register(greets, Checkout(), Cart()) as runner:
        yield (here := Here(runner, greets))
        await here.gates.open_all()


@pytest.fixture
async def here(dsn: str) -> AsyncIterator[Here]:
    async with a_runner(dsn) as here:
        await eventually(here.owned)
        await here.read()
        yield here


async def nothing(_: Here) -> None:
    """It begins from memory."""


async def a_sweep(here: Here) -> None:
    await here.read()


async def its_end(here: Here) -> None:
    await here.read()
    await eventually(here.ended)


async def another_epoch(here: Here) -> None:
    before = dict(here.runner.epochs)
    for lane in here.delivery.lanes:
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
    await here.read()
    assert here.greets.greeted == ["ada"]


async def test_it_needs_no_sweep(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeps = swept(monkeypatch)
    await here.started(nothing)
    assert await here.execution.join() == "hello ada"
    assert sweeps == []


async def test_a_sweep_that_began_before_it_finds_it_in_hand(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates, handed = Gates(), list[int]()
    await gates.close(["found"])
    sweeps = swept(monkeypatch, lambda: gates("found"))
    hand = Delivery._hand

    def noted(self: Delivery, shard: Any, row: InboxRow) -> None:
        handed.append(row.seq)
        hand(self, shard, row)

    monkeypatch.setattr(Delivery, "_hand", noted)
    polls: list[asyncio.Task[None]] = []

    async def a_sweep_begins(here: Here) -> None:
        polls.append(asyncio.get_running_loop().create_task(here.read()))
        await eventually(lambda: any(sweep.rows for sweep in sweeps))

    await here.started(a_sweep_begins)
    # its lane can write nothing until the sweep is over, but the step is run
    await eventually(lambda: here.greets.greeted == ["ada"])
    await gates.open_all()
    await asyncio.gather(*polls)
    assert await here.execution.join() == "hello ada"
    assert len(handed) == 1
    assert here.greets.greeted == ["ada"]


async def test_one_that_was_stored_by_the_second_try_is_read_and_deafens_nobody(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows the number of its row."""
    run, lost = Pool._run_or_end, list[str]()

    async def loses(self: Pool, session: Any, query: str, *args: Any, **options: Any) -> Any:
        answer = await run(self, session, query, *args, **options)
        if "begun as" in query and not lost:
            lost.append(query)
            session.terminate()
            raise ConnectionResetError
        return answer

    monkeypatch.setattr(Pool, "_run_or_end", loses)
    here.greets.go.clear()
    await here.client.start(Greets, "ada", key="ada")
    assert lost
    await eventually(lambda: here.greets.greeted == ["ada"])
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:  # at once, so that they are swept
        for name in ("bob", "cyd", "dan"):
            group.create_task(here.client.execute(Greets, name, key=name))
    here.greets.go.set()
    assert await here.execution.join() == "hello ada"
    assert sorted(here.greets.greeted) == ["ada", "bob", "cyd", "dan"]


async def test_it_sees_what_was_acknowledged_before_it(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = Gates()
    await gates.close(["found"])
    sweeps = swept(monkeypatch, lambda: gates("found"))
    for lane in here.delivery.lanes:
        lane.ring_all()
    await eventually(lambda: sweeps)  # which has not seen what is sent now
    await here.client.tell(here.client.entity(Cart, "c").put, "apple")
    checkout = await here.client.start(Checkout, "c")
    await asyncio.sleep(0.05)
    await gates.open_all()
    assert await checkout.join() == ["apple"]


async def test_its_shards_next_owner_hears_of_it(
    here: Here, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has given the shard away in the database, and does not know yet, keeps it from nobody."""
    release, unlocked, gates = PostgresLaneSession.release, list[Any](), Gates()
    await gates.close(["released"])

    async def released(self: PostgresLaneSession, shards: Any) -> None:
        await release(self, shards)
        unlocked.append(shards)
        await gates("released")

    monkeypatch.setattr(PostgresLaneSession, "release", released)
    async with a_runner(dsn) as other:
        await eventually(lambda: unlocked)
        incarnation = other.runner._incarnation
        assert incarnation is not None
        assert incarnation._ownership is not None
        incarnation._ownership.poke()
        await eventually(lambda: other.runner.epochs)
        await other.read()
        theirs = set(other.runner.epochs)
        keys = (f"k{n}" for n in range(100))
        key = next(key for key in keys if shard_of("default", 2, "Greets", key) in theirs)
        execution = await here.client.start(Greets, "ada", key=key)
        await gates.open_all()
        assert await execution.join(timedelta(seconds=5)) == "hello ada"
        assert (here.greets.greeted, other.greets.greeted) == ([], ["ada"])


def swept(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[], Awaitable[None]] | None = None
) -> list[Sweep]:
    """What sweeps find from now on, and what to await before their lane hears of it."""
    found: list[Sweep] = []
    sweep = PostgresLaneSession.sweep

    async def noted(self: PostgresLaneSession, *args: Any, **options: Any) -> Sweep:
        found.append(answer := await sweep(self, *args, **options))
        if then is not None:
            await then()
        return answer

    monkeypatch.setattr(PostgresLaneSession, "sweep", noted)
    return found
