"""The runner in a process of its own: ``python -m bench.runner DSN``.

It says READY when it owns its share, which is every shard if it is the only runner.
"""

import asyncio
import gc
import sys

from bench.workflows import Counter, Feed, Free, Limited, Steps
from engine import Runner, Settings


async def owns_all(runner: Runner) -> None:
    """Wait until the runner owns every shard."""
    while len(runner.epochs) < runner.settings.shards_per_group:  # noqa: ASYNC110 it tells nobody
        await asyncio.sleep(0.02)


async def owns_share(runner: Runner) -> None:
    """Wait until the runner owns shards, and no more from one moment to the next."""
    before = -1
    while not 0 < len(runner.epochs) == before:
        before = len(runner.epochs)
        await asyncio.sleep(0.5)


async def main(dsn: str) -> None:
    runner = Runner(Settings(dsn=dsn, schema="engine")).register(
        Steps(), Feed(), Counter(), Free(), Limited()
    )
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(runner.run())
        await owns_share(runner)
        print("READY", flush=True)
        await serving


if __name__ == "__main__":
    gc.collect()  # as ``outlast run`` does
    gc.freeze()
    asyncio.run(main(sys.argv[1]))
