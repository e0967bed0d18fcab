"""A workflow that uses everything at once ends the same wherever its runner dies.

The runner is killed at each point of ``everything``: in memory, always replayed, with one shard,
and on PostgreSQL; and in its writes. Of most of these a sample is tried, and with ``--scale=full``
each.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import pytest

from engine import EngineError, Execution, JournalEvent
from engine.core.clock import monotonic
from engine.testing import Fault, TestCluster, VirtualClock, stub
from tests.workflow.conftest import World
from tests.workflow.everything import TABLES, Desk, Everything, Job, Outside, Part, Stock, Watch
from tests.workflow.everything_ends import (
    End,
    How,
    assert_all_done,
    assert_same,
    drive,
    end_of,
    places,
)

MOST = {"memory": 60, "memory, always replayed": 15, "postgres": 10, "postgres, one shard": 5}
"""How many points are tried in which world, without ``--scale=full``."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["succeed", "fail", "interrupt"])
async def test_the_end_is_the_same_wherever_the_runner_is_killed(
    world: World, how: How, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--scale") == "full"
    most = 1000 if full else MOST[request.node.callspec.params["world"]]
    async with matrix(world) as each:
        expected = await each.run(how, None)
        assert_all_done(how, expected)
        for point in places(each.outside.points, how, most):
            end = await each.run(how, point)
            # In real time, and in a thread, a step that is cancelled early has fewer points.
            if world.virtual and how != "interrupt":
                assert each.outside.crashed
            assert_same(end, expected, f"crash at point {point}, {each.outside.crashed}")


@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT])
@pytest.mark.parametrize("how", ["succeed", "fail", "interrupt"])
async def test_the_end_is_the_same_whichever_of_its_writes_the_runner_dies_in(
    how: How, fault: Fault, request: pytest.FixtureRequest
) -> None:
    step = 1 if request.config.getoption("--scale") == "full" else 4
    async with matrix(World({})) as each:
        database = each.cluster.database
        assert database is not None
        expected = await each.run(how, None)
        for write in count(random.randrange(step), step):
            each.cluster.fail_next_flush(fault, after=write)
            end = await each.run(how, None)
            if database.faults_ahead:
                break
            assert_same(end, expected, f"crash in write {write}")
    assert write > 40


class Matrix:
    """A cluster in which one execution after the other is run, each with a crash of its own."""

    def __init__(
        self, cluster: TestCluster, outside: Outside, database: "asyncpg.Connection[Any] | None"
    ) -> None:
        self.cluster = cluster
        self.outside = outside
        self.database = database
        self.numbers = count(1)
        self.pause = timedelta(hours=1) if database is None else timedelta(milliseconds=10)

    async def run(self, how: How, crash_at: int | None) -> End:
        job = Job(id=f"{how}-{next(self.numbers)}", how=how, pause=self.pause)
        self.outside.begin(crash_at)
        client = self.cluster.client
        execution = await client.start(Everything, job)
        async with asyncio.TaskGroup() as group:
            driver = group.create_task(drive(client, self.outside, job))
            settled = group.create_task(self.settled(execution))
            await self.until_ended(execution, client.execution(Watch, f"abandoned {job.id}"))
            settled.cancel()
            await driver
        history = await execution.history()
        if settled.done() and not settled.cancelled():
            assert history[: len(settled.result())] == settled.result()
        return await end_of(client, self.outside, job, history, self.database)

    async def settled(self, execution: Execution[Any]) -> list[JournalEvent]:
        """The journal as it is just after the crash."""
        await self.outside.crash_seen.wait()
        return await execution.history()

    async def until_ended(self, *executions: Execution[Any]) -> None:
        """Let time go on until all have ended."""
        clock, began = self.cluster.clock, monotonic()
        for execution in executions:
            while not await self.has_ended(execution):
                assert monotonic() - began < 20, await execution.describe()
                if isinstance(clock, VirtualClock):
                    await clock.settle()
                    if len(self.cluster.runner.epochs) == self.cluster.settings.shards_per_group:
                        await clock.advance_to_next()
                await asyncio.sleep(0.001)

    async def has_ended(self, execution: Execution[Any]) -> bool:
        try:
            return (await execution.describe()).status.finished
        except EngineError:
            return False  # a child that has not been started


def recorded(outside: Outside, step: str) -> None:
    """In memory there is no SQL; what is journaled is all that is left."""
    outside.point(f"before the insert of {step}")
    outside.point(f"after the insert of {step}")


@asynccontextmanager
async def matrix(world: World) -> AsyncIterator[Matrix]:
    outside = Outside()
    prototypes = [Everything(outside), Stock(outside), Part(outside), Desk(outside), Watch()]
    async with AsyncExitStack() as stack:
        if world.virtual:
            database = None
            stubs = [stub(Everything.record).by(partial(recorded, outside))]
        else:
            database = await asyncpg.connect(world.options["dsn"])
            stack.push_async_callback(database.close)
            await database.execute(TABLES)
            stubs = []
        # Never or at once, so that every run has the same points, however long its driver takes.
        after = world.options.get("suspend_after", timedelta(days=1))
        cluster = await stack.enter_async_context(
            world.cluster(*prototypes, stubs=stubs, suspend_after=after)
        )
        outside.client = cluster.client
        loop = asyncio.get_running_loop()

        def crash() -> None:
            """After this turn of the body, before anything that it asks for in it is durable."""
            loop.call_soon_threadsafe(cluster.runner.crash)

        outside.crash = crash
        yield Matrix(cluster, outside, database)
