"""The processes of a chaos run: ``lives_app runner`` and ``lives_app client``.

A client is told to begin, with a seed and a file, and makes calls until it is told to stop. See
``tests.chaos.app`` for what a runner says.
"""

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from engine import Client, Runner, Settings
from tests.chaos.app import Outside, Statements, answer_commands, say, tell
from tests.chaos.caller import Caller
from tests.chaos.lives import Account, Life, Lots


async def run() -> None:
    outside = Outside()
    runner = Runner(Settings()).register(Account(), Lots(outside), Life(outside))
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell(runner, Statements()))
        await runner.run()
        telling.cancel()


async def serve_client() -> None:
    callers: list[Caller] = []
    stopped = False

    async def obey(command: dict[str, Any]) -> bool:
        """``begin``, which is answered at the end, or ``stop``, which may come first."""
        nonlocal stopped
        if command["do"] == "stop":
            stopped = True
            for caller in callers:
                caller.stopped = True
        elif not stopped:
            file, name = Path(command["file"]), command["name"]
            callers.append(Caller(client, name=name, seed=command["seed"], file=file))
            await callers[-1].live()
        return True

    async with Client(Settings()) as client:
        say(ready=True)
        await answer_commands(obey)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run() if sys.argv[1] == "runner" else serve_client())
