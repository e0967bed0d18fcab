"""Runs and their end: continue_as_new, wait_until, time-outs, interrupts, termination, length."""

import asyncio
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from engine import (
    Deferred,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    Interrupt,
    JournalKind,
    NotFound,
    Status,
    Workflow,
    activity,
    query,
    signal,
    update,
)
from engine.core.ids import EntityAddress, EntityId, EntityType
from engine.testing import TestCluster, replay
from tests.eventually import eventually
from tests.workflow.conftest import World

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


class Count(Workflow[int, str]):
    """Counts down, each number in a run of its own."""

    async def execute(self, request: int) -> str:
        await self.note(request)
        if request:
            await self.continue_as_new(request - 1)
        return f"{self.execution_id} is done"

    @activity
    async def note(self, number: int) -> int:
        return number


async def test_a_run_continues_as_new_and_join_gives_the_last_ones_result(world: World) -> None:
    async with world.cluster(Count()) as cluster, asyncio.timeout(40):
        count = await cluster.client.start(Count, 5, key="c")
        assert await count.join() == "c is done"
        assert (await count.describe()).run == 6
        history = await count.history()
    begun = [event.payload for event in history if event.kind is JournalKind.CONTINUED]
    noted = [event.payload for event in history if event.kind is JournalKind.STEP]
    assert (begun, noted) == ([4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0])


class Subscription(Workflow[list[str], list[str]]):
    """Bills what it is told of, and begins a new run when it has billed two or more."""

    ended = Deferred(str)

    def __init__(self) -> None:
        self.open: list[str] = []
        self.billed = 0

    @classmethod
    def key(cls, request: list[str]) -> str:
        return "s"

    async def execute(self, request: list[str]) -> list[str]:
        self.open = []
        bills = [*request]
        while len(bills) - len(request) < 2 or self.open:
            await self.wait_until(lambda: bool(self.open))
            bill = await self.charge(self.open.pop(0))
            bills.append(bill)
            if bill == "last":
                bills.append(await self.ended.wait())
                return bills
        return await self.continue_as_new(bills)

    @signal
    def usage(self, what: str) -> None:
        self.open.append(what)

    @query
    def pending(self) -> int:
        return len(self.open)

    @activity
    async def charge(self, what: str) -> str:
        return what


async def test_messages_that_a_run_has_not_handled_are_the_next_ones(world: World) -> None:
    async with world.cluster(Subscription()) as cluster, asyncio.timeout(50):
        subscription = await cluster.client.start(Subscription, [])
        await subscription.resolve(Subscription.ended, "bye")
        usages = [str(number) for number in range(6)]
        for usage in usages:
            await subscription.signal(Subscription.usage, usage)
            await asyncio.sleep(0)
        for _ in range(2):
            await cluster.crash()
        await subscription.signal(Subscription.usage, "last")
        bills = await subscription.join()
    assert bills == [*usages, "last", "bye"]


async def test_a_new_run_begins_at_its_own_time() -> None:
    class Naps(Workflow[int, float]):
        async def execute(self, request: int) -> float:
            begun = self.now()
            await self.sleep(HOUR)
            if request:
                await self.continue_as_new(request - 1)
            return (self.now() - begun).total_seconds()

    async with TestCluster(Naps()) as cluster:
        naps = await cluster.client.start(Naps, 2)
        await cluster.advance(HOUR * 3 - SECOND)
        with pytest.raises(TimeoutError):
            await naps.join(timedelta(0))
        await cluster.advance(SECOND)
        assert await naps.join() == HOUR.total_seconds()


class AtOnce(Workflow[int, str]):
    """Ends its last run without a wait, or fails so until it is mended."""

    ready = Deferred(bool)
    broken: ClassVar[bool] = False

    async def execute(self, request: int) -> str:
        if request == 2:
            await self.ready.wait()
        if request:
            await self.continue_as_new(request - 1)
        if self.broken:
            raise LookupError("not yet")
        return "at once"


async def test_a_run_may_end_before_it_waits_for_anything(world: World) -> None:
    async with world.cluster(AtOnce()) as cluster, asyncio.timeout(10):
        once = await cluster.client.start(AtOnce, 2, key="a")
        await once.resolve(AtOnce.ready, True)
        assert await once.join() == "at once"
        await replay(await once.history(), AtOnce())


