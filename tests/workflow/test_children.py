"""Children: run, started, joined, interrupted with their parents, and left alone."""

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    Interrupted,
    JournalKind,
    NotFound,
    Outcome,
    Pending,
    RetryPolicy,
    Status,
    StepFailed,
    Succeeded,
    Workflow,
    activity,
)
from engine.cluster import replies
from engine.core.ids import Snowflake
from engine.storage.memory import MemoryStorage
from engine.storage.memory_lane import MemoryLane
from engine.storage.protocol import Commit, Flushed, LoadedExecution
from engine.testing import Fault, TestCluster, replay
from tests.eventually import eventually
from tests.workflow.conftest import World

SECOND = timedelta(seconds=1)
LONG = timedelta(seconds=40)


class Pack(Workflow[int, str]):
    """A parcel; a negative one cannot be packed, and number 0 waits to be told."""

    go = Deferred(str)

    async def execute(self, request: int) -> str:
        if request == 0:
            return await self.go.wait()
        return await self.wrap(request)

    @activity(retry=RetryPolicy(attempts=1))
    async def wrap(self, number: int) -> str:
        if number < 0:
            raise LookupError(f"no parcel {number}")
        return f"parcel {number}"


class Keyed(Pack):
    @classmethod
    def key(cls, request: int) -> str:
        return f"k-{request}"


class Order(Workflow[list[int], list[str]]):
    async def execute(self, request: list[int]) -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.run_child(Pack, number)) for number in request]
        return [task.result() for task in tasks]


async def test_children_run_and_give_their_results(world: World) -> None:
    async with world.cluster(Order(), Pack()) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Order, [3, 1, 2]) == [
            "parcel 3",
            "parcel 1",
            "parcel 2",
        ]


async def test_each_call_has_a_child_of_its_own_named_after_the_parent(world: World) -> None:
    async with world.cluster(Order(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Order, [1, 1], key="o")
        await parent.join()
        children = [info async for info in cluster.client.executions(parent=parent.request_id)]
    assert sorted(info.id for info in children) == ["Order/o/1", "Order/o/2"]
    assert {info.parent for info in children} == {parent.request_id}


class Ends(Workflow[int, str]):
    """How a child ended, in words."""

    async def execute(self, request: int) -> str:
        try:
            return await self.run_child(Pack, request, key="child")
        except ExecutionFailed as error:
            return f"failed: {error.error.type}: {error.error.cause}"
        except ExecutionInterrupted as error:
            return f"interrupted: {error.reason}"
        except ExecutionTerminated as error:
            return f"terminated: {error.reason}"


async def test_a_child_that_fails_fails_its_parents_step_with_its_error(world: World) -> None:
    async with world.cluster(Ends(), Pack()) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Ends, -1) == (
            "failed: StepFailed: LookupError: no parcel -1"
        )


@pytest.mark.parametrize("end", ["interrupt", "terminate"])
async def test_a_child_that_is_ended_tells_its_parent_how_and_why(world: World, end: str) -> None:
    async with world.cluster(Ends(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Ends, 0)
        child = cluster.client.execution(Pack, "child")
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED, Status.RUNNING))
        await getattr(child, end)("no need")
        assert await parent.join() == f"{end}{'ed' if end == 'interrupt' else 'd'}: no need"


class Starts(Workflow[str, str]):
    """Starts a child that waits, and ends as it is told to."""

    go = Deferred(str)

    async def execute(self, request: str) -> str:
        policy: Any = "abandon" if "abandon" in request else "interrupt"
        child = await self.start_child(
            Pack, 0, key=f"child of {self.execution_id}", on_parent_close=policy
        )
        if "join" in request:
            return await child.join()
        await self.go.wait()
        if "fail" in request:
            raise PermissionError("no")
        return child.id


async def test_a_parent_goes_on_beside_its_child_and_joins_it(world: World) -> None:
    async with world.cluster(Starts(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Starts, "join", key="p")
        child = cluster.client.execution(Pack, "child of p")
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED, Status.RUNNING))
        await child.resolve(Pack.go, "done")
        assert await parent.join() == "done"


