"""A runner of ``everything`` in a process of its own, which kills itself where it is told to.

The id of an execution says at which of its points: ``fail-7`` dies at the seventh. A file in the
folder ``KILLED`` says that it has died already. It begins when it is sent a line.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

from engine import Runner, Settings
from tests.chaos.app import Statements, tell
from tests.workflow.everything import Desk, Everything, Job, Note, Outside, Part, Stock, Watch


class Tables(Outside):
    """The world as tables, so that it outlives processes."""

    def __init__(self, database: "asyncpg.Pool[Any]") -> None:
        super().__init__()
        self.database = database

    async def write(self, note: Note) -> None:
        insert = "insert into noted (execution, step, key, value) values ($1, $2, $3, $4)"
        await self.database.execute(insert, note.execution, note.step, note.key, note.value)

    async def notes_of(self, execution: str) -> list[Note]:
        select = "select step, key, value from noted where execution = $1 order by nth"
        rows = await self.database.fetch(select, execution)
        return [Note(execution, row["step"], row["key"], row["value"]) for row in rows]

    async def value_of(self, execution: str, step: str) -> str:
        while True:
            for note in await self.notes_of(execution):
                if note.step == step:
                    return note.value
            await asyncio.sleep(0.01)


class Mortal(Everything):
    """Tells the world which execution it is, whose points are counted from then on."""

    name = "Everything"

    def __init__(self, outside: Outside, begins: Callable[[str], None]) -> None:
        super().__init__(outside)
        self.begins = begins

    async def execute(self, request: Job) -> list[str]:
        self.begins(request.id)
        return await super().execute(request)


async def run(killed: Path) -> None:
    async with asyncpg.create_pool(os.environ["OUTLAST_DSN"], min_size=1, max_size=2) as database:
        outside = Tables(database)
        counted = ""

        def begins(id: str) -> None:
            nonlocal counted
            if id != counted:
                counted = id
                done = (killed / id).exists()
                outside.begin(None if done else int(id.rpartition("-")[2]))

        def die() -> None:
            (killed / counted).touch()
            os.kill(os.getpid(), signal.SIGKILL)

        outside.crash = die
        runner = Runner(Settings())
        outside.client = runner.client
        runner.register(
            Mortal(outside, begins), Stock(outside), Part(outside), Desk(outside), Watch()
        )
        async with asyncio.TaskGroup() as group:
            telling = group.create_task(tell(runner, Statements()))
            await runner.run()
            telling.cancel()


if __name__ == "__main__":
    sys.stdin.readline()
    asyncio.run(run(Path(os.environ["KILLED"])))
