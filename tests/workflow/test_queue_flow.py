"""What a queue's items wait for: a rate, those of higher priority, a time, and later ones that may
take their place. On the virtual clock, so that each comes at its very time."""

from datetime import timedelta

import pytest

from engine import ConfigurationError, Debounce, InvalidPayload, Queue, Rate, RequestFailed
from engine.testing import TestCluster

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
