"""A runner of which some messages and steps kill the process: ``killer_process runner``.

It speaks as ``tests.chaos.app`` does; settings come from ``OUTLAST_…`` variables. What began and
what it ended by is noted in a table before anything else happens.
"""

import asyncio
import logging
import os
import signal
from typing import NoReturn

from engine import Entity, Runner, Settings, Workflow, activity, rpc
from tests.chaos.app import Outside, Statements, tell

TABLES = """
    create table notes (who text not null, what text not null, pid int not null);
"""


class World(Outside):
    """What handlers see of it."""

    async def note(self, who: str, what: str) -> None:
        await self.write("insert into notes values ($1, $2, $3)", who, what, os.getpid())

    async def explode(self, who: str) -> NoReturn:
        """As a fault in a library of C would: nothing of the process runs any more."""
        await self.note(who, "explodes")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("a killed process went on")


class Mine(Entity):
    """Some of its messages kill."""

    def __init__(self, world: World) -> None:
        self.world = world

    @rpc
    async def explode(self) -> None:
        await self.world.explode(self.entity_id)

    @rpc
    async def dig(self, seconds: float) -> str:
        """Work of so many seconds."""
        await self.world.note(self.entity_id, "begins")
        await asyncio.sleep(seconds)
        await self.world.note(self.entity_id, "ends")
        return self.entity_id


class Bomb(Workflow[str, None]):
    """Kills in its second step."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def execute(self, request: str) -> None:
        await self.prepare(request)
        await self.explode(request)

    @activity
    async def prepare(self, who: str) -> None:
        await self.world.note(who, "prepares")

    @activity
    async def explode(self, who: str) -> None:
        await self.world.explode(who)


async def run() -> None:
    world = World()
    runner = Runner(Settings()).register(Mine(world), Bomb(world))
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell(runner, Statements()))
        await runner.run()
        telling.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run())