@pytest.mark.parametrize("how", ["end", "fail"])
async def test_a_child_is_interrupted_when_its_parent_ends_first(world: World, how: str) -> None:
    async with world.cluster(Starts(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Starts, how, key="p")
        child = cluster.client.execution(Pack, "child of p")
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED, Status.RUNNING))
        await parent.resolve(Starts.go, "")
        with pytest.raises(ExecutionInterrupted, match="Starts/p, which had started it"):
            await child.join()


@pytest.mark.parametrize("end", ["interrupt", "terminate"])
async def test_an_interrupt_or_termination_of_the_parent_reaches_its_children(
    world: World, end: str
) -> None:
    async with world.cluster(Order(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Order, [0, 0, 5], key="o")
        first = cluster.client.execution(Pack, "Order/o/1")
        await world.until(cluster, lambda: _is(first, Status.SUSPENDED, Status.RUNNING))
        await getattr(parent, end)("recalled")
        for number in (1, 2):
            with pytest.raises(ExecutionInterrupted) as caught:
                await cluster.client.execution(Pack, f"Order/o/{number}").join()
            assert "Order/o" in caught.value.reason
            if end == "interrupt":
                assert caught.value.reason.endswith(": recalled")
        assert isinstance(
            await cluster.client.execution(Pack, "Order/o/3").poll(), Succeeded | Interrupted
        )


class Hurries(Workflow[int, None]):
    """Starts a child in each run, and ends it in the same turn."""

    async def execute(self, request: int) -> None:
        await self.start_child(Pack, 7, key=f"left {request}", on_parent_close="abandon")
        if request:
            await self.continue_as_new(request - 1)


async def test_a_child_is_started_although_its_parent_ends_at_once(world: World) -> None:
    async with world.cluster(Hurries(), Pack()) as cluster, asyncio.timeout(20):
        await cluster.client.execute(Hurries, 1)
        for number in (0, 1):
            assert await cluster.client.execution(Pack, f"left {number}").join() == "parcel 7"


async def test_a_child_that_is_started_at_the_end_is_in_the_history(world: World) -> None:
    async with world.cluster(Hurries(), Pack()) as cluster, asyncio.timeout(20):
        parent = await cluster.client.start(Hurries, 0)
        await parent.join()
        history = await parent.history()
        assert [(each.kind, each.name) for each in history] == [(JournalKind.CALL, "Pack")]
        await replay(history, Hurries())


class Letter(Workflow[str, int]):
    async def execute(self, request: str) -> int:
        return len(request)


class Writes(Workflow[int, str]):
    async def execute(self, request: int) -> str:
        await self.start_child(Letter, "x" * request, key="letter", on_parent_close="abandon")
        return "written"


async def test_a_child_that_is_started_at_the_end_keeps_to_the_payload_limit(world: World) -> None:
    limited = world.cluster(Writes(), Letter(), payload_limit=2000)
    async with limited as cluster, asyncio.timeout(20):
        parent = await cluster.client.start(Writes, 3000)
        assert await parent.join() == "written"
        (event,) = history = await parent.history()
        assert (event.kind, event.outcome) == (JournalKind.CALL, Outcome.FAILED)
        assert "3002 bytes" in str(event.payload)
        await replay(history, Writes())
        with pytest.raises(NotFound):
            await cluster.client.execution(Letter, "letter").poll()


class Orphans(Workflow[str, str]):
    """Leaves a child behind when it fails, which it does until that is mended."""

    def __init__(self) -> None:
        self.broken = True

    async def execute(self, request: str) -> str:
        if request == "late":
            await self.sleep(timedelta(hours=2))
        if request == "after a step":
            with contextlib.suppress(StepFailed):
                await self.work()
        child = await self.start_child(Pack, 0, on_parent_close="abandon")
        if request == "before a step":
            await self.work()
        elif self.broken:
            raise LookupError("broken")
        return await child.join()

    @activity(retry=RetryPolicy(attempts=1))
    async def work(self) -> str:
        if self.broken:
            raise LookupError("broken")
        return "done"


@pytest.mark.parametrize("when", ["before a step", "after a step", "at the end"])
async def test_a_retry_finds_the_child_that_the_failed_run_has_left(
    world: World, when: str
) -> None:
    parents = Orphans()
    async with world.cluster(parents, Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Orphans, when, key="p")
        with pytest.raises(ExecutionFailed):
            await parent.join()
        parents.broken = False
        await parent.retry()
        await world.until(cluster, lambda: _is(parent, Status.SUSPENDED, Status.RUNNING))
        await cluster.crash()
        (child,) = [info async for info in cluster.client.executions(workflow=Pack)]
        assert child.id == "Orphans/p/1"
        await cluster.client.execution(Pack, child.id).resolve(Pack.go, "found")
        assert await parent.join() == "found"


class Charged(Workflow[None, str]):
    """Fails behind its child, until that is mended."""

    def __init__(self) -> None:
        self.broken = True

    async def execute(self, request: None) -> str:
        parcel = await self.run_child(Pack, 5)
        if self.broken:
            raise LookupError("broken")
        return parcel


async def test_a_fork_from_before_a_child_has_one_of_its_own_also_of_what_was_retried(
    world: World,
) -> None:
    parents = Charged()
    async with world.cluster(parents, Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Charged, None, key="p")
        with pytest.raises(ExecutionFailed):
            await parent.join()
        parents.broken = False
        await parent.retry()
        assert await parent.join() == "parcel 5"
        assert await (await parent.fork("Pack", key="f")).join() == "parcel 5"
        children = [info.id async for info in cluster.client.executions(workflow=Pack)]
        assert sorted(children) == ["Charged/f/1", "Charged/p/1"]


class Numbered(Workflow[int, str]):
    go = Deferred(str)

    async def execute(self, request: int) -> str:
        return await self.go.wait()


class Revised(Workflow[None, str]):
    """Leaves a child behind when it fails, another one since its code was changed."""

    def __init__(self) -> None:
        self.broken = True
        self.parcel = 0

    async def execute(self, request: None) -> str:
        child = await self.start_child(Numbered, self.parcel, on_parent_close="abandon")
        if self.broken:
            raise LookupError("broken")
        return await child.join()


async def test_a_retry_finds_the_child_that_the_last_run_has_left_and_not_that_of_one_before(
    world: World,
) -> None:
    parents = Revised()
    async with world.cluster(parents, Numbered()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Revised, None, key="p")
        with pytest.raises(ExecutionFailed):
            await parent.join()
        parents.parcel = 1
        await parent.retry()
        with pytest.raises(ExecutionFailed):
            await parent.join()
        parents.broken = False
        await parent.retry()
        await world.until(cluster, lambda: _is(parent, Status.SUSPENDED, Status.RUNNING))
        await cluster.crash()
        children = [info.id async for info in cluster.client.executions(workflow=Numbered)]
        assert sorted(children) == ["Revised/p/1", "Revised/p/2.1"]
        await cluster.client.execution(Numbered, "Revised/p/2.1").resolve(Numbered.go, "found")
        assert await parent.join() == "found"


async def test_a_child_that_is_abandoned_outlives_its_parent(world: World) -> None:
    async with world.cluster(Starts(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Starts, "abandon", key="p")
        child = cluster.client.execution(Pack, "child of p")
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED, Status.RUNNING))
        await parent.interrupt()
        with pytest.raises(ExecutionInterrupted):
            await parent.join()
        assert isinstance(await child.poll(), Pending)
        await child.resolve(Pack.go, "later")
        assert await child.join() == "later"


