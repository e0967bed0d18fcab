"""Random concurrent bodies, crashed at a random moment: the journal stays a prefix, a replay of it
gives the same result."""

import asyncio
import random
from collections import Counter
from datetime import timedelta

import pytest

from engine import JournalKind, Outcome, RetryPolicy, Succeeded, Workflow, activity
from engine.storage.protocol import LoadedExecution
from engine.testing import TestCluster, VirtualClock
from engine.workflow import replay
from engine.workflow.definition import definition_of


class Clockwork:
    """What activities take their time by: the cluster's virtual clock."""

    clock: VirtualClock

    async def pause(self, milliseconds: int) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        when = self.clock.now() + timedelta(milliseconds=milliseconds)
        alarm = self.clock.call_at(when, lambda: done.done() or done.set_result(None))
        try:
            await done
        finally:
            alarm.cancel()


class Branches(Workflow[int, list[int]]):
    """A body drawn from a seed: nested gathers, task groups, time-outs, sleeps and steps."""

    def __init__(self, clockwork: Clockwork) -> None:
        self.clockwork = clockwork

    @classmethod
    def key(cls, request: int) -> str:
        return str(request)

    async def execute(self, request: int) -> list[int]:
        draw = random.Random(request)
        results = [await self.branch(draw.randrange(1 << 30), depth=0) for _ in range(3)]
        return [*results, self.random().randrange(1000), self.now().microsecond % 1]

    async def branch(self, seed: int, depth: int) -> int:
        draw = random.Random(seed)
        kind = draw.randrange(7 if depth < 3 else 2)
        seeds = [draw.randrange(1 << 30) for _ in range(draw.randrange(1, 4))]
        match kind:
            case 0:
                return await self.work(draw.randrange(100), draw.randrange(40))
            case 1:
                await asyncio.sleep(draw.randrange(50) / 1000)
                return 1
            case 2:
                return sum(await asyncio.gather(*(self.branch(s, depth + 1) for s in seeds)))
            case 3:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self.branch(s, depth + 1)) for s in seeds]
                return sum(task.result() for task in tasks)
            case 4:
                try:
                    async with asyncio.timeout(draw.randrange(60) / 1000):
                        await self.branch(seeds[0], depth + 1)
                except TimeoutError:
                    await self.work(7, 1)
                return 7
            case 5:
                tasks = [asyncio.ensure_future(self.branch(s, depth + 1)) for s in seeds]
                _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in pending:
                    task.cancel()
                await asyncio.gather(*pending, return_exceptions=True)
                return 3
            case _:
                return await self.flaky(draw.randrange(100), draw.randrange(20))

    @activity
    async def work(self, value: int, milliseconds: int) -> int:
        await self.clockwork.pause(milliseconds)
        return value

    @activity(retry=RetryPolicy(attempts=3, initial=timedelta(milliseconds=5), jitter=0))
    async def flaky(self, value: int, milliseconds: int) -> int:
        await self.clockwork.pause(milliseconds)
        if self.attempt < 3:
            raise ConnectionError("not yet")
        return value


async def replayed(prototype: Branches, loaded: LoadedExecution) -> object:
    """The result that the journal alone gives."""
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            with replay.replayed(definition_of(Branches), prototype, loaded) as body:
                done.set_result(body.task.result())
        except BaseException as error:  # noqa: BLE001 -- the test gets it
            done.set_exception(error)

    asyncio.get_running_loop().call_soon(run)
    return await done


@pytest.mark.parametrize("chunk", range(10))
async def test_a_crash_at_a_random_await_changes_neither_the_journal_so_far_nor_the_result(
    chunk: int,
) -> None:
    for seed in range(chunk * 20, chunk * 20 + 20):
        await crash_and_compare(seed)


async def crash_and_compare(seed: int) -> None:
    draw = random.Random(seed)
    clockwork = Clockwork()
    prototype = Branches(clockwork)
    async with TestCluster(prototype, shards_per_group=1, lanes=1) as cluster:
        assert isinstance(cluster.clock, VirtualClock)
        clockwork.clock = cluster.clock
        storage = cluster.runner.client._node.storage
        execution = await cluster.client.start(Branches, seed)
        for _ in range(draw.randrange(1, 25)):
            await cluster.advance(timedelta(milliseconds=draw.randrange(1, 12)))
        before = await storage.history(execution.request_id)
        await cluster.crash()
        for _ in range(40):
            await cluster.advance(timedelta(milliseconds=100))
            outcome = await execution.poll()
            if isinstance(outcome, Succeeded):
                break
        assert isinstance(outcome, Succeeded), (seed, outcome, await execution.describe())

        rows = await storage.history(execution.request_id)
        assert list(rows[: len(before)]) == list(before), seed
        ends = Counter((row.name, row.ordinal) for row in rows if row.kind is JournalKind.STEP)
        assert not ends or max(ends.values()) == 1, seed
        positions = [row.position for row in rows]
        assert positions == sorted(set(positions)), seed
        (loaded,) = await storage.load([execution.request_id])
        assert await replayed(prototype, loaded) == outcome.value, seed


async def test_the_bodies_drawn_here_do_use_every_kind_of_event() -> None:
    kinds: Counter[tuple[JournalKind, Outcome]] = Counter()
    clockwork = Clockwork()
    async with TestCluster(Branches(clockwork), shards_per_group=1, lanes=1) as cluster:
        assert isinstance(cluster.clock, VirtualClock)
        clockwork.clock = cluster.clock
        for seed in range(30):
            execution = await cluster.client.start(Branches, seed)
            for _ in range(30):
                await cluster.advance(timedelta(milliseconds=100))
            assert isinstance(await execution.poll(), Succeeded)
            kinds.update((event.kind, event.outcome) for event in await execution.history())
    assert set(kinds) >= {
        (JournalKind.STEP, Outcome.OK),
        (JournalKind.STEP, Outcome.CANCELLED),
        (JournalKind.ATTEMPT, Outcome.FAILED),
        (JournalKind.TIMER, Outcome.OK),
    }
