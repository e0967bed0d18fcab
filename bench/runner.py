"""The runner in a process of its own: ``python -m bench.runner DSN``; says READY when it serves."""

import asyncio
import sys

from bench.workflows import Feed, Steps
from engine import Runner, Settings


async def owns_all(runner: Runner) -> None:
    """Wait until the runner owns every shard."""
    while len(runner.epochs) < runner.settings.shards_per_group:  # noqa: ASYNC110 it tells nobody
        await asyncio.sleep(0.02)


async def main(dsn: str) -> None:
    runner = Runner(Settings(dsn=dsn, schema="engine")).register(Steps(), Feed())
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(runner.run())
        await owns_all(runner)
        print("READY", flush=True)
        await serving


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