class Race(Workflow[None, str]):
    """The first of two children; the other is no longer wanted."""

    async def execute(self, request: None) -> str:
        slow = asyncio.ensure_future(self.run_child(Pack, 0, key="slow"))
        fast = asyncio.ensure_future(self.run_child(Pack, 7, key="fast"))
        done, pending = await asyncio.wait([slow, fast], return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return done.pop().result()


async def test_the_loser_of_a_race_is_interrupted_durably(world: World) -> None:
    async with world.cluster(Race(), Pack()) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Race, None, key="r") == "parcel 7"
        with pytest.raises(ExecutionInterrupted, match="Race/r"):
            await cluster.client.execution(Pack, "slow").join()


class Shares(Workflow[int, str]):
    async def execute(self, request: int) -> str:
        return await self.run_child(Keyed, request)


async def test_a_child_that_exists_already_is_joined(world: World) -> None:
    async with world.cluster(Shares(), Keyed()) as cluster, asyncio.timeout(40):
        there = await cluster.client.start(Keyed, 0)
        one = await cluster.client.start(Shares, 0, key="one")
        two = await cluster.client.start(Shares, 0, key="two")
        await world.until(cluster, lambda: _all_waiting(one, two))
        await cluster.crash()
        await there.resolve(Keyed.go, "shared")
        assert {await one.join(), await two.join(), await there.join()} == {"shared"}


