"""A runner without a place in memory: items of queues go to those that have one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta

from engine import Entity, Queue, Runner, rpc
from engine.cluster.residency import Residency
from engine.core.ids import shard_of
from engine.storage.memory_database import MemoryDatabase
from engine.testing import TestCluster, VirtualClock
from tests.eventually import eventually

OFTEN = timedelta(milliseconds=20)


class Guest(Entity):
    """Stays until the test lets it go."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()

    @rpc
    async def stay(self) -> None:
        await self.leave.wait()


class Jobs(Queue[int, int]):
    def __init__(self) -> None:
        self.began: list[int] = []

    async def process(self, item: int) -> int:
        self.began.append(item)
        return item


class Few(Jobs):
    concurrency = 3


@asynccontextmanager
async def runner_of(
    database: MemoryDatabase, *prototypes: Guest | Jobs, places: int = 1
) -> AsyncGenerator[Runner]:
    """One with a place in memory for so many entities."""
    made = TestCluster(database=database, max_resident=places, heartbeat_interval=OFTEN)
    async with made.runner.register(*prototypes) as runner:
        yield runner


def on(runner: Runner, name: str) -> str:
    """The id of an entity of the runner's."""
    ids = (f"{n}" for n in range(1000))
    owned = {shard.number for shard in runner.epochs}
    return next(each for each in ids if shard_of("default", 8, name, each).number in owned)


def spread(*runners: Runner) -> bool:
    return sum(len(each.epochs) for each in runners) == 8 and all(each.epochs for each in runners)


async def test_items_go_to_runners_that_have_a_place_for_them() -> None:
    database = MemoryDatabase(VirtualClock())
    guests = Guest(), Guest()
    full, free = (Jobs(), Few()), (Jobs(), Few())
    async with (
        runner_of(database, guests[0], *full) as first,
        runner_of(database, guests[1], *free, places=100) as second,
    ):
        await eventually(lambda: spread(first, second))
        stay = first.client.entity(Guest, on(first, "Guest")).stay
        await first.client.tell(stay)
        await eventually(lambda: _crowded(first, first) and _crowded(first, second))

        for queue in (Jobs, Few):
            items = [await first.client.submit(queue, n) for n in range(30)]
            assert [await item.join(timedelta(seconds=5)) for item in items] == list(range(30))
        assert [len(each.began) for each in (*full, *free)] == [0, 0, 30, 30]

        guests[0].leave.set()
        await eventually(lambda: not _crowded(first, first) and not _crowded(first, second))
        for n in range(30):
            await first.client.submit(Jobs, n)
        await eventually(lambda: full[0].began)


async def test_when_all_are_crowded_items_wait_for_a_place_at_any_of_them() -> None:
    database = MemoryDatabase(VirtualClock())
    guest, jobs = Guest(), Jobs()
    async with runner_of(database, guest, jobs) as runner:
        await eventually(lambda: len(runner.epochs) == 8)
        await runner.client.tell(runner.client.entity(Guest, "g").stay)
        await eventually(lambda: _crowded(runner, runner))
        item = await runner.client.submit(Jobs, 1)
        guest.leave.set()
        assert await item.join(timedelta(seconds=5)) == 1


def _crowded(full: Runner, knows: Runner) -> bool:
    """Whether one runner knows that another is."""
    incarnation = knows._incarnation
    assert incarnation is not None
    view = incarnation._roster._view
    loads = {} if view is None else {row.id: row.load for row in view.runners}
    load = loads.get(full.id) if full.id else None
    return load is not None and load.crowded


class Visitor:
    """A resident that stays as it is."""

    def evict(self) -> None:
        raise AssertionError

    def give_way(self) -> None:
        raise AssertionError


def test_many_that_come_and_go_are_no_crowd() -> None:
    residency, first, second = Residency(1), Visitor(), Visitor()
    assert not residency.crowded()
    residency.enter(first)
    assert residency.crowded()
    residency.leave(first)
    residency.enter(second)
    assert [residency.crowded(), residency.crowded()] == [False, True]
    residency.idle(second)
    residency.busy(second)
    assert [residency.crowded(), residency.crowded()] == [False, True]


async def test_who_asks_for_the_health_of_a_runner_makes_it_no_crowd() -> None:
    async with runner_of(MemoryDatabase(VirtualClock()), Jobs()) as runner:
        incarnation = runner._incarnation
        assert incarnation is not None
        residency, first, second = incarnation._residency, Visitor(), Visitor()
        residency.enter(first)
        residency.leave(first)
        residency.enter(second)
        runner.health()
        assert not residency.crowded()
        residency.leave(second)
