"""Polling a job that runs elsewhere: submit it once, look after it for days, cancel it if need be.

``python examples/polling.py`` renders one film that works out and one that does not.
"""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel

from engine import ExecutionFailed, RetryPolicy, Workflow, activity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import run_script, serving

LONGEST = timedelta(days=2)


class Job(BaseModel):
    """What the farm says of a job; ``detail`` is where the film is, or what went wrong."""

    state: Literal["running", "done", "failed", "cancelled"]
    detail: str = ""


class Farm(Protocol):
    """Renders films. A job submitted again under its key is the same job."""

    async def submit(self, film: str, *, key: str) -> str: ...
    async def look(self, job: str) -> Job: ...
    async def cancel(self, job: str) -> None: ...


class RenderFailed(Exception):
    pass


class Render(Workflow[str, str]):
    """The place of the rendered film."""

    def __init__(self, farm: Farm, pause: timedelta = timedelta(seconds=10)) -> None:
        self.farm = farm
        self.pause = pause

    async def execute(self, request: str) -> str:
        job = await self.order(request)
        self.compensate(self.cancel, job)  # nobody pays for a job that nobody waits for
        pause = self.pause
        async with asyncio.timeout(LONGEST.total_seconds()):
            while (found := await self.look(job)).state == "running":
                await self.sleep(pause)  # for as long as it takes, it is not in memory
                pause = min(pause * 2, timedelta(minutes=15))
        if found.state != "done":
            raise RenderFailed(f"{request}: {found.detail or found.state}")
        return found.detail

    @activity(retry=RetryPolicy(attempts=20), timeout=timedelta(minutes=1))
    async def order(self, film: str) -> str:
        return await self.farm.submit(film, key=self.idempotency_key)

    @activity(retry=RetryPolicy(attempts=20), timeout=timedelta(minutes=1))
    async def look(self, job: str) -> Job:
        return await self.farm.look(job)

    @activity(retry=RetryPolicy(attempts=20), timeout=timedelta(minutes=1))
    async def cancel(self, job: str) -> None:
        await self.farm.cancel(job)


class SmallFarm:
    """A farm in this process: a job is done when it was looked at so many times."""

    def __init__(self, looks: int = 3) -> None:
        self.looks = looks
        self.jobs: dict[str, str] = {}
        self.seen: dict[str, int] = {}
        self.cancelled: set[str] = set()

    async def submit(self, film: str, *, key: str) -> str:
        if key not in self.jobs:
            self.jobs[key] = f"job-{len(self.jobs) + 1}-{film}"
        return self.jobs[key]

    async def look(self, job: str) -> Job:
        self.seen[job] = self.seen.get(job, 0) + 1
        if job in self.cancelled:
            return Job(state="cancelled")
        if self.seen[job] < self.looks:
            return Job(state="running")
        if job.endswith("broken"):
            return Job(state="failed", detail="frame 7 has no light")
        return Job(state="done", detail=f"farm://{job}.mp4")

    async def cancel(self, job: str) -> None:
        self.cancelled.add(job)


async def main() -> int:
    farm = SmallFarm()
    async with serving("polling", Render(farm, pause=timedelta(milliseconds=100))) as client:
        print(await client.execute(Render, "sunrise"))
        try:
            await client.execute(Render, "broken")
        except ExecutionFailed as error:
            print(error)
    print(f"{len(farm.jobs)} jobs, looked at {sum(farm.seen.values())} times")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