async def test_a_child_that_is_pruned_before_its_exit_is_read_is_run_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replies, "_LOOK_AFTER", 0.01)
    async with TestCluster(Shares(), Keyed()) as cluster, asyncio.timeout(40):
        there = await cluster.client.start(Keyed, 7)
        await there.join()

        async def pruned(self: MemoryStorage, execution: Snowflake, follower: Snowflake) -> bool:
            gone = [each async for each in cluster.client.prune(Keyed, older_than=timedelta(0))]
            assert [each.done for each in gone] == [True]
            return False

        monkeypatch.setattr(MemoryStorage, "follow", pruned)
        assert await cluster.client.execute(Shares, 7) == "parcel 7"
        assert (await cluster.client.execution(Keyed, "k-7").describe()).parent is not None


@pytest.mark.parametrize("crashes", [False, True])
async def test_a_parent_of_a_child_that_exists_already_leaves_memory_until_that_ends(
    world: World, crashes: bool
) -> None:
    soon = timedelta(0) if crashes else timedelta(milliseconds=50)
    async with world.cluster(Shares(), Keyed(), suspend_after=soon) as cluster, asyncio.timeout(40):
        there = await cluster.client.start(Keyed, 0)
        parent = await cluster.client.start(Shares, 0, key="one")

        async def asleep() -> bool:
            all_are = await _is(parent, Status.SUSPENDED) and await _is(there, Status.SUSPENDED)
            return all_are and cluster.runner.resident == 0

        await world.until(cluster, asleep)
        assert "waits for child Keyed/k-0" in (await parent.describe()).why
        if crashes:
            await cluster.crash()
        await there.resolve(Keyed.go, "shared")
        assert await parent.join() == "shared"


async def test_a_parent_of_a_child_that_exists_already_holds_up_no_shutdown(world: World) -> None:
    async with asyncio.timeout(40):
        grace = timedelta(minutes=5)
        async with world.cluster(Shares(), Keyed(), grace_period=grace) as cluster:
            await cluster.client.start(Keyed, 0)
            parent = await cluster.client.start(Shares, 0, key="one")
            await world.until(cluster, lambda: _all_waiting(parent))


async def test_a_child_of_another_request_under_that_key_is_refused(world: World) -> None:
    class Wrong(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            return await self.run_child(Pack, request, key="k")

    async with world.cluster(Wrong(), Pack()) as cluster, asyncio.timeout(40):
        await cluster.client.execute(Pack, 1, key="k")
        with pytest.raises(ExecutionFailed, match="PayloadConflict"):
            await cluster.client.execute(Wrong, 2)


async def test_a_thousand_children_of_one_parent_all_answer(world: World) -> None:
    async with world.cluster(Order(), Pack()) as cluster, asyncio.timeout(50):
        assert await cluster.client.execute(Order, [*range(1, 1001)]) == [
            f"parcel {n}" for n in range(1, 1001)
        ]


async def test_children_and_parent_go_on_after_a_crash_at_any_time(world: World) -> None:
    async with world.cluster(Starts(), Order(), Pack()) as cluster, asyncio.timeout(50):
        parent = await cluster.client.start(Starts, "join", key="p")
        order = await cluster.client.start(Order, [4, 0], key="o")
        child = cluster.client.execution(Pack, "child of p")
        await cluster.crash()
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED, Status.RUNNING))
        await child.resolve(Pack.go, "a")
        await cluster.crash()
        second = cluster.client.execution(Pack, "Order/o/2")
        await world.until(cluster, lambda: _is(second, Status.SUSPENDED, Status.RUNNING))
        await cluster.crash()
        await second.resolve(Pack.go, "b")
        assert (await parent.join(), await order.join()) == ("a", ["parcel 4", "b"])


