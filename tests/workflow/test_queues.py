"""Queues: what is submitted is processed once and answered, within the limits, in a fair order."""

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from engine import (
    Debounce,
    EntityDefect,
    Item,
    PayloadConflict,
    Queue,
    QueueInfo,
    RequestFailed,
    StepFailed,
    Workflow,
)
from engine.cluster.queue import Terms, queue_of
from engine.storage.memory import Fault
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World


class Gate(Queue[str, str]):
    """Items come to their end when the test lets them, and say whose they are by their names."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.open = asyncio.Event()

    @classmethod
    def key(cls, item: str) -> str:
        return item.rstrip("0123456789")

    async def process(self, item: str) -> str:
        self.began.append(item)
        for each in ("", self.key(item)):
            self.running[each] += 1
            self.most[each] = max(self.most[each], self.running[each])
        try:
            await self.open.wait()
        finally:
            for each in ("", self.key(item)):
                self.running[each] -= 1
        if item.startswith("bad"):
            raise ValueError(item)
        return item.upper()


class Three(Gate):
    concurrency = 3


class OnePerKey(Gate):
    concurrency = 4
    per_key = 1


class Submits(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        first, second = await asyncio.gather(
            self.submit(Three, f"{request}1"), self.submit(Three, f"{request}2", id=request)
        )
        return f"{first} {second}"


async def submitted(cluster: TestCluster, queue: type[Gate], *items: str) -> list[Item[str]]:
    return [await cluster.client.submit(queue, item) for item in items]


async def test_what_is_submitted_is_processed_and_answered(world: World) -> None:
    queue = Gate()
    queue.open.set()
    async with world.cluster(queue) as cluster:
        items = await submitted(cluster, Gate, "a1", "bad1", "a2")

        assert await items[0].join() == "A1"
        assert await items[2].join() == "A2"
        with pytest.raises(RequestFailed, match=r"Gate/.* failed: ValueError: bad1"):
            await items[1].join()
    assert sorted(queue.began) == ["a1", "a2", "bad1"]


async def test_no_more_run_than_the_limit_says_and_all_come_to_their_turn(world: World) -> None:
    queue = Three()
    async with world.cluster(queue) as cluster:
        items = await submitted(cluster, Three, *(f"a{n}" for n in range(10)))

        await eventually(lambda: queue.running[""] == 3)
        assert sorted(queue.began) == ["a0", "a1", "a2"]
        queue.open.set()

        assert [await item.join() for item in items] == [f"A{n}" for n in range(10)]
    assert queue.most[""] == 3


async def test_keys_have_limits_of_their_own_and_take_turns(world: World) -> None:
    queue = OnePerKey()
    async with world.cluster(queue) as cluster:
        names = [f"a{n}" for n in range(20)] + ["b0", "c0", "b1", "d0", "e0"]
        items = await submitted(cluster, OnePerKey, *names)

        await eventually(lambda: queue.running[""] == 4)
        assert sorted(queue.began) == ["a0", "b0", "c0", "d0"]
        queue.open.set()

        for item in items:
            await item.join()
    assert queue.most["a"] == queue.most["b"] == 1
    assert queue.most[""] <= 4
    order = [name for name in queue.began if name in {"b1", "e0"} or name.startswith("a")]
    assert order.index("e0") < 5


async def test_an_item_with_an_id_is_stored_once_and_its_answer_is_shared(world: World) -> None:
    queue = Gate()
    async with world.cluster(queue) as cluster:
        first = await cluster.client.submit(Gate, "a1", id="once")
        second = await cluster.client.submit(Gate, "a1", id="once")
        with pytest.raises(PayloadConflict, match="Gate had another item with the id 'once'"):
            await cluster.client.submit(Gate, "a2", id="once")
        queue.open.set()

        assert first.request_id == second.request_id
        assert await first.join() == await second.join() == "A1"
        assert (await cluster.client.submit(Gate, "a1", id="once")).request_id == first.request_id
    assert queue.began == ["a1"]


async def test_a_workflow_submits_in_a_durable_step(world: World) -> None:
    queue = Three()
    async with world.cluster(queue, Submits()) as cluster:
        execution = await cluster.client.start(Submits, "x", key="s-1")
        await eventually(lambda: queue.running[""] == 2)
        await cluster.crash()  # both begin again: at least once
        await eventually(lambda: queue.running[""] == 2)
        queue.open.set()

        assert await world.result(cluster, execution) == "X1 X2"
    assert Counter(queue.began) == {"x1": 2, "x2": 2}


async def test_what_is_admitted_counts_after_a_crash_as_well(world: World) -> None:
    queue = Three()
    async with world.cluster(queue) as cluster:
        items = await submitted(cluster, Three, *(f"a{n}" for n in range(8)))
        await eventually(lambda: queue.running[""] == 3)

        await cluster.crash()
        await eventually(lambda: queue.running[""] == 3)
        assert sorted(queue.began) == ["a0", "a0", "a1", "a1", "a2", "a2"]
        queue.open.set()

        assert [await item.join() for item in items] == [f"A{n}" for n in range(8)]
    assert queue.most[""] == 3


async def test_a_cancelled_item_leaves_the_line_or_is_interrupted(world: World) -> None:
    queue = Three()
    async with world.cluster(queue) as cluster:
        items = await submitted(cluster, Three, *(f"a{n}" for n in range(6)))
        delayed = await cluster.client.submit(Three, "later", delay=timedelta(hours=1))
        await eventually(lambda: queue.running[""] == 3)

        for item in (items[0], items[4], delayed):
            assert await item.cancel()
        for item in (items[0], items[4], delayed):
            with pytest.raises(RequestFailed, match="was ended"):
                await item.join()
        await eventually(lambda: "a3" in queue.began)
        queue.open.set()

        assert [await items[n].join() for n in (1, 2, 3, 5)] == ["A1", "A2", "A3", "A5"]
        assert not await items[4].cancel()
    assert queue.most[""] == 3
    assert "a4" not in queue.began


class TwoPerRunner(Gate):
    per_runner = 2


async def test_a_runner_processes_no_more_than_it_may(world: World) -> None:
    queue = TwoPerRunner()
    async with world.cluster(queue) as cluster:
        items = await submitted(cluster, TwoPerRunner, *(f"a{n}" for n in range(6)))
        await eventually(lambda: queue.running[""] == 2)
        await cluster.crash()
        await eventually(lambda: queue.running[""] == 2)
        await cluster.client.queue(TwoPerRunner).limit(per_runner=3)
        await eventually(lambda: queue.running[""] == 2)
        queue.open.set()

        assert [await item.join() for item in items] == [f"A{n}" for n in range(6)]
    assert queue.most[""] <= 3


class Crowd(Gate):
    concurrency = 6000


class Greets(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


async def test_items_for_which_there_is_no_place_keep_nobody_waiting(dsn: str) -> None:
    queue = Crowd()
    async with TestCluster(queue, Greets(), dsn=dsn, max_resident=100) as cluster:
        client = cluster.client
        items = await asyncio.gather(*(client.submit(Crowd, f"a{n}") for n in range(6000)))

        async def crowded() -> bool:
            # of which a sweep reads 300 at once, and the desk has taken a thousand
            return (await client.queue(Crowd).describe()).running > 1500

        await eventually(crowded)
        execution = await client.start(Greets, "ada", key="g-1")
        assert await execution.join(timedelta(seconds=20)) == "ada"
        queue.open.set()

        await asyncio.gather(*(item.join() for item in items))
    assert queue.most[""] == 100


class Breaks(Gate):
    broken = True

    async def process(self, item: str) -> str:
        if item == "breaks" and Breaks.broken:
            raise EntityDefect("not now")
        return await super().process(item)


async def test_a_dead_letter_that_is_sent_again_is_admitted_again(world: World) -> None:
    queue = Breaks()
    queue.open.set()
    Breaks.broken = True
    async with world.cluster(queue, max_deliveries=4) as cluster:
        client = cluster.client
        item = await client.submit(Breaks, "breaks")

        async def dead() -> list[int]:
            return [each.request_id async for each in client.dead_letters()]

        assert await world.until(cluster, dead) == [item.request_id]
        Breaks.broken = False
        await client.retry_dead_letters(item.request_id)

        assert await item.join() == "BREAKS"
        info = await eventually(lambda: idle(cluster, Breaks))
        assert (info.waiting, info.running) == (0, 0)


async def idle(cluster: TestCluster, queue: type[Gate]) -> QueueInfo | None:
    info = await cluster.client.queue(queue).describe()
    return info if not info.running else None


async def test_what_was_not_submitted_to_a_queue_is_a_dead_letter(world: World) -> None:
    queue = Three()
    queue.open.set()
    async with world.cluster(queue) as cluster:
        (item,) = await submitted(cluster, Three, "a1")
        sharding = cluster.runner.sharding
        request = queue_of(Three).request(
            sharding.snowflake().next(),
            shards_in=lambda _: cluster.settings.shards_per_group,
            payload=b"1",
            terms=Terms(key="", priority=0),
            id=None,
            deliver_at=None,
        )
        await sharding.notify(replace(request, headers={}))

        async def dead() -> list[int]:
            return [each.request_id async for each in cluster.client.dead_letters()]

        assert await eventually(dead) == [request.request_id]
        assert await item.join() == "A1"


@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT, Fault.LOCKED])
async def test_whichever_write_goes_wrong_each_item_is_answered_within_the_limits(
    fault: Fault,
) -> None:
    writes, most, hit = 0, 0, True
    while hit:
        queue = Quick()
        async with TestCluster(queue, SubmitsMany()) as cluster:
            cluster.fail_next_flush(fault, after=writes)
            execution = await cluster.client.start(SubmitsMany, "x", key="s-1")
            item = await cluster.client.submit(Quick, "cancelled", key="c", priority=-1)
            await item.cancel()
            await cluster.advance(timedelta(seconds=30))
            assert await execution.join(timedelta(seconds=5)) == ["X0", "X1", "X2", "X3", "X4"]
            with suppress(RequestFailed):  # it may have been too late
                await item.join(timedelta(seconds=5))
            info = await eventually(lambda: idle(cluster, Quick))
            assert info.waiting == 0, writes
            assert cluster.database is not None
            hit = not cluster.database.faults_ahead
        assert queue.most[""] <= Quick.concurrency, writes
        writes, most = writes + 1, max(most, queue.most[""])
    assert writes > 10
    assert most == Quick.concurrency


class Quick(Gate):
    concurrency = 2

    async def process(self, item: str) -> str:
        asyncio.get_running_loop().call_later(0.001, self.open.set)
        return await super().process(item)


class SubmitsMany(Workflow[str, list[str]]):
    async def execute(self, request: str) -> list[str]:
        return list(await asyncio.gather(*(self.submit(Quick, f"{request}{n}") for n in range(5))))


HOUR = timedelta(hours=1)


class Hopes(Workflow[str, str]):
    """Waits for an item whose place another may take."""

    async def execute(self, request: str) -> str:
        try:
            return str(await self.submit(Three, request, debounce=Debounce("page", HOUR)))
        except StepFailed as error:
            return error.error.message


async def test_a_workflow_hears_without_a_poll_of_an_item_that_its_queue_has_ended(
    world: World,
) -> None:
    soon = timedelta(milliseconds=50)
    hopes = world.cluster(Three(), Hopes(), poll_interval=HOUR, suspend_after=soon)
    async with hopes as cluster, asyncio.timeout(20):
        first = await cluster.client.start(Hopes, "a")

        async def waits() -> bool:
            return "an item of queue Three" in (await first.describe()).why

        await world.until(cluster, waits)
        await cluster.client.start(Hopes, "b")
        assert "has taken its place" in await first.join()
