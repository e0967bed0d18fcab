"""Steps that are stopped before they end: by the body or their time-out, in tasks and threads."""

import asyncio
import threading
from datetime import timedelta

import pytest

from engine import Outcome, RetryPolicy, Workflow, activity
from tests.eventually import eventually
from tests.workflow.conftest import World

NEVER = RetryPolicy(attempts=1)


class Stop(Workflow[str, str]):
    """Its steps are stopped by the body, or by their time-out."""

    def __init__(self) -> None:
        self.running = threading.Event()
        self.release = threading.Event()
        self.ends: list[str] = []

    async def execute(self, request: str) -> str:
        work = {"thread": self.in_thread, "task": self.in_task, "time out": self.in_time}[request]
        step = asyncio.ensure_future(work())
        await self.begun()
        if request != "time out":
            step.cancel()
        try:
            return await step
        except asyncio.CancelledError:
            await self.begun()
            return "cancelled"
        except TimeoutError:
            return "timed out"

    @activity
    def in_thread(self) -> str:
        return self.work()

    @activity(timeout=timedelta(milliseconds=200), retry=NEVER)
    def in_time(self) -> str:
        return self.work()

    @activity
    async def in_task(self) -> str:
        self.running.set()
        try:
            return (await asyncio.Event().wait() and "never") or "never"
        finally:
            self.heartbeat()  # a task is told by its cancellation
            self.ends.append(f"cancelled: {self.cancelled}")

    @activity
    async def begun(self) -> None:
        await eventually(self.running.is_set)

    def work(self) -> str:
        assert not self.cancelled
        self.heartbeat()
        self.running.set()
        self.release.wait()
        self.ends.append(f"cancelled: {self.cancelled}")
        try:
            self.heartbeat()
        except asyncio.CancelledError:
            self.ends.append("told")
        return "a result that nobody waits for"


@pytest.mark.parametrize("how", ["thread", "time out"])
async def test_a_thread_is_told_that_nobody_waits_and_its_result_is_dropped(
    world: World, how: str
) -> None:
    stop = Stop()
    async with world.cluster(stop) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Stop, how)
        assert await world.result(cluster, execution) == {"thread": "cancelled"}.get(
            how, "timed out"
        )
        stop.release.set()
        await eventually(lambda: stop.ends == ["cancelled: True", "told"])
        await asyncio.sleep(0.05)
        outcomes = {e.name: e.outcome for e in await execution.history()}
    assert outcomes["in_time" if how == "time out" else "in_thread"] is (
        Outcome.TIMED_OUT if how == "time out" else Outcome.CANCELLED
    )


async def test_a_task_is_cancelled(world: World) -> None:
    stop = Stop()
    async with world.cluster(stop) as cluster, asyncio.timeout(40):
        assert await cluster.client.execute(Stop, "task") == "cancelled"
        await eventually(lambda: stop.ends == ["cancelled: True"])