class Tells(Workflow[str, list[bool]]):
    async def execute(self, request: str) -> list[bool]:
        other = self.execution(Pack, request)
        return [await other.resolve(Pack.go, "first"), await other.resolve(Pack.go, "second")]


async def test_a_body_tells_another_execution_something_as_a_durable_step(world: World) -> None:
    async with world.cluster(Tells(), Pack()) as cluster, asyncio.timeout(40):
        other = await cluster.client.start(Pack, 0, key="x")
        assert await cluster.client.execute(Tells, "x") == [True, False]
        assert await other.join() == "first"


async def test_who_tells_nobody_is_told_so(world: World) -> None:
    async with world.cluster(Tells(), Pack()) as cluster, asyncio.timeout(40):
        with pytest.raises(ExecutionFailed, match="there is no execution Pack/nobody"):
            await cluster.client.execute(Tells, "nobody")


async def test_what_is_no_step_is_refused_on_an_execution_within_a_body() -> None:
    class Polls(Workflow[None, None]):
        async def execute(self, request: None) -> None:
            await self.execution(Pack, "x").poll()

    async with TestCluster(Polls(), Pack()) as cluster:
        with pytest.raises(ExecutionFailed, match=r"poll\(\) .*in an activity") as caught:
            await cluster.client.execute(Polls, None)
        assert caught.value.error.type == ConfigurationError.__name__


async def test_a_child_is_shown_while_it_is_awaited(world: World) -> None:
    async with world.cluster(Ends(), Pack()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Ends, 0)
        await world.until(cluster, lambda: _is(parent, Status.SUSPENDED))
        assert "waits for child Pack/child" in (await parent.describe()).why


async def _is(execution: Any, *statuses: Status) -> bool:
    try:
        found = await execution.poll()
    except NotFound:
        return False
    return isinstance(found, Pending) and found.status in statuses


async def _stands(execution: Any, status: Status) -> bool:
    return (await execution.describe()).status is status


async def _all_waiting(*executions: Any) -> bool:
    return all([await _is(each, Status.SUSPENDED, Status.RUNNING) for each in executions])


class Leaves(Workflow[None, str]):
    """Ends, a long time after it has started a child that waits."""

    async def execute(self, request: None) -> str:
        await self.start_child(Pack, 0, key="left")
        await self.sleep(timedelta(hours=2))
        return "ended"


async def test_a_retry_finds_the_child_whose_start_had_to_wait_for_the_machine_ids_lease() -> None:
    parents = Orphans()
    async with TestCluster(parents, Pack()) as cluster:
        parent = await cluster.client.start(Orphans, "late", key="p")
        await cluster.advance(timedelta(hours=3))
        with pytest.raises(ExecutionFailed):
            await parent.join(SECOND)
        parents.broken = False
        await parent.retry()
        await cluster.advance(SECOND)
        children = [info.id async for info in cluster.client.executions(workflow=Pack)]
        assert children == ["Orphans/p/1"]
        assert isinstance(await parent.poll(), Pending)


@pytest.mark.parametrize("writes", range(6))
async def test_a_child_is_interrupted_although_the_runner_dies_just_after_its_parents_end(
    writes: int,
) -> None:
    """Two hours on, the runner has to renew its lease before it can make the interrupt's id."""
    async with TestCluster(Leaves(), Pack()) as cluster:
        parent = await cluster.client.start(Leaves, None)
        await cluster.advance(timedelta(hours=1))
        cluster.fail_next_flush(Fault.AFTER_COMMIT, after=writes)
        await cluster.advance(timedelta(hours=2))
        assert await parent.join(LONG) == "ended"
        left = cluster.client.execution(Pack, "left")

        async def interrupted() -> bool:
            return isinstance(await left.poll(), Interrupted)

        await eventually(interrupted, timeout=2)