async def test_one_that_is_retried_may_end_before_it_waits_for_anything(world: World) -> None:
    async with world.cluster(AtOnce()) as cluster, asyncio.timeout(10):
        for request in (0, 1):
            AtOnce.broken = True
            once = await cluster.client.start(AtOnce, request)
            with pytest.raises(ExecutionFailed):
                await once.join()
            AtOnce.broken = False
            await once.retry()
            assert await once.join() == "at once"


class Grouped(Workflow[int, str]):
    async def execute(self, request: int) -> str:
        async with asyncio.TaskGroup() as group:
            nap = group.create_task(self.sleep(HOUR))
            if request:
                await self.continue_as_new(request - 1)
            nap.cancel()
        return "the last run"


async def test_a_run_continues_as_new_from_within_a_task_group(world: World) -> None:
    async with world.cluster(Grouped()) as cluster, asyncio.timeout(10):
        assert await cluster.client.execute(Grouped, 2) == "the last run"


class Stages(Workflow[int, None]):
    """Each run does something, and the last one fails."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def execute(self, request: int) -> None:
        await self.note(f"do {request}")
        self.compensate(self.note, f"undo {request}")
        if request:
            await self.continue_as_new(request - 1)
        raise LookupError("the last")

    @activity
    async def note(self, what: str) -> None:
        self.log.append(what)


async def test_what_earlier_runs_have_done_is_not_undone_when_a_later_one_fails(
    world: World,
) -> None:
    stages = Stages()
    async with world.cluster(stages) as cluster, asyncio.timeout(10):
        with pytest.raises(ExecutionFailed, match="the last"):
            await cluster.client.execute(Stages, 1)
    assert stages.log == ["do 1", "do 0", "undo 0"]


async def test_continue_as_new_is_for_execute_alone() -> None:
    class Wrong(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.continue_as_new(1))
            return 1

    async with TestCluster(Wrong()) as cluster:
        with pytest.raises(ExecutionFailed) as caught:
            await cluster.client.execute(Wrong, 1)
    cause = caught.value.error.cause
    assert cause is not None
    assert (cause.type, "it is for execute" in cause.message) == ("ConfigurationError", True)


# --- wait_until -----------------------------------------------------------------------------------


class Waits(Workflow[float, str]):
    def __init__(self) -> None:
        self.level = 0

    async def execute(self, request: float) -> str:
        self.level = 0
        high = await self.wait_until(lambda: self.level >= 3, timedelta(seconds=request))
        return "high" if high else f"only {self.level}"

    @signal
    def rise(self) -> None:
        self.level += 1

    @update
    async def set(self, level: int) -> int:
        self.level = level
        return level


async def test_a_condition_is_looked_at_after_each_message(world: World) -> None:
    async with world.cluster(Waits()) as cluster, asyncio.timeout(40):
        waits = await cluster.client.start(Waits, 3600, key="w")
        for _ in range(2):
            await waits.signal(Waits.rise)
        await cluster.crash()
        await waits.signal(Waits.rise)
        assert await waits.join() == "high"


async def test_a_condition_that_does_not_come_true_in_time_gives_false(world: World) -> None:
    async with world.cluster(Waits()) as cluster, asyncio.timeout(40):
        waits = await cluster.client.start(Waits, 3600 if world.virtual else 0.3, key="w")
        await waits.update(Waits.set, 2)
        if world.virtual:
            await cluster.advance(HOUR)
        assert await waits.join() == "only 2"


async def test_a_condition_may_only_look() -> None:
    class Wrong(Workflow[None, bool]):
        async def execute(self, request: None) -> bool:
            await self.sleep(SECOND)
            return await self.wait_until(lambda: bool(self.step()) and False)

        @activity
        async def step(self) -> bool:
            return True

    async with TestCluster(Wrong()) as cluster:
        execution = await cluster.client.start(Wrong, None)
        await cluster.advance(SECOND)
        with pytest.raises(ExecutionFailed, match=r"condition of wait_until\(\) may only look"):
            await execution.join(SECOND)


async def test_a_condition_that_is_awaited_is_shown(world: World) -> None:
    async with world.cluster(Waits()) as cluster, asyncio.timeout(40):
        waits = await cluster.client.start(Waits, 3600, key="w")

        async def shown() -> bool:
            return "a condition" in (await waits.describe()).why

        await world.until(cluster, shown)


# --- interrupts and termination -------------------------------------------------------------------


class Stubborn(Workflow[str, str]):
    """Catches the interrupt, cleans up with steps, and goes on or not."""

    async def execute(self, request: str) -> str:
        try:
            await self.sleep(HOUR)
        except asyncio.CancelledError:
            if "go on" in request:
                async with asyncio.TaskGroup() as group:
                    first = group.create_task(self.step("a"))
                    group.create_task(self.step("b"))
                async with asyncio.timeout(5):
                    await self.sleep(timedelta(milliseconds=10))
                return first.result()
            raise
        finally:
            await self.step("cleanup")
        return "slept"

    @activity
    async def step(self, what: str) -> str:
        return what


async def test_an_interrupt_that_is_caught_is_over(world: World) -> None:
    async with world.cluster(Stubborn()) as cluster, asyncio.timeout(40):
        stubborn = await cluster.client.start(Stubborn, "go on")
        await stubborn.interrupt("stop")
        joined = asyncio.ensure_future(stubborn.join())
        await world.until(cluster, _done(joined))
        assert joined.result() == "a"
        assert _steps(await stubborn.history()) == {"a", "b", "cleanup"}


class Counts(Workflow[None, int]):
    """Counts what interrupts it, until it is told to end."""

    done = Deferred(bool)

    async def execute(self, request: None) -> int:
        caught = 0
        while True:
            try:
                await self.done.wait()
                return caught
            except asyncio.CancelledError:
                caught += 1
                await self.note(caught)

    @activity
    async def note(self, caught: int) -> int:
        return caught


async def test_an_interrupt_of_the_run_request_comes_once_whatever_crashes(world: World) -> None:
    async with world.cluster(Counts()) as cluster, asyncio.timeout(40):
        counts = await cluster.client.start(Counts, None)

        async def suspended() -> bool:
            return (await counts.describe()).status is Status.SUSPENDED

        async def noted() -> bool:
            return bool(_steps(await counts.history()))

        await world.until(cluster, suspended)
        info = await counts.describe()
        assert info.shard is not None
        address = EntityAddress(info.shard, EntityType(info.workflow), EntityId(info.id))
        await cluster.runner.sharding.interrupt(
            Interrupt(request_id=info.request_id, address=address)
        )
        await world.until(cluster, noted)
        await cluster.crash()
        await cluster.crash()
        await counts.resolve(Counts.done, True)
        assert await world.result(cluster, counts) == 1


async def test_cleanup_may_run_steps_while_it_is_interrupted(world: World) -> None:
    async with world.cluster(Stubborn()) as cluster, asyncio.timeout(40):
        stubborn = await cluster.client.start(Stubborn, "end")
        await stubborn.interrupt("stop")
        with pytest.raises(ExecutionInterrupted, match="stop"):
            await stubborn.join()
        assert _steps(await stubborn.history()) == {"cleanup"}


async def test_nothing_runs_after_a_termination(world: World) -> None:
    async with world.cluster(Stubborn()) as cluster, asyncio.timeout(40):
        stubborn = await cluster.client.start(Stubborn, "end")
        await stubborn.terminate("enough")
        with pytest.raises(ExecutionTerminated, match="enough"):
            await stubborn.join()
        assert (await stubborn.describe()).status is Status.TERMINATED
        history = await stubborn.history()
        assert [(event.kind, event.payload) for event in history] == [
            (JournalKind.TERMINATED, {"reason": "enough", "by": cluster.settings.author})
        ]
        await stubborn.terminate("again")


async def test_an_execution_whose_workflow_nobody_serves_is_terminated(world: World) -> None:
    class Gone(Workflow[None, None]):
        async def execute(self, request: None) -> None:
            await self.start_child(Count, 10**6, key="orphan")
            await self.sleep(HOUR)

    class Waiting(Workflow[int, str]):
        name = "Count"

        async def execute(self, request: int) -> str:
            await self.sleep(HOUR)
            return ""

    first = world.cluster(Gone(), Waiting())
    async with first as cluster:
        gone = await cluster.client.start(Gone, None, key="g")
        orphan = cluster.client.execution(Waiting, "orphan")

        async def there() -> bool:
            try:
                return (await orphan.describe()).started_at is not None
            except NotFound:
                return False

        await world.until(cluster, there)
    more = {"database": first.database} if world.virtual else {}
    async with world.cluster(Waiting(), **more) as cluster, asyncio.timeout(40):
        gone = cluster.client.execution(Gone, "g")
        await gone.terminate("its code is gone")
        with pytest.raises(ExecutionTerminated, match="its code is gone"):
            await gone.join()
        with pytest.raises(ExecutionInterrupted):
            await cluster.client.execution(Waiting, "orphan").join()


async def test_an_execution_that_is_blocked_is_terminated() -> None:
    class Picky(Workflow[None, None]):
        changed = False

        async def execute(self, request: None) -> None:
            await (self.two() if type(self).changed else self.one())
            await self.sleep(HOUR)

        @activity
        async def one(self) -> None: ...

        @activity
        async def two(self) -> None: ...

    async with TestCluster(Picky()) as cluster:
        picky = await cluster.client.start(Picky, None)
        await cluster.settle()
        Picky.changed = True
        await cluster.crash()
        await cluster.advance(HOUR)
        assert (await picky.describe()).status is Status.BLOCKED
        await picky.terminate("give up")
        with pytest.raises(ExecutionTerminated, match="give up"):
            await picky.join(SECOND)


# --- time -----------------------------------------------------------------------------------------


class Slow(Workflow[str, str]):
    def __init__(self) -> None:
        self.undone: list[str] = []

    async def execute(self, request: str) -> str:
        self.compensate(self.undo, request)
        await self.sleep(HOUR * 10)
        return "slept"

    @activity
    async def undo(self, what: str) -> None:
        self.undone.append(what)


async def test_an_execution_that_does_not_end_in_its_time_is_cleaned_up_and_fails(
    world: World,
) -> None:
    slow = Slow()
    async with world.cluster(slow) as cluster, asyncio.timeout(40):
        limit = HOUR if world.virtual else timedelta(seconds=0.5)
        execution = await cluster.client.start(Slow, "it", timeout=limit)
        if world.virtual:
            await cluster.advance(HOUR - SECOND)
            assert (await execution.describe()).status is Status.SUSPENDED
            await cluster.crash()
            await cluster.advance(SECOND)
        with pytest.raises(ExecutionFailed, match="did not end in its time") as caught:
            await execution.join()
        assert caught.value.error.type == "TimeoutError"
        assert slow.undone == ["it"]


async def test_one_that_nears_the_end_of_its_time_is_not_replayed_by_every_sweep() -> None:
    begun: list[int] = []

    class Sleeps(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            begun.append(request)
            await self.sleep(HOUR * 10)
            return request

    soon = timedelta(milliseconds=20)
    async with TestCluster(Sleeps(), suspend_after=HOUR / 6, poll_interval=soon) as cluster:
        await cluster.client.start(Sleeps, 1, timeout=HOUR)
        await cluster.advance(HOUR * 0.95)  # sweeps look for what is due within half of that
        await asyncio.sleep(0.5)
        assert len(begun) <= 2


async def test_the_time_of_one_that_is_put_off_counts_from_when_it_is_due() -> None:
    async with TestCluster(Slow()) as cluster:
        execution = await cluster.client.start(Slow, "it", delay=HOUR * 5, timeout=HOUR * 11)
        await cluster.advance(HOUR * 15)
        assert await execution.join(SECOND) == "slept"


class Long(Workflow[int, int]):
    def __init__(self) -> None:
        self.ran: list[int] = []

    async def execute(self, request: int) -> int:
        total = 0
        for number in range(request):
            total += await self.step(number)
        return total

    @activity
    async def step(self, number: int) -> int:
        self.ran.append(number)
        return 1


@pytest.mark.parametrize("where", ["memory", "postgres"])
async def test_ten_thousand_steps_of_one_execution_survive_a_crash(
    where: str, request: pytest.FixtureRequest
) -> None:
    dsn = request.getfixturevalue("dsn") if where == "postgres" else None
    long = Long()
    async with TestCluster(long, dsn=dsn) as cluster, asyncio.timeout(55):
        execution = await cluster.client.start(Long, 10_000)
        await eventually(lambda: len(long.ran) > 7_000, timeout=50)
        await cluster.crash()
        assert await execution.join() == 10_000
        assert len(await execution.history()) == 10_000
    assert len(long.ran) < 10_100  # what was stored did not run again


def _done(task: "asyncio.Future[Any]") -> Any:
    async def done() -> bool:
        return task.done()

    return done


def _steps(history: Any) -> set[object]:
    return {event.payload for event in history if event.kind is JournalKind.STEP and event.payload}
