"""Absurd: tasks in stored procedures, which a worker polls for.

Its wait for a result polls with a pause of 50 ms to 1 s, whatever the worker does; the variant
``tight`` fetches a single result each 2 ms instead. A parent runs on a queue of its own in the same
worker, because a task may not await one of its own queue.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from absurd_sdk import AsyncAbsurd

from bench.peers.load import LIMIT, Kind, main

POLL = {"default": 0.25, "tight": 0.01}
RESULT_POLL = 0.002
CLIENTS = 8
ENDED = ("completed", "failed", "cancelled")


async def work(variant: str, dsn: str) -> None:
    absurdctl = Path(sys.executable).parent / "absurdctl"
    environment = {**os.environ, "ABSURD_DATABASE_URL": dsn}
    subprocess.run([absurdctl, "init"], check=True, env=environment, stdout=subprocess.DEVNULL)
    tasks = AsyncAbsurd(dsn, queue_name="bench")
    parents = AsyncAbsurd(dsn, queue_name="parents")
    spawner = AsyncAbsurd(dsn, queue_name="bench")
    await tasks.create_queue("bench")
    await parents.create_queue("parents")
    register(tasks, parents, spawner)
    print("READY", dsn, flush=True)
    await asyncio.gather(
        tasks.start_worker(concurrency=100, poll_interval=POLL[variant]),
        parents.start_worker(concurrency=10, poll_interval=POLL[variant]),
    )


def register(tasks: AsyncAbsurd, parents: AsyncAbsurd, spawner: AsyncAbsurd) -> None:
    async def echo(context: Any, number: int) -> int:
        async def step() -> int:
            return number

        return await context.step("echo", step)

    @tasks.register_task("one_step")
    async def one_step(request: int, context: Any) -> int:
        return await echo(context, request)

    @tasks.register_task("many_steps")
    async def many_steps(request: int, context: Any) -> int:
        total = 0
        for number in range(request):
            total += await echo(context, number)
        return total

    @tasks.register_task("waiter")
    async def waiter(request: str, context: Any) -> int:
        return await context.await_event(request)

    @tasks.register_task("sleeper")
    async def sleeper(request: float, context: Any) -> float:
        async def due() -> float:
            return time.time() + request

        at = await context.step("due", due)
        await context.sleep_for("nap", request)
        return time.time() - at

    @parents.register_task("fan_out")
    async def fan_out(request: int, context: Any) -> int:
        async def spawn_all() -> list[str]:
            spawned = [await spawner.spawn("one_step", n, queue="bench") for n in range(request)]
            return [str(each["task_id"]) for each in spawned]

        children = await context.step("spawn", spawn_all)
        waits = [await context.await_task_result(id, queue_name="bench") for id in children]
        return sum(each.result for each in waits)


class Absurd:
    answers = True

    def __init__(self, clients: Sequence[AsyncAbsurd], *, tight: bool) -> None:
        self._clients = clients
        self._tight = tight

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        queue = "parents" if kind == "fan_out" else "bench"
        tight = self._tight and len(requests) == 1
        ids: dict[int, str] = {}
        results: dict[int, Any] = {}

        async def spawn(nth: int) -> None:
            for n in range(nth, len(requests), CLIENTS):
                spawned = await self._clients[nth].spawn(kind, requests[n], queue=queue)
                ids[n] = str(spawned["task_id"])

        async def wait(nth: int) -> None:
            for n in range(nth, len(requests), CLIENTS):
                results[n] = await self._result(self._clients[nth], ids[n], queue, tight=tight)

        await asyncio.gather(*(spawn(nth) for nth in range(CLIENTS)))
        await asyncio.gather(*(wait(nth) for nth in range(CLIENTS)))
        return [results[n] for n in range(len(requests))]

    async def start_waiting(self) -> tuple[str, str]:
        event, client = secrets.token_hex(8), self._clients[0]
        id = str((await client.spawn("waiter", event, queue="bench"))["task_id"])
        while (await client.fetch_task_result(id)).state != "sleeping":
            await asyncio.sleep(0.02)
        return event, id

    async def resume(self, waiting: tuple[str, str], value: int) -> Any:
        event, id = waiting
        await self._clients[0].emit_event(event, value)
        return await self._result(self._clients[0], id, "bench", tight=self._tight)

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        return await self.run_all("sleeper", [seconds] * count)

    @staticmethod
    async def _result(client: AsyncAbsurd, id: str, queue: str, *, tight: bool) -> Any:
        if tight:
            while (found := await client.fetch_task_result(id, queue)).state not in ENDED:
                await asyncio.sleep(RESULT_POLL)
        else:
            found = await client.await_task_result(id, timeout=LIMIT, queue_name=queue)
        if found.state != "completed":
            raise AssertionError(f"task {id} has {found.state}")
        return found.result


@asynccontextmanager
async def connect(variant: str, dsn: str) -> AsyncGenerator[Absurd]:
    async with AsyncExitStack() as stack:
        clients = [AsyncAbsurd(dsn, queue_name="bench") for _ in range(CLIENTS)]
        for client in clients:
            stack.push_async_callback(client.close)
        yield Absurd(clients, tight=variant == "tight")


if __name__ == "__main__":
    main(work, connect)
