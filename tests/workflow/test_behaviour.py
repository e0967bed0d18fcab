"""What a workflow's author may rely on, on memory and virtual time."""

import asyncio
import contextlib
import math
import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest

from engine import (
    AlreadyStarted,
    ConfigurationError,
    Deferred,
    Entity,
    ExecutionFailed,
    ExecutionInterrupted,
    Failed,
    Interrupted,
    InvalidPayload,
    JournalKind,
    NotFound,
    Outcome,
    PayloadConflict,
    Pending,
    RetryPolicy,
    Status,
    StepFailed,
    StepTimedOut,
    Succeeded,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.testing import TestCluster
from engine.workflow.outgoing import Outgoing
from tests.workflow.conftest import World

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


class Echo(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return await self.say(request)

    @activity
    async def say(self, word: str) -> str:
        return word


async def test_a_start_with_the_same_key_and_request_is_the_same_execution(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        first = await cluster.client.start(Echo, "hi", key="k")
        second = await cluster.client.start(Echo, "hi", key="k")
        assert (first.id, first.request_id) == (second.id, second.request_id)
        assert await second.join(10 * SECOND) == "hi"


async def test_a_start_with_the_same_key_and_another_request_is_refused(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        await cluster.client.start(Echo, "hi", key="k")
        with pytest.raises(PayloadConflict, match=r"Echo/k.*another key"):
            await cluster.client.start(Echo, "bye", key="k")


async def test_the_default_key_is_the_requests_digest(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        one = await cluster.client.start(Echo, "a")
        same = await cluster.client.start(Echo, "a")
        other = await cluster.client.start(Echo, "b")
        assert one.id == same.id != other.id


class Order(pydantic.BaseModel):
    number: int


class Ship(Workflow[Order, int]):
    @classmethod
    def key(cls, request: Order) -> str:
        return f"o-{request.number}"

    async def execute(self, request: Order) -> int:
        return request.number


async def test_a_key_is_made_of_the_request_as_it_validates(world: World) -> None:
    async with world.cluster(Ship()) as cluster:
        plain: Any = {"number": 7}
        execution = await cluster.client.start(Ship, plain)
        assert execution.id == "o-7"
        assert await execution.join(10 * SECOND) == 7


async def test_who_wants_to_be_the_first_is_told_when_it_is_not(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        await cluster.client.start(Echo, "a", key="k", on_conflict="fail")
        with pytest.raises(AlreadyStarted):
            await cluster.client.start(Echo, "a", key="k", on_conflict="fail")


async def test_a_request_that_does_not_validate_is_refused_before_anything_is_stored(
    world: World,
) -> None:
    async with world.cluster(Echo()) as cluster:
        wrong: Any = 7
        with pytest.raises(InvalidPayload, match="the request of Echo"):
            await cluster.client.start(Echo, wrong, key="k")
        with pytest.raises(NotFound):
            await cluster.client.execution(Echo, "k").poll()


async def test_a_start_put_off_begins_when_it_is_due(slow_world: World) -> None:
    async with slow_world.cluster(Echo()) as cluster:
        execution = await cluster.client.start(Echo, "hi", delay=HOUR)
        await slow_world.later(cluster, HOUR - MINUTE)
        assert await execution.poll() == Pending(Status.SCHEDULED)
        await slow_world.later(cluster, MINUTE)
        assert await slow_world.result(cluster, execution) == "hi"


async def test_an_unknown_execution_is_not_found(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        handle = cluster.client.execution(Echo, "nobody")
        for ask in (handle.poll, handle.join, handle.describe, handle.history, handle.interrupt):
            with pytest.raises(NotFound, match="Echo/nobody"):
                await ask()


async def test_who_joins_with_a_number_is_told_to_give_a_timedelta(world: World) -> None:
    async with world.cluster(Echo()) as cluster:
        handle = await cluster.client.start(Echo, "hi")
        wrong: Any = 5
        with pytest.raises(ConfigurationError, match=r"write timedelta\(seconds=5\)"):
            await handle.join(wrong)


async def test_a_failed_execution_tells_its_joiner_type_message_cause_and_line(
    world: World,
) -> None:
    class Fails(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise PermissionError("no entry") from error

    async with world.cluster(Fails()) as cluster:
        execution = await cluster.client.start(Fails, 1)
        with pytest.raises(ExecutionFailed, match="no entry") as caught:
            await execution.join(10 * SECOND)
        error = caught.value.error
        assert (error.type, error.message) == ("PermissionError", "no entry")
        assert error.cause is not None
        assert error.cause.type == "KeyError"
        assert "execute" in error.traceback
        assert isinstance(await execution.poll(), Failed)


class Flaky(Workflow[int, list[int]]):
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.attempts: list[int] = []
        self.keys: set[str] = set()

    async def execute(self, request: int) -> list[int]:
        return await self.work()

    @activity(retry=RetryPolicy(attempts=6, initial=timedelta(minutes=1), jitter=0))
    async def work(self) -> list[int]:
        self.attempts.append(self.attempt)
        self.keys.add(self.idempotency_key)
        if len(self.attempts) <= self.failures:
            raise ConnectionError(f"attempt {self.attempt}")
        return self.attempts


async def test_attempts_go_on_after_a_crash_with_the_same_idempotency_key(
    slow_world: World,
) -> None:
    flaky = Flaky(failures=4)
    async with slow_world.cluster(flaky) as cluster:
        execution = await cluster.client.start(Flaky, 1)
        for _ in range(2):
            await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
            await slow_world.later(cluster, MINUTE)
        assert flaky.attempts == [1, 2, 3]
        await cluster.crash()
        assert await execution.poll() == Pending(Status.SUSPENDED)
        await slow_world.later(cluster, MINUTE / 2)
        assert flaky.attempts == [1, 2, 3]
        for _ in range(2):
            await slow_world.later(cluster, MINUTE)
        assert await slow_world.result(cluster, execution) == [1, 2, 3, 4, 5]
        assert len(flaky.keys) == 1
        attempts = [e for e in await execution.history() if e.kind is JournalKind.ATTEMPT]
        assert [e.attempt for e in attempts] == [1, 2, 3, 4]


async def test_after_its_last_attempt_a_step_fails_in_the_body_with_the_error() -> None:
    class Gives(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            try:
                await self.work()
            except StepFailed as error:
                return f"{error.error.type} {error.error.message}"
            return "?"

        @activity(retry=RetryPolicy(attempts=2, initial=timedelta(seconds=1)))
        async def work(self) -> None:
            raise ValueError("broken")

    async with TestCluster(Gives()) as cluster:
        execution = await cluster.client.start(Gives, 1)
        await cluster.advance(timedelta(seconds=2))
        assert await execution.poll() == Succeeded("ValueError broken")


async def test_errors_to_give_up_on_are_not_retried(world: World) -> None:
    class Gives(Workflow[int, int]):
        tries = 0

        async def execute(self, request: int) -> int:
            await self.work()
            return 1

        @activity(retry=RetryPolicy(give_up_on=(ValueError,)))
        async def work(self) -> None:
            type(self).tries += 1
            raise ValueError("broken")

    async with world.cluster(Gives()) as cluster:
        with pytest.raises(ExecutionFailed, match="broken"):
            await cluster.client.execute(Gives, 1, timeout=SECOND)
        assert Gives.tries == 1


async def test_a_step_out_of_time_raises_a_timeout_error_in_the_body(world: World) -> None:
    class Slow(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            try:
                await self.work()
            except TimeoutError as error:
                return f"too slow: {isinstance(error, StepTimedOut)}"
            return "?"

        @activity(retry=RetryPolicy(attempts=1), timeout=timedelta(milliseconds=20))
        async def work(self) -> None:
            await asyncio.Event().wait()

    async with world.cluster(Slow()) as cluster:
        assert await cluster.client.execute(Slow, 1, timeout=timedelta(seconds=5)) == (
            "too slow: True"
        )


async def test_a_step_without_async_runs_in_a_thread_and_knows_its_attempt(world: World) -> None:
    class Threads(Workflow[int, list[str]]):
        async def execute(self, request: int) -> list[str]:
            return await self.where()

        @activity
        def where(self) -> list[str]:
            return [threading.current_thread().name, str(self.attempt), self.execution_id]

    async with world.cluster(Threads()) as cluster:
        thread, attempt, id = await cluster.client.execute(
            Threads, 1, key="t", timeout=timedelta(seconds=5)
        )
        assert thread != threading.current_thread().name
        assert (attempt, id) == ("1", "t")


async def test_steps_see_the_registered_object_and_not_the_bodys_state(world: World) -> None:
    class State(Workflow[int, list[object]]):
        def __init__(self) -> None:
            self.count = 0

        async def execute(self, request: int) -> list[object]:
            self.count = 5
            return [await self.look(), self.count]

        @activity
        async def look(self) -> int:
            self.count += 1
            return self.count

    async with world.cluster(State()) as cluster:
        assert await cluster.client.execute(State, 1, timeout=SECOND) == [1, 5]


async def test_time_random_numbers_and_uuids_are_the_same_after_a_crash(
    slow_world: World,
) -> None:
    class Draws(Workflow[int, list[str]]):
        go = Deferred(bool)

        def __init__(self) -> None:
            self.seen: list[list[str]] = []

        async def execute(self, request: int) -> list[str]:
            drawn = [self.now().isoformat(), str(self.uuid()), str(self.random().random())]
            self.seen.append(drawn)
            await self.note(drawn)
            await self.go.wait()
            return drawn

        @activity
        async def note(self, drawn: list[str]) -> None: ...

    draws = Draws()
    async with slow_world.cluster(draws) as cluster:
        execution = await cluster.client.start(Draws, 1)
        await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
        await cluster.crash()
        await execution.resolve(Draws.go, True)
        assert await slow_world.result(cluster, execution) == draws.seen[0]
        assert len(draws.seen) == 2
        assert draws.seen[0] == draws.seen[1]


class Approval(Workflow[int, str]):
    answer = Deferred[str | None]()

    async def execute(self, request: int) -> str:
        try:
            first = await self.answer.wait(timeout=HOUR)
            return f"{first} {await self.answer.wait()}"
        except TimeoutError:
            return "nobody"
        except StepFailed as error:
            return f"rejected: {error.error.message}"


async def test_a_deferred_resolved_before_it_is_awaited_is_there() -> None:
    async with TestCluster(Approval()) as cluster:
        execution = await cluster.client.start(Approval, 1, delay=HOUR)
        assert await execution.resolve(Approval.answer, "yes")
        await cluster.advance(HOUR + SECOND)
        assert await execution.poll() == Succeeded("yes yes")


async def test_the_first_resolution_wins_and_a_late_one_is_told_so(world: World) -> None:
    async with world.cluster(Approval()) as cluster:
        execution = await cluster.client.start(Approval, 1)
        assert await execution.resolve(Approval.answer, None)
        assert not await execution.resolve(Approval.answer, "no")
        assert not await execution.reject(Approval.answer, "no")
        assert await execution.join(10 * SECOND) == "None None"
        assert not await execution.resolve(Approval.answer, "late")


async def test_a_rejection_raises_in_the_body(world: World) -> None:
    async with world.cluster(Approval()) as cluster:
        execution = await cluster.client.start(Approval, 1)
        assert await execution.reject(Approval.answer, "no money")
        assert await execution.join(10 * SECOND) == "rejected: no money"


async def test_a_wait_times_out_on_the_minute_also_when_it_slept_meanwhile(
    slow_world: World,
) -> None:
    async with slow_world.cluster(Approval()) as cluster:
        execution = await cluster.client.start(Approval, 1)
        await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
        await slow_world.later(cluster, HOUR - MINUTE)
        assert await execution.poll() == Pending(Status.SUSPENDED)
        info = await execution.describe()
        assert "deferred answer" in info.why
        assert info.wake_at is not None
        await slow_world.later(cluster, MINUTE)
        assert await slow_world.result(cluster, execution) == "nobody"


async def test_a_value_of_the_wrong_type_does_not_reach_the_execution(world: World) -> None:
    async with world.cluster(Approval()) as cluster:
        execution = await cluster.client.start(Approval, 1)
        wrong: Any = 5
        with pytest.raises(InvalidPayload, match=r"deferred Approval\.answer"):
            await execution.resolve(Approval.answer, wrong)
        assert await execution.resolve(Approval.answer, "right")


async def test_sleeping_until_a_time_ends_no_earlier() -> None:
    until = datetime(2026, 3, 1, 12, tzinfo=UTC)

    class Sleeper(Workflow[int, datetime]):
        async def execute(self, request: int) -> datetime:
            await self.sleep_until(until)
            return self.now()

    async with TestCluster(Sleeper()) as cluster:
        execution = await cluster.client.start(Sleeper, 1)
        await cluster.advance(timedelta(days=100))
        outcome = await execution.poll()
        assert isinstance(outcome, Succeeded)
        assert until <= outcome.value <= until + SECOND


class Dozes(Workflow[int, int]):
    """Sleeps for days, several times, and says how often."""

    async def execute(self, request: int) -> int:
        for _ in range(request):
            await self.sleep(timedelta(days=1))
        return request


async def test_a_sleep_of_days_survives_crashes_and_ends_no_earlier(slow_world: World) -> None:
    async with slow_world.cluster(Dozes()) as cluster:
        execution = await cluster.client.start(Dozes, 2)
        await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
        for _ in range(2):
            await slow_world.later(cluster, timedelta(hours=23))
            await cluster.crash()
            assert await execution.poll() == Pending(Status.SUSPENDED)
            await slow_world.later(cluster, HOUR)
        assert await slow_world.result(cluster, execution) == 2
        timers = [each for each in await execution.history() if each.kind is JournalKind.TIMER]
        assert len(timers) == 2
        assert all(each.due_at is not None and each.at >= each.due_at for each in timers)


class Counter(Entity):
    seen: list[str]

    def __init__(self) -> None:
        self.seen = []

    @rpc
    async def add(self, n: int) -> str:
        self.seen.append(f"{self.entity_id}:{n}")
        return f"{self.entity_id}:{n}"

    @rpc
    async def fail(self) -> None:
        raise ValueError("not today")


class Calls(Workflow[int, list[str]]):
    go = Deferred(bool)

    async def execute(self, request: int) -> list[str]:
        counters = [self.entity(Counter, f"c{i}") for i in range(5)]
        answers = await asyncio.gather(*(each.add(request) for each in counters))
        await self.go.wait()
        try:
            await counters[0].fail()
        except StepFailed as error:
            answers.append(error.error.message)
        return answers


async def test_calls_of_entities_are_steps_that_a_crash_does_not_repeat(
    slow_world: World,
) -> None:
    counter = Counter()
    async with slow_world.cluster(Calls(), counter) as cluster:
        execution = await cluster.client.start(Calls, 3)
        await slow_world.until(cluster, lambda: _waits_for(execution, "deferred go"))
        await cluster.crash()
        await execution.resolve(Calls.go, True)
        expected = [f"c{i}:3" for i in range(5)]
        assert await slow_world.result(cluster, execution) == [*expected, "not today"]
        assert sorted(counter.seen) == expected


class Cleanup(Workflow[int, str]):
    def __init__(self) -> None:
        self.log: list[str] = []

    async def execute(self, request: int) -> str:
        try:
            await self.sleep(HOUR)
        except asyncio.CancelledError:
            await self.undo("caught")
            await self.sleep(MINUTE)
            if request == 2:
                return "finished anyway"
            raise
        finally:
            await self.undo("finally")
        return "done"

    @activity
    async def undo(self, what: str) -> None:
        self.log.append(what)


@pytest.mark.parametrize("asleep", [False, True])
async def test_an_interrupt_runs_the_cleanup_with_its_steps(
    slow_world: World, asleep: bool
) -> None:
    cleanup = Cleanup()
    async with slow_world.cluster(cleanup) as cluster:
        execution = await cluster.client.start(Cleanup, 1)
        if asleep:
            await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
        await execution.interrupt("stop it")
        await slow_world.until(cluster, lambda: _logged(cleanup, "caught"))
        await slow_world.later(cluster, MINUTE)
        await slow_world.until(cluster, lambda: _ended(execution))
        assert cleanup.log == ["caught", "finally"]
        assert await execution.poll() == Interrupted("stop it")
        with pytest.raises(ExecutionInterrupted, match="stop it"):
            await execution.join(10 * SECOND)


async def test_an_interrupt_that_is_caught_is_not_raised_again() -> None:
    async with TestCluster(Cleanup()) as cluster:
        execution = await cluster.client.start(Cleanup, 2)
        await cluster.advance(SECOND)
        await execution.interrupt()
        await cluster.advance(2 * MINUTE)
        assert await execution.poll() == Succeeded("finished anyway")


async def test_an_interrupt_survives_a_crash_in_the_middle_of_the_cleanup(
    slow_world: World,
) -> None:
    cleanup = Cleanup()
    async with slow_world.cluster(cleanup) as cluster:
        execution = await cluster.client.start(Cleanup, 1)
        await slow_world.until(cluster, lambda: _is(execution, Status.SUSPENDED))
        await execution.interrupt("stop it")
        await slow_world.until(cluster, lambda: _has_done_a_step(execution))
        assert cleanup.log == ["caught"]
        await cluster.crash()
        await slow_world.later(cluster, MINUTE)
        await slow_world.until(cluster, lambda: _ended(execution))
        assert cleanup.log == ["caught", "finally"]
        assert await execution.poll() == Interrupted("stop it")


async def test_an_interrupt_before_the_start_is_not_lost() -> None:
    cleanup = Cleanup()
    async with TestCluster(cleanup) as cluster:
        execution = await cluster.client.start(Cleanup, 1, delay=HOUR)
        await execution.interrupt("never mind")
        await cluster.advance(HOUR * 2)
        assert await execution.poll() == Interrupted("never mind")


async def test_compensations_run_in_reverse_after_a_failure(world: World) -> None:
    class Saga(Workflow[int, None]):
        def __init__(self) -> None:
            self.log: list[str] = []

        async def execute(self, request: int) -> None:
            for name in ("a", "b"):
                await self.do(name)
                self.compensate(self.undo, name)
            raise RuntimeError("no")

        @activity
        async def do(self, name: str) -> None:
            self.log.append(f"do {name}")

        @activity
        async def undo(self, name: str) -> None:
            self.log.append(f"undo {name}")

    saga = Saga()
    async with world.cluster(saga) as cluster:
        with pytest.raises(ExecutionFailed, match="no"):
            await cluster.client.execute(Saga, 1, timeout=SECOND)
        assert saga.log == ["do a", "do b", "undo b", "undo a"]


async def test_a_second_interrupt_does_not_cut_the_compensations_short(world: World) -> None:
    class Saga(Workflow[int, None]):
        def __init__(self) -> None:
            self.log: list[str] = []
            self.go = asyncio.Event()

        async def execute(self, request: int) -> None:
            self.compensate(self.undo, "a")
            self.compensate(self.undo, "b")
            await self.sleep(HOUR)

        @activity
        async def undo(self, name: str) -> None:
            await self.go.wait()
            self.log.append(f"undo {name}")

    saga = Saga()
    async with world.cluster(saga) as cluster:
        execution = await cluster.client.start(Saga, 1)
        await cluster.settle()
        for reason in ("first", "second", "third"):
            await execution.interrupt(reason)
            await cluster.settle()
        await cluster.crash()
        saga.go.set()
        with pytest.raises(ExecutionInterrupted, match="first"):
            await execution.join(10 * SECOND)
        assert saga.log == ["undo b", "undo a"]
        assert await execution.poll() == Interrupted("first")


async def test_sleeping_for_ever_is_a_wait_like_any_other() -> None:
    class Sleeps(Workflow[int, str]):
        go = Deferred(bool)

        async def execute(self, request: int) -> str:
            for_ever = asyncio.create_task(asyncio.sleep(math.inf))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    await asyncio.sleep(1e15)
            await self.go.wait()
            for_ever.cancel()
            return "awake"

    async with TestCluster(Sleeps()) as cluster:
        execution = await cluster.client.start(Sleeps, 1)
        await cluster.advance(HOUR)
        assert await execution.poll() == Pending(Status.SUSPENDED)
        await execution.resolve(Sleeps.go, True)
        await cluster.advance(SECOND)
        assert await execution.poll() == Succeeded("awake")


class Keyed(Entity):
    @rpc(key=lambda number: str({1: 1}[number]))
    async def take(self, number: int) -> int:
        return number


async def test_a_key_function_that_raises_does_so_in_the_body(world: World) -> None:
    class Takes(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            try:
                return str(await self.entity(Keyed, "k").take(request))
            except KeyError as error:
                return repr(error)

    async with world.cluster(Takes(), Keyed()) as cluster:
        assert await cluster.client.execute(Takes, 1, timeout=SECOND) == "1"
        assert await cluster.client.execute(Takes, 2, timeout=SECOND) == "KeyError(2)"


async def test_an_error_that_nobody_foresaw_blocks_its_execution_and_is_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unforeseen")

    async with world.cluster(Echo()) as cluster:
        with monkeypatch.context() as patch:
            patch.setattr(Outgoing, "launch_ready", broken)
            execution = await cluster.client.start(Echo, "hi")

            async def blocked() -> bool:
                return await execution.poll() == Pending(Status.BLOCKED)

            await world.until(cluster, blocked)
        assert "unforeseen" in (await execution.describe()).why
        await cluster.crash()
        assert await execution.join(10 * SECOND) == "hi"


async def test_what_an_error_carries_is_the_same_after_a_crash(world: World) -> None:
    class Detailed(Exception):
        details = (1, {2: "two"})

    class Fails(Workflow[int, None]):
        go = Deferred(bool)

        def __init__(self) -> None:
            self.seen: list[object] = []

        async def execute(self, request: int) -> None:
            try:
                await self.work()
            except StepFailed as error:
                self.seen.append(error.error)
            await self.go.wait()

        @activity(retry=RetryPolicy(attempts=1))
        async def work(self) -> None:
            raise Detailed("no")

    fails = Fails()

    async def seen(times: int) -> bool:
        return len(fails.seen) >= times

    async with world.cluster(fails) as cluster:
        execution = await cluster.client.start(Fails, 1)
        await world.until(cluster, lambda: seen(1))
        await cluster.crash()
        await execution.resolve(Fails.go, True)
        await execution.join(10 * SECOND)
        assert len(fails.seen) >= 2
        assert all(each == fails.seen[0] for each in fails.seen)


async def test_waiting_executions_leave_memory_and_plain_finally_code_can_tell(
    slow_world: World,
) -> None:
    ran: list[bool] = []

    class Waits(Workflow[int, int]):
        go = Deferred(int)

        async def execute(self, request: int) -> int:
            try:
                return await self.go.wait()
            finally:
                ran.append(self.suspending)

    async def gone() -> bool:
        return len(ran) == 50 and cluster.runner.resident == 0

    async with slow_world.cluster(Waits()) as cluster:
        executions = [await cluster.client.start(Waits, i) for i in range(50)]
        await slow_world.until(cluster, gone)
        assert ran == [True] * 50
        for number, execution in enumerate(executions):
            await execution.resolve(Waits.go, number)
        assert [await slow_world.result(cluster, each) for each in executions] == [*range(50)]
        assert ran == [True] * 50 + [False] * 50


async def test_the_slower_of_two_steps_is_cancelled_and_its_late_result_dropped(
    world: World,
) -> None:
    class First(Workflow[int, str]):
        async def execute(self, request: int) -> str:
            tasks = [
                asyncio.ensure_future(self.work(True)),
                asyncio.ensure_future(self.work(False)),
            ]
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            return done.pop().result()

        @activity
        async def work(self, slow: bool) -> str:
            if slow:
                await asyncio.Event().wait()
            return "slow" if slow else "fast"

    async with world.cluster(First()) as cluster:
        execution = await cluster.client.start(First, 1)
        assert await execution.join(timedelta(seconds=5)) == "fast"
        outcomes = [event.outcome for event in await execution.history()]
        assert outcomes in ([Outcome.OK], [Outcome.OK, Outcome.CANCELLED])


async def test_a_body_that_reaches_outside_is_told_to_use_an_activity(world: World) -> None:
    class Reaches(Workflow[str, None]):
        async def execute(self, request: str) -> None:
            match request:
                case "socket":
                    await asyncio.open_connection("127.0.0.1", 9)
                case "thread":
                    await asyncio.to_thread(print)
                case "raw":
                    with socket.socket() as raw:
                        raw.setblocking(False)
                        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", 9))
                case _:
                    await asyncio.create_subprocess_exec("true")

    async with world.cluster(Reaches()) as cluster:
        for way in ("socket", "thread", "raw", "process"):
            with pytest.raises(ExecutionFailed, match="Do this in an activity") as caught:
                await cluster.client.execute(Reaches, way, timeout=SECOND)
            assert caught.value.error.type == ConfigurationError.__name__


async def test_a_step_that_was_called_and_not_awaited_fails_the_execution(world: World) -> None:
    class Forgets(Workflow[bool, str]):
        async def execute(self, request: bool) -> str:
            if request:
                self.charge()  # type: ignore[unused-coroutine]
            else:
                task = asyncio.get_running_loop().create_task(self.charge())
                task.cancel()  # before it begins: that is meant
                await asyncio.sleep(0)
            return "done"

        @activity
        async def charge(self) -> None:
            pass

    async with world.cluster(Forgets()) as cluster:
        with pytest.raises(ExecutionFailed, match=r"charge was called but not awaited"):
            await cluster.client.execute(Forgets, True, key="forgets", timeout=SECOND)
        done = await cluster.client.execute(Forgets, False, key="cancels", timeout=SECOND)

    assert done == "done"


@activity
async def free(item: object) -> object:
    return item


class Careless(Workflow[str, str]):
    approved = Deferred(bool)

    async def execute(self, request: str) -> str:
        match request:
            case "approved.wait()":
                if not self.approved.wait(timeout=timedelta(days=3)):  # type: ignore[truthy-bool]
                    return "refused"
            case "sleep()" | "sleep_until()" | "wait_until()" | "continue_as_new()":
                self.forget(request)
            case "await self.approved.wait()":
                await self.approved  # type: ignore[misc]
            case "free of an int":
                await free(3)
            case "free of an object":
                await free(self.approved)
            case "charge of another":
                await Careless().charge()
            case _:
                nap = asyncio.get_running_loop().create_task(self.sleep(timedelta(days=3)))
                nap.cancel()  # before it begins: that is meant
                await asyncio.sleep(0)
                return await self.charge()
        return "shipped"

    def forget(self, request: str) -> None:
        if request == "sleep()":
            self.sleep(timedelta(days=3))  # type: ignore[unused-coroutine]
        elif request == "sleep_until()":
            self.sleep_until(self.now())  # type: ignore[unused-coroutine]
        elif request == "continue_as_new()":
            self.continue_as_new("")  # type: ignore[unused-coroutine]
        else:
            self.wait_until(lambda: False)  # type: ignore[unused-coroutine]

    @activity
    async def charge(self) -> str:
        return "charged"


async def test_waits_and_sleeps_that_nobody_awaits_and_steps_of_others_fail_and_name_the_fix(
    world: World,
) -> None:
    not_awaited = r"\S+\(\) was called but not awaited, so it has not run \(.*put 'await' before it"
    wrong = {
        "approved.wait()": not_awaited,
        "sleep()": not_awaited,
        "sleep_until()": not_awaited,
        "wait_until()": not_awaited,
        "continue_as_new()": not_awaited,
        "await self.approved.wait()": "a deferred is awaited by its wait",
        "free of an int": "free is a step, and a step is a method: .*call it on self",
        "free of an object": "free is a step, and a step is a method: .*call it on self",
        "charge of another": "charge is called in a body on an object that is not of this",
    }
    async with world.cluster(Careless()) as cluster:
        for request, message in wrong.items():
            with pytest.raises(ExecutionFailed) as failed:
                await cluster.client.execute(Careless, request, key=request, timeout=SECOND)
            assert re.search(message, str(failed.value)), request
            assert request in str(failed.value) or "()" not in request
        assert await cluster.client.execute(Careless, "", key="fine", timeout=SECOND) == "charged"
    assert await Careless().charge() == "charged"


async def test_a_result_that_cannot_be_stored_fails_the_execution_and_names_the_fix(
    world: World,
) -> None:
    class Returns(Workflow[int, Any]):
        async def execute(self, request: int) -> Any:
            return object()

    async with world.cluster(Returns()) as cluster:
        with pytest.raises(ExecutionFailed, match="the result of Returns cannot be encoded"):
            await cluster.client.execute(Returns, 1, timeout=SECOND)


class Measures(Workflow[str, Any]):
    attempts = 0

    async def execute(self, request: str) -> Any:
        steps = {"activity": self.inside, "thread": self.beside, "transaction": self.stored}
        with contextlib.suppress(StepFailed):
            await steps[request]()
        return await steps[request]()

    @activity
    async def inside(self) -> Any:
        return self._result()

    @activity
    def beside(self) -> Any:
        return self._result()

    @transaction
    async def stored(self, tx: Transaction) -> Any:
        return self._result()

    def _result(self) -> object:
        type(self).attempts += 1
        return object() if self.attempts == 1 else "y" * 2000 if self.attempts == 2 else None


@pytest.mark.parametrize("kind", ["activity", "thread", "transaction"])
async def test_a_step_whose_result_cannot_be_stored_is_not_tried_again(
    world: World, kind: str
) -> None:
    Measures.attempts = 0
    async with world.cluster(Measures(), payload_limit=1024) as cluster:
        with pytest.raises(ExecutionFailed, match="is 2002 bytes, more than the 1024"):
            await cluster.client.execute(Measures, kind, timeout=SECOND)
    assert Measures.attempts == 2  # one of each step, first one no JSON, then one that is too large


async def test_exiting_the_interpreter_in_a_body_fails_that_execution_only() -> None:
    class Exits(Workflow[int, None]):
        async def execute(self, request: int) -> None:
            await self.sleep(SECOND)
            raise SystemExit(3)

    async with TestCluster(Exits(), Echo()) as cluster:
        execution = await cluster.client.start(Exits, 1)
        await cluster.advance(SECOND * 2)
        outcome = await execution.poll()
        assert isinstance(outcome, Failed)
        assert outcome.error.type == "SystemExit"
        assert await cluster.client.execute(Echo, "still here", timeout=SECOND) == "still here"


async def test_a_wake_up_that_races_the_suspension_is_not_lost() -> None:
    class Waits(Workflow[int, int]):
        go = Deferred(int)

        async def execute(self, request: int) -> int:
            return await self.go.wait()

    async with TestCluster(Waits(), suspend_after=timedelta(milliseconds=100)) as cluster:
        for turns in range(60):
            execution = await cluster.client.start(Waits, turns)
            asleep = asyncio.create_task(cluster.advance(SECOND))
            for _ in range(turns):
                await asyncio.sleep(0)
            await execution.resolve(Waits.go, turns)
            await asleep
            await cluster.settle()
            assert await execution.poll() == Succeeded(turns), turns


async def test_a_retry_that_falls_due_during_the_suspension_runs_once() -> None:
    flaky = Flaky(failures=3)
    async with TestCluster(flaky, suspend_after=timedelta(seconds=59, milliseconds=999)) as cluster:
        execution = await cluster.client.start(Flaky, 1)
        for _ in range(3000):
            await cluster.clock.advance(timedelta(milliseconds=100))  # type: ignore[attr-defined]
        assert await execution.poll() == Succeeded([1, 2, 3, 4])


async def test_steps_in_threads_leave_the_loops_own_threads_alone(world: World) -> None:
    free = threading.Event()

    class Blocks(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            return sum(await asyncio.gather(*(self.block(n) for n in range(request))))

        @activity
        def block(self, n: int) -> int:
            free.wait(10)
            return n

    async with world.cluster(Blocks()) as cluster:
        execution = await cluster.client.start(Blocks, 30)
        async with asyncio.timeout(5):
            await asyncio.get_running_loop().run_in_executor(None, int)
        free.set()
        assert await execution.join(timedelta(seconds=20)) == sum(range(30))


async def _is(execution: Any, status: Status) -> bool:
    return await execution.poll() == Pending(status)


async def _waits_for(execution: Any, what: str) -> bool:
    return what in (await execution.describe()).why


async def _ended(execution: Any) -> bool:
    return bool((await execution.describe()).status.finished)


async def _has_done_a_step(execution: Any) -> bool:
    return any(each.kind is JournalKind.STEP for each in await execution.history())


async def _logged(cleanup: Cleanup, what: str) -> bool:
    return what in cleanup.log
