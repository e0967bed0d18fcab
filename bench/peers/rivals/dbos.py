"""DBOS: in the driver's process, or behind a queue that a worker polls."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from dbos import DBOS, DBOSClient, DBOSConfig

from bench.peers.load import Kind, main

POLL = {"queue": 1.0, "queue tight": 0.01}
MANY_POLL = 0.1  # of each of many results: more would keep the database busy with that


@DBOS.step()
async def echo(number: int) -> int:
    return number


@DBOS.workflow()
async def one_step(number: int) -> int:
    return await echo(number)


@DBOS.workflow()
async def many_steps(count: int) -> int:
    total = 0
    for number in range(count):
        total += await echo(number)
    return total


@DBOS.workflow()
async def fan_out(count: int) -> int:
    children = [await DBOS.start_workflow_async(one_step, number) for number in range(count)]
    return sum([await child.get_result() for child in children])


@DBOS.workflow()
async def waiter() -> int:
    return await DBOS.recv_async("go", timeout_seconds=60)


@DBOS.workflow()
async def sleeper(seconds: float) -> float:
    due = time.time() + seconds
    await DBOS.sleep_async(seconds)
    return time.time() - due


WORKFLOWS = {
    "one_step": one_step,
    "many_steps": many_steps,
    "fan_out": fan_out,
    "sleeper": sleeper,
}


def configure(dsn: str) -> None:
    DBOS(
        config=DBOSConfig(
            name="bench",
            system_database_url=dsn,
            application_version="1",
            log_level="ERROR",
            enable_otlp=False,
        )
    )


async def work(variant: str, dsn: str) -> None:
    configure(dsn)
    DBOS.launch()
    await DBOS.register_queue_async("bench", polling_interval_sec=POLL[variant])
    await asyncio.sleep(2.5)  # it looks for new queues each second
    print("READY", dsn, flush=True)
    await asyncio.Event().wait()


class InProcess:
    answers = True

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        workflow = WORKFLOWS[kind]
        starts = (DBOS.start_workflow_async(workflow, each) for each in requests)
        handles = await asyncio.gather(*starts)
        return await asyncio.gather(*(handle.get_result() for handle in handles))

    async def start_waiting(self) -> Any:
        return await DBOS.start_workflow_async(waiter)

    async def resume(self, waiting: Any, value: int) -> Any:
        await DBOS.send_async(waiting.get_workflow_id(), value, "go")
        return await waiting.get_result()

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        return await self.run_all("sleeper", [seconds] * count)


class Queued:
    answers = True

    def __init__(self, client: DBOSClient, *, poll: float) -> None:
        self._client = client
        self._poll = poll

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        handles = await asyncio.gather(*(self._enqueue(kind, each) for each in requests))
        poll = self._poll if len(handles) == 1 else max(self._poll, MANY_POLL)
        return await asyncio.gather(*(h.get_result(polling_interval_sec=poll) for h in handles))

    async def start_waiting(self) -> Any:
        return await self._enqueue("waiter")

    async def resume(self, waiting: Any, value: int) -> Any:
        await self._client.send_async(waiting.get_workflow_id(), value, "go")
        return await waiting.get_result(polling_interval_sec=self._poll)

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        return await self.run_all("sleeper", [seconds] * count)

    async def _enqueue(self, workflow: str, *arguments: object) -> Any:
        return await self._client.enqueue_async(
            {"queue_name": "bench", "workflow_name": workflow}, *arguments
        )


@asynccontextmanager
async def connect(variant: str, dsn: str) -> AsyncGenerator[InProcess | Queued]:
    if variant == "in process":
        configure(dsn)
        DBOS.launch()
        yield InProcess()
        DBOS.destroy()
    else:
        client = DBOSClient(system_database_url=dsn)
        yield Queued(client, poll=POLL[variant])
        client.destroy()


if __name__ == "__main__":
    main(work, connect)
