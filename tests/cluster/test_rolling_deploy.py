"""A new version comes with a new process, and the old process leaves: nothing is stranded."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from engine import Client, Execution, Status
from tests.cluster.deploy_process import RESULTS, Ship, settings
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
MINUTE = timedelta(minutes=1)


@asynccontextmanager
async def runner(dsn: str, *versions: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cluster.deploy_process", dsn, *versions),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def test_every_execution_ends_with_the_version_it_is_pinned_to_while_processes_change(
    dsn: str,
) -> None:
    begun: list[Execution[list[str]]] = []
    async with Client(settings(dsn)) as client:

        async def begin(batch: str) -> list[int | None]:
            """Start some, and wait until each waits; their versions."""
            new = [await client.start(Ship, "a", key=f"{batch}-{n}") for n in range(12)]
            begun.extend(new)

            async def wait() -> bool:
                infos = [await each.describe() for each in new]
                return all(info.status is Status.SUSPENDED for info in infos)

            await eventually(wait, timeout=30)
            return [(await each.describe()).version for each in new]

        async def shared() -> bool:
            owners = Counter(row.runner for row in await client._node.storage.shards())
            return None not in owners and len(owners) == 2

        async with runner(dsn, "1") as old:
            assert set(await begin("before")) == {1}
            async with runner(dsn, "1", "2"):
                await eventually(shared, timeout=30)
                seen: set[int | None] = set()
                for batch in range(10):  # whose shards they are is not for the test to say
                    seen.update(await begin(f"during-{batch}"))
                    if seen == {1, 2}:
                        break
                assert seen == {1, 2}
                old.send_signal(signal.SIGTERM)
                assert await old.wait() == 0
                assert set(await begin("after")) == {2}
                counts = {each.version: each.executions for each in await client.versions(Ship)}
                assert sum(counts.values()) == len(begun)
                assert not any(each.unserved for each in await client.versions(Ship))
                for execution in begun:
                    await execution.resolve(Ship.go, True)
                for execution in begun:
                    version = (await execution.describe()).version
                    assert version is not None
                    assert await execution.join(MINUTE) == RESULTS[version]
