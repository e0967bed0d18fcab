"""The process of the crons' tests on a real server, told as ``tests.chaos.app`` is.

The variable ``CRONS`` names those that it serves. What runs is noted in the table ``notes``, as
what the behaviour suite's entities do. It answers one command: how many statements it has sent, and
how many about schedules.
"""

import asyncio
import logging
import os
from datetime import datetime
from typing import Any

from engine import Cron, Overlap, Runner, Settings, Workflow, WorkflowCron
from tests.chaos.app import Statements, answer_commands, tell
from tests.cluster.cast import Stage

EVERY_SECOND = "* * * * * *"


class Noting(Cron):
    """Notes each instant that it runs for."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self, at: datetime) -> None:
        await self.stage.note(self.name, at.isoformat())


class Ticking(Noting):
    """Each instant of its own, whatever runs."""

    schedule = EVERY_SECOND
    timezone = "Europe/Berlin"
    overlap = Overlap.ALLOW


class Alone(Noting):
    """Never two at once."""

    schedule = EVERY_SECOND
    overlap = Overlap.SKIP

    async def run(self, at: datetime) -> None:
        await self.stage.note(self.name, f"begins {at.isoformat()}")
        await self.stage.note(self.name, f"ends {at.isoformat()}")


class Yearly(Noting):
    """Far away."""

    schedule = "0 0 1 1 *"
    overlap = Overlap.BUFFER_ONE


class Held(Noting):
    """Runs when it is triggered, until its gate is open; the next one interrupts it."""

    schedule = "0 0 1 1 *"
    overlap = Overlap.CANCEL

    async def run(self, at: datetime) -> None:
        await self.stage.note(self.name, f"begins {at.isoformat()}")
        try:
            await self.stage.pass_gate(f"held {at.isoformat()}")
        finally:
            await self.stage.note(self.name, f"ends {at.isoformat()}")


class Report(Workflow[datetime, datetime]):
    async def execute(self, request: datetime) -> datetime:
        return request


class Reporting(WorkflowCron[datetime, datetime]):
    """Starts a workflow each second."""

    schedule = EVERY_SECOND
    overlap = Overlap.ALLOW
    workflow = Report

    def request(self, at: datetime) -> datetime:
        return at


NOTING: list[type[Noting]] = [Ticking, Alone, Yearly, Held]
VARIABLE = "CRONS"


class Counted(Statements):
    """Counts those about schedules apart."""

    def __init__(self) -> None:
        super().__init__()
        self.about_schedules = 0

    def note(self, query: Any) -> None:
        super().note(query)
        self.about_schedules += "schedule" in query.query


async def run() -> None:
    statements = Counted()
    stage = Stage()
    crons = {each.name: each for each in (Reporting(), *(cron(stage) for cron in NOTING))}
    wanted = os.environ[VARIABLE].split(",")
    runner = Runner(Settings()).register(Report(), *(crons[name] for name in wanted))

    async def count(_: dict[str, Any]) -> object:
        return [statements.sent, statements.about_schedules]

    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(tell(runner, statements)),
            group.create_task(answer_commands(count)),
        ]
        await runner.run()
        for task in beside:
            task.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run())
