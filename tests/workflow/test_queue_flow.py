"""What a queue's items wait for: a rate, those of higher priority, a time, and later ones that may
take their place. On the virtual clock, so that each comes at its very time."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from engine import ConfigurationError, Debounce, InvalidPayload, Queue, Rate, RequestFailed
from engine.cluster import dispatcher
from engine.cluster.dispatcher import Dispatcher
from engine.cluster.lineup import Lineup
from engine.storage.memory_database import MemoryDatabase
from engine.storage.protocol import InboxKind, InboxRow
from engine.storage.queues import Dispatched, Line, QueueItem, QueueWrite
from engine.testing import TestCluster, VirtualClock
from tests.eventually import eventually

SECOND = timedelta(seconds=1)


class Timed(Queue[str, str]):
    """Remembers in what order items came, and how many seconds after the first."""

    def __init__(self) -> None:
        self.cluster: TestCluster | None = None
        self.began: list[tuple[float, str]] = []

    async def process(self, item: str) -> str:
        assert self.cluster is not None
        began = self.cluster.clock.now()
        self.began.append((began.timestamp(), item))
        return item

    def times(self) -> list[tuple[float, str]]:
        first = self.began[0][0]
        return [(round(at - first, 3), item) for at, item in self.began]


class Paced(Timed):
    rate = Rate(2, SECOND, burst=2)


class OneAtATime(Timed):
    concurrency = 1
    priority = 5


def cluster_of(queue: Timed) -> TestCluster:
    queue.cluster = TestCluster(queue)
    return queue.cluster


def dispatcher_of(cluster: TestCluster) -> Dispatcher:
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    (kept,) = incarnation._queues._dispatchers.values()
    return kept


async def test_items_begin_no_more_often_than_the_rate_says() -> None:
    queue = Paced()
    async with cluster_of(queue) as cluster:
        for n in range(6):
            await cluster.client.submit(Paced, f"{n}")
        await cluster.advance(4 * SECOND)

        assert queue.times() == [
            (0, "0"), (0, "1"), (0.5, "2"), (1, "3"), (1.5, "4"), (2, "5")
        ]  # fmt: skip


async def test_the_rate_is_kept_over_a_crash() -> None:
    queue = Paced()
    async with cluster_of(queue) as cluster:
        for n in range(5):
            await cluster.client.submit(Paced, f"{n}")
        await cluster.settle()
        for _ in range(20):
            await cluster.crash()
            await cluster.settle()
        assert [item for _, item in queue.began] == ["0", "1"]

        await cluster.advance(2 * SECOND)
    assert queue.times() == [(0, "0"), (0, "1"), (0.5, "2"), (1, "3"), (1.5, "4")]


async def test_higher_priorities_go_first() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        await cluster.client.queue(OneAtATime).pause()
        await cluster.client.submit(OneAtATime, "normal")
        await cluster.client.submit(OneAtATime, "low", priority=-1)
        await cluster.client.submit(OneAtATime, "high", priority=6)
        await cluster.settle()
        await cluster.client.queue(OneAtATime).resume()
        await cluster.settle()

    assert [item for _, item in queue.began] == ["high", "normal", "low"]


async def test_an_item_does_not_wait_in_line_before_its_time() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        start = cluster.clock.now()
        await cluster.client.submit(OneAtATime, "later", delay=timedelta(minutes=5), priority=9)
        await cluster.client.submit(OneAtATime, "at", at=start + timedelta(minutes=2))
        await cluster.client.submit(OneAtATime, "now")
        await cluster.advance(timedelta(minutes=10))

    assert queue.times() == [(0, "now"), (120, "at"), (300, "later")]


async def test_the_last_of_debounced_items_is_processed() -> None:
    queue, debounce = Timed(), Debounce("page-1", 10 * SECOND)
    async with cluster_of(queue) as cluster:
        first = await cluster.client.submit(Timed, "a", debounce=debounce)
        await cluster.advance(6 * SECOND)
        second = await cluster.client.submit(Timed, "b", debounce=debounce)
        other = await cluster.client.submit(Timed, "c", debounce=Debounce("page-2", SECOND))
        with pytest.raises(RequestFailed, match=f"item {second.request_id} has taken its place"):
            await first.join()
        await cluster.advance(9 * SECOND)
        assert await other.join() == "c"
        assert [item for _, item in queue.began] == ["c"]
        await cluster.crash()
        await cluster.advance(SECOND)

        assert await second.join() == "b"
        again = await cluster.client.submit(Timed, "d", debounce=debounce)
        await cluster.advance(10 * SECOND)
        assert await again.join() == "d"


async def test_debounced_items_are_not_put_off_for_ever() -> None:
    queue, debounce = Timed(), Debounce("x", 10 * SECOND, longest=25 * SECOND)
    async with cluster_of(queue) as cluster:
        start = cluster.clock.now().timestamp()
        for n in range(5):
            await cluster.client.submit(Timed, f"{n}", debounce=debounce)
            await cluster.advance(6 * SECOND)
            if n == 1:
                await cluster.crash()  # the next owner knows when the first came
        assert [(at - start, item) for at, item in queue.began] == [(25, "4")]


async def test_debounced_items_that_come_at_once_are_one() -> None:
    queue, debounce = Timed(), Debounce("x", SECOND)
    async with cluster_of(queue) as cluster:
        items = [await cluster.client.submit(Timed, f"{n}", debounce=debounce) for n in range(20)]
        await cluster.settle()
        assert await items[-1].cancel()
        await cluster.advance(2 * SECOND)
        assert queue.began == []
        for item in items:
            with pytest.raises(RequestFailed):
                await item.join()


async def test_limits_are_changed_while_items_wait() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        handle = cluster.client.queue(OneAtATime)
        await handle.limit(rate=Rate(1, timedelta(minutes=1)))
        for n in range(4):
            await cluster.client.submit(OneAtATime, f"{n}")
        await cluster.advance(timedelta(minutes=1, seconds=30))
        assert [item for _, item in queue.began] == ["0", "1"]

        info = await handle.describe()
        assert (info.waiting, info.running, info.limits.rate) == (2, 0, Rate(1, 60 * SECOND))
        await cluster.crash()
        await handle.reset("rate")
        await cluster.settle()

        assert [item for _, item in queue.began] == ["0", "1", "2", "3"]
        assert (await handle.describe()).limits.rate is None


async def test_a_queue_that_is_paused_admits_nothing_until_it_is_resumed() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        await cluster.settle()  # it is known by its name once its owner has stored it
        handle = cluster.client.queue("OneAtATime")
        await handle.pause("a sale")
        await cluster.client.submit(OneAtATime, "a")
        await cluster.crash()
        await cluster.advance(timedelta(hours=1))
        info = await handle.describe()
        assert (info.paused, info.reason, info.waiting, queue.began) == (True, "a sale", 1, [])

        await handle.resume()
        await cluster.settle()
        assert [item for _, item in queue.began] == ["a"]


async def test_what_cannot_be_submitted_is_refused_at_once() -> None:
    queue = Timed()
    async with cluster_of(queue) as cluster:
        for wrong in ({"key": "\0"}, {"id": ""}, {"priority": 1 << 40}):
            with pytest.raises(InvalidPayload):
                await cluster.client.submit(Timed, "a", **wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidPayload, match="item"):
            await cluster.client.submit(Timed, 1)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="debounced"):
            await cluster.client.submit(Timed, "a", id="x", debounce=Debounce("x", SECOND))
        with pytest.raises(ConfigurationError, match="Rate"):
            await cluster.client.queue(Timed).limit(rate=10)  # type: ignore[arg-type]


def test_a_queue_that_cannot_be_is_refused_at_definition() -> None:
    with pytest.raises(ConfigurationError, match=r"queue .*Negative: concurrency"):

        class Negative(Queue[str, str]):
            concurrency = -1

    with pytest.raises(ConfigurationError, match="item_id"):

        class Hiding(Queue[str, str]):
            item_id = "mine"  # type: ignore[assignment]

    with pytest.raises(ConfigurationError, match="period"):
        Debounce("x", timedelta(0))


async def test_a_faster_rate_holds_at_once() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        handle = cluster.client.queue(OneAtATime)
        await handle.limit(rate=Rate(1, timedelta(hours=1), burst=2))
        for n in range(5):
            await cluster.client.submit(OneAtATime, f"{n}")
        await cluster.advance(SECOND)
        assert [item for _, item in queue.began] == ["0", "1"]
        await handle.limit(rate=Rate(1, SECOND))
        await cluster.advance(2 * SECOND)

        assert queue.times() == [(0, "0"), (0, "1"), (2, "2"), (3, "3")]


async def test_an_item_that_is_cancelled_twice_costs_no_other_its_turn() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        client, handle = cluster.client, cluster.client.queue(OneAtATime)
        await handle.pause()
        items = [await client.submit(OneAtATime, f"{n}") for n in range(3)]
        await cluster.settle()
        assert await asyncio.gather(items[0].cancel(), items[0].cancel()) == [True, True]
        await handle.resume()
        await cluster.settle()

        assert [item for _, item in queue.began] == ["1", "2"]


async def test_an_interrupt_that_was_read_before_its_item_ended_takes_nobody_out() -> None:
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        handle = cluster.client.queue(OneAtATime)
        await handle.pause()
        items = [await cluster.client.submit(OneAtATime, f"{n}") for n in range(3)]
        await cluster.settle()
        kept = dispatcher_of(cluster)
        envelope = await cluster.client._node.storage.request(items[0].request_id)
        assert envelope is not None
        shard = kept.shard.id
        interrupt = InboxRow(seq=-1, kind=InboxKind.INTERRUPT, shard=shard, envelope=envelope)
        kept.interrupt(interrupt)
        await eventually(lambda: not kept._interrupts, every=0)
        kept.interrupt(interrupt)  # while the first is being written
        await handle.resume()
        await cluster.settle()

        assert [item for _, item in queue.began] == ["1", "2"]


async def test_a_queue_goes_on_after_an_item_whose_time_never_comes() -> None:
    queue = Timed()
    async with cluster_of(queue) as cluster:
        ages = timedelta(days=20_000_000)
        never = await cluster.client.submit(Timed, "never", debounce=Debounce("x", ages))
        other = await cluster.client.submit(Timed, "now")

        assert await other.join() == "now"
        assert (await cluster.client.queue(Timed).describe()).delayed == 1
        assert await never.cancel()


async def test_the_alarms_of_debounced_items_are_as_many_as_the_items() -> None:
    queue = Timed()
    async with cluster_of(queue) as cluster:
        for n in range(400):
            await cluster.client.submit(Timed, f"{n}", debounce=Debounce(f"{n % 2}", SECOND))
        await cluster.settle()
        assert len(dispatcher_of(cluster)._due) < 200
        await cluster.advance(2 * SECOND)

        assert sorted(item for _, item in queue.began) == ["398", "399"]


class Faulty(Lineup):
    """Fails once, in the midst of a plan."""

    failures = 1

    def choose(self, room: int) -> tuple[list[QueueItem], list[Line]]:
        chosen = super().choose(room)
        if any(chosen) and Faulty.failures:
            Faulty.failures -= 1
            raise RuntimeError("a fault of the engine's own")
        return chosen


async def test_a_queue_that_fails_is_read_again_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher, "Lineup", Faulty)
    Faulty.failures = 1
    queue = OneAtATime()
    async with cluster_of(queue) as cluster:
        items = [await cluster.client.submit(OneAtATime, f"{n}") for n in range(3)]

        assert [await item.join() for item in items] == ["0", "1", "2"]
        assert Faulty.failures == 0
        await cluster.settle()
        info = await cluster.client.queue(OneAtATime).describe()
        assert (info.waiting, info.running) == (0, 0)
    assert [item for _, item in queue.began] == ["0", "1", "2"]


class Keyed(Timed):
    @classmethod
    def key(cls, item: str) -> str:
        return item


class Chosen(list[QueueItem]):
    """What a write has chosen; ``gone_over`` is how often somebody went over all of it."""

    gone_over = 0

    def __iter__(self) -> Iterator[QueueItem]:
        Chosen.gone_over += 1
        return super().__iter__()


async def test_a_round_goes_over_its_items_as_often_however_many_keys_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Dispatcher._write
    writes = 0

    async def written(self: Dispatcher, what: QueueWrite) -> Dispatched:
        nonlocal writes
        writes += 1
        dispatched = await write(self, what)
        return replace(dispatched, chosen=Chosen(dispatched.chosen))

    monkeypatch.setattr(Dispatcher, "_write", written)
    queue = Keyed()
    async with cluster_of(queue) as cluster:
        handle = cluster.client.queue(Keyed)
        await handle.pause()
        for n in range(100):
            await cluster.client.submit(Keyed, f"{n}")
        await cluster.settle()
        Chosen.gone_over = writes = 0
        await handle.resume()
        await cluster.settle()

        assert len(queue.began) == 100
        assert Chosen.gone_over <= 3 * writes < 100


class Passing(VirtualClock):
    """Time passes while the program runs: a millisecond whenever it is looked at."""

    def now(self) -> datetime:
        self._now += timedelta(milliseconds=1)
        return self._now


@pytest.mark.parametrize("phase", range(9, 12))
async def test_what_comes_due_while_the_next_alarm_is_set_is_not_missed(phase: int) -> None:
    queue = Paced()
    queue.cluster = TestCluster(queue, database=MemoryDatabase(Passing()))
    async with queue.cluster as cluster:
        client = cluster.client
        await client.queue(Paced).limit(rate=Rate(1000, timedelta(seconds=phase + 1)))
        for n in range(200):
            await client.submit(Paced, f"{n}")
        await cluster.advance(timedelta(seconds=30))

        assert len(queue.began) == 200
