"""The process of a workflow that uses everything is killed at one of its points after the other."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engine import Client, Execution, JournalEvent, Settings
from tests.chaos.cluster import Cluster, Process, cluster
from tests.chaos.everything_app import Tables
from tests.eventually import eventually
from tests.workflow.conftest import World
from tests.workflow.everything import TABLES, Everything, Job, Watch
from tests.workflow.everything_ends import (
    End,
    How,
    assert_all_done,
    assert_same,
    drive,
    end_of,
    places,
)
from tests.workflow.test_kill_matrix import matrix

QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(seconds=0.2),
    "time_to_live": timedelta(seconds=0.6),
    "poll_interval": timedelta(seconds=0.5),
}
MOST: dict[How, int] = {"succeed": 3, "fail": 1, "interrupt": 1}


@pytest.mark.timeout(1200)
async def test_the_end_is_the_same_wherever_the_process_is_killed(
    dsn: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    full = request.config.getoption("--scale") == "full"
    plan: list[tuple[How, int]] = []
    for how, most in MOST.items():
        async with matrix(World({})) as inside:
            inside.pause = Job(id="").pause
            await inside.run(how, None)
            points = inside.outside.points
            plan += [(how, point) for point in places(points, how, 1000 if full else most)]
            if how == "succeed":
                plan.append((how, points.index("in the query") + 1))

    killed = tmp_path / "killed"
    killed.mkdir()
    variables = {"KILLED": str(killed)}
    async with (
        asyncpg.create_pool(dsn, min_size=1, max_size=4) as database,
        cluster(
            dsn,
            tmp_path,
            app="tests.chaos.everything_app",
            tables=TABLES,
            variables=variables,
            **{name: value.total_seconds() for name, value in QUICK.items()},
        ) as processes,
        Client(Settings(dsn=dsn, **QUICK)) as client,
    ):
        run = Killings(processes, client, Tables(database), killed)
        await run.let_in(await processes.start_runner())
        expected: dict[How, End] = {how: await run.through(how, 0) for how in MOST}
        for how, end in expected.items():
            assert_all_done(how, end)
        for how, point in dict.fromkeys(plan):
            assert_same(await run.through(how, point), expected[how], f"{how} at {point}")
        assert run.dead >= len(set(plan)) - 2  # a step that is cancelled early has fewer points


class Killings:
    """One execution after the other, each killed with the only process at one point."""

    def __init__(self, processes: Cluster, client: Client, outside: Tables, killed: Path) -> None:
        self.processes = processes
        self.client = client
        self.outside = outside
        self.killed = killed
        self.dead = 0
        self.runner: Process | None = None
        self.spare: Process | None = None

    async def let_in(self, runner: Process) -> None:
        """It begins at a line, so that the next one can import meanwhile what it needs."""
        assert runner.process.stdin is not None
        runner.process.stdin.write(b"\n")
        self.runner, self.spare = runner, await self.processes.start_runner()
        await self.processes.shared([runner])

    async def through(self, how: How, point: int) -> End:
        job = Job(id=f"{how}-{point}", how=how)
        execution = await self.client.start(Everything, job)
        abandoned = self.client.execution(Watch, f"abandoned {job.id}")
        settled: list[JournalEvent] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(drive(self.client, self.outside, job))

            async def ended() -> bool:
                return (await execution.describe()).status.finished

            async def died_or_ended() -> bool:
                return self.died(job) or await ended()

            await eventually(died_or_ended, timeout=40)
            if self.died(job):
                settled = await self.bury(execution)
            await eventually(ended, timeout=40)
        assert await abandoned.join(timedelta(seconds=20)) == "abandoned stopped"
        history = await execution.history()
        assert history[: len(settled)] == settled
        async with self.outside.database.acquire() as connection:
            return await end_of(self.client, self.outside, job, history, connection)

    def died(self, job: Job) -> bool:
        return (self.killed / job.id).exists()

    async def bury(self, execution: Execution[Any]) -> list[JournalEvent]:
        """The journal as the dead process left it; then another one begins."""
        assert self.runner is not None
        assert self.spare is not None
        await self.runner.process.wait()
        self.dead += 1
        settled = await execution.history()
        await self.let_in(self.spare)
        return settled
