"""How much of an entity is in memory, and what becomes of the rest: mailboxes and residency."""

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from engine import Entity, EntityDefect, MailboxFull, RequestFailed, rpc
from engine.testing import TestCluster
from tests.eventually import eventually


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    dsn = request.getfixturevalue("dsn")
    notifications = "without" not in request.param
    return {"dsn": dsn, "notifications": notifications, "shards_per_group": 2}


class Gate:
    """What a test and the handlers it lets pass have in common."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.log: list[tuple[str, int]] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.built: Counter[str] = Counter()


class Slow(Entity):
    mailbox_capacity = 2

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    @rpc
    async def work(self, n: int) -> int:
        id, gate = self.entity_id, self.gate
        gate.now[id] += 1
        gate.most[id] = max(gate.most[id], gate.now[id])
        await gate.open.wait()
        gate.now[id] -= 1
        gate.log.append((id, n))
        return n

    @rpc(readonly=True)
    async def look(self) -> int:
        return len(self.gate.log)


class Pairs(Slow):
    concurrency = 2


class Crowd(Slow):
    concurrency = 0


async def _tell(cluster: TestCluster, entity: type[Slow], id: str, count: int) -> None:
    handle = cluster.client.entity(entity, id)
    for n in range(count):
        await cluster.client.tell(handle.work, n)


async def test_what_finds_a_mailbox_full_waits_in_the_database_and_comes_in_order(
    where: dict[str, Any],
) -> None:
    gate = Gate()
    async with TestCluster(Slow(gate), **where) as cluster:
        await _tell(cluster, Slow, "a", 50)
        await eventually(lambda: gate.now["a"] == 1)
        await cluster.runner.sharding.poll_storage()
        host = _host(cluster, "Slow")
        assert len(host._messages) <= 1 + Slow.mailbox_capacity
        gate.open.set()
        await eventually(lambda: len(gate.log) == 50)
    assert gate.log == [("a", n) for n in range(50)]


async def test_a_full_mailbox_is_not_read_again_and_again() -> None:
    gate = Gate()
    async with TestCluster(Slow(gate)) as cluster:
        await _tell(cluster, Slow, "a", 50)
        await cluster.settle()
        swept = _count_sweeps(cluster)
        await cluster.advance(timedelta(seconds=1))
        for _ in range(200):
            await asyncio.sleep(0)
        assert swept["sweeps"] <= 2
        gate.open.set()
        await eventually(lambda: len(gate.log) == 50)


async def test_others_go_on_beside_a_full_mailbox(where: dict[str, Any]) -> None:
    gate = Gate()
    where = {**where, "shards_per_group": 1}
    async with TestCluster(Slow(gate), Free(), **where) as cluster:
        await _tell(cluster, Slow, "a", 200)
        await eventually(lambda: gate.now["a"] == 1)
        async with asyncio.timeout(20):
            assert await cluster.client.entity(Free, "b").add(1) == 1
        gate.open.set()
        await eventually(lambda: len(gate.log) == 200)
    assert gate.log == [("a", n) for n in range(200)]


@pytest.mark.parametrize(("entity", "most"), [(Slow, 1), (Pairs, 2), (Crowd, 20)])
async def test_as_many_messages_of_an_entity_run_at_once_as_its_concurrency_says(
    where: dict[str, Any], entity: type[Slow], most: int
) -> None:
    gate = Gate()
    async with TestCluster(entity(gate), **where) as cluster:
        await _tell(cluster, entity, "a", 20)
        await eventually(lambda: gate.now["a"] == most)
        gate.open.set()
        await eventually(lambda: len(gate.log) == 20)
    assert gate.most["a"] == most


class Free(Entity):
    max_idle = timedelta(0)

    def __init__(self) -> None:
        self.sum = 0

    @rpc
    async def add(self, n: int) -> int:
        self.sum += n
        return self.sum


class Sticky(Free):
    max_idle = timedelta(minutes=1)

    @rpc
    async def stay(self, on: bool) -> None:
        self.keep_alive(on)


async def test_with_a_place_for_two_a_hundred_entities_all_get_through(
    where: dict[str, Any],
) -> None:
    gate = Gate()
    gate.open.set()
    async with TestCluster(Slow(gate), max_resident=2, **where) as cluster:
        peak = _watch_peak(cluster, "Slow")
        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(_tell(cluster, Slow, f"e{n}", 3))
        await eventually(lambda: len(gate.log) == 300, timeout=30)
        assert max(peak) <= 2
    for n in range(100):
        assert [k for id, k in gate.log if id == f"e{n}"] == [0, 1, 2]


async def test_an_entity_that_is_never_idle_gives_way_to_those_that_wait(
    where: dict[str, Any],
) -> None:
    busy = Busy()
    async with TestCluster(busy, Free(), max_resident=1, **where) as cluster:
        handle = cluster.client.entity(Busy, "always")
        for n in range(busy.mailbox_capacity):
            await cluster.client.tell(handle.again, n)
        async with asyncio.timeout(20):
            for _ in range(5):
                await cluster.client.entity(Free, "other").add(1)
        busy.stop.append(1)
        await eventually(lambda: len(busy.seen) >= busy.mailbox_capacity)


class Busy(Entity):
    mailbox_capacity = 20

    def __init__(self) -> None:
        self.stop: list[int] = []
        self.seen: list[int] = []

    @rpc
    async def again(self, n: int) -> None:
        self.seen.append(n)
        await asyncio.sleep(0.002)


async def test_the_longest_idle_entity_makes_room_and_loses_what_it_had_in_memory() -> None:
    async with TestCluster(Sticky(), max_resident=2) as cluster:
        one, two, three = (cluster.client.entity(Sticky, id) for id in ("1", "2", "3"))
        assert [await one.add(1), await two.add(1), await one.add(1)] == [1, 1, 2]
        assert await three.add(1) == 1  # in place of two, which was idle for longer
        assert await one.add(1) == 3
        assert await two.add(1) == 1


async def test_what_is_kept_alive_is_neither_reaped_nor_evicted() -> None:
    async with TestCluster(Sticky(), max_resident=1) as cluster:
        kept, other = cluster.client.entity(Sticky, "kept"), cluster.client.entity(Sticky, "o")
        await kept.stay(True)
        assert await kept.add(1) == 1
        assert [await other.add(1), await other.add(1)] == [1, 2]
        await cluster.advance(timedelta(hours=1))
        assert cluster.runner.sharding.active_entity_count() == 1
        assert await kept.add(1) == 2
        await kept.stay(False)
        await cluster.advance(timedelta(hours=1))
        assert cluster.runner.sharding.active_entity_count() == 0
        assert await kept.add(1) == 1


class Brittle(Entity):
    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.mine = 0

    @rpc
    async def step(self, breaks: int) -> int:
        """Break as many times in a row."""
        self.mine += 1
        self.gate.built[self.entity_id] += 1
        if self.gate.built[self.entity_id] <= breaks:
            raise EntityDefect("what I know is wrong")
        return self.mine

    @rpc
    async def fail(self) -> None:
        raise LookupError("nothing there")


async def test_a_defect_rebuilds_the_entity_and_replays_what_was_in_flight(
    where: dict[str, Any],
) -> None:
    gate = Gate()
    async with TestCluster(Brittle(gate), **where) as cluster:
        handle = cluster.client.entity(Brittle, "b")
        answers = [asyncio.ensure_future(handle.step(2)), asyncio.ensure_future(handle.step(0))]
        for _ in range(10):
            await cluster.settle()
            if "dsn" not in where:
                await cluster.advance(timedelta(seconds=1))
        async with asyncio.timeout(20):
            assert await asyncio.gather(*answers) == [1, 2]  # both in the third instance
    assert gate.built["b"] == 4


async def test_what_breaks_its_entity_too_often_is_a_dead_letter_and_the_next_is_handled(
    where: dict[str, Any],
) -> None:
    gate = Gate()
    where = {**where, "max_deliveries": 4}
    async with TestCluster(Brittle(gate), **where) as cluster:
        handle = cluster.client.entity(Brittle, "b")
        bad = asyncio.ensure_future(handle.step(1000))
        for _ in range(20):
            await cluster.settle()
            if "dsn" not in where:
                await cluster.advance(timedelta(seconds=10))
        async with asyncio.timeout(20):
            with pytest.raises(RequestFailed, match="DeliveryFailed"):
                await bad
            assert gate.built["b"] == 4
            assert await handle.step(0) == 1


class Duo(Entity):
    """The first to be ``bad`` breaks the entity while another is handled beside it."""

    concurrency = 2

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    @rpc
    async def slow(self) -> str:
        with self.running("slow"):
            await asyncio.sleep(0.01)
            await self.gate.open.wait()
        return "slow"

    @rpc
    async def bad(self) -> str:
        with self.running("bad"):
            await asyncio.sleep(0.01)
            if self.gate.built["bad"] == 1:
                raise EntityDefect("broken")
        return "bad"

    @contextmanager
    def running(self, what: str) -> Generator[None]:
        self.gate.built[what] += 1
        self.gate.now[f"{id(self)}"] += 1
        self.gate.most["instances"] = max(self.gate.most["instances"], len(+self.gate.now))
        try:
            yield
        finally:
            self.gate.now[f"{id(self)}"] -= 1


@pytest.mark.parametrize("others", ["before", "after"])
async def test_a_defect_with_two_messages_in_hand_loses_neither_and_there_is_one_entity(
    where: dict[str, Any], others: str
) -> None:
    """``others`` ask for its place in memory while it breaks, or when it has been built anew."""
    gate = Gate()
    async with TestCluster(Duo(gate), Free(), max_resident=1, **where) as cluster:
        duo, free = cluster.client.entity(Duo, "d"), cluster.client.entity(Free, "f")
        calls = [asyncio.ensure_future(duo.slow()), asyncio.ensure_future(duo.bad())]
        await eventually(lambda: gate.built == {"slow": 1, "bad": 1})
        if others == "before":
            calls.append(asyncio.ensure_future(free.add(1)))
        await eventually(lambda: _rebuilt(cluster, gate))
        if others == "after":
            calls.append(asyncio.ensure_future(free.add(1)))
        calls.append(asyncio.ensure_future(duo.bad()))
        await eventually(lambda: _in_hand(cluster, "Duo"))
        await cluster.runner.sharding.poll_storage()
        gate.open.set()
        async with asyncio.timeout(20):
            assert await asyncio.gather(*calls) == ["slow", "bad", 1, "bad"]
    assert gate.most["instances"] == 1


async def _rebuilt(cluster: TestCluster, gate: Gate) -> bool:
    if cluster.database is not None:
        await cluster.advance(timedelta(seconds=1))
    return gate.built["slow"] == 2


def _in_hand(cluster: TestCluster, name: str) -> int:
    return len(_host(cluster, name)._messages)


class Hot(Entity):
    """Handles volatile messages that overlap, so that it is never idle."""

    concurrency = 2

    def __init__(self) -> None:
        self.stop = asyncio.Event()

    @rpc(persisted=False)
    async def touch(self) -> None:
        await asyncio.sleep(0.01)

    @rpc
    async def store(self, n: int) -> int:
        return n

    async def keep_busy(self, cluster: TestCluster) -> Counter[str]:
        """Call it over and over; how often it took the call, and how often not."""
        handle, seen = cluster.client.entity(Hot, "h"), Counter[str]()
        while not self.stop.is_set():
            try:
                await handle.touch()
                seen["touched"] += 1
            except MailboxFull:
                seen["refused"] += 1
                await asyncio.sleep(0.001)
        return seen


async def test_volatile_messages_do_not_keep_out_those_that_are_stored_or_wait_for_a_place(
    where: dict[str, Any],
) -> None:
    hot = Hot()
    async with TestCluster(hot, Free(), max_resident=1, **where) as cluster:
        callers = [asyncio.ensure_future(hot.keep_busy(cluster)) for _ in range(2)]
        await eventually(lambda: _in_hand(cluster, "Hot") == 2)
        async with asyncio.timeout(20):
            for n in range(3):
                answers = (
                    cluster.client.entity(Free, "f").add(1),
                    cluster.client.entity(Hot, "h").store(n),
                )
                assert await asyncio.gather(*answers) == [1, n]
        hot.stop.set()
        for seen in await asyncio.gather(*callers):
            assert seen["touched"]


async def test_an_exception_is_the_callers_failure_and_changes_nothing_else(
    where: dict[str, Any],
) -> None:
    gate = Gate()
    async with TestCluster(Brittle(gate), **where) as cluster:
        handle = cluster.client.entity(Brittle, "b")
        assert await handle.step(0) == 1
        with pytest.raises(RequestFailed, match="nothing there"):
            await handle.fail()
        assert await handle.step(0) == 2


def _host(cluster: TestCluster, name: str) -> Any:
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    return incarnation.delivery._hosts[name]


def _watch_peak(cluster: TestCluster, name: str) -> list[int]:
    """How many instances there were each time one was made."""
    host = _host(cluster, name)
    peak = [0]
    put = host._put

    def watched(*args: Any) -> None:
        put(*args)
        peak.append(len(host))

    host._put = watched
    return peak


def _count_sweeps(cluster: TestCluster) -> Counter[str]:
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    counted: Counter[str] = Counter()
    swept = incarnation.delivery.swept

    def count(*args: Any) -> None:
        counted["sweeps"] += 1
        swept(*args)

    incarnation.delivery.swept = count  # type: ignore[method-assign]
    return counted
