"""Our own engine, driven as the others are."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from bench.peers.load import Kind, main
from cli.serve import calm_collector
from engine import Client, Deferred, Execution, Runner, Settings, Workflow, activity
from engine.storage.migrate import migrate


class OneStep(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return await self.echo(request)

    @activity
    async def echo(self, number: int) -> int:
        return number


class ManySteps(OneStep):
    async def execute(self, request: int) -> int:
        total = 0
        for number in range(request):
            total += await self.echo(number)
        return total


class FanOut(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        children = (self.run_child(OneStep, number) for number in range(request))
        return sum(await asyncio.gather(*children))


class Waiter(Workflow[None, int]):
    go = Deferred(int)

    async def execute(self, request: None) -> int:
        return await self.go.wait()


class Sleeper(Workflow[float, float]):
    async def execute(self, request: float) -> float:
        duration = timedelta(seconds=request)
        due = self.now() + duration
        await self.sleep(duration)
        return time.time() - due.timestamp()


WORKFLOWS: dict[Kind, type[Workflow[Any, Any]]] = {
    "one_step": OneStep,
    "many_steps": ManySteps,
    "fan_out": FanOut,
    "sleeper": Sleeper,
}


def runner(dsn: str) -> Runner:
    return Runner(Settings(dsn=dsn)).register(OneStep(), ManySteps(), FanOut(), Waiter(), Sleeper())


async def owns_all(serving: Runner) -> None:
    while len(serving.epochs) < serving.settings.shards_per_group:
        await asyncio.sleep(0.02)


async def work(variant: str, dsn: str) -> None:
    await migrate(dsn)
    calm_collector()  # as `outlast run` does
    serving = runner(dsn)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(serving.run())
        await owns_all(serving)
        print("READY", dsn, flush=True)
        await running


class Ours:
    answers = True

    def __init__(self, client: Client) -> None:
        self._client = client
        self._series = secrets.token_hex(4)  # a key used before would find the result of then
        self._keys = 0

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        workflow = WORKFLOWS[kind]
        calls = (self._client.execute(workflow, each, key=self._key()) for each in requests)
        return await asyncio.gather(*calls)

    async def start_waiting(self) -> Execution[int]:
        return await self._client.start(Waiter, None, key=self._key())

    async def resume(self, waiting: Execution[int], value: int) -> int:
        await waiting.resolve(Waiter.go, value)
        return await waiting.join()

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        return await self.run_all("sleeper", [seconds] * count)

    def _key(self) -> str:
        self._keys += 1
        return f"{self._series}-{self._keys}"


@asynccontextmanager
async def connect(variant: str, dsn: str) -> AsyncGenerator[Ours]:
    if variant == "in process":
        await migrate(dsn)
        async with runner(dsn) as serving:
            await owns_all(serving)
            yield Ours(serving.client)
    else:
        async with Client(Settings(dsn=dsn)) as client:
            yield Ours(client)


if __name__ == "__main__":
    main(work, connect)
