"""The processes of a chaos run: ``lives_app runner`` and ``lives_app client``.

A client is told to begin, with a seed and a file, and makes calls until it is told to stop. Either
steps its wall clock when it is told to. A runner has the new version of ``Life`` beside the old one
if ``CHAOS_DEPLOYED`` is ``new``. See ``tests.chaos.app`` for what it says.
"""

import asyncio
import logging
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from engine import Client, Runner, Settings
from tests.chaos.app import Outside, Statements, answer_commands, say, tell
from tests.chaos.caller import Caller
from tests.chaos.lives import Account, Life, LifeV2, Lots
from tests.chaos.wall_clock import step_wall_clock


async def run() -> None:
    outside = Outside()
    lives = [Life, LifeV2] if os.environ["CHAOS_DEPLOYED"] == "new" else [Life]
    served = [Account(), Lots(outside), *(life(outside) for life in lives)]
    runner = Runner(Settings()).register(*served)

    async def obey(command: dict[str, Any]) -> bool:
        step_wall_clock(command["seconds"])
        return True

    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(tell(runner, Statements())),
            group.create_task(answer_commands(obey)),
        ]
        await runner.run()
        for task in beside:
            task.cancel()


async def serve_client() -> None:
    callers: list[Caller] = []
    stopped = False

    async def obey(command: dict[str, Any]) -> bool:
        """``begin``, which is answered at the end, ``stop``, which may come first, or ``step``."""
        nonlocal stopped
        if command["do"] == "step":
            step_wall_clock(command["seconds"])
        elif command["do"] == "stop":
            stopped = True
            for caller in callers:
                caller.stopped = True
        elif not stopped:
            caller = Caller(
                client,
                name=command["name"],
                seed=command["seed"],
                file=Path(command["file"]),
                limit=timedelta(seconds=command["limit"]),
            )
            callers.append(caller)
            await caller.live()
        return True

    async with Client(Settings()) as client:
        say(ready=True)
        await answer_commands(obey)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run() if sys.argv[1] == "runner" else serve_client())