class Tidies(Workflow[None, None]):
    """Ends with a child that goes on, once it has tidied up."""

    tidying = asyncio.Event()
    crashed = asyncio.Event()

    async def execute(self, request: None) -> None:
        await self.start_child(Pack, 0, key="left")
        await self.tidy()

    @activity
    async def tidy(self) -> None:
        self.tidying.set()
        await self.crashed.wait()


async def test_a_child_is_interrupted_although_its_start_was_about_to_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a crash the parent sends it again; here the lane is busy until the parent has ended."""
    monkeypatch.setattr(Tidies, "tidying", asyncio.Event())
    monkeypatch.setattr(Tidies, "crashed", asyncio.Event())
    flush, load = MemoryLane.flush, MemoryStorage.load
    busy, free = asyncio.Event(), asyncio.Event()

    async def slow_flush(self: MemoryLane, commits: Sequence[Commit]) -> Flushed:
        busy.set()
        await free.wait()
        return await flush(self, commits)

    async def slow_load(
        self: MemoryStorage, executions: Sequence[Snowflake]
    ) -> Sequence[LoadedExecution]:
        await busy.wait()
        return await load(self, executions)

    async with (
        TestCluster(Tidies(), Pack(), shards_per_group=1) as cluster,
        asyncio.timeout(40),
    ):
        parent = await cluster.client.start(Tidies, None)
        child = cluster.client.execution(Pack, "left")
        await Tidies.tidying.wait()
        await cluster.advance(SECOND * 2)
        assert await _is(child, Status.SUSPENDED)
        monkeypatch.setattr(MemoryLane, "flush", slow_flush)
        monkeypatch.setattr(MemoryStorage, "load", slow_load)
        await cluster.crash()
        Tidies.tidying.clear()
        Tidies.crashed.set()
        await cluster.client.start(Pack, 1)
        await Tidies.tidying.wait()
        for _ in range(100):  # the parent ends
            await asyncio.sleep(0)
        free.set()
        await parent.join()
        with pytest.raises(ExecutionInterrupted, match="which had started it"):
            await child.join()


class Mended(Workflow[None, str]):
    """Fails once it is told to go on, until somebody has mended it; then it takes its time."""

    go = Deferred(str)
    mended = False
    opened = asyncio.Event()

    async def execute(self, request: None) -> str:
        await self.go.wait()
        return await self.work()

    @activity(retry=RetryPolicy(attempts=1))
    async def work(self) -> str:
        if not self.mended:
            raise LookupError("not mended yet")
        await self.opened.wait()
        return "mended"


class Holds(Workflow[None, str]):
    """Has a child, and a step that keeps it in memory meanwhile."""

    go = Deferred(str)
    holding = False
    released = asyncio.Event()

    async def execute(self, request: None) -> str:
        async with asyncio.TaskGroup() as group:
            child = group.create_task(self.run_child(Mended, None))
            await self.go.wait()
            await self.hold()
        return child.result()

    @activity
    async def hold(self) -> None:
        type(self).holding = True
        await self.released.wait()


async def test_a_child_that_is_retried_before_its_parent_hears_of_its_failure_answers_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mended, "mended", False)
    monkeypatch.setattr(Mended, "opened", asyncio.Event())
    monkeypatch.setattr(Holds, "holding", False)
    monkeypatch.setattr(Holds, "released", asyncio.Event())
    async with world.cluster(Holds(), Mended()) as cluster, asyncio.timeout(40):
        parent = await cluster.client.start(Holds, None, key="p")
        child = cluster.client.execution(Mended, "Holds/p/1")
        await world.until(cluster, lambda: _is(child, Status.SUSPENDED))
        await parent.pause()
        await world.until(cluster, lambda: _is(parent, Status.PAUSED))
        await child.resolve(Mended.go, "")
        await world.until(cluster, lambda: _stands(child, Status.FAILED))
        monkeypatch.setattr(Mended, "mended", True)
        await child.retry()
        await parent.resume()
        await parent.resolve(Holds.go, "")

        async def holding() -> bool:
            return Holds.holding

        await world.until(cluster, holding)
        Mended.opened.set()
        await world.until(cluster, lambda: _stands(child, Status.SUCCEEDED))
        Holds.released.set()
        assert await world.result(cluster, parent) == "mended"
