"""Executions that are started one after the other while something is done to the cluster."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from engine import Client, Execution, Settings, StorageUnavailable
from engine.core.clock import monotonic
from tests.chaos.app import Five, Job, Mixed, Steps
from tests.chaos.cluster import Cluster
from tests.chaos.journals import assert_once, statistics

log = logging.getLogger(__name__)

LIMIT = timedelta(seconds=60)
STEPS: dict[type[Steps], list[str]] = {
    Five: ["fetch", "Ledger.book", "record", "pack"],
    Mixed: ["record", "fetch", "Ledger.book", "pack", "again"],
}
"""The steps that every execution ends with a result."""
EFFECTS: dict[type[Steps], list[str]] = {Five: ["record"], Mixed: ["record", "again"]}
"""The effects of their transactions."""


class Load:
    """Executions that are started one after the other until told to stop, and then joined."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.stopped = False
        self.running: asyncio.Task[None] | None = None
        self.acknowledged: dict[type[Steps], list[Execution[int]]] = {Five: [], Mixed: []}

    async def run(self, pace: float = 0.02) -> None:
        number = 0
        while not self.stopped:
            for workflow, started in self.acknowledged.items():
                job = Job(id=f"{workflow.name}{number}", number=number, pause=0.2)
                started.append(await self.start(workflow, job))
            number += 1
            await asyncio.sleep(pace)

    async def start(self, workflow: type[Steps], job: Job) -> Execution[int]:
        """Ask until it is acknowledged, as an application would."""
        deadline = monotonic() + 30
        while True:
            try:
                return await self.client.start(workflow, job)
            except StorageUnavailable:
                if monotonic() > deadline:
                    raise
                await asyncio.sleep(0.05)

    async def check(self, chaos: Cluster) -> int:
        """All that was acknowledged ends with the right result, once; how many that were."""
        self.stopped = True
        assert self.running is not None
        await self.running
        for workflow, started in self.acknowledged.items():
            got = await asyncio.gather(*(execution.join(LIMIT) for execution in started))
            assert got == [workflow.result(n) for n in range(len(started))]  # type: ignore[attr-defined]
            steps = dict.fromkeys(STEPS[workflow], len(started))
            await assert_once(chaos, workflow.name, steps=steps, effects=EFFECTS[workflow])
        log.info("numbers: %s", await statistics(chaos))
        return sum(len(started) for started in self.acknowledged.values())


@asynccontextmanager
async def load(dsn: str, pace: float = 0.02) -> AsyncIterator[Load]:
    """Load that goes on until it is checked."""
    async with Client(Settings(dsn=dsn)) as client, asyncio.TaskGroup() as group:
        made = Load(client)
        running = group.create_task(made.run(pace))
        made.running = running
        try:
            yield made
        finally:
            running.cancel()
